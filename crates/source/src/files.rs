//! Certificates, tokens and kubeconfigs, read without holding anybody up.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_rustls::rustls::pki_types::CertificateDer;

use crate::file::{ReadError, read_bytes};

/// None of these is that large.
const MAX_BYTES: u64 = 16 << 20;
/// A file system that does not answer is given up after this time.
const LIMIT: Duration = Duration::from_secs(10);

/// A file that can't be read.
#[derive(Debug, thiserror::Error)]
#[error("{}", path.display())]
pub struct FileError {
    path: PathBuf,
    #[source]
    source: ReadError,
}

/// The certificates of the CAs that this host trusts, as many as can be read in time.
pub(crate) async fn read_host_roots() -> Vec<CertificateDer<'static>> {
    let reading = tokio::task::spawn_blocking(|| rustls_native_certs::load_native_certs().certs);
    match tokio::time::timeout(LIMIT, reading).await {
        Ok(Ok(certificates)) => certificates,
        Ok(Err(_)) | Err(_) => Vec::new(),
    }
}

/// Reads a regular file, on a thread of its own.
///
/// # Errors
/// It can't be read in time, is too large, or is something else than a file.
pub(crate) async fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    let owned = path.to_owned();
    let reading = tokio::task::spawn_blocking(move || read_bytes(&owned, MAX_BYTES));
    let result = match tokio::time::timeout(LIMIT, reading).await {
        Ok(joined) => joined.unwrap_or_else(|panicked| Err(io::Error::other(panicked).into())),
        Err(_elapsed) => {
            Err(io::Error::new(io::ErrorKind::TimedOut, format!("not read after {LIMIT:?}")).into())
        }
    };
    result.map_err(|source| FileError { path: path.to_owned(), source })
}
