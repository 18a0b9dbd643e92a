//! The metrics server.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use http::{Method, StatusCode};
use metrics::Metrics;
use tokio::time::Instant;

use crate::answer::{Answer, JSON, answer, text};
use crate::routes::{Call, Routes};
use crate::{Config, Further, SetVerbosity, Sources, debug, process, zpages};

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
    further: Further,
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
            further: config.further.clone(),
        }
    }

    /// All its paths.
    pub(crate) fn routes(self) -> Routes {
        let this = Arc::new(self);
        let now = |answer: fn(&Self, &Call) -> Answer| {
            let this = this.clone();
            move |call: &Call| answer(&this, call)
        };
        let mut routes = Routes::default()
            .now("/metrics", now(Self::metrics))
            .now("/metrics/slis", now(Self::slis))
            .now("/healthz", now(Self::healthz))
            .now("/healthz/ping", |_| text("ok"))
            .now("/proxyMode", now(|this, _| text(this.mode.clone())))
            .now("/configz", now(|this, _| answer(StatusCode::OK, JSON, this.configz.clone())));
        for path in this.further.paths {
            let further = this.further.answer.clone();
            routes = routes.at(path, move |call| further(call.request.into_parts().0));
        }
        if let Some(flags) = this.flags.clone() {
            routes = routes.now("/flagz", move |call| zpages::flagz(call.request.headers(), &flags));
        }
        if this.serves_statusz {
            routes = routes.now("/statusz", now(Self::statusz));
        }
        if this.profiling { debug::add_routes(routes, &this.set_verbosity) } else { routes }
    }

    fn metrics(&self, _call: &Call) -> Answer {
        metrics_page(self.metrics.render(process::read().as_ref(), Instant::now()))
    }

    fn slis(&self, call: &Call) -> Answer {
        if call.request.method() == Method::DELETE {
            self.metrics.slis.reset();
            return text("metrics reset\n");
        }
        if let Some(reading) = process::read() {
            self.metrics.slis.set_start_time(reading.start_time_seconds);
        }
        metrics_page(self.metrics.slis.render())
    }

    fn healthz(&self, call: &Call) -> Answer {
        self.metrics.slis.record("ping", "healthz", true);
        text(healthz(call.request.uri().query().unwrap_or_default()))
    }

    fn statusz(&self, call: &Call) -> Answer {
        zpages::statusz(call.request.headers(), &self.version, self.started, SystemTime::now())
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
