//! The thread that talks to the kernel for one family: jobs in, answers out, nothing decided.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use model::{IpFamily, Mode};
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;

/// Opens a connection to the kernel for a family. Called on the thread that will use it, again after a connection failed.
pub type OpenKernel<M> =
    Arc<dyn Fn(IpFamily) -> Result<<M as Mode>::Kernel, <M as Mode>::Error> + Send + Sync>;

/// Something to do for the kernel thread.
#[derive(Debug)]
pub(crate) enum Job<M: Mode> {
    Read,
    Apply(M::Changes),
}

/// What came of it.
#[derive(Debug)]
pub(crate) enum Answer<M: Mode> {
    Read(Result<M::Found, M::Error>),
    /// With what the kernel itself took, if that is known.
    Applied(Result<Option<Duration>, M::Error>),
}

/// An answer, whose it is and how long the job took.
#[derive(Debug)]
pub(crate) struct Report<M: Mode> {
    pub(crate) family: IpFamily,
    pub(crate) answer: Answer<M>,
    pub(crate) took: Duration,
}

/// The sending end of a kernel thread's jobs. The thread ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Worker<M: Mode> {
    jobs: mpsc::Sender<Job<M>>,
}

impl<M: Mode> Worker<M> {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system refused a thread.
    pub(crate) fn start(
        family: IpFamily,
        open: OpenKernel<M>,
        reports: UnboundedSender<Report<M>>,
    ) -> std::io::Result<Self> {
        let (jobs, inbox) = mpsc::channel();
        let work = move || {
            let mut kernel = None;
            for job in inbox {
                let started = Instant::now();
                let answer = perform(&job, family, &open, &mut kernel);
                // Before anybody hears of it and gives freed memory back to the system: a job may be large.
                drop(job);
                let report = Report { family, answer, took: started.elapsed() };
                if reports.send(report).is_err() {
                    break;
                }
            }
        };
        std::thread::Builder::new().name(thread_name(family).into()).spawn(work)?;
        Ok(Self { jobs })
    }

    /// Hands a job over; false if the thread has ended.
    pub(crate) fn submit(&self, job: Job<M>) -> bool {
        self.jobs.send(job).is_ok()
    }
}

/// What a family's kernel thread is called.
pub(crate) fn thread_name(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "kernel-ip",
        IpFamily::V6 => "kernel-ip6",
    }
}

/// Does a job. A connection is kept only after a success: whatever a failed one still holds belongs to the job that
/// failed. A panic is a failure of the job too, since a thread that ended would leave its family unserved for good.
fn perform<M: Mode>(
    job: &Job<M>,
    family: IpFamily,
    open: &OpenKernel<M>,
    slot: &mut Option<M::Kernel>,
) -> Answer<M> {
    let opened = slot.take().map_or_else(|| open(family), Ok);
    let mut kernel = match opened {
        Ok(kernel) => kernel,
        Err(error) => return failed(job, error),
    };
    let work = AssertUnwindSafe(|| match job {
        Job::Read => Answer::Read(M::read(&mut kernel, family)),
        Job::Apply(changes) => Answer::Applied(M::apply(&mut kernel, changes)),
    });
    let answer = catch_unwind(work).unwrap_or_else(|_| failed(job, M::outcome_unknown("a panic")));
    if matches!(answer, Answer::Read(Ok(_)) | Answer::Applied(Ok(_))) {
        *slot = Some(kernel);
    }
    answer
}

fn failed<M: Mode>(job: &Job<M>, error: M::Error) -> Answer<M> {
    match job {
        Job::Read => Answer::Read(Err(error)),
        Job::Apply(_) => Answer::Applied(Err(error)),
    }
}
