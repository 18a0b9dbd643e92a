//! Sees that somebody emptied tables (`iptables -F`, a reload of firewalld).

use std::time::Duration;

use iptables::{IptablesError, TableName};

/// While a flush goes on, how often it is looked whether it is over, and for how long at most.
const STEP: Duration = Duration::from_millis(100);
const STEPS: u32 = 50;

/// Waits until the canary of some table is gone: looks every `interval`, and then waits a little for the canaries of all tables
/// to go, so as not to write in the middle of somebody's flush.
///
/// `is_there` says whether a table's canary is there; that it can't be told does not count as gone. `sleep` lets time pass.
pub fn wait_for_flush(
    interval: Duration,
    is_there: impl Fn(TableName) -> Result<bool, IptablesError>,
    mut sleep: impl FnMut(Duration),
) {
    let is_gone = |table: &TableName| matches!(is_there(*table), Ok(false));
    while !TableName::ALL.iter().any(is_gone) {
        sleep(interval);
    }
    for _ in 0..STEPS {
        if TableName::ALL.iter().all(is_gone) {
            return;
        }
        sleep(STEP);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Looks each second; the canaries of mangle, filter and nat go after so many milliseconds. Says when that is noticed.
    fn noticed(gone_after: [u64; 3]) -> Duration {
        let now = Cell::new(Duration::ZERO);
        let is_there = |table| {
            let n = TableName::ALL.iter().position(|known| *known == table).unwrap();
            Ok(now.get() < Duration::from_millis(gone_after[n]))
        };
        wait_for_flush(Duration::from_secs(1), is_there, |time| now.set(now.get() + time));
        now.get()
    }

    const NEVER: u64 = u64::MAX;

    #[test]
    fn a_flush_is_waited_out() {
        assert_eq!(noticed([2500, 2500, 2500]), Duration::from_secs(3));
        assert_eq!(noticed([2500, 3250, 4000]), Duration::from_secs(4));
        assert_eq!(noticed([NEVER, NEVER, 500]), Duration::from_secs(6));
    }

    #[test]
    fn not_knowing_is_no_loss() {
        let asked = Cell::new(0);
        let is_there = |_| {
            asked.set(asked.get() + 1);
            let busy = || IptablesError::Busy { program: "iptables".into(), message: "lock".into() };
            if asked.get() < 20 { Err(busy()) } else { Ok(false) }
        };
        wait_for_flush(Duration::from_secs(1), is_there, |_| {});
        assert!(asked.get() >= 20);
    }
}
