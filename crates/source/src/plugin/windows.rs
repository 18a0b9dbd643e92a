//! Processes of Windows. What a plugin starts is not killed with it: that would need a job object, which no safe library has in a
//! form that works with asynchronous children.

use tokio::process::{Child, Command};

/// A process; it is killed when this is dropped, because the command says so.
pub(super) struct Group(pub(super) Child);

impl Group {
    /// Has the command start without a window of its own.
    pub(super) fn found(command: &mut Command) {
        const CREATE_NO_WINDOW: u32 = 0x0800_0000;
        command.creation_flags(CREATE_NO_WINDOW);
    }
}
