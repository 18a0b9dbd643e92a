//! Word that somebody else has been at what is ours, or at what it depends on.

use std::fmt;
use std::sync::Arc;

/// Begins to tell when somebody else touches what a family has. Called once, after the family's first complete sync: before, a
/// watch would be told of nothing but our own changes. Must return at once.
pub type Watch = Box<dyn FnOnce(Touches) + Send>;

/// What a watch tells, in words for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touch {
    /// Somebody else has changed or deleted what is ours.
    Foreign(&'static str),
    /// What ours leads to, or is on, came or went, as it does every day. What is held may have to follow.
    Surroundings(&'static str),
}

/// Where a family hears of it.
#[derive(Clone)]
pub struct Touches(Arc<dyn Fn(Touch) -> bool + Send + Sync>);

impl Touches {
    /// They are told by calling this; it gives false when nobody listens any more.
    pub fn new(tell: impl Fn(Touch) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(tell))
    }

    /// Tells what happened. False: nobody listens any more.
    pub fn tell(&self, touch: Touch) -> bool {
        (self.0)(touch)
    }
}

impl fmt::Debug for Touches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Touches")
    }
}
