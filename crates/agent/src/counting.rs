//! The thread that reads what went through: over a target of its own, so that no change ever waits for a reading, and seldom
//! enough that readings don't matter.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use mode::{Meter, OpenTarget, Target};
use model::{IpFamily, ServicePortName};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::traffic::{Ledger, Traffic};

/// What went through, by family.
pub type Published = BTreeMap<IpFamily, Arc<Traffic>>;

/// What came of a reading.
#[derive(Debug)]
pub(crate) struct Counted<T: Target> {
    /// `None` in a mode that does not count.
    pub(crate) counted: Result<Option<T::Counted>, T::Error>,
    pub(crate) took: Duration,
}

enum Job {
    Read,
    /// Whose the counters are, and which Service ports are no more.
    Record {
        meters: Vec<Meter>,
        gone: Vec<ServicePortName>,
        now: Instant,
    },
}

/// The thread's other end. The thread ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Counting {
    family: IpFamily,
    jobs: mpsc::Sender<Job>,
    published: watch::Sender<Published>,
    rhythm: Rhythm,
}

impl Counting {
    /// Starts the thread. `report` gives false when nobody listens any more.
    ///
    /// # Errors
    /// The system refused a thread.
    pub(crate) fn start<T: Target>(
        family: IpFamily,
        open: OpenTarget<T>,
        published: watch::Sender<Published>,
        report: impl Fn(Counted<T>) -> bool + Send + 'static,
    ) -> std::io::Result<Self> {
        let (jobs, inbox) = mpsc::channel();
        let publish = published.clone();
        let work = move || {
            let (mut target, mut ledger) = (None, Ledger::default());
            for job in inbox {
                match job {
                    Job::Read => {
                        let begun = Instant::now();
                        let counted = read(&open, &mut target);
                        if !report(Counted { counted, took: begun.elapsed() }) {
                            break;
                        }
                    }
                    Job::Record { meters, gone, now } => {
                        let traffic = Arc::new(ledger.take(meters, &gone, now));
                        publish.send_modify(|published| _ = published.insert(family, traffic));
                    }
                }
            }
        };
        std::thread::Builder::new().name(thread_name(family).into()).spawn(work)?;
        Ok(Self { family, jobs, published, rhythm: Rhythm::default() })
    }

    /// All has been in force for the first time, so long after the start. As much time is left before the first reading, since
    /// whatever made the start long (other families, who waits for memory to be given back) may go on for a while.
    pub(crate) fn begin_after_start(&mut self, took: Duration, now: Instant) {
        self.rhythm.first = Some(now + took.min(EVERY));
    }

    /// Has a reading made if it is time for one.
    pub(crate) fn advance(&mut self, now: Instant) {
        if self.rhythm.begin_if_due(now) && self.jobs.send(Job::Read).is_err() {
            self.rhythm.end(now, Duration::ZERO);
        }
    }

    /// A reading is over.
    pub(crate) fn took(&mut self, took: Duration, now: Instant) {
        self.rhythm.end(now, took);
    }

    /// Has the sums updated.
    pub(crate) fn record(&self, meters: Vec<Meter>, gone: Vec<ServicePortName>, now: Instant) {
        // Without the thread nothing is read any more either.
        drop(self.jobs.send(Job::Record { meters, gone, now }));
    }

    /// Somebody looks.
    pub(crate) fn want(&mut self) {
        self.rhythm.is_wanted = true;
    }

    /// When to advance.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.rhythm.due()
    }

    /// What is known.
    pub(crate) fn latest(&self) -> Option<Arc<Traffic>> {
        self.published.borrow().get(&self.family).cloned()
    }
}

/// What a family's counting thread is called.
pub(crate) fn thread_name(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "counters-ip",
        IpFamily::V6 => "counters-ip6",
    }
}

/// Reads. A target that failed is opened anew the next time; a panic is a failure too.
fn read<T: Target>(open: &OpenTarget<T>, slot: &mut Option<T>) -> Result<Option<T::Counted>, T::Error> {
    let reading = AssertUnwindSafe(|| {
        let mut target = slot.take().map_or_else(|| open(), Ok)?;
        let counted = target.traffic()?;
        *slot = Some(target);
        Ok(counted)
    });
    catch_unwind(reading).unwrap_or_else(|_| Err(T::outcome_unknown("a panic")))
}

/// Nobody looks: so often, lest much is lost with what is deleted.
const EVERY: Duration = Duration::from_secs(10);
/// And readings take at most one part in so many of the time.
const SHARE: u32 = 100;
/// Somebody looks: the same.
const EVERY_WHEN_WANTED: Duration = Duration::from_secs(1);
const SHARE_WHEN_WANTED: u32 = 10;

/// When readings are due.
#[derive(Debug, Default)]
struct Rhythm {
    is_reading: bool,
    is_wanted: bool,
    /// When the first one is due, unless somebody looks before.
    first: Option<Instant>,
    /// When the last one was over, and how long it had taken.
    last: Option<(Instant, Duration)>,
}

impl Rhythm {
    /// `None`: at once, or not before the one under way is over.
    fn due(&self) -> Option<Instant> {
        if self.is_reading {
            return None;
        }
        let Some((at, took)) = self.last else {
            return self.first.filter(|_| !self.is_wanted);
        };
        let (pause, share) =
            if self.is_wanted { (EVERY_WHEN_WANTED, SHARE_WHEN_WANTED) } else { (EVERY, SHARE) };
        Some(at + pause.max(took.saturating_mul(share)))
    }

    fn begin_if_due(&mut self, now: Instant) -> bool {
        let begins = !self.is_reading && self.due().is_none_or(|due| due <= now);
        if begins {
            (self.is_reading, self.is_wanted) = (true, false);
        }
        begins
    }

    fn end(&mut self, now: Instant, took: Duration) {
        self.is_reading = false;
        self.last = Some((now, took));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readings_are_rare_and_take_little_of_the_time() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut rhythm = Rhythm { first: Some(start), ..Rhythm::default() };
        assert!(!rhythm.begin_if_due(start - second), "not while the start goes on");
        assert!(rhythm.begin_if_due(start), "the first one");
        assert!(!rhythm.begin_if_due(start + 100 * second), "one at a time");
        rhythm.end(start, second / 1000);
        assert_eq!(rhythm.due(), Some(start + EVERY));
        rhythm.is_wanted = true;
        assert_eq!(rhythm.due(), Some(start + EVERY_WHEN_WANTED));
        assert!(!rhythm.begin_if_due(start + second / 2));
        assert!(rhythm.begin_if_due(start + second));
        rhythm.end(start + second, 2 * second);
        assert_eq!(rhythm.due(), Some(start + second + SHARE * 2 * second));
        rhythm.is_wanted = true;
        assert_eq!(rhythm.due(), Some(start + second + SHARE_WHEN_WANTED * 2 * second));
    }

    #[test]
    fn the_first_reading_leaves_room_for_the_start_unless_somebody_looks() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut rhythm = Rhythm { first: Some(start + 3 * second), ..Rhythm::default() };
        assert_eq!(rhythm.due(), Some(start + 3 * second));
        assert!(!rhythm.begin_if_due(start + second));
        rhythm.is_wanted = true;
        assert!(rhythm.begin_if_due(start + second));
        assert_eq!(rhythm.due(), None);
    }
}
