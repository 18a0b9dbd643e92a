//! A log file that does not grow for ever.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// A file that is added to.
pub(crate) struct LogFile {
    path: PathBuf,
    file: File,
    bytes: u64,
    max_bytes: u64,
}

impl LogFile {
    /// Opens it, or makes it. Once it has more than so many bytes it becomes the old one, and another is begun.
    pub(crate) fn open(path: PathBuf, max_bytes: u64) -> io::Result<Self> {
        let (file, bytes) = open(&path)?;
        Ok(Self { path, file, bytes, max_bytes })
    }

    /// Goes on with the present file where it can't be replaced: somebody may have it open, which Windows does not forgive.
    fn begin_anew(&mut self) {
        let mut old = self.path.clone().into_os_string();
        old.push(".old");
        let replaced = std::fs::rename(&self.path, old).and_then(|()| open(&self.path));
        match replaced {
            Ok((file, bytes)) => (self.file, self.bytes) = (file, bytes),
            // After as much again it is tried once more.
            Err(_) => self.bytes = 0,
        }
    }
}

fn open(path: &Path) -> io::Result<(File, u64)> {
    let file = OpenOptions::new().append(true).create(true).open(path)?;
    let bytes = file.metadata()?.len();
    Ok((file, bytes))
}

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    /// Comes after each record, so that none is cut in two.
    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()?;
        if self.bytes > self.max_bytes {
            self.begin_anew();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(file: &mut LogFile, line: &str) {
        file.write_all(line.as_bytes()).unwrap();
        file.flush().unwrap();
    }

    #[test]
    fn a_file_is_added_to_and_begun_anew_when_it_is_full() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        std::fs::write(&path, "before\n").unwrap();
        let mut file = LogFile::open(path, 12).unwrap();
        write(&mut file, "one\n");
        assert_eq!(read("log"), "before\none\n");
        write(&mut file, "two\n");
        write(&mut file, "three\n");
        assert_eq!((read("log.old").as_str(), read("log").as_str()), ("before\none\ntwo\n", "three\n"));
    }

    #[test]
    fn a_file_that_cant_be_replaced_is_added_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        // A folder that is not empty can't be renamed over.
        std::fs::create_dir_all(dir.path().join("log.old/x")).unwrap();
        let mut file = LogFile::open(path.clone(), 1).unwrap();
        write(&mut file, "one\n");
        write(&mut file, "two\n");
        assert_eq!(std::fs::read_to_string(path).unwrap(), "one\ntwo\n");
    }
}
