//! The canary (`canary.service`): the proxy connects to a Service's cluster IP again and again, as a process of the node would.
//!
//! An answer proves that at that moment a new TCP connection from this node to that Service was given an endpoint by what is in the kernel, and that
//! packets went there and back. It does not prove that connections from pods do, or from outside, or those to other Services or by UDP. Where there is
//! no answer, endpoints are asked by themselves, so that a Service that does not work is told from rules that don't.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use agent::Telemetry;
use agent::snapshot::{AddressKind, AddressState, Port, Service, Usage};
use config::Canary;
use events::{Event, Reason, Recorder, Regarding};
use metrics::health::CanaryState;
use model::IpFamily;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tracing::{error, info};

use crate::first_sync;

/// How long a connection may take.
const ANSWER: Duration = Duration::from_secs(2);
/// So many endpoints are asked by themselves.
const ASKED: usize = 3;
/// So many times in a row there has to be no answer: a single one may be due to endpoints that were just replaced.
const IN_A_ROW: u32 = 2;

/// Probes for ever, from the first sync on, and tells health, metrics and the API what comes of it.
pub(crate) async fn probe(canary: Canary, telemetry: Telemetry, node_name: String, recorder: Recorder) {
    first_sync::wait(&telemetry).await;
    let served: Vec<IpFamily> =
        telemetry.health.lock().report(tokio::time::Instant::now()).families.into_keys().collect();
    let count: BTreeMap<_, _> =
        served.iter().map(|family| (*family, telemetry.metrics.canary(*family))).collect();
    let mut verdicts: BTreeMap<IpFamily, Verdict> = BTreeMap::new();
    loop {
        // Without an answer the agent has ended.
        let Ok(service) = telemetry.service(canary.service.clone()).await else { return };
        for (family, count) in &count {
            let target = service.as_ref().and_then(|service| target(service, *family));
            let came_to = connect(target.as_ref()).await;
            count(came_to);
            let verdict = verdicts.entry(*family).or_default();
            let news = verdict.take(came_to);
            telemetry.health.lock().set_canary(*family, verdict.state);
            if let Some(is_lost) = news {
                tell(is_lost, &canary, *family, &node_name, &recorder);
            }
        }
        sleep(canary.period).await;
    }
}

/// Whom to ask.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    cluster_ip: SocketAddr,
    endpoints: Vec<SocketAddr>,
}

/// The cluster IP of the first port of TCP that is in force, and the endpoints that take its new flows; `None` if there are none.
fn target(service: &Service, family: IpFamily) -> Option<Target> {
    let own = service.families.iter().find(|own| own.family == family.to_string())?;
    own.ports.iter().filter(|port| port.protocol == "TCP").find_map(port_target)
}

fn port_target(port: &Port) -> Option<Target> {
    let is_meant = |address: &&agent::snapshot::Address| {
        address.kind == AddressKind::ClusterIp && address.state == AddressState::InForce
    };
    let address = port.addresses.iter().find(is_meant)?;
    let governs = |governed: &String| governed.starts_with("cluster IP ");
    let policy = port.policies.iter().find(|policy| policy.governs.iter().any(governs))?.policy;
    let endpoints = port.endpoints.iter().filter(|endpoint| {
        endpoint.uses.iter().any(|used| used.policy == policy && used.usage == Usage::Serves)
    });
    let endpoints: Vec<SocketAddr> = endpoints.map(|endpoint| endpoint.address).collect();
    let cluster_ip = SocketAddr::new(address.address?, address.port);
    (!endpoints.is_empty()).then_some(Target { cluster_ip, endpoints })
}

async fn connect(target: Option<&Target>) -> CanaryState {
    let Some(target) = target else { return CanaryState::Idle };
    if answers(target.cluster_ip).await {
        return CanaryState::Answers;
    }
    for endpoint in target.endpoints.iter().take(ASKED) {
        if answers(*endpoint).await {
            return CanaryState::Unreachable;
        }
    }
    CanaryState::EndpointsSilent
}

async fn answers(address: SocketAddr) -> bool {
    matches!(timeout(ANSWER, TcpStream::connect(address)).await, Ok(Ok(_connected)))
}

/// What is believed of a family after all probes so far.
#[derive(Debug, PartialEq, Eq)]
struct Verdict {
    state: CanaryState,
    /// Probes in a row that found it unreachable.
    lost: u32,
}

impl Default for Verdict {
    fn default() -> Self {
        Self { state: CanaryState::Idle, lost: 0 }
    }
}

impl Verdict {
    /// Takes a result in. `Some(true)`: from now on the Service is unreachable; `Some(false)`: it answers again.
    fn take(&mut self, came_to: CanaryState) -> Option<bool> {
        self.lost = if came_to == CanaryState::Unreachable { self.lost + 1 } else { 0 };
        if self.lost > 0 && self.lost < IN_A_ROW {
            return None;
        }
        let before = std::mem::replace(&mut self.state, came_to);
        match (before, came_to) {
            (CanaryState::Unreachable, CanaryState::Unreachable) => None,
            (_, CanaryState::Unreachable) => Some(true),
            (CanaryState::Unreachable, _) => Some(false),
            _ => None,
        }
    }
}

fn tell(is_lost: bool, canary: &Canary, family: IpFamily, node_name: &str, recorder: &Recorder) {
    let service = &canary.service;
    let (reason, note) = if is_lost {
        error!(%service, ipFamily = %family, "The canary does not answer through its Service, although an endpoint does");
        let note = format!(
            "Service {service} does not answer over {family} on this node, although an endpoint of it does"
        );
        (Reason::CanaryFailed, note)
    } else {
        info!(%service, ipFamily = %family, "The canary is no longer unreachable through its Service");
        (
            Reason::CanaryAnswers,
            format!("Service {service} is no longer unreachable over {family} on this node"),
        )
    };
    recorder.send(Event::new(reason, Regarding::Node(node_name.to_owned())).note(note));
}

#[cfg(test)]
mod tests {
    use super::*;
    use CanaryState::{Answers, EndpointsSilent, Idle, Unreachable};

    #[test]
    fn one_failure_is_none() {
        let mut verdict = Verdict::default();
        let mut check = |came_to, news, state| {
            assert_eq!(verdict.take(came_to), news);
            assert_eq!(verdict.state, state);
        };
        check(Answers, None, Answers);
        check(Unreachable, None, Answers);
        check(EndpointsSilent, None, EndpointsSilent);
        check(Unreachable, None, EndpointsSilent);
        check(Unreachable, Some(true), Unreachable);
        check(Unreachable, None, Unreachable);
        check(Idle, Some(false), Idle);
        check(Answers, None, Answers);
    }

    #[tokio::test]
    async fn a_dead_service_is_told_from_dead_rules() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let alive = listener.local_addr().unwrap();
        let dead = SocketAddr::from(([127, 0, 0, 1], 1));
        let target = |cluster_ip, endpoint| Target { cluster_ip, endpoints: vec![endpoint] };
        assert_eq!(connect(None).await, Idle);
        assert_eq!(connect(Some(&target(alive, dead))).await, Answers);
        assert_eq!(connect(Some(&target(dead, alive))).await, Unreachable);
        assert_eq!(connect(Some(&target(dead, dead))).await, EndpointsSilent);
    }
}
