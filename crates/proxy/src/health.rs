//! Asks endpoints whether they serve, where their Service wants that.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use balance::{Health, HealthCheck, ProxyProtocol};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use crate::pool::Endpoint;
use crate::proxy_header;

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

/// Begins to ask an endpoint. Where connections are told whose they are, those at the same port are told that they are nobody's.
pub(crate) fn begin(
    endpoint: &Arc<Endpoint>,
    settings: HealthCheck,
    proxy_protocol: Option<ProxyProtocol>,
) -> Checking {
    let (asked, is_current) = (Arc::downgrade(endpoint), Arc::new(AtomicBool::new(true)));
    let preface = proxy_protocol.filter(|_| settings.port.is_none()).map(proxy_header::of_nobody);
    let question = Question { settings, preface: preface.unwrap_or_default() };
    let asking = ask(asked, endpoint.address, question, is_current.clone());
    Checking(tokio::spawn(asking).abort_handle(), is_current)
}

struct Question {
    settings: HealthCheck,
    /// What its connection begins with.
    preface: Vec<u8>,
}

async fn ask(endpoint: Weak<Endpoint>, address: SocketAddr, question: Question, is_current: Arc<AtomicBool>) {
    let settings = &question.settings;
    let address = SocketAddr::new(address.ip(), settings.port.unwrap_or(address.port()));
    let mut health = Health::default();
    // So that not all nodes ask at the same time.
    sleep(settings.interval.mul_f64(fastrand::f64())).await;
    loop {
        let failure = ask_once(address, &question).await.err();
        let changed = health.report(settings, failure.is_none());
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

async fn ask_once(address: SocketAddr, question: &Question) -> Result<(), String> {
    let Question { settings, preface } = question;
    // Nobody closes it.
    let _turn = AT_A_TIME.acquire().await;
    match timeout(settings.timeout, http_proxy::check(&settings.probe, address, preface)).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_elapsed) => Err("it does not answer in time".to_owned()),
    }
}
