//! Conntrack's settings in a real kernel. Needs root.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::time::Duration;

use host::conntrack::Setting;
use host::{ConntrackSettings, FileError, Root, apply_conntrack};
use lab::Namespace;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use tempfile::TempDir;

/// A root folder with the real `proc`, and a `sys` of its own: the hash table is the whole system's.
fn root() -> (TempDir, Root) {
    let dir = TempDir::new().unwrap();
    std::os::unix::fs::symlink("/proc", dir.path().join("proc")).unwrap();
    let hash_size = dir.path().join(Setting::HashSize.file());
    std::fs::create_dir_all(hash_size.parent().unwrap()).unwrap();
    std::fs::write(hash_size, "65536\n").unwrap();
    let root = Root::new(dir.path());
    (dir, root)
}

fn value(root: &Root, setting: Setting) -> u64 {
    std::fs::read_to_string(root.path(setting.file())).unwrap().trim().parse().unwrap()
}

/// Timeouts are the namespace's own. The maximum is the system's, which a namespace sees but can't change: that is no
/// reason not to start.
#[test]
fn a_namespace_gets_its_timeouts_and_is_warned_of_the_maximum() {
    let (_dir, root) = root();
    let before = value(&root, Setting::TcpEstablished);
    let settings = ConntrackSettings {
        max_per_core: Some(32_768),
        min: Some(1 << 30),
        tcp_established_timeout: Some(Duration::from_secs(before + 7)),
        tcp_close_wait_timeout: Some(Duration::from_hours(1)),
        tcp_be_liberal: true,
        udp_timeout: Some(Duration::from_secs(31)),
        udp_stream_timeout: Some(Duration::from_millis(121_500)),
    };
    let namespace = Namespace::new("host").unwrap();
    namespace.run(|| {
        let applied = apply_conntrack(&root, &settings);
        let [failure] = &applied.failures[..] else { panic!("{applied:?}") };
        assert!(failure.to_string().ends_with("nf_conntrack_max"), "{failure}");
        assert_eq!(value(&root, Setting::TcpEstablished), before + 7);
        assert_eq!((value(&root, Setting::Udp), value(&root, Setting::UdpStream)), (31, 121));
        assert_eq!((value(&root, Setting::TcpCloseWait), value(&root, Setting::TcpBeLiberal)), (3_600, 1));
        let again = apply_conntrack(&root, &settings);
        assert_eq!(again.written, [], "{again:?}");
    });
    assert_eq!(value(&root, Setting::TcpEstablished), before, "the host's own is as it was");
}

/// As in a container that is not privileged. What suffices is not written, so that a start works that finds everything right.
#[test]
fn on_a_read_only_proc_only_what_differs_fails() {
    let (_dir, root) = root();
    let namespace = Namespace::new("host").unwrap();
    namespace.run(|| {
        make_proc_sys_read_only();
        let current = value(&root, Setting::Udp);
        let settings = |secs| ConntrackSettings {
            udp_timeout: Some(Duration::from_secs(secs)),
            ..ConntrackSettings::default()
        };
        let same = apply_conntrack(&root, &settings(current));
        assert!(same.written.is_empty() && same.failures.is_empty(), "{same:?}");
        let other = apply_conntrack(&root, &settings(current + 1));
        let [FileError::Write { path, source, .. }] = &other.failures[..] else { panic!("{other:?}") };
        assert!(path.ends_with(Setting::Udp.file()), "{}", path.display());
        assert_eq!(source.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    });
}

/// For this thread alone, which gets mounts of its own.
fn make_proc_sys_read_only() {
    let sys = Some("/proc/sys");
    let mount_flags = [MsFlags::MS_BIND, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY];
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    for flags in mount_flags {
        mount(sys, "/proc/sys", None::<&str>, flags, None::<&str>).unwrap();
    }
}
