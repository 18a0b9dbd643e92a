//! The way of lines to the thread that writes them. Whoever logs never waits for a stream: lines that there is no room for
//! are dropped and counted.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::record::Severity;

/// Bytes of lines that may wait: some 25,000 records.
const MAX_BYTES: usize = 4 << 20;
/// As many of them as info records may take. The rest is for warnings and errors.
const MAX_INFO_BYTES: usize = MAX_BYTES / 4 * 3;

/// A line that waits.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) severity: Severity,
    pub(crate) text: String,
}

/// What is to be written now.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) lines: VecDeque<Line>,
    /// Lines that there was no room for, after the others.
    pub(crate) lost: u64,
    /// Somebody waits until everything is written.
    pub(crate) flush: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Queue {
    waiting: Mutex<Waiting>,
    /// There is something to write.
    filled: Condvar,
    /// A flush that was asked for is done.
    flushed: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    batch: Batch,
    bytes: usize,
}

impl Queue {
    /// Adds a line; false if it is lost. A line that is larger than all the room is taken if nothing else waits.
    pub(crate) fn push(&self, line: Line) -> bool {
        let mut waiting = self.lock();
        let room = if line.severity == Severity::Info { MAX_INFO_BYTES } else { MAX_BYTES };
        if waiting.bytes + line.text.len() > room && !waiting.batch.lines.is_empty() {
            waiting.batch.lost += 1;
            return false;
        }
        waiting.bytes += line.text.len();
        waiting.batch.lines.push_back(line);
        drop(waiting);
        self.filled.notify_one();
        true
    }

    /// Everything that waits, as soon as there is something or somebody wants a flush; nothing after `limit`.
    pub(crate) fn take(&self, limit: Duration) -> Batch {
        let is_idle = |waiting: &mut Waiting| {
            waiting.batch.lines.is_empty() && waiting.batch.lost == 0 && !waiting.batch.flush
        };
        let waited = self.filled.wait_timeout_while(self.lock(), limit, is_idle);
        let (mut waiting, _) = waited.unwrap_or_else(PoisonError::into_inner);
        waiting.bytes = 0;
        let flush = waiting.batch.flush;
        // The wish is kept until it is fulfilled.
        Batch { flush, ..std::mem::replace(&mut waiting.batch, Batch { flush, ..Batch::default() }) }
    }

    /// Waits until everything that was pushed before is written; false if that takes longer than `limit`.
    pub(crate) fn flush(&self, limit: Duration) -> bool {
        let mut waiting = self.lock();
        waiting.batch.flush = true;
        self.filled.notify_one();
        let waited = self.flushed.wait_timeout_while(waiting, limit, |waiting| waiting.batch.flush);
        let (_waiting, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        !timeout.timed_out()
    }

    /// A batch that asked for a flush is written.
    pub(crate) fn note_flushed(&self) {
        self.lock().batch.flush = false;
        self.flushed.notify_all();
    }

    /// A panic of another thread leaves it usable.
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(severity: Severity, length: usize) -> Line {
        Line { severity, text: "x".repeat(length) }
    }

    #[test]
    fn what_there_is_no_room_for_is_counted() {
        let queue = Queue::default();
        for _ in 0..MAX_INFO_BYTES / 1024 {
            assert!(queue.push(line(Severity::Info, 1024)));
        }
        assert!(!queue.push(line(Severity::Info, 1)), "the rest is for what is more important");
        assert!(queue.push(line(Severity::Warning, MAX_BYTES - MAX_INFO_BYTES)));
        assert!(!queue.push(line(Severity::Error, 1)));
        let batch = queue.take(Duration::ZERO);
        assert_eq!((batch.lines.len(), batch.lost, batch.flush), (MAX_INFO_BYTES / 1024 + 1, 2, false));
        assert!(queue.push(line(Severity::Info, 2 * MAX_BYTES)), "alone, however long it is");
        let batch = queue.take(Duration::ZERO);
        assert_eq!((batch.lines.len(), batch.lost), (1, 0));
        assert!(queue.take(Duration::ZERO).lines.is_empty());
    }

    #[test]
    fn a_flush_waits_for_the_writer_and_not_for_ever() {
        let queue = Queue::default();
        queue.push(line(Severity::Info, 1));
        assert!(!queue.flush(Duration::from_millis(1)), "nobody writes");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                assert!(queue.take(Duration::ZERO).flush);
                queue.note_flushed();
            });
            assert!(queue.flush(Duration::from_mins(1)));
        });
        assert!(!queue.take(Duration::ZERO).flush);
    }
}
