//! Does the steps.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use mode::{Applied, Meter, Reading, Target};
use model::Family;
use tokio::time::Instant;

use crate::path::{Condition, SocketPath};
use crate::served::Change;

/// One family's maps and programs, and the rules that are beneath them.
pub struct EbpfTarget<F: Family, R: Target> {
    rules: R,
    path: Arc<Mutex<SocketPath<F>>>,
}

/// Something that is done or fails as a whole.
#[derive(Debug)]
pub enum Step<F: Family, S> {
    /// A step of the rules.
    Rules(Box<S>),
    /// A change of the maps.
    Maps(Change<F>),
}

/// What came of a step.
#[derive(Debug)]
pub enum Receipt<R> {
    /// A step of the rules was made.
    Rules(R),
    /// What the fast path does since then.
    Maps(Condition, Instant),
}

/// What was counted.
#[derive(Debug)]
pub struct Counted<C> {
    /// By the rules.
    pub rules: C,
    /// By the programs.
    pub sockets: Vec<Meter>,
}

/// What is read back.
#[derive(Debug)]
pub struct Found<R> {
    /// The rules.
    pub rules: R,
    /// Whether maps and programs are as they should be.
    pub maps: Condition,
}

impl<F: Family, R: Target> EbpfTarget<F, R> {
    /// A target of these parts.
    pub fn new(rules: R, path: Arc<Mutex<SocketPath<F>>>) -> Self {
        Self { rules, path }
    }

    fn with_path<O>(&self, work: impl FnOnce(&mut SocketPath<F>) -> O) -> O {
        work(&mut self.path.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<F: Family, R: Target> Target for EbpfTarget<F, R> {
    type Step = Step<F, R::Step>;
    type Receipt = Receipt<R::Receipt>;
    type Found = Found<R::Found>;
    type Counted = Counted<R::Counted>;
    /// Only rules fail.
    type Error = R::Error;

    /// A step of the rules that fails ends it. A change of the maps never fails.
    fn apply(&mut self, steps: Vec<Self::Step>, yields: &dyn Fn() -> bool) -> Applied<Self> {
        let mut applied =
            Applied { results: Vec::with_capacity(steps.len()), kernel_time: None, is_usable: true };
        let mut rules = Vec::new();
        for step in steps {
            match step {
                Step::Rules(step) => rules.push(*step),
                Step::Maps(change) => {
                    let condition = self.with_path(|path| path.change(&change));
                    applied.results.push(Ok(Receipt::Maps(condition, Instant::now())));
                }
            }
        }
        if !rules.is_empty() {
            let done = self.rules.apply(rules, yields);
            applied.kernel_time = done.kernel_time;
            applied.is_usable = done.is_usable;
            applied.results.extend(done.results.into_iter().map(|result| result.map(Receipt::Rules)));
        }
        applied
    }

    fn read(&mut self) -> Reading<Self::Found, Self::Error> {
        let rules = match self.rules.read() {
            Reading::Whole(rules) => rules,
            Reading::Unstable => return Reading::Unstable,
            Reading::NotReadable => return Reading::NotReadable,
            Reading::Failed(error) => return Reading::Failed(error),
        };
        Reading::Whole(Found { rules, maps: self.with_path(SocketPath::check) })
    }

    fn traffic(&mut self) -> Result<Option<Self::Counted>, Self::Error> {
        let rules = self.rules.traffic()?;
        Ok(rules.map(|rules| Counted { rules, sockets: self.with_path(SocketPath::meters) }))
    }

    fn is_retryable(error: &Self::Error) -> bool {
        R::is_retryable(error)
    }

    fn outcome_unknown(why: &'static str) -> Self::Error {
        R::outcome_unknown(why)
    }
}

impl<F: Family, S: fmt::Display> fmt::Display for Step<F, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rules(step) => step.fmt(f),
            Self::Maps(change) => change.fmt(f),
        }
    }
}
