//! Ctrl-C: the process ends at once, and nothing stays behind.
//!
//! Namespaces and sockets go with the process, and the proxy is killed by the kernel (see `stage`); only the directory
//! with the kubeconfig would stay.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::signal::{SigSet, Signal};

/// Exit code of a program that a signal ended is 128 and the signal's number, as shells have it.
const SIGNALLED: i32 = 128;

/// Waits for signals, and knows what to remove then.
#[derive(Debug)]
pub(crate) struct Cleanup {
    dir: Arc<Mutex<Option<PathBuf>>>,
}

impl Cleanup {
    /// To be called before other threads start, so that signals come to the thread that waits for them.
    pub(crate) fn start() -> std::io::Result<Self> {
        let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
        signals.thread_block()?;
        let dir = Arc::new(Mutex::new(None));
        let known = Arc::clone(&dir);
        std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
            let number = signals.wait().map_or(0, |signal| signal as i32);
            let dir: Option<PathBuf> = known.lock().unwrap_or_else(PoisonError::into_inner).take();
            // It may be gone already; and nobody is left to tell if it can't be removed.
            drop(dir.map(fs::remove_dir_all));
            std::process::exit(SIGNALLED + number);
        })?;
        Ok(Self { dir })
    }

    /// Names the directory that is to go.
    pub(crate) fn remove_when_interrupted(&self, dir: &Path) {
        *self.dir.lock().unwrap_or_else(PoisonError::into_inner) = Some(dir.to_owned());
    }
}
