//! Asks endpoints whether they serve, where their Service wants that.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use balance::{Health, HealthCheck};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use crate::pool::Endpoint;

/// Endpoints that are asked at a time, of all Services: each takes an open file.
static AT_A_TIME: Semaphore = Semaphore::const_new(32);

/// Checks of an endpoint, until this is dropped: from then on they have nothing to say.
#[derive(Debug)]
pub(crate) struct Checking(AbortHandle, Arc<AtomicBool>);

impl Drop for Checking {
    fn drop(&mut self) {
        self.1.store(false, Ordering::Relaxed);
        self.0.abort();
    }
}

/// Begins to ask an endpoint.
pub(crate) fn begin(endpoint: &Arc<Endpoint>, settings: HealthCheck) -> Checking {
    let (asked, is_current) = (Arc::downgrade(endpoint), Arc::new(AtomicBool::new(true)));
    let asking = ask(asked, endpoint.address, settings, is_current.clone());
    Checking(tokio::spawn(asking).abort_handle(), is_current)
}

async fn ask(
    endpoint: Weak<Endpoint>,
    address: SocketAddr,
    settings: HealthCheck,
    is_current: Arc<AtomicBool>,
) {
    let address = SocketAddr::new(address.ip(), settings.port.unwrap_or(address.port()));
    let mut health = Health::default();
    // So that not all nodes ask at the same time.
    sleep(settings.interval.mul_f64(fastrand::f64())).await;
    loop {
        let failure = ask_once(address, &settings).await.err();
        let changed = health.report(&settings, failure.is_none());
        let Some(endpoint) = endpoint.upgrade() else { return };
        match changed {
            Some(true) => endpoint.checked(&is_current, Some(failure.unwrap_or_default())),
            Some(false) => endpoint.checked(&is_current, None),
            None => {}
        }
        drop(endpoint);
        sleep(settings.interval).await;
    }
}

async fn ask_once(address: SocketAddr, settings: &HealthCheck) -> Result<(), String> {
    // Nobody closes it.
    let _turn = AT_A_TIME.acquire().await;
    match timeout(settings.timeout, http_proxy::check(&settings.probe, address)).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_elapsed) => Err("it does not answer in time".to_owned()),
    }
}
