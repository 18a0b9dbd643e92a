//! The right to make namespaces: checked, or obtained through a user namespace.

use std::fs;
use std::io;

use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getegid, geteuid};

use super::LabError;

/// Bits of the capabilities that a laboratory needs (`include/uapi/linux/capability.h`).
const NEEDED: [(u32, &str); 2] = [(21, "CAP_SYS_ADMIN"), (12, "CAP_NET_ADMIN")];

/// Checks that the calling thread may make and configure network namespaces.
///
/// # Errors
/// [`LabError::MissingPrivilege`], which names what is missing and the ways to get it.
pub fn require_privilege() -> Result<(), LabError> {
    let status = fs::read_to_string("/proc/thread-self/status")
        .map_err(|source| LabError::Resource { action: "read the capabilities", source })?;
    let missing = missing_capabilities(&status);
    if missing.is_empty() {
        Ok(())
    } else {
        Err(LabError::MissingPrivilege { missing: missing.join(" and ") })
    }
}

/// The needed capabilities that are not effective according to a `/proc/*/status`; all of them if it has no such line.
fn missing_capabilities(status: &str) -> Vec<&'static str> {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    NEEDED.into_iter().filter(|(bit, _)| effective & (1 << bit) == 0).map(|(_, name)| name).collect()
}

/// Gives an unprivileged process what a laboratory needs: a user namespace in which it is root, with a network and a
/// mount namespace of its own. Does nothing where the capabilities are already effective.
///
/// Must be called before the process starts its second thread (so not from a `#[test]` function).
///
/// # Errors
/// [`LabError::UserNamespace`], with a hint at the reason: several threads, or a machine that forbids user namespaces.
pub fn enter_user_namespace() -> Result<(), LabError> {
    if require_privilege().is_ok() {
        return Ok(());
    }
    // Both must be read first: afterwards they are the overflow ids until the maps are written.
    let (uid, gid) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
        .map_err(|errno| LabError::UserNamespace { hint: hint(errno), source: errno.into() })?;
    // Since Linux 3.19 an unprivileged process must give up setgroups before it may map its group.
    for (file, content) in [
        ("/proc/self/setgroups", "deny".to_owned()),
        ("/proc/self/uid_map", format!("0 {uid} 1")),
        ("/proc/self/gid_map", format!("0 {gid} 1")),
    ] {
        fs::write(file, content).map_err(|source: io::Error| LabError::UserNamespace {
            hint: "the id maps were refused",
            source,
        })?;
    }
    require_privilege()
}

/// The likely reason for a refused `unshare(CLONE_NEWUSER)`, from `user_namespaces(7)` and unshare(2).
fn hint(errno: nix::errno::Errno) -> &'static str {
    use nix::errno::Errno;
    match errno {
        Errno::EINVAL => "the process already has several threads, call this first in main()",
        Errno::ENOSPC => "user.max_user_namespaces is exhausted or zero",
        Errno::EPERM => {
            "the machine forbids user namespaces to unprivileged users (sysctl or security module)"
        }
        _ => "the kernel refused",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_what_is_missing() {
        assert_eq!(missing_capabilities("Name:\tx\nCapEff:\t0000000000201000\n"), Vec::<&str>::new());
        assert_eq!(missing_capabilities("CapEff:\t0000000000200000\n"), ["CAP_NET_ADMIN"]);
        assert_eq!(missing_capabilities("CapEff:\t0000000000000000\n"), ["CAP_SYS_ADMIN", "CAP_NET_ADMIN"]);
        assert_eq!(missing_capabilities(""), ["CAP_SYS_ADMIN", "CAP_NET_ADMIN"]);
    }
}
