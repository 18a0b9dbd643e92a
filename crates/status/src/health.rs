//! The health server: `/healthz` for load balancers, `/livez` for who restarts the proxy.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use jiff::Timestamp;
use metrics::Metrics;
use metrics::health::{Report, SharedHealth};
use serde::Serialize;
use tokio::time::Instant;

use crate::Sources;
use crate::answer::{Answer, JSON, answer, ok_or_unavailable};
use crate::routes::Routes;

/// What the server needs for its answers.
pub(crate) struct HealthServer {
    metrics: Arc<Metrics>,
    health: SharedHealth,
}

impl HealthServer {
    pub(crate) fn new(sources: &Sources) -> Self {
        Self { metrics: sources.metrics.clone(), health: sources.health.clone() }
    }

    /// All its paths.
    pub(crate) fn routes(self) -> Routes {
        let this = Arc::new(self);
        let also = this.clone();
        Routes::default().now("/healthz", move |_| this.healthz()).now("/livez", move |_| also.livez())
    }

    fn report(&self) -> Report {
        self.health.lock().report(Instant::now())
    }

    fn healthz(&self) -> Answer {
        let (ok, body) = healthz(&self.report(), SystemTime::now());
        self.metrics.health_answers.healthz(ok);
        self.metrics.slis.record("proxy", "healthz", ok);
        answer(ok_or_unavailable(ok), JSON, body)
    }

    fn livez(&self) -> Answer {
        let (ok, body) = livez(&self.report(), SystemTime::now());
        self.metrics.health_answers.livez(ok);
        self.metrics.slis.record("proxy", "livez", ok);
        answer(ok_or_unavailable(ok), JSON, body)
    }
}

/// The body, in upstream's order of keys.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    last_updated: String,
    current_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    status: BTreeMap<String, FamilyBody>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    canary: BTreeMap<String, &'static str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FamilyBody {
    last_updated: String,
    healthy: bool,
}

/// Whether load balancers should send traffic here. Not before the rules are in place, unlike upstream, whose server is not
/// there yet at that time.
fn healthz(report: &Report, now: SystemTime) -> (bool, String) {
    let healthy = report.healthy && report.started;
    let ok = healthy && report.node_eligible;
    (ok, body(report, ok, healthy, Some(report.node_eligible), now))
}

/// Whether the proxy gets on. A node that is being drained, or a proxy that waits for the API server, must not be
/// restarted.
fn livez(report: &Report, now: SystemTime) -> (bool, String) {
    (report.healthy, body(report, report.healthy, report.healthy, None, now))
}

fn body(report: &Report, ok: bool, healthy: bool, node_eligible: Option<bool>, now: SystemTime) -> String {
    let status = report.families.iter().map(|(family, state)| {
        let body = FamilyBody { last_updated: time(Some(state.last_updated)), healthy: state.healthy };
        (family.to_string(), body)
    });
    let body = Body {
        last_updated: time(if ok { Some(now) } else { report.last_updated() }),
        current_time: time(Some(now)),
        node_eligible,
        healthy,
        status: status.collect(),
        canary: report.canary.iter().map(|(family, state)| (family.to_string(), state.as_str())).collect(),
    };
    serde_json::to_string(&body).unwrap_or_default()
}

/// RFC 3339 in UTC, with as many digits as needed; Go's zero time for none.
fn time(time: Option<SystemTime>) -> String {
    let timestamp = time.and_then(|time| Timestamp::try_from(time).ok());
    timestamp.map_or_else(|| "0001-01-01T00:00:00Z".to_owned(), |timestamp| timestamp.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use metrics::health::{CanaryState, FamilyReport};
    use model::IpFamily;
    use std::time::Duration;

    fn at(nanos: u64) -> SystemTime {
        // 2026-01-02T03:04:05Z
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_323_045) + Duration::from_nanos(nanos)
    }

    fn report(healthy: bool, started: bool, node_eligible: bool) -> Report {
        let family = |last_updated| FamilyReport { last_updated, healthy, pending_since: None };
        let families =
            [(IpFamily::V6, family(at(600_000_000))), (IpFamily::V4, family(at(500_000_000)))].into();
        Report { healthy, started, node_eligible, families, canary: BTreeMap::new() }
    }

    const NOW: &str = "2026-01-02T03:04:05.999000001Z";

    #[track_caller]
    fn check_healthz(report: &Report, ok: bool, expected: &str) {
        assert_eq!(healthz(report, at(999_000_001)), (ok, expected.to_owned()));
    }

    #[test]
    fn a_good_answer_is_as_of_now() {
        check_healthz(
            &report(true, true, true),
            true,
            &format!(
                r#"{{"lastUpdated":"{NOW}","currentTime":"{NOW}","nodeEligible":true,"healthy":true,"status":{{"IPv4":{{"lastUpdated":"2026-01-02T03:04:05.5Z","healthy":true}},"IPv6":{{"lastUpdated":"2026-01-02T03:04:05.6Z","healthy":true}}}}}}"#
            ),
        );
    }

    #[test]
    fn a_canary_is_told_and_changes_nothing_else() {
        let canary = [(IpFamily::V4, CanaryState::Unreachable), (IpFamily::V6, CanaryState::Answers)].into();
        let (ok, body) = livez(&Report { canary, ..report(true, true, true) }, at(0));
        assert!(ok);
        assert!(body.ends_with(r#""canary":{"IPv4":"unreachable","IPv6":"answers"}}"#), "{body}");
    }

    #[test]
    fn an_ineligible_node_is_no_fault_of_the_proxy() {
        check_healthz(
            &report(true, true, false),
            false,
            &format!(
                r#"{{"lastUpdated":"2026-01-02T03:04:05.6Z","currentTime":"{NOW}","nodeEligible":false,"healthy":true,"status":{{"IPv4":{{"lastUpdated":"2026-01-02T03:04:05.5Z","healthy":true}},"IPv6":{{"lastUpdated":"2026-01-02T03:04:05.6Z","healthy":true}}}}}}"#
            ),
        );
    }

    #[test]
    fn before_the_start_there_is_no_time() {
        let families = BTreeMap::new();
        let none =
            Report { healthy: true, started: false, node_eligible: false, families, canary: BTreeMap::new() };
        let zero = "0001-01-01T00:00:00Z";
        check_healthz(
            &none,
            false,
            &format!(
                r#"{{"lastUpdated":"{zero}","currentTime":"{NOW}","nodeEligible":false,"healthy":false}}"#
            ),
        );
        let live = format!(r#"{{"lastUpdated":"{NOW}","currentTime":"{NOW}","healthy":true}}"#);
        assert_eq!(livez(&none, at(999_000_001)), (true, live));
    }

    #[test]
    fn each_situation_has_its_codes() {
        for (healthy, started, eligible, healthz_ok, livez_ok) in [
            (true, true, true, true, true),
            (false, true, true, false, false),
            (true, true, false, false, true),
            (true, false, true, false, true),
            (false, false, false, false, false),
        ] {
            let report = report(healthy, started, eligible);
            assert_eq!(
                (healthz(&report, at(0)).0, livez(&report, at(0)).0),
                (healthz_ok, livez_ok),
                "{report:?}"
            );
        }
    }
}
