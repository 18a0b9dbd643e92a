//! Settings that mode ipvs needs (`NewProxier` of `pkg/proxy/ipvs`). None is ever taken back.

use std::fmt;

use crate::file::{FileError, Root, read_number, write_number};
use crate::kernel_version::{kernel_release, kernel_version};

/// A number of the kernel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum IpvsSetting {
    /// Flows that IPVS directs are tracked, or they could not be masqueraded.
    Conntrack,
    /// A client's port that comes again before its old connection is forgotten goes to the old endpoint, instead of waiting a
    /// second. From Linux 5.9 on it is neither needed nor good.
    ConnReuseMode,
    /// Connections end with their endpoint.
    ExpireNodestConn,
    /// A client does not come back to an endpoint that is being drained.
    ExpireQuiescentTemplate,
    /// Packets are forwarded.
    IpForward,
    /// Only the interface that has an address answers for it.
    ArpIgnore,
    /// ARP requests come from an address of the network that they are for.
    ArpAnnounce,
}

impl IpvsSetting {
    /// Its file, relative to `/`.
    pub const fn file(self) -> &'static str {
        match self {
            Self::Conntrack => "proc/sys/net/ipv4/vs/conntrack",
            Self::ConnReuseMode => "proc/sys/net/ipv4/vs/conn_reuse_mode",
            Self::ExpireNodestConn => "proc/sys/net/ipv4/vs/expire_nodest_conn",
            Self::ExpireQuiescentTemplate => "proc/sys/net/ipv4/vs/expire_quiescent_template",
            Self::IpForward => "proc/sys/net/ipv4/ip_forward",
            Self::ArpIgnore => "proc/sys/net/ipv4/conf/all/arp_ignore",
            Self::ArpAnnounce => "proc/sys/net/ipv4/conf/all/arp_announce",
        }
    }
}

impl fmt::Display for IpvsSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.file().trim_start_matches("proc/sys/"))
    }
}

/// What came of it.
#[derive(Debug, Default)]
pub struct AppliedIpvs {
    /// What was written.
    pub written: Vec<(IpvsSetting, u32)>,
    /// What could not be, with what that means.
    pub warnings: Vec<(IpvsSetting, FileError)>,
}

/// Brings the settings to what mode ipvs needs; those that are right are not written. IPVS has to be there (its files are the
/// network namespace's own). `strict_arp` is `ipvs.strictARP`.
///
/// # Errors
/// Flows are not tracked, and can't be: no Service could be reached by its external addresses or node ports.
pub fn apply_ipvs(root: &Root, strict_arp: bool) -> Result<AppliedIpvs, FileError> {
    let mut applied = AppliedIpvs::default();
    let version = kernel_release(root).and_then(|release| kernel_version(&release));
    for (setting, value) in wanted(version, strict_arp) {
        match apply(root, setting, value) {
            Ok(true) => applied.written.push((setting, value)),
            Ok(false) => {}
            Err(error) if setting == IpvsSetting::Conntrack => return Err(error),
            Err(error) => applied.warnings.push((setting, error)),
        }
    }
    Ok(applied)
}

/// Kernels that have `conn_reuse_mode` and need it to be 0: from the first of these up to the second.
const REUSE_FROM: (u32, u32) = (4, 1);
const REUSE_UNTIL: (u32, u32) = (5, 9);

fn wanted(release: Option<(u32, u32)>, strict_arp: bool) -> Vec<(IpvsSetting, u32)> {
    let mut wanted = vec![
        (IpvsSetting::Conntrack, 1),
        (IpvsSetting::ExpireNodestConn, 1),
        (IpvsSetting::ExpireQuiescentTemplate, 1),
        (IpvsSetting::IpForward, 1),
    ];
    if release.is_some_and(|release| (REUSE_FROM..REUSE_UNTIL).contains(&release)) {
        wanted.push((IpvsSetting::ConnReuseMode, 0));
    }
    if strict_arp {
        wanted.extend([(IpvsSetting::ArpIgnore, 1), (IpvsSetting::ArpAnnounce, 2)]);
    }
    wanted
}

/// Sets one setting; false if it is right as it is.
fn apply(root: &Root, setting: IpvsSetting, value: u32) -> Result<bool, FileError> {
    let path = root.path(setting.file());
    if read_number::<u32>(&path)? == value {
        return Ok(false);
    }
    write_number(&path, value).map(|()| true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(release: &str) -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        let settings = [
            IpvsSetting::Conntrack,
            IpvsSetting::ConnReuseMode,
            IpvsSetting::ExpireNodestConn,
            IpvsSetting::ExpireQuiescentTemplate,
            IpvsSetting::IpForward,
            IpvsSetting::ArpIgnore,
            IpvsSetting::ArpAnnounce,
        ];
        let files = settings
            .map(|setting| (setting.file(), if setting == IpvsSetting::ConnReuseMode { "1" } else { "0" }));
        for (file, text) in files.into_iter().chain([("proc/sys/kernel/osrelease", release)]) {
            let path = root.path(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, format!("{text}\n")).unwrap();
        }
        (dir, root)
    }

    #[track_caller]
    fn check(release: &str, strict_arp: bool, expected: &[IpvsSetting]) {
        use IpvsSetting::{Conntrack, ExpireNodestConn, ExpireQuiescentTemplate, IpForward};
        let (_dir, root) = host(release);
        let applied = apply_ipvs(&root, strict_arp).unwrap();
        let written: Vec<_> = applied.written.iter().map(|(setting, _)| *setting).collect();
        let always = [Conntrack, ExpireNodestConn, ExpireQuiescentTemplate, IpForward];
        assert_eq!(written, [&always[..], expected].concat(), "{release}");
        assert!(apply_ipvs(&root, strict_arp).unwrap().written.is_empty(), "written once");
    }

    #[test]
    fn what_is_needed_is_set_once() {
        use IpvsSetting::{ArpAnnounce, ArpIgnore, ConnReuseMode};
        check("6.1.0-18-amd64", false, &[]);
        check("6.1.0-18-amd64", true, &[ArpIgnore, ArpAnnounce]);
        check("5.9.0", false, &[]);
        check("5.8.18", false, &[ConnReuseMode]);
        check("4.1.0", true, &[ConnReuseMode, ArpIgnore, ArpAnnounce]);
        check("3.16.0", false, &[]);
        check("strange", false, &[]);
    }

    #[test]
    fn what_cant_be_set_is_told_and_only_tracking_is_fatal() {
        let (_dir, root) = host("6.1.0");
        std::fs::remove_file(root.path(IpvsSetting::IpForward.file())).unwrap();
        let applied = apply_ipvs(&root, false).unwrap();
        let [(setting, error)] = &applied.warnings[..] else { panic!("{:?}", applied.warnings) };
        assert_eq!((setting.to_string(), applied.written.len()), ("net/ipv4/ip_forward".to_owned(), 3));
        assert!(error.to_string().ends_with("proc/sys/net/ipv4/ip_forward"), "{error}");
        std::fs::remove_file(root.path(IpvsSetting::Conntrack.file())).unwrap();
        let error = apply_ipvs(&root, false).unwrap_err();
        assert!(error.to_string().ends_with("proc/sys/net/ipv4/vs/conntrack"), "{error}");
    }
}
