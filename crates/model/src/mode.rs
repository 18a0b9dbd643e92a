//! What the event loop has to know of a mode, which is a way to direct packets.

use std::collections::BTreeSet;
use std::error::Error;
use std::fmt::{Debug, Display};
use std::time::Duration;

use crate::{Extent, Family, FrontendKey, IpFamily, RuleSettings, Table};

/// A mode: what is written to the kernel, what is read back, and by what.
pub trait Mode: Clone + Send + 'static {
    /// As `--proxy-mode` spells it.
    const NAME: &'static str;
    /// What one family's rules depend on besides frontends.
    type Config: Clone + Debug + PartialEq;
    /// What is sent to the kernel in one go.
    type Changes: Debug + Display + Send + 'static;
    /// What is read back.
    type Found: Debug + Send + 'static;
    /// Why that failed.
    type Error: Error + Send + Sync + 'static;
    /// A connection to the kernel.
    type Kernel;
    /// What decides.
    type Backend<F: Family>: Backend<F, Self>;

    /// What the rules depend on, from what all modes are told.
    fn config(&self, settings: RuleSettings) -> Self::Config;

    /// Reads all that the mode has in the kernel.
    ///
    /// # Errors
    /// It can't be read.
    fn read(kernel: &mut Self::Kernel, family: IpFamily) -> Result<Self::Found, Self::Error>;

    /// Makes the changes; says how long the kernel itself took, as far as that is known.
    ///
    /// # Errors
    /// Some or all of them were not made.
    fn apply(kernel: &mut Self::Kernel, changes: &Self::Changes) -> Result<Option<Duration>, Self::Error>;

    /// Whether reading anew and sending the difference has a chance after this error.
    fn is_retryable(error: &Self::Error) -> bool;

    /// The error for a step of which nothing came back.
    fn outcome_unknown(why: &'static str) -> Self::Error;
}

/// One family's rules in a mode: decides what to send. Does no I/O.
pub trait Backend<F: Family, M: Mode>: Sized {
    /// Changes, and what holds once they are made.
    type Plan;

    /// A backend that knows nothing of the kernel yet.
    fn new(config: M::Config) -> Self;

    /// The settings that the kernel's rules follow.
    fn config(&self) -> &M::Config;

    /// The changes that carry the frontends with these keys into the kernel.
    fn plan(&self, table: &Table<F>, keys: &BTreeSet<FrontendKey<F>>) -> Self::Plan;

    /// The changes from what was found to what should be there.
    fn repair(&self, config: &M::Config, table: &Table<F>, found: &M::Found, extent: Extent) -> Self::Plan;

    /// Takes the changes out of a plan, with their number; `None` when there is nothing to do.
    fn take_changes(plan: &mut Self::Plan) -> Option<(M::Changes, usize)>;

    /// Takes note that a plan's changes were made.
    fn committed(&mut self, plan: Self::Plan);

    /// How many rules there are, by table, in a mode that counts them; they are as of the last plan whose changes were made.
    fn rule_counts(&self) -> Vec<RuleCount> {
        Vec::new()
    }
}

/// Rules in one of a mode's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleCount {
    /// The table's name.
    pub table: &'static str,
    /// How many are ours.
    pub held: usize,
    /// How many the last changes wrote.
    pub written: usize,
}
