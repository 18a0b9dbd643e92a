//! Tells when a file may have changed, on Linux.

use std::io;
use std::path::Path;

use futures_util::StreamExt as _;
use inotify::{EventStream, Inotify, WatchMask};

/// Room for events of one read. They are not looked at.
const EVENT_BYTES: usize = 4096;

/// A file that is watched.
pub(crate) struct FileWatch(EventStream<Vec<u8>>);

impl FileWatch {
    /// Watches the file that the path leads to, its folder, and the folder that the path names.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let folder = WatchMask::CREATE | WatchMask::MOVED_TO | WatchMask::MOVED_FROM | WatchMask::DELETE;
        let file = WatchMask::MODIFY | WatchMask::CLOSE_WRITE | WatchMask::MOVE_SELF | WatchMask::DELETE_SELF;
        let inotify = Inotify::init()?;
        inotify.watches().add(parent(path), folder)?;
        // The file may be gone for a moment; its folder tells when it is back.
        if let Ok(real) = path.canonicalize() {
            inotify.watches().add(parent(&real), folder)?;
            inotify.watches().add(&real, file)?;
        }
        inotify.into_event_stream(vec![0; EVENT_BYTES]).map(Self)
    }

    /// Returns when something happened to it.
    pub(crate) async fn changed(mut self) {
        drop(self.0.next().await);
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
