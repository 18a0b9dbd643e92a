//! The metrics server.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use metrics::Metrics;
use tokio::time::Instant;

use crate::answer::{Answer, JSON, answer, not_found, text};
use crate::{Config, More, SetVerbosity, Sources, debug, process, zpages};

/// What the server needs for its answers.
pub(crate) struct MetricsServer {
    metrics: Arc<Metrics>,
    mode: String,
    configz: String,
    flags: Option<BTreeMap<String, String>>,
    serves_statusz: bool,
    version: String,
    started: SystemTime,
    profiling: bool,
    set_verbosity: SetVerbosity,
    more: More,
}

impl MetricsServer {
    pub(crate) fn new(config: &Config, sources: &Sources, started: SystemTime) -> Self {
        Self {
            metrics: sources.metrics.clone(),
            mode: config.mode.clone(),
            configz: config.configz.clone(),
            flags: config.flags.as_ref().map(|flags| flags.iter().cloned().collect()),
            serves_statusz: config.serves_statusz,
            version: config.version.clone(),
            started,
            profiling: config.profiling,
            set_verbosity: config.set_verbosity.clone(),
            more: config.more.clone(),
        }
    }

    pub(crate) async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Answer {
        match request.uri().path() {
            "/metrics" => metrics_page(self.metrics.render(process::read().as_ref(), Instant::now())),
            "/metrics/slis" if request.method() == Method::DELETE => {
                self.metrics.slis.reset();
                text("metrics reset\n")
            }
            "/metrics/slis" => self.slis(),
            "/healthz" => {
                self.metrics.slis.record("ping", "healthz", true);
                text(healthz(request.uri().query().unwrap_or_default()))
            }
            "/healthz/ping" => text("ok"),
            "/proxyMode" => text(self.mode.clone()),
            "/configz" => answer(StatusCode::OK, JSON, self.configz.clone()),
            "/flagz" => match &self.flags {
                Some(flags) => zpages::flagz(request.headers(), flags),
                None => not_found(),
            },
            "/statusz" if self.serves_statusz => {
                zpages::statusz(request.headers(), &self.version, self.started, SystemTime::now())
            }
            path if self.profiling && path.starts_with("/debug/") => {
                debug::respond(request, &self.set_verbosity).await
            }
            _ => match (self.more)(request.into_parts().0) {
                Some(answer) => answer.await,
                None => not_found(),
            },
        }
    }

    fn slis(&self) -> Answer {
        if let Some(reading) = process::read() {
            self.metrics.slis.set_start_time(reading.start_time_seconds);
        }
        metrics_page(self.metrics.slis.render())
    }
}

fn metrics_page(page: String) -> Answer {
    answer(StatusCode::OK, metrics::CONTENT_TYPE, page)
}

/// The body of `/healthz`, whose only check always succeeds: the server answers. It is not the proxy's health.
fn healthz(query: &str) -> String {
    let parameters = query.split('&').filter(|part| !part.is_empty());
    let parameters: Vec<_> = parameters.map(|part| part.split_once('=').unwrap_or((part, ""))).collect();
    if !parameters.iter().any(|(key, _)| *key == "verbose") {
        return "ok".to_owned();
    }
    let mut excluded: BTreeSet<&str> =
        parameters.iter().filter(|(key, _)| *key == "exclude").map(|(_, value)| *value).collect();
    let ping = if excluded.remove("ping") { "[+]ping excluded: ok\n" } else { "[+]ping ok\n" };
    let warning = if excluded.is_empty() {
        String::new()
    } else {
        let names: Vec<String> = excluded.iter().map(|name| format!("{name:?}")).collect();
        format!("warn: some health checks cannot be excluded: no matches for {}\n", names.join(","))
    };
    format!("{ping}{warning}healthz check passed\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn healthz_says_more_when_asked() {
        for (query, expected) in [
            ("", "ok"),
            ("exclude=ping", "ok"),
            ("verbose", "[+]ping ok\nhealthz check passed\n"),
            ("verbose=1&x=y", "[+]ping ok\nhealthz check passed\n"),
            ("verbose&exclude=ping", "[+]ping excluded: ok\nhealthz check passed\n"),
            (
                "exclude=etcd&verbose",
                "[+]ping ok\nwarn: some health checks cannot be excluded: no matches for \"etcd\"\nhealthz check passed\n",
            ),
        ] {
            assert_eq!(healthz(query), expected, "{query}");
        }
    }
}
