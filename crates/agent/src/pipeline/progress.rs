//! What pipelines tell of their work.

use std::sync::Arc;
use std::time::Duration;

use mode::Target;
use tokio::time::Instant;

use crate::log::with_causes;
use crate::worker::Job;

/// What an attempt came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Changes were made.
    Change,
    /// What was wrong or other than wanted was made right.
    Repair(Reason),
    /// Everything was made anew.
    Rebuild(Reason),
    /// The target was found right; nothing was sent.
    Unchanged(Reason),
}

/// Why everything is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reason {
    /// Nothing is known of it yet.
    Start,
    /// An apply failed.
    Failure,
    /// The settings changed.
    Settings,
    /// Somebody else changed it.
    ForeignChange,
    /// What it depends on came or went.
    Surroundings,
    /// It has not been looked at for a while.
    Audit,
}

/// What came of something.
pub(crate) enum Progress<T: Target> {
    /// Goes on; nothing to say.
    Working,
    Done(Done),
    Failed(Failed<T>),
}

/// A success.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Done {
    pub(crate) step: Step,
    /// What was written and deleted.
    pub(crate) writes: usize,
    /// What the kernel itself took for it, if that is known.
    pub(crate) kernel_time: Option<Duration>,
    /// Nothing was left for another plan.
    pub(crate) is_complete: bool,
    /// From the moment the oldest change in it was known.
    pub(crate) latency: Duration,
    /// When it was planned: what was known then is in force now.
    pub(crate) planned: Instant,
    /// How long the whole attempt took, with reading and planning.
    pub(crate) duration: Duration,
}

/// What an attempt did when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failing {
    /// It read.
    Read,
    /// It made everything right, or anew.
    Repair,
    /// It made changes.
    Change,
}

/// A failure, and what is done about it.
pub(crate) struct Failed<T: Target> {
    pub(crate) during: Failing,
    /// What went wrong first; `None`: what was read is of no one state.
    pub(crate) error: Option<Arc<T::Error>>,
    /// How many of the attempt's steps were refused, and how many there were.
    pub(crate) refused: usize,
    pub(crate) steps: usize,
    /// Failures of the kind in a row.
    pub(crate) failures: u32,
    pub(crate) retry_in: Duration,
    /// What is held is known all the same.
    pub(crate) is_known: bool,
    pub(crate) kernel_time: Option<Duration>,
    /// How long the attempt took.
    pub(crate) duration: Duration,
}

impl<T: Target> Failed<T> {
    /// What went wrong, with its causes.
    pub(crate) fn text(&self) -> String {
        self.error.as_ref().map_or_else(
            || "what is ours kept changing while it was read".to_owned(),
            |error| with_causes(&**error),
        )
    }

    /// Whether trying again has no chance.
    pub(crate) fn is_hopeless(&self) -> bool {
        self.error.as_ref().is_some_and(|error| !T::is_retryable(error))
    }
}

/// Something for the worker, and something to say.
pub(crate) type Turn<T> = (Progress<T>, Option<Job<T>>);
