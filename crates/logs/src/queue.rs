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
    /// Somebody waits until everything is written: the number of the latest flush.
    pub(crate) flush: Option<u64>,
}

#[derive(Debug, Default)]
pub(crate) struct Queue {
    waiting: Mutex<Waiting>,
    /// There is something to write.
    filled: Condvar,
    /// Flushes that were asked for are done.
    flushed: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    lines: VecDeque<Line>,
    lost: u64,
    bytes: usize,
    /// Flushes that were asked for, and those that are done: all up to a number.
    asked: u64,
    done: u64,
}

impl Waiting {
    fn flush(&self) -> Option<u64> {
        (self.done < self.asked).then_some(self.asked)
    }
}

impl Queue {
    /// Adds a line; false if it is lost. A line that is larger than all the room is taken if nothing else waits.
    pub(crate) fn push(&self, line: Line) -> bool {
        let mut waiting = self.lock();
        let room = if line.severity == Severity::Info { MAX_INFO_BYTES } else { MAX_BYTES };
        if waiting.bytes + line.text.len() > room && !waiting.lines.is_empty() {
            waiting.lost += 1;
            return false;
        }
        waiting.bytes += line.text.len();
        waiting.lines.push_back(line);
        drop(waiting);
        self.filled.notify_one();
        true
    }

    /// Everything that waits, as soon as there is something or somebody wants a flush; nothing after `limit`.
    pub(crate) fn take(&self, limit: Duration) -> Batch {
        let is_idle = |waiting: &mut Waiting| {
            waiting.lines.is_empty() && waiting.lost == 0 && waiting.flush().is_none()
        };
        let waited = self.filled.wait_timeout_while(self.lock(), limit, is_idle);
        let (mut waiting, _) = waited.unwrap_or_else(PoisonError::into_inner);
        waiting.bytes = 0;
        let (lines, lost) = (std::mem::take(&mut waiting.lines), std::mem::take(&mut waiting.lost));
        Batch { lines, lost, flush: waiting.flush() }
    }

    /// Waits until everything that was pushed before is written; false if that takes longer than `limit`.
    pub(crate) fn flush(&self, limit: Duration) -> bool {
        let mut waiting = self.lock();
        waiting.asked += 1;
        let number = waiting.asked;
        self.filled.notify_one();
        let waited = self.flushed.wait_timeout_while(waiting, limit, |waiting| waiting.done < number);
        let (_waiting, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        !timeout.timed_out()
    }

    /// A batch that asked for a flush is written. Those who have asked since then wait on.
    pub(crate) fn note_flushed(&self, number: u64) {
        let mut waiting = self.lock();
        waiting.done = waiting.done.max(number);
        drop(waiting);
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
        assert_eq!((batch.lines.len(), batch.lost, batch.flush), (MAX_INFO_BYTES / 1024 + 1, 2, None));
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
                let flush = queue.take(Duration::ZERO).flush;
                queue.note_flushed(flush.unwrap());
            });
            assert!(queue.flush(Duration::from_mins(1)));
        });
        assert!(queue.take(Duration::ZERO).flush.is_none());
    }

    #[test]
    fn a_flush_ends_only_when_its_own_lines_are_written() {
        let queue = Queue::default();
        assert!(!queue.flush(Duration::ZERO), "nobody writes");
        let first = queue.take(Duration::ZERO);
        queue.push(line(Severity::Info, 1));
        assert!(!queue.flush(Duration::ZERO), "nobody writes");
        queue.note_flushed(first.flush.unwrap());
        let second = queue.take(Duration::ZERO);
        assert_eq!((second.lines.len(), second.flush), (1, Some(2)), "the second is still wanted");
    }
}
