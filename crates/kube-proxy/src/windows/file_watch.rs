//! Tells when a file may have changed, on Windows: every few seconds it may have.

use std::io;
use std::path::Path;
use std::time::Duration;

const POLL: Duration = Duration::from_secs(2);

/// A file that is looked at again and again.
pub(crate) struct FileWatch;

impl FileWatch {
    /// Watches a file.
    #[expect(clippy::unnecessary_wraps, reason = "other systems may refuse")]
    pub(crate) fn open(_path: &Path) -> io::Result<Self> {
        Ok(Self)
    }

    /// Returns when it is time to look.
    pub(crate) async fn changed(self) {
        tokio::time::sleep(POLL).await;
    }
}
