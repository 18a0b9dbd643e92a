//! An end for tests that would have none.

use std::io::{Write as _, stderr};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

/// Ends the process, with a message that names the thread that began this, unless it is dropped in time.
///
/// A test that waits for ever would otherwise hold up those after it and tell nothing.
#[derive(Debug)]
pub(super) struct TimeLimit {
    _ended: Sender<()>,
}

impl TimeLimit {
    pub(super) fn begin(limit: Duration) -> Self {
        let name = thread::current().name().unwrap_or("a thread").to_owned();
        let (ended, is_ended) = channel::<()>();
        thread::spawn(move || {
            if is_ended.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                // Not by `eprintln`, which test runners keep until the test has ended.
                drop(writeln!(stderr(), "{name} has not ended within {limit:?}; the whole process ends"));
                std::process::abort();
            }
        });
        Self { _ended: ended }
    }
}
