//! Conntrack's settings (`setupConntrack` of `cmd/kube-proxy/app/server_linux.go`), except that nothing is ever lowered
//! that an administrator set higher, that `min` is a minimum whatever the number of processors, and that a setting that can't
//! be changed is no reason not to start.

use std::fmt;
use std::time::Duration;

use crate::file::{FileError, Root, read_number, write_number};

/// The section `conntrack` of the configuration. `None` and zero leave a setting alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConntrackSettings {
    /// `maxPerCore`: entries for each processor.
    pub max_per_core: Option<u32>,
    /// `min`: entries at least, if `max_per_core` is given.
    pub min: Option<u32>,
    /// `tcpEstablishedTimeout`, in whole seconds.
    pub tcp_established_timeout: Option<Duration>,
    /// `tcpCloseWaitTimeout`, likewise.
    pub tcp_close_wait_timeout: Option<Duration>,
    /// `tcpBeLiberal`: packets outside of the window are not invalid. Only ever switched on.
    pub tcp_be_liberal: bool,
    /// `udpTimeout`, in whole seconds.
    pub udp_timeout: Option<Duration>,
    /// `udpStreamTimeout`, likewise.
    pub udp_stream_timeout: Option<Duration>,
}

/// A number that the kernel lets one set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Setting {
    /// Entries at most.
    Max,
    /// Buckets of the hash table.
    HashSize,
    /// Seconds that an idle TCP connection is remembered.
    TcpEstablished,
    /// Seconds that a TCP connection is remembered of which one side has closed.
    TcpCloseWait,
    /// Whether packets outside of the TCP window are accepted.
    TcpBeLiberal,
    /// Seconds that a UDP flow without answers is remembered.
    Udp,
    /// Seconds that a UDP flow with answers is remembered.
    UdpStream,
}

impl Setting {
    /// Its file, relative to `/`.
    pub const fn file(self) -> &'static str {
        match self {
            Self::Max => "proc/sys/net/netfilter/nf_conntrack_max",
            Self::HashSize => "sys/module/nf_conntrack/parameters/hashsize",
            Self::TcpEstablished => "proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established",
            Self::TcpCloseWait => "proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait",
            Self::TcpBeLiberal => "proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal",
            Self::Udp => "proc/sys/net/netfilter/nf_conntrack_udp_timeout",
            Self::UdpStream => "proc/sys/net/netfilter/nf_conntrack_udp_timeout_stream",
        }
    }

    /// Whether a value that is there will do.
    fn suffices(self, current: u64, wanted: u64) -> bool {
        match self {
            Self::Max | Self::HashSize => current >= wanted,
            // 1 and 2 are both on as far as the kernel is concerned.
            Self::TcpBeLiberal => current != 0,
            Self::TcpEstablished | Self::TcpCloseWait | Self::Udp | Self::UdpStream => current == wanted,
        }
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.file().rsplit('/').next().unwrap_or_default())
    }
}

/// Upstream never asks for more entries than this, unless `min` does.
const MAX_SCALED: u64 = 1 << 20;

/// What is wanted, in the order of writing: the hash table follows the maximum.
pub fn wanted(settings: &ConntrackSettings, cpus: u64) -> Vec<(Setting, u64)> {
    let max = settings.max_per_core.filter(|max| *max > 0).map(|max_per_core| {
        let scaled = u64::from(max_per_core) * cpus;
        scaled.min(MAX_SCALED).max(settings.min.unwrap_or_default().into())
    });
    let seconds =
        |timeout: Option<Duration>| timeout.map(|timeout| timeout.as_secs()).filter(|secs| *secs > 0);
    let wanted = [
        (Setting::Max, max),
        (Setting::HashSize, max.map(|max| max / 4)),
        (Setting::TcpEstablished, seconds(settings.tcp_established_timeout)),
        (Setting::TcpCloseWait, seconds(settings.tcp_close_wait_timeout)),
        (Setting::TcpBeLiberal, settings.tcp_be_liberal.then_some(1)),
        (Setting::Udp, seconds(settings.udp_timeout)),
        (Setting::UdpStream, seconds(settings.udp_stream_timeout)),
    ];
    wanted.into_iter().filter_map(|(setting, value)| Some((setting, value?))).collect()
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Applied {
    /// What was written.
    pub written: Vec<(Setting, u64)>,
    /// What could not be read or written; each names its file.
    pub failures: Vec<FileError>,
}

/// Brings conntrack's settings to what is wanted; those that suffice are not written, so that a second, less privileged
/// start works where `/proc/sys` is read-only. Each is tried, whatever came of the others.
pub fn apply_conntrack(root: &Root, settings: &ConntrackSettings) -> Applied {
    let mut applied = Applied::default();
    for (setting, value) in wanted(settings, cpus(root)) {
        match apply(root, setting, value) {
            Ok(true) => applied.written.push((setting, value)),
            Ok(false) => {}
            Err(error) => applied.failures.push(error),
        }
    }
    applied
}

/// Sets one setting; false if it suffices as it is.
fn apply(root: &Root, setting: Setting, value: u64) -> Result<bool, FileError> {
    let path = root.path(setting.file());
    if setting.suffices(read_number(&path)?, value) {
        return Ok(false);
    }
    write_number(&path, value).map(|()| true)
}

/// Logical processors of the machine that are online; those that this process may use, if the system does not tell.
fn cpus(root: &Root) -> u64 {
    let online = std::fs::read_to_string(root.path("sys/devices/system/cpu/online"));
    let usable = || std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
    online.ok().and_then(|list| count_cpus(list.trim())).unwrap_or_else(usable)
}

/// Length of a list such as `0-3,8`.
fn count_cpus(list: &str) -> Option<u64> {
    let length = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (first.parse::<u64>().ok()?, last.parse::<u64>().ok()?);
        last.checked_sub(first)?.checked_add(1)
    };
    list.split(',').map(length).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Upstream's defaults.
    fn defaults() -> ConntrackSettings {
        ConntrackSettings {
            max_per_core: Some(32_768),
            min: Some(131_072),
            tcp_established_timeout: Some(Duration::from_hours(24)),
            tcp_close_wait_timeout: Some(Duration::from_hours(1)),
            ..ConntrackSettings::default()
        }
    }

    #[track_caller]
    fn check_max(max_per_core: u32, min: u32, cpus: u64, expected: Option<u64>) {
        let settings = ConntrackSettings {
            max_per_core: Some(max_per_core),
            min: Some(min),
            ..ConntrackSettings::default()
        };
        let wanted = wanted(&settings, cpus);
        let value = |wanted_setting| {
            wanted.iter().find(|(setting, _)| *setting == wanted_setting).map(|(_, value)| *value)
        };
        assert_eq!(value(Setting::Max), expected);
        assert_eq!(value(Setting::HashSize), expected.map(|max| max / 4));
    }

    #[test]
    fn the_maximum_grows_with_the_processors_between_min_and_cap() {
        check_max(32_768, 131_072, 1, Some(131_072));
        check_max(32_768, 131_072, 4, Some(131_072));
        check_max(32_768, 131_072, 5, Some(163_840));
        check_max(32_768, 131_072, 32, Some(1_048_576));
        check_max(32_768, 131_072, 128, Some(1_048_576));
        check_max(32_768, 2_000_000, 128, Some(2_000_000));
        check_max(0, 131_072, 8, None);
        check_max(u32::MAX, 0, u64::from(u32::MAX), Some(1_048_576));
    }

    #[test]
    fn timeouts_of_less_than_a_second_leave_the_kernels() {
        let settings = ConntrackSettings {
            udp_timeout: Some(Duration::from_millis(900)),
            udp_stream_timeout: Some(Duration::from_millis(90_900)),
            tcp_be_liberal: true,
            ..ConntrackSettings::default()
        };
        assert_eq!(wanted(&settings, 4), [(Setting::TcpBeLiberal, 1), (Setting::UdpStream, 90)]);
    }

    /// A host with these values, in the order of [`Setting`], and two processors.
    fn host(values: [u64; 7]) -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        let settings = [
            Setting::Max,
            Setting::HashSize,
            Setting::TcpEstablished,
            Setting::TcpCloseWait,
            Setting::TcpBeLiberal,
            Setting::Udp,
            Setting::UdpStream,
        ];
        for (setting, value) in settings.into_iter().zip(values) {
            put(&root, setting.file(), &value.to_string());
        }
        put(&root, "sys/devices/system/cpu/online", "0-1");
        (dir, root)
    }

    fn put(root: &Root, file: &str, text: &str) {
        let path = root.path(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, format!("{text}\n")).unwrap();
    }

    #[test]
    fn what_differs_is_written_and_nothing_is_lowered() {
        let (_dir, root) = host([65_536, 16_384, 432_000, 60, 0, 30, 120]);
        let applied = apply_conntrack(&root, &defaults());
        let expected = [
            (Setting::Max, 131_072),
            (Setting::HashSize, 32_768),
            (Setting::TcpEstablished, 86_400),
            (Setting::TcpCloseWait, 3_600),
        ];
        assert_eq!(applied.written, expected);
        assert_eq!(std::fs::read_to_string(root.path(Setting::Max.file())).unwrap(), "131072");
        assert_eq!(apply_conntrack(&root, &defaults()).written, []);

        let (_dir, root) = host([262_144, 262_144, 86_400, 3_600, 1, 30, 120]);
        let settings = ConntrackSettings { tcp_be_liberal: true, ..defaults() };
        assert_eq!(apply_conntrack(&root, &settings).written, []);
    }

    #[test]
    fn what_cant_be_set_is_told_with_its_file_and_costs_only_itself() {
        let (_dir, root) = host([65_536, 16_384, 1, 1, 0, 30, 120]);
        std::fs::remove_file(root.path(Setting::HashSize.file())).unwrap();
        put(&root, Setting::TcpEstablished.file(), "many");
        let applied = apply_conntrack(&root, &defaults());
        assert_eq!(applied.written, [(Setting::Max, 131_072), (Setting::TcpCloseWait, 3_600)]);
        let [missing, no_number] = &applied.failures[..] else { panic!("{:?}", applied.failures) };
        assert!(missing.to_string().ends_with("parameters/hashsize"), "{missing}");
        let text = no_number.to_string();
        assert!(text.contains("nf_conntrack_tcp_timeout_established holds \"many\""), "{text}");
        assert!(matches!(no_number, FileError::NoNumber { .. }));
    }

    #[test]
    fn processors_are_counted() {
        assert_eq!(count_cpus("0"), Some(1));
        assert_eq!(count_cpus("0-3,8,10-11"), Some(7));
        assert_eq!(count_cpus("3-1"), None);
        assert_eq!(count_cpus(""), None);
    }
}
