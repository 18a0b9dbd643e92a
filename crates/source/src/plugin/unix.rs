//! Processes of Unix.

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::{Child, Command};

/// A process and all that it has started; they are killed when this is dropped.
pub(super) struct Group(pub(super) Child);

impl Group {
    /// Has the command start with a group of its own.
    pub(super) fn found(command: &mut Command) {
        command.process_group(0);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A child that has been waited for has no number any more, and its group may be somebody else's.
        if let Some(group) = self.0.id().and_then(|id| Pid::from_raw(id.try_into().ok()?)) {
            // An error says that it has ended just now.
            kill_process_group(group, Signal::KILL).ok();
        }
    }
}
