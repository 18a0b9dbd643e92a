//! `/flagz` and `/statusz`. Source: `component-base/zpages`, KEP-4827 and KEP-4828.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{StatusCode, header};
use jiff::{Timestamp, Unit};
use serde::Serialize;
use serde_json::json;

use crate::answer::{Answer, JSON, answer, text};
use crate::negotiate::{Format, Representation, Version, negotiate};

const COMPONENT: &str = "kube-proxy";
const YAML: &str = "application/yaml";
const WARNING: HeaderName = header::WARNING;

/// The paths that `/statusz` names.
const PATHS: [&str; 5] = ["/configz", "/flagz", "/healthz", "/metrics", "/proxyMode"];

/// What both objects begin with.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Object<T> {
    kind: &'static str,
    api_version: String,
    metadata: Metadata,
    #[serde(flatten)]
    content: T,
}

#[derive(Serialize)]
struct Metadata {
    name: &'static str,
}

#[derive(Serialize)]
struct Flags<'a> {
    flags: &'a BTreeMap<String, String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Statusz<'a> {
    start_time: String,
    uptime_seconds: u64,
    binary_version: &'a str,
    paths: [&'static str; 5],
}

/// All flags and their values, sorted.
pub(crate) fn flagz(headers: &HeaderMap, flags: &BTreeMap<String, String>) -> Answer {
    const KIND: &str = "Flagz";
    respond(headers, KIND, Flags { flags }, |page| {
        for (name, value) in flags {
            // Writing to a string does not fail.
            _ = writeln!(page, "{name}={value}");
        }
    })
}

/// What is known of the running program.
pub(crate) fn statusz(headers: &HeaderMap, version: &str, started: SystemTime, now: SystemTime) -> Answer {
    const KIND: &str = "Statusz";
    let up = now.duration_since(started).unwrap_or_default();
    let started = Timestamp::try_from(started).and_then(|time| time.round(Unit::Second)).unwrap_or_default();
    let content = Statusz {
        start_time: started.to_string(),
        uptime_seconds: up.as_secs(),
        binary_version: version,
        paths: PATHS,
    };
    respond(headers, KIND, content, |page| {
        _ = writeln!(page, "Started: {started}");
        _ = writeln!(page, "Up: {}", uptime(up));
        _ = writeln!(page, "Binary version: {version}");
        _ = writeln!(page, "Paths: {}", PATHS.join(" "));
    })
}

/// `0 hr 02 min 05 sec`.
fn uptime(up: Duration) -> String {
    let seconds = up.as_secs();
    format!("{} hr {:02} min {:02} sec", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

fn respond<T: Serialize>(
    headers: &HeaderMap,
    kind: &'static str,
    content: T,
    lines: impl FnOnce(&mut String),
) -> Answer {
    // Several header fields mean the same as one list.
    let accept: Vec<&str> =
        headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    match negotiate(Some(&accept.join(",")), kind) {
        Some(Representation::Text) => text(page(kind, lines)),
        Some(Representation::Object { format, version }) => object(kind, content, format, version),
        None => not_acceptable(kind),
    }
}

fn page(kind: &str, lines: impl FnOnce(&mut String)) -> String {
    let mut page = format!(
        "\n{COMPONENT} {}\nWarning: this page is for people. Its form may change; programs should ask for JSON.\n\n",
        kind.to_lowercase()
    );
    lines(&mut page);
    page
}

fn object<T: Serialize>(kind: &'static str, content: T, format: Format, version: Version) -> Answer {
    let api_version = format!("config.k8s.io/{}", version.as_str());
    let object = Object { kind, api_version, metadata: Metadata { name: COMPONENT }, content };
    let (content_type, body) = match format {
        Format::Json => (JSON, serde_json::to_string(&object).map_err(|error| error.to_string())),
        Format::Yaml => (YAML, serde_saphyr::to_string(&object).map_err(|error| error.to_string())),
    };
    let mut answer = match body {
        Ok(body) => answer(StatusCode::OK, content_type, body),
        Err(error) => answer(StatusCode::INTERNAL_SERVER_ERROR, crate::answer::TEXT, error),
    };
    if version == Version::V1Alpha1 {
        let warning = format!("299 - \"config.k8s.io/v1alpha1 {kind} is deprecated, use v1beta1\"");
        answer.headers_mut().extend(HeaderValue::try_from(warning).ok().map(|warning| (WARNING, warning)));
    }
    answer
}

fn not_acceptable(kind: &str) -> Answer {
    let object = |format| format!("application/{format};as={kind};v=v1beta1;g=config.k8s.io");
    let message = format!(
        "only the following media types are accepted: text/plain, {}, {}",
        object("json"),
        object("yaml")
    );
    let status = json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": "NotAcceptable",
        "code": 406,
    });
    answer(StatusCode::NOT_ACCEPTABLE, JSON, status.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uptime_is_for_people() {
        assert_eq!(uptime(Duration::from_secs(125)), "0 hr 02 min 05 sec");
        assert_eq!(uptime(Duration::from_hours(30) + Duration::from_secs(59)), "30 hr 00 min 59 sec");
    }
}
