//! What a mode makes metrics of.

use std::time::Duration;

use crate::planner::RuleCount;

/// Hears of each attempt: where a mode's own metrics are set. One for each family.
pub trait Observer: Send {
    /// An attempt has ended.
    fn attempted(&self, attempt: &Attempt<'_>);
}

/// An attempt that has ended.
#[derive(Clone, Copy, Debug)]
pub struct Attempt<'a> {
    /// It carried only changes, and was not about everything.
    pub is_partial: bool,
    /// It read, and sent nothing.
    pub is_reading: bool,
    /// All that was tried was done.
    pub succeeded: bool,
    /// What the kernel itself took, if that is known.
    pub kernel_time: Option<Duration>,
    /// As they are now.
    pub rules: &'a [RuleCount],
}

/// A mode without metrics of its own.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unobserved;

impl Observer for Unobserved {
    fn attempted(&self, _attempt: &Attempt<'_>) {}
}
