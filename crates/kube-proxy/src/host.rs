//! What the program asks the host once, at start.

use std::path::Path;

use anyhow::Context as _;
use model::IpFamily;

/// The families that this network namespace can carry. IPv4 always; IPv6 unless the kernel lacks it or it was switched
/// off (`net.ipv6.conf.all.disable_ipv6`).
pub(crate) fn families() -> Vec<IpFamily> {
    let has_v6 = Path::new("/proc/net/if_inet6").exists();
    let switched_off = std::fs::read_to_string("/proc/sys/net/ipv6/conf/all/disable_ipv6");
    if has_v6 && switched_off.is_ok_and(|value| value.trim() != "1") {
        vec![IpFamily::V4, IpFamily::V6]
    } else {
        vec![IpFamily::V4]
    }
}

/// The host's name, which is the node's name unless it is overridden.
pub(crate) fn hostname() -> anyhow::Result<String> {
    const PATH: &str = "/proc/sys/kernel/hostname";
    let text = std::fs::read_to_string(PATH).with_context(|| format!("read {PATH}"))?;
    crate::flags::node_name(&text).with_context(|| format!("{PATH} is empty: use --hostname-override"))
}
