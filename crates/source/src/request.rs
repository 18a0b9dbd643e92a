//! Requests as values: what to ask, and how that looks in a URL.

use std::time::Duration;

use model::Kind;

use crate::ContentType;

/// Objects a page. The same as client-go's pager.
const PAGE_SIZE: u32 = 500;

/// The next thing to ask the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// A watch that begins with all objects and says when they are complete.
    StreamedList,
    /// One page of a list.
    Page(Page),
    /// A list of one object, for the server's present version.
    Version {
        /// The version to go on with, unless the server's is lower.
        known: String,
    },
    /// What happens after a version.
    Watch {
        /// The version.
        resource_version: String,
    },
}

/// Which page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Page {
    /// The first one, in any version that the server has at hand: it may answer from its cache, which may ignore the
    /// page size.
    FirstCached,
    /// The first one, in the newest version.
    First,
    /// The one that this token names.
    Next(String),
    /// Everything at once, in the newest version.
    Whole,
}

/// The path and query of a request. `timeout` is for watches.
pub(crate) fn uri(kind: Kind, node_name: &str, request: &Request, timeout: Duration) -> String {
    let mut uri = String::from(path(kind));
    let mut separator = '?';
    let mut add = |key: &str, value: &str| {
        uri.push(separator);
        separator = '&';
        uri.push_str(key);
        uri.push('=');
        escape(value, &mut uri);
    };
    select(kind, node_name, &mut add);
    ask(request, timeout, &mut add);
    uri
}

/// What of them is wanted, and how.
fn ask(request: &Request, timeout: Duration, add: &mut impl FnMut(&str, &str)) {
    let limit = PAGE_SIZE.to_string();
    let timeout = timeout.as_secs().to_string();
    match request {
        Request::StreamedList => {
            add("watch", "true");
            add("allowWatchBookmarks", "true");
            add("sendInitialEvents", "true");
            add("resourceVersionMatch", "NotOlderThan");
            add("timeoutSeconds", &timeout);
        }
        Request::Page(Page::FirstCached) => {
            add("limit", &limit);
            add("resourceVersion", "0");
        }
        Request::Page(Page::First) => add("limit", &limit),
        Request::Page(Page::Next(token)) => {
            add("limit", &limit);
            add("continue", token);
        }
        Request::Page(Page::Whole) => {}
        Request::Version { .. } => add("limit", "1"),
        Request::Watch { resource_version } => {
            add("watch", "true");
            add("allowWatchBookmarks", "true");
            add("resourceVersion", resource_version);
            add("timeoutSeconds", &timeout);
        }
    }
}

/// Which objects of a kind are wanted.
fn select(kind: Kind, node_name: &str, add: &mut impl FnMut(&str, &str)) {
    match kind {
        Kind::Service => {
            add("labelSelector", "!service.kubernetes.io/service-proxy-name");
            add("fieldSelector", "spec.clusterIP!=None");
        }
        Kind::EndpointSlice => add("labelSelector", "!service.kubernetes.io/headless"),
        Kind::Node => add("fieldSelector", &format!("metadata.name={node_name}")),
        Kind::ServiceCidr => {}
    }
}

/// The `Accept` header of a request.
pub(crate) fn accept(request: &Request, content_type: ContentType) -> &'static str {
    match (content_type, request) {
        (ContentType::Json, _) => "application/json",
        (ContentType::Protobuf, Request::Page(_) | Request::Version { .. }) => {
            "application/vnd.kubernetes.protobuf,application/json"
        }
        (ContentType::Protobuf, Request::StreamedList | Request::Watch { .. }) => {
            "application/vnd.kubernetes.protobuf;stream=watch,application/json"
        }
    }
}

fn path(kind: Kind) -> &'static str {
    match kind {
        Kind::Service => "/api/v1/services",
        Kind::EndpointSlice => "/apis/discovery.k8s.io/v1/endpointslices",
        Kind::Node => "/api/v1/nodes",
        Kind::ServiceCidr => "/apis/networking.k8s.io/v1/servicecidrs",
    }
}

/// Percent-encodes a query value (RFC 3986: only unreserved characters stay).
fn escape(value: &str, to: &mut String) {
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            to.push(char::from(byte));
        } else {
            to.push('%');
            to.extend(
                [byte >> 4, byte & 15].map(|digit| char::from(b"0123456789ABCDEF"[usize::from(digit)])),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(kind: Kind, request: &Request, expected: &str) {
        assert_eq!(uri(kind, "node-1", request, Duration::from_secs(321)), expected);
    }

    #[test]
    fn selectors_of_every_kind() {
        let first = Request::Page(Page::Whole);
        check(
            Kind::Service,
            &first,
            "/api/v1/services?labelSelector=%21service.kubernetes.io%2Fservice-proxy-name&fieldSelector=spec.clusterIP%21%3DNone",
        );
        check(
            Kind::EndpointSlice,
            &first,
            "/apis/discovery.k8s.io/v1/endpointslices?labelSelector=%21service.kubernetes.io%2Fheadless",
        );
        check(Kind::Node, &first, "/api/v1/nodes?fieldSelector=metadata.name%3Dnode-1");
        check(Kind::ServiceCidr, &first, "/apis/networking.k8s.io/v1/servicecidrs");
    }

    #[test]
    fn parameters_of_every_request() {
        let cidrs = |rest: &str| format!("/apis/networking.k8s.io/v1/servicecidrs?{rest}");
        let check = |request: Request, rest: &str| check(Kind::ServiceCidr, &request, &cidrs(rest));
        check(
            Request::StreamedList,
            "watch=true&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&timeoutSeconds=321",
        );
        check(Request::Page(Page::FirstCached), "limit=500&resourceVersion=0");
        check(Request::Page(Page::First), "limit=500");
        check(Request::Version { known: "7".into() }, "limit=1");
        check(Request::Page(Page::Next("a=b/+".into())), "limit=500&continue=a%3Db%2F%2B");
        check(
            Request::Watch { resource_version: "12".into() },
            "watch=true&allowWatchBookmarks=true&resourceVersion=12&timeoutSeconds=321",
        );
    }
}
