//! The border to the tools that read and write tables, real or fake.

use std::io;
use std::time::Duration;

use crate::{CountedRule, Restore, SaveError, Saved, TableName};

/// One family's tables. One instance is used by one thread.
pub trait Iptables: Send {
    /// Carries out the changes, section by section. An empty one does nothing.
    ///
    /// # Errors
    /// The sections before the one that failed hold.
    fn restore(&mut self, restore: &Restore) -> Result<(), IptablesError>;

    /// Reads all three tables; see [`Saved::read`] for what is kept.
    ///
    /// # Errors
    /// A table can't be read.
    fn save(&mut self, prefix: &str) -> Result<Saved, IptablesError>;

    /// Reads what rules have counted in those chains of tables `filter` and `nat` that are wanted.
    ///
    /// # Errors
    /// A table can't be read.
    fn counts(&mut self, wanted: &dyn Fn(TableName, &str) -> bool)
    -> Result<Vec<CountedRule>, IptablesError>;
}

/// Why tables were not written or read.
#[derive(Debug, thiserror::Error)]
pub enum IptablesError {
    /// The program can't be run.
    #[error("run {program}")]
    Run {
        /// Its name.
        program: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The program did not end in time and was ended.
    #[error("{program} has not ended after {limit:?}")]
    TimedOut {
        /// Its name.
        program: String,
        /// How long it was given.
        limit: Duration,
    },
    /// Somebody else holds the lock of the tables, or the system is short of something.
    #[error("{program} can't have what it needs now: {message}")]
    Busy {
        /// The program's name.
        program: String,
        /// Its own words.
        message: String,
    },
    /// The input was refused.
    #[error("{program} refused{}: {message}", at_line(.text.as_deref()))]
    Refused {
        /// The program's name.
        program: String,
        /// The line of the input that it names.
        text: Option<String>,
        /// Its own words.
        message: String,
    },
    /// The right to do it, or a part of the kernel, is missing.
    #[error("{program} can't work here: {message}")]
    Unsupported {
        /// The program's name.
        program: String,
        /// Its own words.
        message: String,
    },
    /// The tables may or may not have been written: read them to learn what holds.
    #[error("outcome of the change is unknown: {why}")]
    OutcomeUnknown {
        /// What happened.
        why: &'static str,
    },
    /// The output was not understood.
    #[error("read table {table}")]
    Saved {
        /// The table.
        table: TableName,
        /// What was wrong with it.
        #[source]
        source: SaveError,
    },
}

impl IptablesError {
    /// Whether reading the tables anew and applying the difference has a chance soon.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::TimedOut { .. }
            | Self::Busy { .. }
            | Self::Refused { .. }
            | Self::OutcomeUnknown { .. } => true,
            Self::Run { .. } | Self::Unsupported { .. } | Self::Saved { .. } => false,
        }
    }
}

fn at_line(text: Option<&str>) -> String {
    text.map(|text| format!(" {text:?}")).unwrap_or_default()
}
