//! What the program changes on the host beside its own tables: leftovers of upstream's other modes are removed
//! ([`cleanup`]), conntrack is sized ([`conntrack`]), IPVS set up ([`ipvs`]), the OOM score set ([`oom`]), the limit of open
//! files raised ([`raise_descriptor_limit`]), that of locked memory lifted ([`lift_locked_memory_limit`]), and privileges given up
//! ([`privileges`]). And what of the host decides whether Services work ([`facts`]).
//!
//! Files are looked for below a [`Root`], so that tests can use a folder. Nothing here is undone at the end of the program.
#![forbid(unsafe_code)]

pub mod facts;
mod file;

pub use facts::{ConntrackFacts, Facts};
pub use file::{FileError, Root};

#[cfg(target_os = "linux")]
pub use linux::*;

/// All that is changed. There is nothing of the kind on other systems.
#[cfg(target_os = "linux")]
#[path = "."]
mod linux {
    pub mod cleanup;
    pub mod conntrack;
    mod descriptors;
    pub mod ipvs;
    pub(crate) mod kernel_version;
    mod legacy_policy;
    mod locked_memory;
    pub mod oom;
    pub mod privileges;
    pub mod route_localnet;
    mod seccomp;

    pub use cleanup::{
        CleanupError, Removed, Report, clean_up_all, clean_up_iptables, clean_up_nftables,
        clean_up_other_modes, clean_up_rules, clean_up_servers, clean_up_workers, is_ipvs_left,
    };
    pub use conntrack::{ConntrackSettings, apply_conntrack};
    pub use descriptors::{descriptor_limit, raise_descriptor_limit};
    pub use ipvs::apply_ipvs;
    pub use kernel_version::{kernel_release, kernel_version};
    pub use legacy_policy::legacy_forward_drops;
    pub use locked_memory::lift_locked_memory_limit;
    pub use oom::set_oom_score;
    pub use privileges::{
        NoPermission, Privilege, PrivilegeError, drop_all_privileges, drop_privileges, require_net_admin,
    };
    pub use route_localnet::set_route_localnet;
    pub use seccomp::{SeccompError, restrict_system_calls};
}
