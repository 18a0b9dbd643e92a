//! What the commands need of Unix.

use std::io;
use std::path::Path;

use tokio::net::UnixStream;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// A proxy at a socket of the file system.
pub(crate) async fn connect(socket: &Path) -> io::Result<UnixStream> {
    UnixStream::connect(socket).await
}

/// The signals that end a program. While this lives, they do nothing by themselves.
pub struct Endings([Signal; 3]);

impl Endings {
    /// Handles them from now on. That the terminal has gone counts only if the program has one.
    ///
    /// # Errors
    /// The system refuses.
    pub fn handle(has_terminal: bool) -> io::Result<Self> {
        let hangup = if has_terminal { SignalKind::hangup() } else { SignalKind::terminate() };
        Ok(Self([signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?, signal(hangup)?]))
    }

    /// Returns when one has come.
    pub async fn recv(&mut self) {
        let [terminate, interrupt, hangup] = &mut self.0;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
