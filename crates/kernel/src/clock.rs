//! The kernel's clock.
#![expect(unsafe_code, reason = "a system call that std does not have")]

use std::mem;

/// Whether somebody (an NTP daemon) keeps the clock right, as far as the kernel knows; `None` if it does not tell.
pub fn is_clock_synchronized() -> Option<bool> {
    // SAFETY: all fields are integers, for which zero is valid. No mode is set, so nothing is changed.
    let mut clock: libc::timex = unsafe { mem::zeroed() };
    // SAFETY: the pointer is to a live structure of the type that the call takes.
    let state = unsafe { libc::adjtimex(&raw mut clock) };
    (state >= 0).then_some(state != libc::TIME_ERROR && clock.status & libc::STA_UNSYNC == 0)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_kernel_tells() {
        assert!(super::is_clock_synchronized().is_some());
    }
}
