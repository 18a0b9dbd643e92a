//! What the program asks the host once, at start.

use std::path::Path;

use anyhow::Context as _;
use config::{Mode, ModeSupport};
use model::IpFamily;

/// The first kernel whose `nf_tables` has all that the rules use (upstream's limit, too).
const NFTABLES_KERNEL: (u32, u32) = (5, 13);
/// Set, and not empty: don't look at the kernel's version.
const SKIP_KERNEL_CHECK: &str = "KUBE_PROXY_NFTABLES_SKIP_KERNEL_VERSION_CHECK";

/// The families that this network namespace can carry.
pub(crate) fn families() -> Vec<IpFamily> {
    let has_v6 = Path::new("/proc/net/if_inet6").exists();
    let disabled = std::fs::read_to_string("/proc/sys/net/ipv6/conf/all/disable_ipv6");
    families_with(has_v6, disabled.ok().as_deref())
}

/// IPv4 always; IPv6 unless the kernel lacks it or it was switched off: upstream's rule for `nftables` mode
/// (`platformCheckSupported` in `cmd/kube-proxy/app/server_linux.go`). `disabled` is the sysctl, if it can be read.
fn families_with(has_v6: bool, disabled: Option<&str>) -> Vec<IpFamily> {
    if has_v6 && disabled.is_none_or(|value| value.trim() != "1") {
        vec![IpFamily::V4, IpFamily::V6]
    } else {
        vec![IpFamily::V4]
    }
}

/// The host's name, which is the node's name unless it is overridden.
pub(crate) fn hostname() -> anyhow::Result<String> {
    const PATH: &str = "/proc/sys/kernel/hostname";
    let text = std::fs::read_to_string(PATH).with_context(|| format!("read {PATH}"))?;
    config::node_name(&text).with_context(|| format!("{PATH} is empty: use --hostname-override"))
}

/// The built-in modes, best first, and why this host can't run one.
pub(crate) fn modes() -> Vec<ModeSupport> {
    let support = |mode: &Mode| ModeSupport { mode: *mode, unusable: unusable(*mode) };
    Mode::BUILT_IN.iter().map(support).collect()
}

fn unusable(mode: Mode) -> Option<String> {
    let is_checked =
        mode == Mode::NfTables && std::env::var_os(SKIP_KERNEL_CHECK).is_none_or(|value| value.is_empty());
    // A kernel that does not tell its version gets its chance.
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").ok().filter(|_| is_checked)?;
    too_old(release.trim())
}

/// Why a kernel can't run mode nftables, given its release, such as `6.1.0-18-amd64`.
fn too_old(release: &str) -> Option<String> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else { return None };
    let (needed_major, needed_minor) = NFTABLES_KERNEL;
    ((major, minor) < NFTABLES_KERNEL)
        .then(|| format!("it needs Linux {needed_major}.{needed_minor} and this is {release} (set {SKIP_KERNEL_CHECK} to try)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_before_5_13_are_too_old() {
        for release in ["5.13.0", "5.13-rc1", "6.1.0-18-amd64", "10.0", "strange"] {
            assert_eq!(too_old(release), None, "{release}");
        }
        for release in ["5.12.19", "4.19.0-20-cloud-amd64", "5.4"] {
            assert!(too_old(release).is_some(), "{release}");
        }
    }

    #[test]
    fn ipv6_is_served_unless_it_is_missing_or_switched_off() {
        for (has_v6, disabled, expected) in [
            (true, Some("0\n"), 2),
            (true, Some("1\n"), 1),
            (true, None, 2),
            (false, Some("0\n"), 1),
            (false, None, 1),
        ] {
            assert_eq!(families_with(has_v6, disabled).len(), expected, "{has_v6} {disabled:?}");
        }
    }
}
