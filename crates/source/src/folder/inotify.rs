//! Watches a folder with inotify.

use std::io;
use std::path::Path;

use futures_util::StreamExt as _;
use inotify::{EventMask, EventOwned, EventStream, Inotify, WatchMask};

use super::FolderEvent;

/// Room for events of one read; the kernel queues the others.
const EVENT_BYTES: usize = 16 << 10;

/// Tells what happens in a folder.
pub(super) struct FolderWatch(EventStream<Box<[u8]>>);

impl FolderWatch {
    /// Watches from now on.
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        let mask = WatchMask::CREATE
            | WatchMask::MODIFY
            | WatchMask::CLOSE_WRITE
            | WatchMask::MOVED_TO
            | WatchMask::MOVED_FROM
            | WatchMask::DELETE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        let inotify = Inotify::init()?;
        inotify.watches().add(dir, mask)?;
        inotify.into_event_stream(vec![0; EVENT_BYTES].into_boxed_slice()).map(Self)
    }

    /// The next thing that happens. Nothing is lost if nobody waits for it to the end.
    pub(super) async fn next(&mut self) -> FolderEvent {
        match self.0.next().await {
            Some(Ok(event)) => meaning(event),
            Some(Err(_)) | None => FolderEvent::Lost,
        }
    }
}

fn meaning(event: EventOwned) -> FolderEvent {
    let gone = EventMask::DELETE_SELF | EventMask::MOVE_SELF | EventMask::UNMOUNT | EventMask::IGNORED;
    if event.mask.intersects(gone) {
        return FolderEvent::Lost;
    }
    if event.mask.contains(EventMask::Q_OVERFLOW) {
        return FolderEvent::Overflow;
    }
    let name = event.name.map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    if event.mask.contains(EventMask::MODIFY) {
        FolderEvent::Written(name)
    } else {
        FolderEvent::Changed(name)
    }
}
