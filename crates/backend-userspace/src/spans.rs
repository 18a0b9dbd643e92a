//! What workers record of requests, as spans of OpenTelemetry: one for the request, as its server's, and below it one for each time
//! that it was sent to an endpoint, as that one's client. Names are those of the semantic conventions for HTTP, RPC and Kubernetes.

use std::net::SocketAddr;

use otlp::{Attributes, Kind, Span, Value};
use proxy::frame::{RequestTrace, TraceTry};

use crate::requests::service_port;

/// What is not one of these is `_OTHER`, so that nobody can have names made up. (`http.request.method`.)
const METHODS: [&str; 9] = ["CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"];

/// The spans of a request.
pub fn spans(told: &RequestTrace) -> Vec<Span> {
    let tries = told.tries.iter().enumerate().map(|(n, one)| of_try(told, n, one));
    std::iter::once(of_request(told)).chain(tries).collect()
}

fn of_request(told: &RequestTrace) -> Span {
    let mut attributes = asked(told);
    let (address, port) = server(told);
    attributes.extend([
        ("url.scheme", "http".into()),
        ("url.path", told.path.as_str().into()),
        ("server.address", address.into()),
        ("server.port", port.into()),
        ("client.address", told.client.ip().to_string().into()),
        ("client.port", told.client.port().into()),
        ("network.local.address", told.sent_to.ip().to_string().into()),
        ("network.local.port", told.sent_to.port().into()),
    ]);
    let retries = told.tries.len().saturating_sub(1);
    attributes.extend((retries > 0).then(|| ("kube_proxy.retries", number(retries))));
    let is_error = match told.status {
        Some(status) => answered(&mut attributes, status, 500),
        None => failed(&mut attributes, "given_up"),
    };
    attributes.extend(told.grpc_status.map(|status| ("rpc.grpc.status_code", status.into())));
    span(told, (told.span, told.parent), Kind::Server, (0, told.took_us), attributes, is_error)
}

/// The answer of an endpoint that is a failure for its client is none for its server.
fn of_try(told: &RequestTrace, n: usize, one: &TraceTry) -> Span {
    let mut attributes = asked(told);
    attributes.extend([
        ("server.address", one.endpoint.ip().to_string().into()),
        ("server.port", one.endpoint.port().into()),
    ]);
    attributes.extend((n > 0).then(|| ("http.request.resend_count", number(n))));
    let is_error = match (one.status, &one.failure) {
        (Some(status), _) => answered(&mut attributes, status, 400),
        (None, Some(failure)) => failed(&mut attributes, failure),
        (None, None) => failed(&mut attributes, "given_up"),
    };
    let took = (one.after_us, one.after_us.saturating_add(one.took_us));
    span(told, (one.span, Some(told.span)), Kind::Client, took, attributes, is_error)
}

/// What both kinds have.
fn asked(told: &RequestTrace) -> Attributes {
    let mut attributes = vec![("http.request.method", method(told).into())];
    if method(told) != told.method {
        attributes.push(("http.request.method_original", told.method.as_str().into()));
    }
    attributes.push(("network.protocol.version", version(&told.version).into()));
    if let Some((namespace, service, port)) = service_port(&told.pool) {
        attributes.push(("k8s.namespace.name", namespace.into()));
        attributes.push(("k8s.service.name", service.into()));
        attributes.extend((!port.is_empty()).then(|| ("kube_proxy.service_port", port.into())));
    }
    attributes
}

fn method(told: &RequestTrace) -> &str {
    if METHODS.contains(&&*told.method) { &told.method } else { "_OTHER" }
}

/// `HTTP/1.1` as `1.1`.
fn version(version: &str) -> &str {
    let number = version.trim_start_matches("HTTP/");
    number.strip_suffix(".0").filter(|major| *major == "2").unwrap_or(number)
}

/// What the client calls the server, and its port; by its address if it calls it nothing.
fn server(told: &RequestTrace) -> (String, u16) {
    let Some(host) = &told.host else { return (told.sent_to.ip().to_string(), told.sent_to.port()) };
    if let Ok(address) = host.parse::<SocketAddr>() {
        return (address.ip().to_string(), address.port());
    }
    let with_port = host.rsplit_once(':').and_then(|(name, port)| Some((name, port.parse().ok()?)));
    let (name, port) = with_port.unwrap_or((host, told.sent_to.port()));
    (name.trim_matches(['[', ']']).to_owned(), port)
}

/// Whether that is a failure: from this status on it is.
fn answered(attributes: &mut Attributes, status: u16, failures: u16) -> bool {
    attributes.push(("http.response.status_code", status.into()));
    let is_error = status >= failures;
    attributes.extend(is_error.then(|| ("error.type", status.to_string().into())));
    is_error
}

fn failed(attributes: &mut Attributes, why: &str) -> bool {
    attributes.push(("error.type", why.into()));
    true
}

fn number(n: usize) -> Value {
    Value::Int(i64::try_from(n).unwrap_or(i64::MAX))
}

/// A span from and to so many microseconds after the request came.
fn span(
    told: &RequestTrace,
    (span, parent): (u64, Option<u64>),
    kind: Kind,
    (from_us, to_us): (u64, u64),
    attributes: Attributes,
    is_error: bool,
) -> Span {
    let at = |us: u64| told.began_us.saturating_add(us).saturating_mul(1000);
    let (high, low) = told.trace;
    Span {
        trace: (u128::from(high) << 64 | u128::from(low)).to_be_bytes(),
        span: span.to_be_bytes(),
        parent: parent.map(u64::to_be_bytes),
        name: method_name(told),
        kind,
        began_ns: at(from_us),
        ended_ns: at(to_us),
        attributes,
        is_error,
    }
}

/// The method alone, since nobody knows which paths are one. (Semantic conventions, "HTTP span names".)
fn method_name(told: &RequestTrace) -> String {
    match method(told) {
        "_OTHER" => "HTTP".to_owned(),
        known => known.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told() -> RequestTrace {
        let endpoint = |n: u8| SocketAddr::from(([10, 244, 0, n], 8080));
        let one = |n: u8, status, failure: Option<&str>| TraceTry {
            span: u64::from(n),
            endpoint: endpoint(n),
            after_us: 100 * u64::from(n),
            took_us: 50,
            status,
            failure: failure.map(str::to_owned),
        };
        RequestTrace {
            pool: "shop/web:http/Tcp".to_owned(),
            trace: (1, 2),
            span: 77,
            parent: Some(5),
            began_us: 1_000_000,
            took_us: 400,
            client: ([192, 0, 2, 9], 40_000).into(),
            sent_to: ([10, 96, 0, 10], 80).into(),
            method: "GET".to_owned(),
            path: "/cart".to_owned(),
            host: Some("web.shop:8000".to_owned()),
            version: "HTTP/2.0".to_owned(),
            status: Some(404),
            grpc_status: None,
            tries: vec![one(1, None, Some("not_connected")), one(2, Some(404), None)],
        }
    }

    fn shown(span: &Span) -> Vec<String> {
        let value = |value: &Value| match value {
            Value::Text(text) => text.clone(),
            Value::Int(number) => number.to_string(),
        };
        span.attributes.iter().map(|(name, of)| format!("{name}={}", value(of))).collect()
    }

    #[test]
    fn a_request_is_a_span_and_each_try_is_one_below() {
        let [request, first, second] = &*spans(&told()) else { panic!() };
        assert_eq!((request.kind, &*request.name, request.is_error), (Kind::Server, "GET", false));
        assert_eq!(request.trace, [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2]);
        assert_eq!((request.span, request.parent), (77_u64.to_be_bytes(), Some(5_u64.to_be_bytes())));
        assert_eq!((request.began_ns, request.ended_ns), (1_000_000_000, 1_000_400_000));
        let of_all = [
            "http.request.method=GET",
            "network.protocol.version=2",
            "k8s.namespace.name=shop",
            "k8s.service.name=web",
            "kube_proxy.service_port=http",
        ];
        let own = [
            "url.scheme=http",
            "url.path=/cart",
            "server.address=web.shop",
            "server.port=8000",
            "client.address=192.0.2.9",
            "client.port=40000",
            "network.local.address=10.96.0.10",
            "network.local.port=80",
            "kube_proxy.retries=1",
            "http.response.status_code=404",
        ];
        assert_eq!(shown(request), [&of_all[..], &own].concat());
        for (one, is_first) in [(first, true), (second, false)] {
            assert_eq!((one.kind, one.parent, one.is_error), (Kind::Client, Some(request.span), true));
            assert_eq!(one.trace, request.trace);
            let n = if is_first { "1" } else { "2" };
            let own: &[&str] = if is_first {
                &["error.type=not_connected"]
            } else {
                &["http.request.resend_count=1", "http.response.status_code=404", "error.type=404"]
            };
            let address = format!("server.address=10.244.0.{n}");
            let whole = [&of_all[..], &[&*address, "server.port=8080"], own].concat();
            assert_eq!(shown(one), whole);
        }
        assert_eq!((second.began_ns, second.ended_ns), (1_000_200_000, 1_000_250_000));
    }

    #[test]
    fn what_a_client_makes_up_is_no_name() {
        let told = RequestTrace { method: "BREW".to_owned(), status: None, tries: Vec::new(), ..told() };
        let [request] = &*spans(&told) else { panic!() };
        assert_eq!((&*request.name, request.is_error), ("HTTP", true));
        let shown = shown(request);
        for wanted in
            ["http.request.method=_OTHER", "http.request.method_original=BREW", "error.type=given_up"]
        {
            assert!(shown.iter().any(|shown| shown == wanted), "{wanted}: {shown:?}");
        }
        assert!(!shown.iter().any(|shown| shown.starts_with("kube_proxy.retries")));
    }

    #[test]
    fn a_server_is_what_its_client_calls_it() {
        for (host, address, port) in [
            (Some("web"), "web", 80),
            (Some("web:81"), "web", 81),
            (Some("[fd00::1]"), "fd00::1", 80),
            (Some("[fd00::1]:81"), "fd00::1", 81),
            (Some("10.0.0.1:81"), "10.0.0.1", 81),
            (None, "10.96.0.10", 80),
        ] {
            let told = RequestTrace { host: host.map(str::to_owned), ..told() };
            assert_eq!(server(&told), (address.to_owned(), port));
        }
    }
}
