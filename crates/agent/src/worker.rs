//! The thread that works a family's target: jobs in, answers out, nothing decided.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use mode::{Applied, OpenTarget, Reading, Target};
use model::IpFamily;
use tokio::time::Instant;

/// Something to do for the worker.
#[derive(Debug)]
pub(crate) enum Job<T: Target> {
    Read,
    /// Something that needs no target.
    Work(Task),
    Apply(Vec<T::Step>),
}

/// What is done on the thread for whoever has made it, who hears of it by a way of their own.
pub(crate) struct Task(Box<dyn FnOnce() + Send>);

impl Task {
    pub(crate) fn new(work: impl FnOnce() + Send + 'static) -> Self {
        Self(Box::new(work))
    }

    pub(crate) fn run(self) {
        (self.0)();
    }
}

impl std::fmt::Debug for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Task")
    }
}

/// What came of it.
#[derive(Debug)]
pub(crate) enum Answer<T: Target> {
    /// There was no way to the target: nothing was done.
    NotOpened(T::Error),
    Read(Reading<T::Found, T::Error>),
    /// The task has ended, maybe by a panic.
    Worked,
    Applied(Applied<T>),
}

/// An answer, and how long the job took.
#[derive(Debug)]
pub(crate) struct Report<T: Target> {
    pub(crate) answer: Answer<T>,
    pub(crate) took: Duration,
}

/// Steps are made for so long before they make room for others.
const SLICE: Duration = Duration::from_millis(200);

/// The sending end of a worker's jobs. The thread ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Worker<T: Target> {
    jobs: mpsc::Sender<Job<T>>,
    /// Something waits for the job under way.
    is_waited_for: Arc<AtomicBool>,
}

impl<T: Target> Worker<T> {
    /// Starts the thread. `report` gives false when nobody listens any more.
    ///
    /// # Errors
    /// The system refused a thread.
    pub(crate) fn start(
        family: IpFamily,
        open: OpenTarget<T>,
        report: impl Fn(Report<T>) -> bool + Send + 'static,
    ) -> std::io::Result<Self> {
        let (jobs, inbox) = mpsc::channel();
        let is_waited_for = Arc::new(AtomicBool::new(false));
        let flag = is_waited_for.clone();
        let work = move || {
            let mut target = None;
            for job in inbox {
                flag.store(false, Ordering::Relaxed);
                let started = Instant::now();
                let yields = || flag.load(Ordering::Relaxed) && started.elapsed() >= SLICE;
                let answer = perform(job, &open, &mut target, &yields);
                if !report(Report { answer, took: started.elapsed() }) {
                    break;
                }
            }
        };
        std::thread::Builder::new().name(thread_name(family).into()).spawn(work)?;
        Ok(Self { jobs, is_waited_for })
    }

    /// Hands a job over; false if the thread has ended.
    pub(crate) fn submit(&self, job: Job<T>) -> bool {
        self.jobs.send(job).is_ok()
    }

    /// Asks the job under way to stop between two steps, if it has taken long.
    pub(crate) fn make_room(&self) {
        self.is_waited_for.store(true, Ordering::Relaxed);
    }
}

/// What a family's worker thread is called.
pub(crate) fn thread_name(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "kernel-ip",
        IpFamily::V6 => "kernel-ip6",
    }
}

/// Does a job. A target is kept only if it can go on: whatever a failed one still holds belongs to the job that failed. A panic is a failure of the job too, since a thread that ended would leave its family unserved for good.
fn perform<T: Target>(
    job: Job<T>,
    open: &OpenTarget<T>,
    slot: &mut Option<T>,
    yields: &dyn Fn() -> bool,
) -> Answer<T> {
    let lost = lost(&job);
    let work = AssertUnwindSafe(|| match job {
        Job::Work(task) => {
            task.run();
            Answer::Worked
        }
        Job::Read => with_target(open, slot, |target| Answer::Read(target.read())),
        Job::Apply(steps) => with_target(open, slot, |target| Answer::Applied(target.apply(steps, yields))),
    });
    catch_unwind(work).unwrap_or_else(|_| lost())
}

fn with_target<T: Target>(
    open: &OpenTarget<T>,
    slot: &mut Option<T>,
    work: impl FnOnce(&mut T) -> Answer<T>,
) -> Answer<T> {
    let mut target = match slot.take().map_or_else(|| open(), Ok) {
        Ok(target) => target,
        Err(error) => return Answer::NotOpened(error),
    };
    let answer = work(&mut target);
    if can_go_on(&answer) {
        *slot = Some(target);
    }
    answer
}

fn can_go_on<T: Target>(answer: &Answer<T>) -> bool {
    match answer {
        Answer::NotOpened(_) | Answer::Read(Reading::Failed(_)) => false,
        Answer::Worked | Answer::Read(Reading::Whole(_) | Reading::Unstable | Reading::NotReadable) => true,
        Answer::Applied(applied) => applied.is_usable,
    }
}

/// What is said of a job of which nothing came back: any of its steps may have been made.
fn lost<T: Target>(job: &Job<T>) -> impl FnOnce() -> Answer<T> + use<T> {
    /// Of which kind the job is, without its content.
    enum Lost {
        Read,
        Work,
        Apply(usize),
    }
    let lost = match job {
        Job::Read => Lost::Read,
        Job::Work(_) => Lost::Work,
        Job::Apply(steps) => Lost::Apply(steps.len()),
    };
    let unknown = || T::outcome_unknown("a panic");
    move || match lost {
        Lost::Read => Answer::Read(Reading::Failed(unknown())),
        Lost::Work => Answer::Worked,
        Lost::Apply(n_steps) => {
            let results = std::iter::repeat_with(|| Err(unknown())).take(n_steps).collect();
            Answer::Applied(Applied { results, kernel_time: None, is_usable: false })
        }
    }
}
