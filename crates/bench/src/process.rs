//! What `/proc` tells of a process.

use std::fs;
use std::time::Duration;

use anyhow::Context as _;
use nix::unistd::{SysconfVar, sysconf};

/// A field of `/proc/PID/status` in KiB, such as `VmRSS` and `VmHWM`.
pub(crate) fn memory_kib(pid: u32, field: &str) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    kib(&status, field).with_context(|| format!("no {field} in {path}"))
}

/// Time that the process has had a processor, in itself and in the kernel.
pub(crate) fn processor_time(pid: u32) -> anyhow::Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let per_second =
        sysconf(SysconfVar::CLK_TCK).context("ask for the length of a clock tick")?.unwrap_or(100);
    let ticks = ticks(&stat).with_context(|| format!("no times in {path}"))?;
    Ok(Duration::from_millis(ticks * 1000 / u64::try_from(per_second).unwrap_or(100).max(1)))
}

fn kib(status: &str, field: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    value.trim().strip_suffix(" kB")?.parse().ok()
}

/// `utime` and `stime`, fields 14 and 15 of `proc_pid_stat(5)`. The name before may contain blanks and brackets.
fn ticks(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(") ")?;
    let mut fields = after_name.split(' ').skip(11).map(str::parse::<u64>);
    Some(fields.next()?.ok()? + fields.next()?.ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_and_stat_are_read() {
        assert_eq!(kib("Name:\tx\nVmHWM:\t   12345 kB\nVmRSS:\t 99 kB\n", "VmRSS"), Some(99));
        assert_eq!(kib("Name:\tx\n", "VmRSS"), None);
        assert_eq!(ticks("12 (a) b) S 1 2 3 4 5 6 7 8 9 10 30 12 0 0 20"), Some(42));
        assert_eq!(ticks("12"), None);
    }

    #[test]
    fn our_own_process_can_be_read() {
        let pid = std::process::id();
        assert!(memory_kib(pid, "VmHWM").unwrap() >= memory_kib(pid, "VmRSS").unwrap() / 2);
        assert!(processor_time(pid).unwrap() < Duration::from_hours(1));
    }
}
