//! An end for tests that would have none.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Ends the process, with a message that names the thread that began this, unless it is dropped in time.
///
/// A test that waits for ever would otherwise hold up those after it and tell nothing.
#[derive(Debug)]
pub(super) struct TimeLimit {
    dropped: Option<Sender<()>>,
    waiting: Option<JoinHandle<()>>,
}

impl TimeLimit {
    pub(super) fn begin(limit: Duration) -> Self {
        let name = thread::current().name().unwrap_or("a thread").to_owned();
        let (dropped, is_dropped) = channel::<()>();
        let waiting = thread::spawn(move || {
            if is_dropped.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                eprintln!("{name} has not ended within {limit:?}; the whole process ends");
                std::process::abort();
            }
        });
        Self { dropped: Some(dropped), waiting: Some(waiting) }
    }
}

impl Drop for TimeLimit {
    fn drop(&mut self) {
        drop(self.dropped.take());
        drop(self.waiting.take().map(JoinHandle::join));
    }
}
