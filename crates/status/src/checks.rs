//! Service health checks: listeners on `healthCheckNodePort`s, by which load balancers learn whether this node has local
//! endpoints. Source: `pkg/proxy/healthcheck/service_health.go`, KEP-1669.
//!
//! The published checks, and the addresses of the node, say which listeners there should be; what can't be bound is tried
//! again. Each Service has listeners of its own, by family.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::header::{HeaderName, HeaderValue};
use metrics::health::SharedHealth;
use model::view::HealthChecks;
use model::{IpFamily, ServiceName};
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::addresses::{AddressWatch, listen_addresses, local_addresses};
use crate::answer::{Answer, JSON, answer, ok_or_unavailable};
use crate::serve::Pool;
use crate::{Notify, ServiceCheckFailed, listen, serve as connections, sockets};

/// Before what failed is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(5);
/// How often everything is looked at without a cause: a listener may have failed.
const LOOK_EVERY: Duration = Duration::from_mins(1);
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// A Service in a family.
type Check = (IpFamily, ServiceName);
/// A listener that there should be.
type Wanted = (Check, SocketAddr);

/// Local endpoints of each Service, as of the last publication. A Service that is gone has none.
type Counts = Arc<Mutex<BTreeMap<Check, usize>>>;

/// Serves what is published, until the publisher is gone.
pub(crate) async fn serve(
    health: SharedHealth,
    mut published: watch::Receiver<BTreeMap<IpFamily, HealthChecks>>,
    notify: Notify,
    pool: Pool,
) {
    let watch = AddressWatch::open();
    if let Err(error) = &watch {
        warn!(%error, "changes of the node's addresses can't be watched; service health checks follow them only later");
    }
    let mut listeners = Listeners::new(health, notify, pool);
    loop {
        let checks = published.borrow_and_update().clone();
        listeners.follow(&checks).await;
        let pause = if listeners.is_complete() { LOOK_EVERY } else { RETRY_PAUSE };
        tokio::select! {
            changed = published.changed() => if changed.is_err() { return },
            () = addresses_changed(watch.as_ref().ok()) => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn addresses_changed(watch: Option<&AddressWatch>) {
    match watch {
        Some(watch) => {
            if let Err(error) = watch.changed().await {
                warn!(%error, "the watch of the node's addresses has a problem");
                // Not at once again, if it stays broken.
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
        None => tokio::time::sleep(RETRY_PAUSE).await,
    }
}

/// A listener that is served.
struct Open {
    socket: Arc<TcpListener>,
    task: JoinHandle<()>,
}

impl Open {
    async fn close(self) -> io::Result<()> {
        self.task.abort();
        // It must not see what happens to the socket.
        drop(self.task.await);
        sockets::stop(&self.socket)
    }
}

/// The listeners there are, and what is wrong with those that there are not.
struct Listeners {
    health: SharedHealth,
    notify: Notify,
    pool: Pool,
    counts: Counts,
    open: BTreeMap<Wanted, Open>,
    failed: BTreeMap<Wanted, String>,
    /// Families whose ranges hold no address, although there are checks to serve.
    without_address: BTreeSet<IpFamily>,
}

impl Listeners {
    fn new(health: SharedHealth, notify: Notify, pool: Pool) -> Self {
        let (counts, open, failed) = (Counts::default(), BTreeMap::new(), BTreeMap::new());
        Self { health, notify, pool, counts, open, failed, without_address: BTreeSet::new() }
    }

    /// Whether all listeners are open that should be.
    fn is_complete(&self) -> bool {
        self.failed.is_empty()
    }

    /// Takes in counts, closes what is not wanted any more, and then opens what is.
    async fn follow(&mut self, checks: &BTreeMap<IpFamily, HealthChecks>) {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner) = counts(checks);
        let wanted = self.wanted(checks);
        self.failed.retain(|listener, _| wanted.contains(listener));
        // A listener that has failed is opened again.
        let closing =
            self.open.extract_if(.., |listener, open| !wanted.contains(listener) || open.task.is_finished());
        for (((_, service), address), open) in closing.collect::<Vec<_>>() {
            // Its port may be another's in a moment.
            match open.close().await {
                Ok(()) => info!(%service, %address, "closed a service health check"),
                Err(error) => {
                    debug!(%service, %address, %error, "closed a service health check that had failed");
                }
            }
        }
        for listener in wanted {
            if !self.open.contains_key(&listener) {
                self.open(listener);
            }
        }
    }

    fn wanted(&mut self, checks: &BTreeMap<IpFamily, HealthChecks>) -> BTreeSet<Wanted> {
        if checks.values().all(|checks| checks.services.is_empty()) {
            self.without_address.clear();
            return BTreeSet::new();
        }
        let local = local_addresses().unwrap_or_else(|error| {
            warn!(%error, "the node's addresses can't be read; service health checks are served on all of them only");
            BTreeSet::new()
        });
        let mut wanted = BTreeSet::new();
        for (family, checks) in checks {
            let addresses = listen_addresses(*family, &checks.ranges, &local);
            self.warn_without_address(*family, checks, &addresses);
            for (service, check) in &checks.services {
                let with_port = |mut address: SocketAddr| {
                    address.set_port(check.port);
                    ((*family, service.clone()), address)
                };
                wanted.extend(addresses.iter().copied().map(with_port));
            }
        }
        wanted
    }

    fn warn_without_address(
        &mut self,
        family: IpFamily,
        checks: &HealthChecks,
        addresses: &BTreeSet<SocketAddr>,
    ) {
        if checks.services.is_empty() || !addresses.is_empty() {
            self.without_address.remove(&family);
        } else if self.without_address.insert(family) {
            let ranges = &checks.ranges;
            warn!(%family, ?ranges, "no address of the node serves node ports, and so no service health checks");
        }
    }

    fn open(&mut self, listener: Wanted) {
        let ((_, service), address) = &listener;
        match listen::bind_family(*address) {
            Ok(socket) => {
                info!(%service, %address, "opened a service health check");
                self.failed.remove(&listener);
                let socket = Arc::new(socket);
                let task = tokio::spawn(answer_checks(
                    socket.clone(),
                    listener.0.clone(),
                    self.health.clone(),
                    self.counts.clone(),
                    self.pool.clone(),
                ));
                self.open.insert(listener, Open { socket, task });
            }
            Err(error) => self.note_failure(listener, &error),
        }
    }

    fn note_failure(&mut self, listener: Wanted, error: &io::Error) {
        let text = error.to_string();
        if self.failed.get(&listener) == Some(&text) {
            return;
        }
        let ((_, service), address) = &listener;
        warn!(%service, %address, error = text, "a service health check can't be served; it is tried again and again");
        (self.notify)(ServiceCheckFailed {
            service: service.clone(),
            port: address.port(),
            address: *address,
            error: text.clone(),
        });
        self.failed.insert(listener, text);
    }
}

fn counts(checks: &BTreeMap<IpFamily, HealthChecks>) -> BTreeMap<Check, usize> {
    let of_family = |(family, checks): (&IpFamily, &HealthChecks)| {
        let family = *family;
        let services = checks.services.clone();
        services.into_iter().map(move |(service, check)| ((family, service), check.local_endpoints))
    };
    checks.iter().flat_map(of_family).collect()
}

async fn answer_checks(
    socket: Arc<TcpListener>,
    check: Check,
    health: SharedHealth,
    counts: Counts,
    pool: Pool,
) {
    let shared = Arc::new((check, health, counts));
    let respond = move |_request| {
        let (check, health, counts) = &*shared;
        let endpoints = counts.lock().unwrap_or_else(PoisonError::into_inner).get(check).copied();
        let healthy = health.lock().report(Instant::now()).healthy;
        std::future::ready(check_answer(&check.1, endpoints.unwrap_or_default(), healthy))
    };
    let error = connections::serve(&*socket, &pool, respond).await;
    warn!(%error, "a service health check has failed");
}

/// The body, in upstream's order of keys.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    service: ServiceBody<'a>,
    local_endpoints: usize,
    service_proxy_healthy: bool,
}

#[derive(Serialize)]
struct ServiceBody<'a> {
    namespace: &'a str,
    name: &'a str,
}

fn check_answer(service: &ServiceName, endpoints: usize, healthy: bool) -> Answer {
    let body = Body {
        service: ServiceBody { namespace: &service.namespace, name: &service.name },
        local_endpoints: endpoints,
        service_proxy_healthy: healthy,
    };
    let mut text = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"\t");
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, formatter);
    // Writing texts and numbers to memory does not fail.
    drop(body.serialize(&mut serializer));
    let mut answer = answer(ok_or_unavailable(endpoints > 0 && healthy), JSON, text);
    answer.headers_mut().insert(WEIGHT, HeaderValue::from(endpoints));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_needs_endpoints_and_health() {
        for (endpoints, healthy, code) in [(2, true, 200), (0, true, 503), (2, false, 503), (0, false, 503)] {
            let answer = check_answer(&ServiceName::new("ns", "svc"), endpoints, healthy);
            assert_eq!(answer.status(), code);
            assert_eq!(answer.headers()["x-load-balancing-endpoint-weight"], endpoints.to_string());
        }
    }
}
