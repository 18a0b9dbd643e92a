//! The mode of Windows: load balancers and endpoints of HNS, which programs the node's switch.

#[path = "../mode/kernelspace.rs"]
mod kernelspace;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use agent::{ServedFamily, Settings};
use backend_kernelspace::Options;
use config::{Config, Mode};
use hcn::Mac;
use hns::Hns;
use metrics::Metrics;
use model::IpFamily;
use tracing::{debug, warn};

use self::kernelspace::{Connection, Listener};
use crate::endings::Endings;
use crate::limits::Limits;
use crate::platform;

/// What serves each of these families. Whether HNS and the network have a family is found when they are read.
///
/// # Errors
/// Nothing says which network it is, or HNS can't be called.
#[expect(clippy::unused_async, reason = "on other systems it waits for programs")]
pub(crate) async fn serve(
    config: &Config,
    _settings: &Settings,
    families: Vec<IpFamily>,
    _metrics: &Metrics,
    _endings: &Endings,
    _limits: &Limits,
) -> anyhow::Result<Vec<ServedFamily>> {
    let options = options(config)?;
    let hns = Hns::load()?;
    let connection = Connection {
        open: Arc::new(move || Box::new(hns)),
        adapters: Arc::new(adapters),
        subscribe: Arc::new(move |listener| subscribe(hns, listener)),
    };
    Ok(kernelspace::serve(options, config.sync_period, &families, &connection))
}

/// What the configuration and the environment say of HNS.
///
/// # Errors
/// Nothing says which network it is.
pub(crate) fn options(config: &Config) -> anyhow::Result<Options> {
    let windows = &config.windows;
    let variable = std::env::var("KUBE_NETWORK").ok();
    Ok(Options {
        network_name: kernelspace::network_name(windows.network_name.as_deref(), variable)?,
        source_vip: windows.source_vip,
        dsr: windows.enable_dsr,
        root_endpoint: windows.root_hns_endpoint_name.clone(),
        forward_health_checks: windows.forward_health_check_vip,
        healthz_port: config.healthz_bind_address.map(|address| address.port()),
    })
}

/// The hardware addresses of the node's adapters, by their addresses.
fn adapters() -> BTreeMap<IpAddr, Mac> {
    platform::adapters().unwrap_or_else(|error| {
        warn!(%error, "the node's adapters can't be read");
        BTreeMap::new()
    })
}

/// Has HNS tell what happens, if it can.
fn subscribe(hns: Hns, listener: Listener) -> Option<Box<dyn Send>> {
    match hns.subscribe(listener) {
        Ok(subscription) => Some(Box::new(subscription)),
        Err(code) => {
            debug!(%code, "HNS tells nothing by itself; it is asked now and then");
            None
        }
    }
}

/// Why this host can't run a mode, as far as one can tell without trying.
pub(crate) fn unusable(_mode: Mode) -> Option<String> {
    None
}
