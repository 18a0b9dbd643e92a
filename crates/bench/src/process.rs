//! What `/proc` tells of a process and of those that it starts.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::time::Duration;

use anyhow::Context as _;
use nix::unistd::{SysconfVar, sysconf};

/// Resident memory of a process in KiB.
pub(crate) fn resident_kib(pid: u32) -> anyhow::Result<u64> {
    memory_kib(pid, "VmRSS")
}

/// The most resident memory that a process ever had, in KiB.
pub(crate) fn peak_kib(pid: u32) -> anyhow::Result<u64> {
    memory_kib(pid, "VmHWM")
}

/// Memory of maps of `bpf(2)` that a process has open, in bytes, as the kernel accounts for it.
pub(crate) fn maps_bytes(pid: u32) -> anyhow::Result<u64> {
    let mut by_id = BTreeMap::new();
    let path = format!("/proc/{pid}/fdinfo");
    for descriptor in fs::read_dir(&path).with_context(|| format!("list {path}"))? {
        // A descriptor may be closed while it is looked at.
        let text = fs::read_to_string(descriptor?.path()).unwrap_or_default();
        if let (Some(id), Some(bytes)) = (field(&text, "map_id:"), field(&text, "memlock:")) {
            by_id.insert(id, bytes);
        }
    }
    Ok(by_id.values().sum())
}

fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

/// A field of `/proc/PID/status` in KiB, such as `VmRSS` and `VmHWM`.
fn memory_kib(pid: u32, field: &str) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    kib(&status, field).with_context(|| format!("no {field} in {path}"))
}

/// Whether it has not ended.
pub(crate) fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| Stat::parse(&stat).is_some_and(|stat| stat.state != "Z"))
}

/// Time that a process, its threads and its ended and waited-for children have had a processor, in themselves and in the
/// kernel. Exact for threads that live; to a clock tick for threads that have ended and for children.
pub(crate) fn processor_time(pid: u32) -> anyhow::Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let stat = Stat::parse(&stat).with_context(|| format!("no times in {path}"))?;
    let per_second =
        sysconf(SysconfVar::CLK_TCK).context("ask for the length of a clock tick")?.unwrap_or(100);
    let per_second = u64::try_from(per_second).unwrap_or(100).max(1);
    let of_ticks = |ticks: u64| Duration::from_millis(ticks * 1000 / per_second);
    let threads = threads_time(pid).with_context(|| format!("read the threads of {pid}"))?;
    // The threads that live, or with those that have ended, whichever is more.
    Ok(threads.max(of_ticks(stat.own_ticks)) + of_ticks(stat.children_ticks))
}

/// The sum of the first fields of `/proc/PID/task/*/schedstat`, time on a processor in nanoseconds
/// (`Documentation/scheduler/sched-stats.rst`).
fn threads_time(pid: u32) -> io::Result<Duration> {
    let mut sum = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end while it is looked at.
        let text = fs::read_to_string(thread?.path().join("schedstat")).unwrap_or_default();
        sum += text.split(' ').next().and_then(|field| field.parse::<u64>().ok()).unwrap_or_default();
    }
    Ok(Duration::from_nanos(sum))
}

/// The processes that a process has started, directly or not, and that live.
pub(crate) fn descendants(pid: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let parent = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Stat::parse(&stat).map(|stat| stat.parent)
    };
    let parents: Vec<(u32, u32)> = pids.filter_map(|pid| Some((pid, parent(pid)?))).collect();
    let mut found = vec![pid];
    let mut position = 0;
    while let Some(next) = found.get(position).copied() {
        found.extend(parents.iter().filter(|(_, parent)| *parent == next).map(|(pid, _)| *pid));
        position += 1;
    }
    found.split_off(1)
}

fn kib(status: &str, field: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    value.trim().strip_suffix(" kB")?.parse().ok()
}

/// Some fields of `proc_pid_stat(5)`.
#[derive(Debug, PartialEq, Eq)]
struct Stat<'a> {
    state: &'a str,
    parent: u32,
    /// `utime` and `stime`.
    own_ticks: u64,
    /// `cutime` and `cstime`.
    children_ticks: u64,
}

impl<'a> Stat<'a> {
    fn parse(stat: &'a str) -> Option<Self> {
        // The name before may contain blanks and brackets.
        let (_, after_name) = stat.rsplit_once(") ")?;
        let fields: Vec<&str> = after_name.split(' ').collect();
        let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
        Some(Self {
            state: fields.first()?,
            parent: fields.get(1)?.parse().ok()?,
            own_ticks: number(11)? + number(12)?,
            children_ticks: number(13)? + number(14)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_and_stat_are_read() {
        assert_eq!(kib("Name:\tx\nVmHWM:\t   12345 kB\nVmRSS:\t 99 kB\n", "VmRSS"), Some(99));
        assert_eq!(kib("Name:\tx\n", "VmRSS"), None);
        let stat = Stat::parse("12 (a) b) S 1 2 3 4 5 6 7 8 9 10 30 12 4 1 20");
        assert_eq!(stat, Some(Stat { state: "S", parent: 1, own_ticks: 42, children_ticks: 5 }));
        assert_eq!(Stat::parse("12"), None);
    }

    #[test]
    fn our_own_process_can_be_read() {
        let pid = std::process::id();
        assert!(peak_kib(pid).unwrap() >= resident_kib(pid).unwrap() / 2);
        assert!(processor_time(pid).unwrap() < Duration::from_hours(1));
        assert!(is_alive(pid));
    }

    #[test]
    fn descendants_are_found_while_they_live() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let found = descendants(std::process::id());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found.contains(&child.id()), "{found:?}");
        assert!(!is_alive(child.id()));
    }
}
