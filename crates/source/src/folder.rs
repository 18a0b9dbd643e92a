//! Watches a folder of manifests.

#[cfg_attr(not(target_os = "linux"), path = "folder/polling.rs")]
#[cfg_attr(target_os = "linux", path = "folder/inotify.rs")]
mod system;

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::FutureExt as _;

use self::system::FolderWatch;
use crate::SourceEvent;
use crate::event::Events;
use crate::scan::Scanner;

/// A file that is being written is read when it is closed, or after this time without another write: some writers never
/// close.
const WRITER_PATIENCE: Duration = Duration::from_secs(1);
/// How often to look for a folder that has gone.
const RETURN_POLL: Duration = Duration::from_secs(1);

/// A folder that can't be watched.
#[derive(Debug, thiserror::Error)]
#[error("the manifest folder {} can't be watched", dir.display())]
pub struct FolderError {
    dir: PathBuf,
    #[source]
    source: io::Error,
}

/// What happened in the folder.
#[derive(Clone, Debug, PartialEq, Eq)]
enum FolderEvent {
    /// Somebody writes to this file, and may not have done.
    Written(String),
    /// This file is complete, new or gone.
    Changed(String),
    /// More than could be kept.
    #[cfg_attr(
        not(target_os = "linux"),
        expect(dead_code, reason = "whoever looks again and again keeps no events")
    )]
    Overflow,
    /// The folder itself is gone or moved away.
    Lost,
}

/// A watched folder.
pub(crate) struct Folder {
    dir: PathBuf,
    events: FolderWatch,
    /// Away while it scans.
    scanner: Option<Scanner>,
    /// Files written to since they were last closed.
    busy: BTreeSet<String>,
}

/// What an event asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    /// Nothing yet: somebody writes.
    Wait,
    /// Look at the folder.
    Scan,
    /// The folder itself is gone or moved away.
    Lost,
}

impl Folder {
    pub(crate) fn open(dir: PathBuf) -> Result<Self, FolderError> {
        match FolderWatch::open(&dir) {
            Ok(events) => {
                let scanner = Some(Scanner::new(dir.clone()));
                Ok(Self { dir, events, scanner, busy: BTreeSet::new() })
            }
            Err(source) => Err(FolderError { dir, source }),
        }
    }

    /// Runs until the receiver is gone.
    pub(crate) async fn run(mut self, tx: Events) {
        loop {
            let Some(events) = self.scan().await else { return };
            for event in events {
                if tx.send(event).await.is_err() {
                    return;
                }
            }
            tokio::select! {
                () = self.changed(&tx) => {}
                () = tx.closed() => return,
            }
        }
    }

    /// Looks at the folder, on a thread of its own: whatever is in it, and wherever it is mounted from, nobody else waits.
    /// `None` if that ended by a fault in the program.
    async fn scan(&mut self) -> Option<Vec<SourceEvent>> {
        let (mut scanner, busy) = (self.scanner.take()?, self.busy.clone());
        let scan = move || {
            let events = scanner.scan(&busy);
            (scanner, events)
        };
        let (scanner, events) = tokio::task::spawn_blocking(scan).await.ok()?;
        self.scanner = Some(scanner);
        Some(events)
    }

    /// Returns when there is a reason to look at the folder. All events that wait already are taken in at once, so that
    /// a burst costs one reading.
    async fn changed(&mut self, tx: &Events) {
        loop {
            let event = if self.busy.is_empty() {
                self.events.next().await
            } else {
                match tokio::time::timeout(WRITER_PATIENCE, self.events.next()).await {
                    Ok(event) => event,
                    Err(_elapsed) => {
                        self.busy.clear();
                        return;
                    }
                }
            };
            let mut action = self.take(event);
            while let Some(event) = self.events.next().now_or_never() {
                action = match (action, self.take(event)) {
                    (Action::Lost, _) | (_, Action::Lost) => Action::Lost,
                    (Action::Scan, _) | (_, Action::Scan) => Action::Scan,
                    (Action::Wait, Action::Wait) => Action::Wait,
                };
                if action == Action::Lost {
                    break;
                }
            }
            match action {
                Action::Wait => {}
                Action::Scan => return,
                Action::Lost => return self.find_again(tx).await,
            }
        }
    }

    fn take(&mut self, event: FolderEvent) -> Action {
        match event {
            FolderEvent::Lost => Action::Lost,
            FolderEvent::Overflow => {
                self.busy.clear();
                Action::Scan
            }
            FolderEvent::Written(name) => {
                // A file that is half written must not replace what it said before.
                self.busy.insert(name);
                Action::Wait
            }
            FolderEvent::Changed(name) => {
                self.busy.remove(&name);
                Action::Scan
            }
        }
    }

    /// Waits for the folder to come back. What was known of it stays in force.
    async fn find_again(&mut self, tx: &Events) {
        let text = format!("the manifest folder {} is gone; what it held stays in force", self.dir.display());
        if tx.send(SourceEvent::Problem { kind: None, text }).await.is_err() {
            return;
        }
        self.busy.clear();
        loop {
            let dir = self.dir.clone();
            if let Ok(Ok(events)) = tokio::task::spawn_blocking(move || FolderWatch::open(&dir)).await {
                self.events = events;
                return;
            }
            tokio::time::sleep(RETURN_POLL).await;
        }
    }
}

/// Elsewhere than on Linux it is what watches; here it is tested.
#[cfg(all(test, target_os = "linux"))]
mod polling;
#[cfg(test)]
mod tests;
