//! Reads files that people name: whatever the name leads to, reading ends, and soon.

#[cfg_attr(windows, path = "file/windows.rs")]
#[cfg_attr(not(windows), path = "file/unix.rs")]
mod system;

use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::path::Path;

/// Why a text file can't be had. The texts do not name the file.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The system refuses, or the content is no UTF-8.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Another kind of file: reading it might never end, and opening it might set something off.
    #[error("it is {0}, and not a regular file")]
    NotRegular(&'static str),
    /// More than the caller wants to hold.
    #[error("it has more than {0} bytes")]
    TooLarge(u64),
}

impl ReadError {
    /// There is nothing of that name.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Io(error) if error.kind() == io::ErrorKind::NotFound)
    }
}

/// The text of a regular file of at most `max_bytes`; symbolic links are followed. Blocks for as long as the file system does,
/// so it is nothing for the thread of an event loop.
///
/// # Errors
/// There is no such file, or none that is regular, small enough and UTF-8.
pub fn read_text(path: &Path, max_bytes: u64) -> Result<String, ReadError> {
    let bytes = read_bytes(path, max_bytes)?;
    String::from_utf8(bytes).map_err(|_not_text| io::Error::from(io::ErrorKind::InvalidData).into())
}

/// The same for a file that need not be text.
///
/// # Errors
/// As [`read_text`].
pub(crate) fn read_bytes(path: &Path, max_bytes: u64) -> Result<Vec<u8>, ReadError> {
    // Before it is opened, because that alone starts some devices.
    check_regular(&path.metadata()?)?;
    // Another file may have its name by now; and some regular files of /proc wait for something to say.
    let file = system::open_without_waiting(path)?;
    let metadata = file.metadata()?;
    check_regular(&metadata)?;
    if metadata.len() > max_bytes {
        return Err(ReadError::TooLarge(max_bytes));
    }
    read_at_most(file, max_bytes)
}

/// The size that the system tells is not to be relied on: files of `/proc` have none, and others grow.
fn read_at_most(file: File, max_bytes: u64) -> Result<Vec<u8>, ReadError> {
    let mut bytes = Vec::new();
    file.take(max_bytes.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max_bytes {
        return Err(ReadError::TooLarge(max_bytes));
    }
    Ok(bytes)
}

fn check_regular(metadata: &Metadata) -> Result<(), ReadError> {
    let file_type = metadata.file_type();
    if file_type.is_file() { Ok(()) } else { Err(ReadError::NotRegular(system::kind_name(file_type))) }
}

#[cfg(unix)]
#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[track_caller]
    fn refused(path: &Path, reason: &str) {
        let error = read_text(path, 8).unwrap_err().to_string();
        assert!(error.contains(reason), "{}: {error}", path.display());
    }

    #[test]
    fn only_regular_files_of_text_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("full"), "12345678").unwrap();
        symlink(at("full"), at("link")).unwrap();
        for path in [at("full"), at("link")] {
            assert_eq!(read_text(&path, 8).unwrap(), "12345678");
        }

        nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        std::fs::create_dir(at("dir")).unwrap();
        symlink("loop", at("loop")).unwrap();
        symlink("/dev/zero", at("zero")).unwrap();
        std::fs::write(at("large"), "123456789").unwrap();
        std::fs::write(at("binary"), b"\xff\xfe").unwrap();
        for (name, reason) in [
            ("pipe", "a named pipe"),
            ("socket", "a socket"),
            ("dir", "a folder"),
            ("loop", "symbolic links"),
            ("zero", "a device"),
            ("large", "more than 8 bytes"),
            ("binary", "invalid data"),
        ] {
            refused(&at(name), reason);
        }
        assert!(read_text(&at("none"), 8).unwrap_err().is_not_found());
    }

    #[test]
    fn files_without_a_size_are_bounded_too() {
        refused(Path::new("/proc/self/mountinfo"), "more than 8 bytes");
    }
}
