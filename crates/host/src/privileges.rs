//! Giving up what is not needed once the program has started.

use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

/// What the program needs as long as it runs: rules, tracked flows, large socket buffers.
const NEEDED: CapabilitySet = CapabilitySet::NET_ADMIN;

type Step = fn(CapabilitySet) -> rustix::io::Result<()>;

/// A privilege that could not be given up, and why. The program works with it, of course.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct PrivilegeError {
    what: &'static str,
    #[source]
    source: Errno,
}

/// The process may not change rules, now or later: no capability comes back to a process that lacks it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no permission to change packet filter rules: user {uid} without the capability CAP_NET_ADMIN; run as root, or give it that \
     capability"
)]
pub struct NoPermission {
    uid: u32,
}

/// Sees whether the process has what it can't work without, `CAP_NET_ADMIN`, by its own set and not by trying: in effect, or
/// permitted, so that [`drop_privileges`] puts it into effect.
///
/// # Errors
/// It has not. A system that does not tell is believed to allow it; what it refuses shows later.
pub fn require_net_admin() -> Result<(), NoPermission> {
    let lacks_it = capabilities(None).is_ok_and(|held| !(held.effective | held.permitted).contains(NEEDED));
    if lacks_it { Err(NoPermission { uid: rustix::process::geteuid().as_raw() }) } else { Ok(()) }
}

/// What a mode needs besides `CAP_NET_ADMIN`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// `CAP_NET_RAW`, for the programs of iptables-legacy.
    RawSockets,
    /// `CAP_BPF`, for programs in the kernel.
    Programs,
    /// That, and `CAP_SYS_ADMIN`, for sockets in other network namespaces.
    ProgramsAndNamespaces,
}

/// Keeps `CAP_NET_ADMIN`, if the process has it, and gives up all other capabilities for good, also for programs that it
/// executes (credential plugins). A container that refuses one of the steps is no reason not to go on: the steps that failed
/// are returned.
///
/// `also`: what the mode needs besides.
///
/// Capabilities belong to a thread, and threads inherit them: call this before there is a second one.
pub fn drop_privileges(also: Option<Privilege>) -> Vec<PrivilegeError> {
    let kept = match also {
        None => NEEDED,
        Some(Privilege::RawSockets) => NEEDED.union(CapabilitySet::NET_RAW),
        Some(Privilege::Programs) => NEEDED.union(CapabilitySet::BPF),
        Some(Privilege::ProgramsAndNamespaces) => {
            NEEDED.union(CapabilitySet::BPF).union(CapabilitySet::SYS_ADMIN)
        }
    };
    // Last what the others need: to narrow the bounding set takes CAP_SETPCAP.
    let steps: [(&'static str, Step); 4] = [
        ("set no_new_privs", |_| set_no_new_privs(true)),
        ("clear the ambient capabilities", |_| clear_ambient_capability_set()),
        ("narrow the bounding set", narrow_bounding_set),
        ("give up capabilities", give_up),
    ];
    let failed =
        |(what, step): (&'static str, Step)| step(kept).err().map(|source| PrivilegeError { what, source });
    steps.into_iter().filter_map(failed).collect()
}

/// Gives up all capabilities for good, and the means to get any. To be called before there is a second thread.
///
/// # Errors
/// The first that could not be given up.
pub fn drop_all_privileges() -> Result<(), PrivilegeError> {
    let failed = |what| move |source| PrivilegeError { what, source };
    set_no_new_privs(true).map_err(failed("set no_new_privs"))?;
    clear_ambient_capability_set().map_err(failed("clear the ambient capabilities"))?;
    // It takes a capability that the process may lack, and without new privileges the bounding set gives nothing.
    match narrow_bounding_set(CapabilitySet::empty()) {
        Ok(()) | Err(_) => {}
    }
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, none).map_err(failed("give up capabilities"))
}

fn narrow_bounding_set(kept: CapabilitySet) -> rustix::io::Result<()> {
    let refused = CapabilitySet::all().difference(kept).iter().find_map(|capability| {
        // A kernel that does not know the capability says EINVAL.
        remove_capability_from_bounding_set(capability).err().filter(|errno| *errno != Errno::INVAL)
    });
    refused.map_or(Ok(()), Err)
}

fn give_up(kept: CapabilitySet) -> rustix::io::Result<()> {
    let held = capabilities(None)?;
    let kept = CapabilitySets {
        effective: held.permitted & kept,
        permitted: held.permitted & kept,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sets of the calling thread, as `/proc` shows them.
    fn shown(set: &str) -> u64 {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(set)).unwrap();
        u64::from_str_radix(line.trim_start_matches(':').trim(), 16).unwrap()
    }

    /// On a thread of its own, which takes its capabilities with it.
    #[test]
    fn only_net_admin_is_left() {
        std::thread::spawn(|| {
            assert!(shown("CapPrm") & 1 << 12 != 0, "this test needs CAP_NET_ADMIN and CAP_SETPCAP");
            assert_eq!(require_net_admin(), Ok(()));
            assert_eq!(drop_privileges(None), []);
            for set in ["CapEff", "CapPrm", "CapBnd"] {
                assert_eq!(shown(set), 1 << 12, "{set}");
            }
            assert_eq!((shown("CapInh"), shown("CapAmb"), shown("NoNewPrivs")), (0, 0, 1));
            // A second time there is nothing to give up, and narrowing the bounding set is refused.
            let failed: Vec<_> = drop_privileges(None).iter().map(ToString::to_string).collect();
            assert_eq!(failed, ["narrow the bounding set"]);
            assert_eq!(shown("CapEff"), 1 << 12);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn nothing_is_left_of_all_privileges() {
        std::thread::spawn(|| {
            drop_all_privileges().unwrap();
            for set in ["CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb"] {
                assert_eq!(shown(set), 0, "{set}");
            }
            assert_eq!(shown("NoNewPrivs"), 1);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_process_without_net_admin_is_told_so() {
        std::thread::spawn(|| {
            give_up(CapabilitySet::empty()).unwrap();
            let error = require_net_admin().unwrap_err();
            assert!(error.to_string().contains("without the capability CAP_NET_ADMIN"), "{error}");
        })
        .join()
        .unwrap();
    }

    #[test]
    fn raw_sockets_stay_where_they_are_needed() {
        std::thread::spawn(|| {
            assert_eq!(drop_privileges(Some(Privilege::RawSockets)), []);
            assert_eq!(shown("CapEff"), 1 << 12 | 1 << 13);
        })
        .join()
        .unwrap();
    }
}
