//! Which events are new and which happened again. Pure.
//!
//! The times are those of client-go (`tools/events/event_broadcaster.go`): the second of equal events makes a series at
//! once, further ones are counted and written every half an hour, and when nothing came for six minutes it is closed. Unlike there,
//! events with different notes are different: a Service may have several conflicts.

use std::collections::BTreeMap;

use jiff::Timestamp;
use tokio::time::Instant;

use crate::object::{Identity, Series};
use crate::{Event, Timings};

/// So many events are remembered; beyond, the one that was silent for longest is forgotten.
const MAX_KNOWN: usize = 1024;

/// Something to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Write {
    pub(crate) event: Event,
    pub(crate) identity: Identity,
    /// When it happened first.
    pub(crate) first: Timestamp,
    /// `None`: it is new.
    pub(crate) series: Option<Series>,
}

/// The events of late.
#[derive(Debug)]
pub(crate) struct Known {
    timings: Timings,
    events: BTreeMap<Event, Entry>,
}

#[derive(Debug)]
struct Entry {
    identity: Identity,
    first: Timestamp,
    last: Timestamp,
    last_seen: Instant,
    count: u32,
    /// The count that the API was told, and when.
    written: u32,
    written_at: Instant,
}

impl Known {
    pub(crate) fn new(timings: Timings) -> Self {
        Self { timings, events: BTreeMap::new() }
    }

    /// Takes in an event; returns what is to be written at once.
    pub(crate) fn take(&mut self, event: Event, at: Timestamp, now: Instant) -> Option<Write> {
        if let Some(entry) = self.events.get_mut(&event) {
            entry.count = entry.count.saturating_add(1);
            (entry.last, entry.last_seen) = (at, now);
            if event.reason.is_same_everywhere() {
                // Nobody counts what every node sees.
                entry.written = entry.count;
            }
            let begins = entry.written == 1 && entry.count == 2;
            return begins.then(|| entry.write(&event, now));
        }
        self.make_room();
        let identity = Identity::new(&event, at);
        let entry = Entry {
            identity: identity.clone(),
            first: at,
            last: at,
            last_seen: now,
            count: 1,
            written: 1,
            written_at: now,
        };
        self.events.insert(event.clone(), entry);
        Some(Write { event, identity, first: at, series: None })
    }

    /// What is to be written by now. Forgets what was silent for long.
    pub(crate) fn due(&mut self, now: Instant) -> Vec<Write> {
        let Timings { refresh, close, .. } = self.timings;
        let mut writes = Vec::new();
        self.events.retain(|event, entry| {
            let is_over = entry.last_seen + close <= now;
            if entry.count > entry.written && (is_over || entry.written_at + refresh <= now) {
                writes.push(entry.write(event, now));
            }
            !is_over
        });
        writes
    }

    /// When [`Known::due`] should be asked again.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let Timings { refresh, close, .. } = self.timings;
        let deadline = |entry: &Entry| {
            let over = entry.last_seen + close;
            if entry.count > entry.written { over.min(entry.written_at + refresh) } else { over }
        };
        self.events.values().map(deadline).min()
    }

    fn make_room(&mut self) {
        if self.events.len() < MAX_KNOWN {
            return;
        }
        let silent = self.events.iter().min_by_key(|(_, entry)| entry.last_seen);
        if let Some(event) = silent.map(|(event, _)| event.clone()) {
            self.events.remove(&event);
        }
    }
}

impl Entry {
    /// The series as it is now, which counts as written.
    fn write(&mut self, event: &Event, now: Instant) -> Write {
        (self.written, self.written_at) = (self.count, now);
        Write {
            event: event.clone(),
            identity: self.identity.clone(),
            first: self.first,
            series: Some(Series { count: self.count, last: self.last }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use model::ObjectName;

    use super::*;
    use crate::{Reason, Regarding};

    const SECOND: Duration = Duration::from_secs(1);
    const MINUTE: Duration = Duration::from_mins(1);

    fn event(reason: Reason, note: &str) -> Event {
        Event::new(reason, Regarding::Service(ObjectName::new("shop", "web"), None)).note(note)
    }

    fn listen(note: &str) -> Event {
        event(Reason::FailedToStartServiceHealthcheck, note)
    }

    fn count(write: Option<&Write>) -> Option<u32> {
        write.map(|write| write.series.map_or(1, |series| series.count))
    }

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + i64::try_from(seconds).unwrap()).unwrap()
    }

    /// An event each second for 90 minutes.
    #[test]
    fn repeats_are_counted_and_written_now_and_then() {
        let (mut known, start) = (Known::new(Timings::default()), Instant::now());
        let mut written = Vec::new();
        for second in 0..90 * 60 {
            let now = start + SECOND * u32::try_from(second).unwrap();
            let writes = known.due(now);
            let writes = writes.into_iter().chain(known.take(listen("x"), at(second), now));
            written.extend(writes.map(|write| (second, count(Some(&write)).unwrap())));
        }
        assert_eq!(written, [(0, 1), (1, 2), (1801, 1801), (3601, 3601)]);
        let end = known.deadline().unwrap();
        assert_eq!(end, start + SECOND * 5401, "half an hour after it was written last");
        let over = start + SECOND * 5399 + MINUTE * 6;
        let last = known.due(over);
        assert_eq!(last.len(), 1);
        assert_eq!(last[0].series, Some(Series { count: 5400, last: at(5399) }));
        assert_eq!((known.deadline(), known.due(over + MINUTE)), (None, vec![]));
        let again = known.take(listen("x"), at(9000), over + MINUTE).unwrap();
        assert_eq!(again.series, None);
        assert_ne!(again.identity, last[0].identity, "a new event, not a new count");
    }

    #[test]
    fn a_single_event_is_forgotten_silently() {
        let (mut known, now) = (Known::new(Timings::default()), Instant::now());
        assert!(known.take(listen("x"), at(0), now).is_some());
        assert!(known.take(listen("y"), at(0), now).is_some(), "another note is another event");
        assert_eq!(known.due(now + MINUTE * 5), []);
        assert_eq!(known.due(now + MINUTE * 6), []);
        assert_eq!(known.deadline(), None);
    }

    #[test]
    fn what_is_the_same_everywhere_is_not_counted() {
        let (mut known, now) = (Known::new(Timings::default()), Instant::now());
        let conflict = || event(Reason::FrontendConflict, "x");
        assert!(known.take(conflict(), at(0), now).is_some());
        for i in 1..10 {
            assert_eq!(known.take(conflict(), at(i), now + MINUTE), None);
        }
        assert_eq!(known.due(now + MINUTE * 7), []);
        assert_eq!(known.deadline(), None);
    }

    #[test]
    fn memory_is_bounded() {
        let (mut known, now) = (Known::new(Timings::default()), Instant::now());
        for i in 0..2 * MAX_KNOWN {
            let since = SECOND * u32::try_from(i).unwrap();
            assert!(known.take(listen(&i.to_string()), at(0), now + since).is_some());
        }
        assert_eq!(known.events.len(), MAX_KNOWN);
        let newest = listen(&(2 * MAX_KNOWN - 1).to_string());
        assert_eq!(count(known.take(newest, at(1), now).as_ref()), Some(2));
    }
}
