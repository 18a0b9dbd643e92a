//! Small files of `/proc` and `/sys`.

use std::io;
use std::path::PathBuf;

/// The folder that stands for `/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root(PathBuf);

impl Default for Root {
    fn default() -> Self {
        Self("/".into())
    }
}

impl Root {
    /// A folder below which `proc`, `sys` and `run` are.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The path of a file, given relative to `/`.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.0.join(relative)
    }
}

/// A file that could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It could not be read.
    #[error("read {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It holds something unexpected.
    #[error("{} holds {text:?}, which is no number", .path.display())]
    NoNumber {
        /// The file.
        path: PathBuf,
        /// Its content.
        text: String,
    },
    /// It could not be written.
    #[error("write {value} to {}", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What was to be written.
        value: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

#[cfg(target_os = "linux")]
pub(crate) use numbers::{read_number, write_number};

#[cfg(target_os = "linux")]
mod numbers;
