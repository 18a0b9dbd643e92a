//! What the program asks the host, on Windows.

#[path = "service.rs"]
mod service;

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::process::ExitCode;

use anyhow::Context as _;
use config::{Config, Mode, ModeSupport};
use hcn::Mac;
use hns::process;
use model::IpFamily;
use network_interface::{Addr, NetworkInterface, NetworkInterfaceConfig as _};

use crate::mode;
use crate::serve::Ended;

pub(crate) use self::service::stop;

/// Before anything else.
pub(crate) fn begin() {}

/// The heap gives freed memory back by itself.
pub(crate) fn release_memory() {}

/// A command by which the program runs itself: there is none.
pub(crate) fn own_command(_arguments: &[String]) -> Option<ExitCode> {
    None
}

/// How many files and connections the process may have open: more than anybody wants.
#[expect(clippy::unnecessary_wraps, reason = "other systems may not tell")]
pub(crate) fn descriptor_limit() -> Option<u64> {
    Some(u64::from(u16::MAX))
}

/// Serves, as a service or as nothing but a process.
///
/// # Errors
/// Those of `serve`, or the service control manager's.
pub(crate) fn run(
    config: &Config,
    serve: impl FnOnce() -> anyhow::Result<Ended> + Send + 'static,
) -> anyhow::Result<()> {
    if config.windows.run_as_service { service::run(Box::new(serve)) } else { serve().map(drop) }
}

/// The families that this host can carry. Which of them the network has is found in HNS.
pub(crate) fn families() -> Vec<IpFamily> {
    IpFamily::ALL.to_vec()
}

/// The addresses of this host's interfaces.
pub(crate) fn addresses() -> io::Result<Vec<IpAddr>> {
    let interfaces = NetworkInterface::show().map_err(io::Error::other)?;
    Ok(interfaces.into_iter().flat_map(|found| found.addr).map(Addr::ip).collect())
}

/// The hardware addresses of this host's adapters, by their addresses.
pub(crate) fn adapters() -> io::Result<BTreeMap<IpAddr, Mac>> {
    let interfaces = NetworkInterface::show().map_err(io::Error::other)?;
    let of = |found: NetworkInterface| {
        let mac: Option<Mac> = found.mac_addr.and_then(|mac| mac.replace(':', "-").parse().ok());
        found.addr.into_iter().filter_map(move |address| Some((address.ip(), mac?)))
    };
    Ok(interfaces.into_iter().flat_map(of).collect())
}

/// The host's name, which is the node's name unless it is overridden.
pub(crate) fn hostname() -> anyhow::Result<String> {
    let name = gethostname::gethostname();
    config::node_name(&name.to_string_lossy()).context("the host has no name: use --hostname-override")
}

/// The built-in modes, best first, and why this host can't run one.
pub(crate) fn modes() -> Vec<ModeSupport> {
    let support = |mode: &Mode| ModeSupport { mode: *mode, unusable: mode::unusable(*mode) };
    Mode::BUILT_IN.iter().map(support).collect()
}

/// Sets this process' priority class by its name, which the configuration has checked.
///
/// # Errors
/// The system refuses.
pub(crate) fn set_priority_class(name: &str) -> io::Result<()> {
    process::set_priority_class(match name {
        "IDLE_PRIORITY_CLASS" => process::IDLE_PRIORITY_CLASS,
        "BELOW_NORMAL_PRIORITY_CLASS" => process::BELOW_NORMAL_PRIORITY_CLASS,
        "NORMAL_PRIORITY_CLASS" => process::NORMAL_PRIORITY_CLASS,
        "ABOVE_NORMAL_PRIORITY_CLASS" => process::ABOVE_NORMAL_PRIORITY_CLASS,
        "HIGH_PRIORITY_CLASS" => process::HIGH_PRIORITY_CLASS,
        "REALTIME_PRIORITY_CLASS" => process::REALTIME_PRIORITY_CLASS,
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    })
}
