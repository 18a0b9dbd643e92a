//! Watches a folder by looking at it again and again, on systems without inotify: files are told apart by their length and the
//! time of the last change, also where a name is a symbolic link.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::FolderEvent;

/// How often to look. Shorter than [`super::WRITER_PATIENCE`], so that a file that is still written to is not taken for complete.
const POLL: Duration = Duration::from_millis(400);

/// Tells what happens in a folder.
pub(super) struct FolderWatch {
    dir: PathBuf,
    seen: Seen,
    events: VecDeque<FolderEvent>,
}

/// Files by name.
type Seen = BTreeMap<String, Stamp>;

/// What differs when a file was changed; absent what the system does not tell.
type Stamp = (Option<u64>, Option<SystemTime>);

impl FolderWatch {
    /// Watches from now on.
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        Ok(Self { dir: dir.to_owned(), seen: look(dir)?, events: VecDeque::new() })
    }

    /// The next thing that happens. Nothing is lost if nobody waits for it to the end.
    pub(super) async fn next(&mut self) -> FolderEvent {
        loop {
            if let Some(event) = self.events.pop_front() {
                return event;
            }
            tokio::time::sleep(POLL).await;
            let dir = self.dir.clone();
            let Ok(Ok(now)) = tokio::task::spawn_blocking(move || look(&dir)).await else {
                return FolderEvent::Lost;
            };
            self.events.extend(difference(&self.seen, &now));
            self.seen = now;
        }
    }
}

fn look(dir: &Path) -> io::Result<Seen> {
    let stamp = |entry: std::fs::DirEntry| {
        let metadata = std::fs::metadata(entry.path());
        let stamp = metadata.map_or((None, None), |found| (Some(found.len()), found.modified().ok()));
        (entry.file_name().to_string_lossy().into_owned(), stamp)
    };
    std::fs::read_dir(dir)?.map(|entry| entry.map(stamp)).collect()
}

/// Whether a file is complete can't be seen, so those that are new or differ count as being written.
fn difference(before: &Seen, now: &Seen) -> Vec<FolderEvent> {
    let gone = before.keys().filter(|name| !now.contains_key(*name));
    let differs = now.iter().filter(|(name, stamp)| before.get(*name) != Some(stamp));
    let gone = gone.cloned().map(FolderEvent::Changed);
    gone.chain(differs.map(|(name, _)| FolderEvent::Written(name.clone()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn events(watch: &mut FolderWatch, count: usize) -> Vec<FolderEvent> {
        let mut events = Vec::new();
        while events.len() < count {
            events.push(watch.next().await);
        }
        events
    }

    #[tokio::test]
    async fn new_changed_and_deleted_files_and_the_folders_end_are_seen() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("a"), "1").unwrap();
        std::fs::write(at("b"), "1").unwrap();
        let mut watch = FolderWatch::open(dir.path()).unwrap();
        std::fs::write(at("a"), "22").unwrap();
        std::fs::remove_file(at("b")).unwrap();
        std::fs::write(at("c"), "1").unwrap();
        let written = |name: &str| FolderEvent::Written(name.to_owned());
        let expected = [FolderEvent::Changed("b".into()), written("a"), written("c")];
        assert_eq!(events(&mut watch, 3).await, expected);

        drop(dir);
        // On the way there, its files may go one by one.
        while watch.next().await != FolderEvent::Lost {}
        assert!(FolderWatch::open(&watch.dir).is_err());
    }

    #[tokio::test]
    async fn a_wait_that_is_given_up_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut watch = FolderWatch::open(dir.path()).unwrap();
        std::fs::write(dir.path().join("a"), "1").unwrap();
        for _ in 0..3 {
            let waited = tokio::time::timeout(Duration::from_millis(1), watch.next()).await;
            assert!(waited.is_err());
        }
        assert_eq!(watch.next().await, FolderEvent::Written("a".into()));
    }
}
