//! The configuration file while the program runs: when it comes to say something else, the program ends, so that it is
//! started again with the new configuration. A restart costs no packet.
//!
//! Upstream watches the file itself and misses what kubelet does to a mounted `ConfigMap`: it swaps the symbolic link
//! `..data`, which leads to the file. Here the folders on the way are watched too, and what counts is the content.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use config::{CommandLine, Config};
use source::read_text;
use tokio::task::spawn_blocking;
use tracing::{error, info, warn};

use crate::file_watch::FileWatch;

/// The wait after an event: writers need more than one step.
const SETTLE: Duration = Duration::from_millis(250);
/// How often to look without an event, in case that none can be had.
const POLL: Duration = Duration::from_mins(1);
/// What a `ConfigMap` can hold.
const MAX_BYTES: u64 = 1 << 20;

/// The file of `--config` as it was read.
#[derive(Debug)]
pub(crate) struct ConfigFile {
    path: PathBuf,
    text: io::Result<String>,
    /// Another file can be read only once.
    is_regular: bool,
}

/// What a look at the file found.
struct Look {
    watch: io::Result<FileWatch>,
    /// The text, or why there is none.
    text: Result<String, String>,
    /// What the text means; `None` if it is that of the last look.
    config: Option<Result<Config, String>>,
}

impl ConfigFile {
    /// Reads a file; that it can't be read is told later. Now it may also be a pipe.
    pub(crate) fn read(path: &Path) -> Self {
        let mut text = String::new();
        let read = File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_string(&mut text));
        let text = match read {
            Ok(_) if text.len() as u64 > MAX_BYTES => Err(io::ErrorKind::FileTooLarge.into()),
            read => read.map(|_| text),
        };
        Self { path: path.to_owned(), text, is_regular: path.is_file() }
    }

    /// What was read.
    pub(crate) fn text(&self) -> io::Result<String> {
        // Errors of the operating system have no copy, but their kind and text have.
        self.text.as_ref().map(String::clone).map_err(|error| io::Error::new(error.kind(), error.to_string()))
    }

    /// Returns when the file means another configuration than this one. Before, `tell` learns of each change whether the file
    /// can be used: if not, why, and the configuration in force stays.
    pub(crate) async fn changed(
        self,
        command_line: &CommandLine,
        config: &Config,
        tell: impl Fn(Result<(), &str>),
    ) {
        let Self { path, text, is_regular } = self;
        if !is_regular {
            info!(file = %path.display(), "the configuration is no regular file; changes of it are not seen");
            return std::future::pending().await;
        }
        let mut last = text.map_err(|error| error.to_string());
        let mut is_watched = true;
        loop {
            let (look_at, known, with) = (path.clone(), last.clone(), command_line.clone());
            let look = spawn_blocking(move || look(&look_at, &known, &with)).await;
            let Ok(Look { watch, text, config: new }) = look else {
                // The parser has a fault, which is no reason to end what works.
                tokio::time::sleep(POLL).await;
                continue;
            };
            if let Err(error) = &watch
                && std::mem::replace(&mut is_watched, false)
            {
                warn!(%error, file = %path.display(), "the configuration file can't be watched; looking at it every minute");
            }
            if let Some(new) = new {
                if is_other(config, &path, &new) {
                    return;
                }
                tell(new.as_ref().map(drop).map_err(String::as_str));
            }
            last = text;
            // Whatever the event was, the file is read again; an error is answered by a new watch.
            drop(tokio::time::timeout(POLL, next_event(watch)).await);
            tokio::time::sleep(SETTLE).await;
        }
    }
}

/// Reads the file anew, and what it means if it is not `known`. Blocks for as long as the file system does.
fn look(path: &Path, known: &Result<String, String>, command_line: &CommandLine) -> Look {
    // Before it is read, so that no change falls in between.
    let watch = FileWatch::open(path);
    let text = read_text(path, MAX_BYTES).map_err(|error| error.to_string());
    let load = |text: &String| {
        config::load(command_line, Some(Ok(text.clone())), &crate::platform::modes())
            .config
            .map_err(|error| error.to_string())
    };
    let config = (text != *known).then(|| text.as_ref().map_err(String::clone).and_then(load));
    Look { watch, text, config }
}

/// Whether the file means another configuration; says so if it does not.
fn is_other(config: &Config, path: &Path, new: &Result<Config, String>) -> bool {
    let file = path.display();
    match new {
        Ok(new) if new == config => {
            info!(%file, "the configuration file was changed, but not what it means");
            false
        }
        Ok(_) => true,
        Err(error) => {
            error!(%file, err = %error, "the changed configuration file can't be used; the former configuration stays in force");
            false
        }
    }
}

async fn next_event(watch: io::Result<FileWatch>) {
    match watch {
        Ok(watch) => watch.changed().await,
        Err(_) => std::future::pending().await,
    }
}

#[cfg(unix)]
#[cfg(test)]
mod tests {
    use super::*;
    use config::Parsed;
    use std::os::unix::fs::symlink;

    const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
    /// Time is paused and goes on when nothing else can happen. Shorter than [`POLL`], so that only events end the wait.
    const LIMIT: Duration = Duration::from_secs(20);

    fn file(rest: &str) -> String {
        format!("{HEAD}{rest}")
    }

    /// Whether `change` of the file at `path` ends the wait.
    async fn ends(path: &Path, change: impl AsyncFnOnce()) -> bool {
        let arguments = ["--config".to_owned(), path.display().to_string()];
        let Ok(Parsed::Run(command_line)) = CommandLine::parse(arguments) else { panic!("arguments") };
        let read = ConfigFile::read(path);
        let config =
            config::load(&command_line, Some(read.text()), &crate::platform::modes()).config.unwrap();
        let unchanged = async {
            change().await;
            tokio::time::sleep(SETTLE * 8).await;
        };
        tokio::select! {
            // The watch is set up first, so that it is the event that is seen.
            biased;
            () = read.changed(&command_line, &config, |_| {}) => true,
            () = unchanged => false,
        }
    }

    /// As [`ends`], for a change that must end it.
    async fn must_end(path: &Path, change: impl AsyncFnOnce()) {
        let ended = ends(path, async || {
            change().await;
            tokio::time::sleep(LIMIT).await;
        });
        assert!(ended.await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_swap_of_the_link_of_a_mounted_configmap_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for (version, rest) in [("..1", "oomScoreAdj: 1"), ("..2", "oomScoreAdj: 2")] {
            std::fs::create_dir(at(version)).unwrap();
            std::fs::write(at(version).join("config.conf"), file(rest)).unwrap();
        }
        symlink("..1", at("..data")).unwrap();
        symlink("..data/config.conf", at("config.conf")).unwrap();
        must_end(&at("config.conf"), async || {
            symlink("..2", at("..data_tmp")).unwrap();
            std::fs::rename(at("..data_tmp"), at("..data")).unwrap();
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn an_overwritten_file_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        std::fs::write(&path, file("")).unwrap();
        must_end(&path, async || std::fs::write(&path, file("oomScoreAdj: 2")).unwrap()).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_renamed_over_it_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let (path, new) = (dir.path().join("config"), dir.path().join("new"));
        std::fs::write(&path, file("")).unwrap();
        must_end(&path, async || {
            std::fs::write(&new, file("oomScoreAdj: 2")).unwrap();
            std::fs::rename(&new, &path).unwrap();
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_comes_back_different_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        std::fs::write(&path, file("")).unwrap();
        must_end(&path, async || {
            std::fs::remove_file(&path).unwrap();
            tokio::time::sleep(SETTLE * 2).await;
            std::fs::write(&path, file("oomScoreAdj: 2")).unwrap();
        })
        .await;
    }

    /// Such as `--config <(render)` in a shell.
    #[tokio::test(start_paused = true)]
    async fn a_pipe_is_read_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let writer = {
            let path = path.clone();
            std::thread::spawn(move || std::fs::write(path, file("")).unwrap())
        };
        assert!(!ends(&path, async || {}).await);
        writer.join().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn another_wording_and_an_unusable_file_change_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        std::fs::write(&path, file("configSyncPeriod: 15m")).unwrap();
        for rest in ["# a comment\nconfigSyncPeriod: 900s", "oomScoreAdj: 5000", "mode: ["] {
            let write = async || std::fs::write(&path, file(rest)).unwrap();
            assert!(!ends(&path, write).await, "{rest}");
            std::fs::write(&path, file("configSyncPeriod: 15m")).unwrap();
        }
    }
}
