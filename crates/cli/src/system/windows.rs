//! What the commands need of Windows.

use std::io;
use std::path::Path;

use tokio::net::TcpStream;
use tokio::signal::windows::{
    CtrlBreak, CtrlC, CtrlClose, CtrlShutdown, ctrl_break, ctrl_c, ctrl_close, ctrl_shutdown,
};

/// Windows has sockets of the file system, but no library that offers them to the runtime.
#[expect(clippy::unused_async, reason = "elsewhere it waits")]
pub(crate) async fn connect(_socket: &Path) -> io::Result<TcpStream> {
    Err(io::ErrorKind::Unsupported.into())
}

/// What a console tells a program that is to end. While this lives, it does nothing by itself.
pub struct Endings {
    interrupt: CtrlC,
    break_key: CtrlBreak,
    close: CtrlClose,
    shutdown: CtrlShutdown,
}

impl Endings {
    /// Handles them from now on.
    ///
    /// # Errors
    /// The system refuses.
    pub fn handle(_has_terminal: bool) -> io::Result<Self> {
        Ok(Self {
            interrupt: ctrl_c()?,
            break_key: ctrl_break()?,
            close: ctrl_close()?,
            shutdown: ctrl_shutdown()?,
        })
    }

    /// Returns when one has come.
    pub async fn recv(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.break_key.recv() => {}
            _ = self.close.recv() => {}
            _ = self.shutdown.recv() => {}
        }
    }
}
