//! The thread that talks to the kernel for one family: jobs in, answers out, nothing decided.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use backend_nftables::table_name;
use nft::{Applied, Family, Kernel, KernelError, Ruleset, Transaction};
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;

/// Opens a connection to the kernel. Called on the thread that will use it, again after a connection failed.
pub type OpenKernel = Arc<dyn Fn() -> Result<Box<dyn Kernel>, KernelError> + Send + Sync>;

/// Something to do for the kernel thread.
#[derive(Debug)]
pub(crate) enum Job {
    Read,
    Apply(Transaction),
}

/// What came of it.
#[derive(Debug)]
pub(crate) enum Answer {
    Read(Result<Option<Ruleset>, KernelError>),
    Applied(Result<Applied, KernelError>),
}

/// An answer, whose it is and how long the job took.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) family: Family,
    pub(crate) answer: Answer,
    pub(crate) took: Duration,
}

/// The sending end of a kernel thread's jobs. The thread ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Worker {
    jobs: mpsc::Sender<Job>,
}

impl Worker {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system refused a thread.
    pub(crate) fn start(
        family: Family,
        open: OpenKernel,
        reports: UnboundedSender<Report>,
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
        std::thread::Builder::new().name(format!("kernel-{}", family.as_str())).spawn(work)?;
        Ok(Self { jobs })
    }

    /// Hands a job over; false if the thread has ended.
    pub(crate) fn submit(&self, job: Job) -> bool {
        self.jobs.send(job).is_ok()
    }
}

/// Does a job. A connection is kept only after a success: whatever a failed one still holds belongs to the job that
/// failed. A panic is a failure of the job too, since a thread that ended would leave its family unserved for good.
fn perform(job: &Job, family: Family, open: &OpenKernel, slot: &mut Option<Box<dyn Kernel>>) -> Answer {
    let opened = slot.take().map_or_else(|| open(), Ok);
    let mut kernel = match opened {
        Ok(kernel) => kernel,
        Err(error) => return failed(job, error),
    };
    let work = AssertUnwindSafe(|| match job {
        Job::Read => Answer::Read(kernel.read(family, &table_name())),
        Job::Apply(transaction) => Answer::Applied(kernel.apply(transaction)),
    });
    let answer =
        catch_unwind(work).unwrap_or_else(|_| failed(job, KernelError::OutcomeUnknown { why: "a panic" }));
    if matches!(answer, Answer::Read(Ok(_)) | Answer::Applied(Ok(_))) {
        *slot = Some(kernel);
    }
    answer
}

fn failed(job: &Job, error: KernelError) -> Answer {
    match job {
        Job::Read => Answer::Read(Err(error)),
        Job::Apply(_) => Answer::Applied(Err(error)),
    }
}
