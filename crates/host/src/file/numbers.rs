//! Numbers in files.

use std::fmt::Display;
use std::path::Path;
use std::str::FromStr;

use super::FileError;

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
