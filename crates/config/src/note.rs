//! What an operator should know about a configuration that is accepted.

use std::fmt;

use crate::mode::Mode;

/// How much a note matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Something does not do what it seems to say.
    Warning,
    /// Good to know.
    Info,
}

/// One thing to log, after logging was set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// Flags that do nothing because there is a file.
    IgnoredFlags(Vec<&'static str>),
    /// Fields that differ from their defaults and do nothing.
    NoEffect {
        /// Their paths.
        fields: Vec<String>,
        /// Why, for all of them.
        why: String,
    },
    /// Flags that do nothing and have no field.
    FlagWithoutEffect {
        /// The flag's name.
        flag: &'static str,
        /// Why.
        why: &'static str,
    },
    /// The file is accepted although a strict reading fails: typing mistakes.
    Lenient(Vec<String>),
    /// Feature gates that are not known here.
    UnknownGates(Vec<String>),
    /// A feature gate that was set to no effect.
    GateWithoutEffect {
        /// Its name.
        gate: &'static str,
        /// Why.
        why: &'static str,
    },
    /// Feature gates that will go away, since their features are done.
    FinishedGates(Vec<&'static str>),
    /// The mode that an empty `mode` stands for.
    ModeChosen(Mode),
}

impl Note {
    /// How much it matters.
    pub const fn level(&self) -> Level {
        match self {
            Self::FinishedGates(_) | Self::ModeChosen(_) => Level::Info,
            _ => Level::Warning,
        }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::IgnoredFlags(flags) => {
                write!(f, "flags are ignored because --config is given: --{}", flags.join(", --"))
            }
            Self::NoEffect { fields, why } => write!(f, "no effect: {}: {why}", fields.join(", ")),
            Self::FlagWithoutEffect { flag, why } => write!(f, "no effect: --{flag}: {why}"),
            Self::Lenient(complaints) => {
                write!(f, "Using lenient decoding as strict decoding failed: {}", complaints.join("; "))
            }
            Self::UnknownGates(names) => {
                write!(f, "no effect: feature gates that are not known here: {}", names.join(", "))
            }
            Self::GateWithoutEffect { gate, why } => write!(f, "no effect: feature gate {gate}: {why}"),
            Self::FinishedGates(names) => {
                write!(f, "feature gates will be removed since their features are done: {}", names.join(", "))
            }
            Self::ModeChosen(mode) => {
                write!(f, "Using {mode} proxy: the best of the built-in modes that this kernel supports")
            }
        }
    }
}
