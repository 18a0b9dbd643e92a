//! Small files, read without holding anybody up.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// No certificate, token or kubeconfig is that large.
const MAX_BYTES: u64 = 16 << 20;
/// A file system that does not answer is given up after this time.
const LIMIT: Duration = Duration::from_secs(10);

/// A file that can't be read.
#[derive(Debug, thiserror::Error)]
#[error("{}", path.display())]
pub struct FileError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Reads a regular file.
///
/// # Errors
/// It can't be read in time, is too large, or is something else than a file.
pub(crate) async fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    let owned = path.to_owned();
    let reading = tokio::task::spawn_blocking(move || read_now(&owned));
    let result = match tokio::time::timeout(LIMIT, reading).await {
        Ok(joined) => joined.unwrap_or_else(|panicked| Err(io::Error::other(panicked))),
        Err(_elapsed) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("not read after {LIMIT:?}"))),
    };
    result.map_err(|source| FileError { path: path.to_owned(), source })
}

fn read_now(path: &Path) -> io::Result<Vec<u8>> {
    // Opening a FIFO would wait for a writer.
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let mut content = Vec::new();
    std::fs::File::open(path)?.take(MAX_BYTES + 1).read_to_end(&mut content)?;
    if content.len() as u64 > MAX_BYTES {
        return Err(io::Error::other(format!("it is larger than {MAX_BYTES} bytes")));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_files_of_sensible_size_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "secret").unwrap();
        assert_eq!(read(&path).await.unwrap(), b"secret");
        let error = read(dir.path()).await.unwrap_err();
        assert_eq!(error.source.to_string(), "it is no regular file");
        let error = read(&dir.path().join("missing")).await.unwrap_err();
        assert!(error.to_string().ends_with("/missing"), "{error}");
        let large = dir.path().join("large");
        std::fs::File::create(&large).unwrap().set_len(MAX_BYTES + 1).unwrap();
        assert!(read(&large).await.is_err());
    }
}
