//! What the program asks the host, on Linux.

use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use config::{Config, Mode, ModeSupport};
use model::IpFamily;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nix::sys::socket::SockaddrStorage;

use crate::mode;
use crate::serve::Ended;

/// Before anything else, while there is one thread.
pub(crate) fn begin() {
    kernel::share_heap();
}

/// Gives memory that was freed back to the system.
pub(crate) use kernel::release_memory;

/// A command by which the program runs itself.
pub(crate) fn own_command(arguments: &[String]) -> Option<ExitCode> {
    let (command, arguments) = arguments.split_first()?;
    (command == mode::userspace::WORKER).then(|| mode::userspace::run_worker(arguments))
}

/// How many files and connections the process may have open.
pub(crate) fn descriptor_limit() -> Option<u64> {
    host::descriptor_limit().ok()
}

/// Serves, as nothing but a process.
pub(crate) fn run(
    _config: &Config,
    serve: impl FnOnce() -> anyhow::Result<Ended> + Send + 'static,
) -> anyhow::Result<()> {
    serve().map(drop)
}

/// Who ends the program; nobody does it in another way from now on.
pub(crate) fn stop() -> io::Result<cli::Endings> {
    cli::Endings::handle(false)
}

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
        IpFamily::ALL.to_vec()
    } else {
        vec![IpFamily::V4]
    }
}

/// The addresses of this host's interfaces, in their order, with the interface's flags.
pub(crate) fn addresses() -> nix::Result<impl Iterator<Item = (InterfaceFlags, IpAddr)>> {
    let address = |storage: SockaddrStorage| {
        let v4 = storage.as_sockaddr_in().map(|address| IpAddr::from(address.ip()));
        v4.or_else(|| storage.as_sockaddr_in6().map(|address| address.ip().into()))
    };
    Ok(getifaddrs()?.filter_map(move |found| Some((found.flags, address(found.address?)?))))
}

/// The host's name, which is the node's name unless it is overridden.
pub(crate) fn hostname() -> anyhow::Result<String> {
    const PATH: &str = "/proc/sys/kernel/hostname";
    let text = std::fs::read_to_string(PATH).with_context(|| format!("read {PATH}"))?;
    config::node_name(&text).with_context(|| format!("{PATH} is empty: use --hostname-override"))
}

/// The built-in modes, best first, and why this host can't run one.
pub(crate) fn modes() -> Vec<ModeSupport> {
    let support = |mode: &Mode| ModeSupport { mode: *mode, unusable: mode::unusable(*mode) };
    Mode::BUILT_IN.iter().map(support).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

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
