//! Word that somebody else has been at what is ours.

use std::fmt;
use std::sync::Arc;

/// Begins to tell when somebody else touches what a family has. Called once, after the family's first complete sync: before, a
/// watch would be told of nothing but our own changes. Must return at once.
pub type Watch = Box<dyn FnOnce(Touches) + Send>;

/// Where a family hears of it.
#[derive(Clone)]
pub struct Touches(Arc<dyn Fn(&'static str) -> bool + Send + Sync>);

impl Touches {
    /// They are told by calling this; it gives false when nobody listens any more.
    pub fn new(tell: impl Fn(&'static str) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(tell))
    }

    /// Tells what happened, in words for the log. False: nobody listens any more.
    pub fn tell(&self, what: &'static str) -> bool {
        (self.0)(what)
    }
}

impl fmt::Debug for Touches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Touches")
    }
}
