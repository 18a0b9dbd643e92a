//! Small files of `/proc` and `/sys`.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

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

/// The number in a file.
pub(crate) fn read_number<N: FromStr>(path: &Path) -> Result<N, FileError> {
    let text =
        std::fs::read_to_string(path).map_err(|source| FileError::Read { path: path.into(), source })?;
    let text = text.trim();
    text.parse().map_err(|_no_number| FileError::NoNumber { path: path.into(), text: text.into() })
}

/// Writes a number to a file that exists.
pub(crate) fn write_number(path: &Path, value: impl Display) -> Result<(), FileError> {
    use std::io::Write as _;
    let value = value.to_string();
    let opened = std::fs::OpenOptions::new().write(true).truncate(true).open(path);
    opened.and_then(|mut file| file.write_all(value.as_bytes())).map_err(|source| FileError::Write {
        path: path.into(),
        value,
        source,
    })
}
