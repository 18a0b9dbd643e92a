//! Sees that somebody emptied tables (`iptables -F`, a reload of firewalld) or deleted what leads to our rules.

use std::time::Duration;

use iptables::{IptablesError, TableName};

/// While a flush goes on, how often it is looked whether it is over, and for how long at most.
const STEP: Duration = Duration::from_millis(100);
const STEPS: u32 = 50;

/// Waits until something is missing: looks every `interval`. If a table's canary is gone but not all are, somebody may be in
/// the middle of emptying them, and it waits a little for the others to go, so as not to write in between.
///
/// `is_whole` says whether nothing is missing, `has_canary` whether a table's canary is there; that it can't be told does not
/// count as missing. `sleep` lets time pass.
pub fn wait_for_loss(
    interval: Duration,
    mut is_whole: impl FnMut() -> Result<bool, IptablesError>,
    has_canary: impl Fn(TableName) -> Result<bool, IptablesError>,
    mut sleep: impl FnMut(Duration),
) {
    while !matches!(is_whole(), Ok(false)) {
        sleep(interval);
    }
    for _ in 0..STEPS {
        let gone = TableName::ALL.iter().filter(|table| matches!(has_canary(**table), Ok(false))).count();
        if gone == 0 || gone == TableName::ALL.len() {
            return;
        }
        sleep(STEP);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const NEVER: u64 = u64::MAX;

    /// Looks each second; a jump and the canaries of mangle, filter and nat go after so many milliseconds. Says when that is
    /// noticed.
    fn noticed(jump_gone_after: u64, gone_after: [u64; 3]) -> Duration {
        let now = Cell::new(Duration::ZERO);
        let is_there = |after| now.get() < Duration::from_millis(after);
        let has_canary = |table| {
            let n = TableName::ALL.iter().position(|known| *known == table).unwrap();
            Ok(is_there(gone_after[n]))
        };
        let is_whole = || Ok(is_there(jump_gone_after) && gone_after.into_iter().all(is_there));
        wait_for_loss(Duration::from_secs(1), is_whole, has_canary, |time| now.set(now.get() + time));
        now.get()
    }

    #[test]
    fn a_flush_is_waited_out() {
        assert_eq!(noticed(NEVER, [2500, 2500, 2500]), Duration::from_secs(3));
        assert_eq!(noticed(NEVER, [2500, 3250, 4000]), Duration::from_secs(4));
        assert_eq!(noticed(NEVER, [NEVER, NEVER, 500]), Duration::from_secs(6));
    }

    #[test]
    fn a_deleted_jump_is_no_flush() {
        assert_eq!(noticed(2500, [NEVER; 3]), Duration::from_secs(3));
        assert_eq!(noticed(2500, [NEVER, NEVER, 3050]), Duration::from_secs(3));
    }

    #[test]
    fn not_knowing_is_no_loss() {
        let asked = Cell::new(0);
        let look = || {
            asked.set(asked.get() + 1);
            let busy = || IptablesError::Busy { program: "iptables".into(), message: "lock".into() };
            if asked.get() < 20 { Err(busy()) } else { Ok(false) }
        };
        wait_for_loss(Duration::from_secs(1), look, |_| Ok(false), |_| {});
        assert_eq!(asked.get(), 20);
    }
}
