//! Headers that are meant for one connection only, and what a request must have to go on. (RFC 9110, section 7.6.1.)

use std::net::SocketAddr;

use http::header::{
    CONNECTION, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, StatusCode, Uri, Version, request, response};

use crate::answer::Failed;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// Makes a client's request one that an endpoint may get.
///
/// # Errors
/// It can't be one.
pub(crate) fn of_request(parts: &mut request::Parts, sent_to: SocketAddr) -> Result<(), Failed> {
    let upgrade = wanted_upgrade(parts);
    let takes_trailers = has_token(&parts.headers, &TE, "trailers");
    remove_hop_by_hop(&mut parts.headers);
    if parts.version == Version::HTTP_2 {
        if takes_trailers {
            parts.headers.insert(TE, HeaderValue::from_static("trailers"));
        }
        return name_authority(parts, sent_to);
    }
    if let Some(upgrade) = upgrade {
        parts.headers.insert(UPGRADE, upgrade);
        parts.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    } else if takes_trailers {
        parts.headers.insert(TE, HeaderValue::from_static("trailers"));
        parts.headers.insert(CONNECTION, HeaderValue::from_static("te"));
    }
    // A proxy speaks its own version, of which the client's may be an older one that needs no host.
    if parts.version != Version::HTTP_11 {
        parts.version = Version::HTTP_11;
        if !parts.headers.contains_key(HOST) {
            parts.headers.insert(HOST, host_of(sent_to));
        }
    }
    Ok(())
}

/// Makes an endpoint's response one that a client may get.
pub(crate) fn of_response(parts: &mut response::Parts) {
    let upgrade = match parts.status {
        StatusCode::SWITCHING_PROTOCOLS | StatusCode::UPGRADE_REQUIRED => parts.headers.get(UPGRADE).cloned(),
        _ => None,
    };
    remove_hop_by_hop(&mut parts.headers);
    if let Some(upgrade) = upgrade {
        parts.headers.insert(UPGRADE, upgrade);
        parts.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    }
}

/// Whether the client sends its body only if it is asked to.
pub(crate) fn expects_continue(parts: &request::Parts) -> bool {
    parts.version == Version::HTTP_11
        && parts
            .headers
            .get(EXPECT)
            .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// Whether doing it twice is as good as doing it once. (RFC 9110, section 9.2.2.)
pub(crate) fn is_idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE
    )
}

/// The protocol that a client wants to change to, except HTTP/2: that is for one connection, and nobody has to take it up.
/// (RFC 9113, section 3.1.)
fn wanted_upgrade(parts: &request::Parts) -> Option<HeaderValue> {
    let wanted = parts.headers.get(UPGRADE).filter(|_| has_token(&parts.headers, &CONNECTION, "upgrade"))?;
    let is_h2c = wanted.as_bytes().eq_ignore_ascii_case(b"h2c");
    (parts.version == Version::HTTP_11 && !is_h2c).then(|| wanted.clone())
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = tokens(headers, &CONNECTION)
        .filter_map(|token| HeaderName::from_bytes(token.as_bytes()).ok())
        .filter(|name| !is_end_to_end(name))
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in [CONNECTION, KEEP_ALIVE, PROXY_CONNECTION, TE, TRANSFER_ENCODING, UPGRADE, HTTP2_SETTINGS] {
        headers.remove(name);
    }
}

/// What no client can have removed on the way, however it names it: where a message ends and whom it is for.
fn is_end_to_end(name: &HeaderName) -> bool {
    *name == HOST || *name == http::header::CONTENT_LENGTH || *name == http::header::TRAILER
}

fn has_token(headers: &HeaderMap, name: &HeaderName, wanted: &str) -> bool {
    tokens(headers, name).any(|token| token.eq_ignore_ascii_case(wanted))
}

fn tokens<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|token| !token.is_empty())
}

/// Whom a request is for is told in one way in HTTP/2, but a client may have used the other.
fn name_authority(parts: &mut request::Parts, sent_to: SocketAddr) -> Result<(), Failed> {
    if parts.uri.authority().is_some() {
        return Ok(());
    }
    let host = parts.headers.get(HOST).cloned().unwrap_or_else(|| host_of(sent_to));
    let authority = Authority::try_from(host.as_bytes()).map_err(|_invalid| Failed::BadRequest)?;
    let mut uri = std::mem::take(&mut parts.uri).into_parts();
    uri.path_and_query.get_or_insert(PathAndQuery::from_static("/"));
    uri.scheme = Some(Scheme::HTTP);
    uri.authority = Some(authority);
    parts.uri = Uri::from_parts(uri).map_err(|_invalid| Failed::BadRequest)?;
    Ok(())
}

fn host_of(sent_to: SocketAddr) -> HeaderValue {
    let host = if sent_to.port() == 80 { bracketed(sent_to) } else { sent_to.to_string() };
    // It has digits, dots, colons and brackets.
    HeaderValue::try_from(host).unwrap_or_else(|_invalid| HeaderValue::from_static(""))
}

fn bracketed(address: SocketAddr) -> String {
    match address {
        SocketAddr::V4(address) => address.ip().to_string(),
        SocketAddr::V6(address) => format!("[{}]", address.ip()),
    }
}

#[cfg(test)]
mod tests {
    use http::Request;
    use proptest::prelude::*;

    use super::*;

    const SENT_TO: &str = "10.96.0.10:8080";

    fn request(version: Version, uri: &str, headers: &[(&str, &str)]) -> request::Parts {
        let mut builder = Request::builder().version(version).uri(uri);
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap().into_parts().0
    }

    fn sent_on(version: Version, headers: &[(&str, &str)]) -> Vec<String> {
        let mut parts = request(version, "/", headers);
        of_request(&mut parts, SENT_TO.parse().unwrap()).unwrap();
        let shown =
            |(name, value): (&HeaderName, &HeaderValue)| format!("{name}: {}", value.to_str().unwrap());
        let mut shown: Vec<_> = parts.headers.iter().map(shown).collect();
        shown.sort_unstable();
        shown
    }

    #[track_caller]
    fn check(version: Version, headers: &[(&str, &str)], expected: &[&str]) {
        assert_eq!(sent_on(version, headers), expected);
    }

    #[test]
    fn what_is_for_one_connection_stays_there() {
        check(
            Version::HTTP_11,
            &[
                ("host", "a"),
                ("connection", "keep-alive, X-Mine"),
                ("connection", "x-other"),
                ("x-mine", "1"),
                ("x-other", "2"),
                ("keep-alive", "timeout=5"),
                ("proxy-connection", "keep-alive"),
                ("transfer-encoding", "chunked"),
                ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
                ("x-forwarded-for", "192.0.2.1"),
            ],
            &[
                "host: a",
                "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
                "x-forwarded-for: 192.0.2.1",
            ],
        );
    }

    #[test]
    fn what_a_message_needs_cannot_be_named_away() {
        let headers = [("host", "a"), ("content-length", "3"), ("connection", "host, content-length, close")];
        check(Version::HTTP_11, &headers, &["content-length: 3", "host: a"]);
    }

    #[test]
    fn another_protocol_may_be_asked_for_but_not_the_other_version() {
        let websocket = [("host", "a"), ("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")];
        check(Version::HTTP_11, &websocket, &["connection: upgrade", "host: a", "upgrade: websocket"]);
        let not_meant = [("host", "a"), ("upgrade", "websocket")];
        check(Version::HTTP_11, &not_meant, &["host: a"]);
        let h2c = [
            ("host", "a"),
            ("connection", "Upgrade, HTTP2-Settings"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAMAAABk"),
        ];
        check(Version::HTTP_11, &h2c, &["host: a"]);
    }

    #[test]
    fn trailers_are_taken_by_whoever_takes_them() {
        let headers =
            [("host", "a"), ("te", "gzip, trailers;q=0.5"), ("te", "trailers"), ("connection", "te")];
        check(Version::HTTP_11, &headers, &["connection: te", "host: a", "te: trailers"]);
        check(Version::HTTP_2, &[("te", "trailers")], &["te: trailers"]);
    }

    #[test]
    fn an_older_client_gets_a_host() {
        check(Version::HTTP_10, &[], &["host: 10.96.0.10:8080"]);
        check(Version::HTTP_10, &[("host", "a")], &["host: a"]);
        assert_eq!(host_of("[fd00::1]:80".parse().unwrap()), "[fd00::1]");
    }

    #[test]
    fn a_request_of_http_2_says_whom_it_is_for() {
        for (uri, host, expected) in [
            ("http://a/x?y", Some("b"), "http://a/x?y"),
            ("/x?y", Some("b:81"), "http://b:81/x?y"),
            ("/x", None, "http://10.96.0.10:8080/x"),
        ] {
            let host: Vec<_> = host.map(|host| ("host", host)).into_iter().collect();
            let mut parts = request(Version::HTTP_2, uri, &host);
            of_request(&mut parts, SENT_TO.parse().unwrap()).unwrap();
            assert_eq!(parts.uri, expected);
        }
        let mut parts = request(Version::HTTP_2, "/x", &[("host", "not a host")]);
        assert_eq!(of_request(&mut parts, SENT_TO.parse().unwrap()), Err(Failed::BadRequest));
    }

    #[test]
    fn an_answer_keeps_the_protocol_that_it_changes_to() {
        for (status, kept) in [(101, true), (426, true), (200, false)] {
            let builder = http::Response::builder().status(status);
            let builder = builder
                .header("upgrade", "websocket")
                .header("connection", "upgrade, x-a")
                .header("x-a", "1");
            let mut parts = builder.body(()).unwrap().into_parts().0;
            of_response(&mut parts);
            assert_eq!(parts.headers.contains_key(UPGRADE), kept, "{status}");
            assert_eq!(parts.headers.contains_key(CONNECTION), kept, "{status}");
            assert!(!parts.headers.contains_key("x-a"));
        }
    }

    proptest! {
        #[test]
        fn whatever_a_client_sends_goes_on_without_what_it_names_and_with_no_panic(
            headers in proptest::collection::vec(("[a-z-]{1,12}|connection|te|upgrade|host", "[ -~]{0,24}"), 0..12),
            version in proptest::sample::select(vec![Version::HTTP_10, Version::HTTP_11, Version::HTTP_2]),
        ) {
            let borrowed: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            let mut parts = request(version, "/", &borrowed);
            let named: Vec<String> = tokens(&parts.headers, &CONNECTION).map(str::to_ascii_lowercase).collect();
            if of_request(&mut parts, SENT_TO.parse().unwrap()).is_ok() {
                for name in named.iter().filter_map(|name| HeaderName::try_from(name.as_str()).ok()) {
                    let ours = [CONNECTION, TE, UPGRADE].contains(&name);
                    prop_assert!(ours || is_end_to_end(&name) || !parts.headers.contains_key(&name), "{name}");
                }
                for name in [KEEP_ALIVE, PROXY_CONNECTION, TRANSFER_ENCODING, HTTP2_SETTINGS] {
                    prop_assert!(!parts.headers.contains_key(name));
                }
            }
        }
    }
}
