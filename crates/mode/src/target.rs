//! What does the work.

use std::error::Error;
use std::fmt::{Debug, Display};
use std::sync::Arc;
use std::time::Duration;

/// A way to one family's rules in the kernel or wherever they are, with I/O. Decides nothing. It is opened and used on a
/// thread of its own, and dropped and opened anew after a reading that failed, an apply after which it is not usable, or a panic. A mode with several (IPVS, a device, a table of
/// nftables) has one target that holds them all.
pub trait Target: Sized + 'static {
    /// Something that is done or fails as a whole. An atomic mode has one for everything.
    type Step: Debug + Display + Send + 'static;
    /// What a step leaves in hand: an id, a descriptor; `()` if nothing.
    type Receipt: Debug + Send + 'static;
    /// What is read back.
    type Found: Debug + Send + 'static;
    /// What is counted; see [`Target::traffic`].
    type Counted: Debug + Send + 'static;
    /// Why something failed.
    type Error: Error + Send + Sync + 'static;

    /// Whether it may be read before it is known what is wanted, while lists arrive: what is found is still true some seconds later,
    /// and a reading takes nothing from anybody.
    const READS_AHEAD: bool = false;

    /// Makes the steps in their order. Which of them go on after a failure is the mode's affair.
    ///
    /// A target whose steps take long asks `yields` between them, and stops when it is true: something else wants to be
    /// planned in. It is never true at once.
    fn apply(&mut self, steps: Vec<Self::Step>, yields: &dyn Fn() -> bool) -> Applied<Self>;

    /// Reads all that the mode has here.
    fn read(&mut self) -> Reading<Self::Found, Self::Error> {
        Reading::NotReadable
    }

    /// What went through since it was made, by what the planner can tell apart; `None`: nothing is counted here.
    ///
    /// Asked of a target that does nothing else, on a thread of its own, so that no change waits for the answer.
    ///
    /// # Errors
    /// It can't be read.
    fn traffic(&mut self) -> Result<Option<Self::Counted>, Self::Error> {
        Ok(None)
    }

    /// Whether trying again has a chance after this error. Not so for a lack of permission or of a feature.
    fn is_retryable(error: &Self::Error) -> bool;

    /// The error for steps of which nothing came back.
    fn outcome_unknown(why: &'static str) -> Self::Error;
}

/// What came of steps.
#[derive(Debug)]
pub struct Applied<T: Target> {
    /// One for each step that was tried, in their order.
    pub results: Vec<Result<T::Receipt, T::Error>>,
    /// What the kernel itself took, if that is known.
    pub kernel_time: Option<Duration>,
    /// The target can go on; if not, it is dropped and opened anew for the next job.
    pub is_usable: bool,
}

impl<T: Target> Applied<T> {
    /// One step that is everything was made, or not.
    pub fn whole(result: Result<T::Receipt, T::Error>, kernel_time: Option<Duration>) -> Self {
        let is_usable = result.is_ok();
        Self { results: vec![result], kernel_time, is_usable }
    }
}

/// What came of a reading.
#[derive(Debug)]
pub enum Reading<R, E> {
    /// The state of one moment.
    Whole(R),
    /// What is ours changed while it was read.
    Unstable,
    /// This target is never read.
    NotReadable,
    /// It could not be read.
    Failed(E),
}

/// Opens a target. Called on the thread that will use it, again after it failed.
pub type OpenTarget<T> = Arc<dyn Fn() -> Result<T, <T as Target>::Error> + Send + Sync>;
