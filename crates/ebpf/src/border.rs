//! The border to whoever has programs and maps.

use std::fmt;
use std::path::PathBuf;

use model::{Family, FrontendKey};

use crate::contents::{Contents, Write};
use crate::maps::Capacity;
use crate::schema::{Endpoint, FrontendValue};

/// The programs and maps of one family: in the kernel, or in a test's memory.
pub trait FastPath<F: Family>: Send {
    /// What the maps hold that are in force; `None`: there are none of our schema.
    ///
    /// # Errors
    /// They can't be read.
    fn read(&mut self) -> Result<Option<Contents<F>>, FastPathError>;

    /// Makes new maps with these contents, has the programs use them, and removes what was before. Nothing is translated
    /// until it is switched on. Counters go on as `renumbered` says.
    ///
    /// # Errors
    /// Something of it can't be made; then what was before is still in force.
    fn rebuild(&mut self, contents: &Contents<F>, renumbered: &[Renumbered]) -> Result<(), FastPathError>;

    /// Has the programs of this version run, on the maps that are there.
    ///
    /// # Errors
    /// They can't be loaded or attached.
    fn attach(&mut self) -> Result<(), FastPathError>;

    /// Makes the writes in their order, until one fails.
    ///
    /// # Errors
    /// One failed; those before it are made.
    fn write(&mut self, writes: &[Write<F>]) -> Result<(), FastPathError>;

    /// Translates connections from now on, or none. Can't fail: it is one store to memory. Nothing happens where there are no
    /// maps.
    fn switch(&mut self, on: bool);

    /// Shows with connections of its own that the programs run for this process's sockets. Without it nothing is to be
    /// switched on: it tells the programs the node's network namespace, too.
    ///
    /// # Errors
    /// They do not.
    fn prove(&mut self) -> Result<(), FastPathError>;

    /// What serves a frontend; `None`: nothing does.
    ///
    /// # Errors
    /// It can't be read.
    fn look_up(&mut self, key: &FrontendKey<F>) -> Result<Option<Explained<F>>, FastPathError>;

    /// How many connections were translated to the endpoint of this number, since it has it, and how many sockets began to send it
    /// datagrams. A load from memory.
    fn translated(&self, endpoint: u32) -> u64;
}

/// An endpoint that has another number in new maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renumbered {
    /// Its number before.
    pub from: u32,
    /// Its number in the new maps.
    pub to: u32,
}

/// A frontend in the maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained<F: Family> {
    /// Its element.
    pub value: FrontendValue,
    /// The endpoints of its slots; `None`: one that programs leave to the rules.
    pub endpoints: Vec<Option<Endpoint<F>>>,
}

/// What is taken away of what programs there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FastPathRemoval {
    /// What translates; sockets that are connected still show where they wanted to go.
    Translation,
    /// All.
    Everything,
}

/// Why there is no fast path.
#[derive(Debug, thiserror::Error)]
pub enum FastPathError {
    /// The kernel refused something.
    #[error("{action} {object}: {source}")]
    Refused {
        /// What was tried.
        action: &'static str,
        /// With what.
        object: String,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The kernel refused a program.
    #[error("load program {program}{log}")]
    Program {
        /// Its name.
        program: &'static str,
        /// What the verifier said.
        log: VerifierLog,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// There is no such file system there.
    #[error("{path} is not in a file system of type {wanted}")]
    FileSystem {
        /// Where.
        path: PathBuf,
        /// `bpf` or `cgroup2`.
        wanted: &'static str,
    },
    /// Somebody else has the maps.
    #[error("another process serves with the maps in {path}")]
    Busy {
        /// Where.
        path: PathBuf,
    },
    /// The programs do not run for this process's sockets.
    #[error("a connection of its own to {to} {what}: does the cgroup {cgroup} contain this process?")]
    Unproven {
        /// Where it went to.
        to: std::net::SocketAddr,
        /// What became of it.
        what: String,
        /// Where the programs are attached.
        cgroup: PathBuf,
    },
    /// This machine is none of those that the listing is for.
    #[error("the programs are for machines whose integers are little-endian")]
    Endianness,
    /// There are no maps to write to.
    #[error("there are no maps")]
    NoMaps,
    /// There is no room.
    #[error("no room for {0}")]
    NoRoom(&'static str),
}

impl FastPathError {
    /// The room that new maps need does not exist, whatever is tried.
    pub fn of_capacity(capacity: &Capacity) -> Option<Self> {
        (capacity.slots > MAX_SLOTS).then_some(Self::NoRoom("so many endpoints"))
    }
}

/// A limit of this project, 256 MiB.
const MAX_SLOTS: u32 = 1 << 25;

/// The end of what the verifier said.
#[derive(Clone, Debug, Default)]
pub struct VerifierLog(
    /// Its lines.
    pub String,
);

impl fmt::Display for VerifierLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, " ({})", self.0) }
    }
}
