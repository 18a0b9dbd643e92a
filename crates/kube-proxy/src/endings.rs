//! What is to be done at the end of the program.

use std::sync::{Arc, Mutex, PoisonError};

/// What a mode does when the program is asked to end, before it does.
#[derive(Clone, Default)]
pub(crate) struct Endings(Arc<Mutex<Vec<Ending>>>);

type Ending = Box<dyn FnOnce() + Send>;

impl Endings {
    /// Adds something that is to be done.
    #[cfg_attr(windows, expect(dead_code, reason = "its mode has nothing to bring to an end"))]
    pub(crate) fn add(&self, ending: impl FnOnce() + Send + 'static) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(ending));
    }

    /// Does all, each once. May wait; not longer than the limits of the modes.
    pub(crate) fn run(&self) {
        let endings = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        for ending in endings {
            ending();
        }
    }
}
