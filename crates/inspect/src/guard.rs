//! Who may read: nobody through somebody else's page.
//!
//! A page from elsewhere that a person on this node looks at could ask for `http://127.0.0.1:10249/...`. The browser does not
//! show it the answer, since no answer allows that (CORS); and a name of its own that it makes point here (DNS rebinding) is
//! no name that is answered to: only addresses, `localhost` and the node's own name are.

use http::header::{HOST, ORIGIN};
use http::{HeaderMap, StatusCode};

/// Why a request is not answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) why: &'static str,
}

/// Checks where a request says that it comes from, and whom it means. `node` is the node's name.
pub(crate) fn check(headers: &HeaderMap, node: &str) -> Result<(), Refusal> {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    if headers.get_all(HOST).iter().count() > 1 {
        return Err(Refusal { status: StatusCode::BAD_REQUEST, why: "more than one Host" });
    }
    // HTTP/1.0 has none; no browser speaks that.
    let host = text(HOST.as_str());
    if host.is_some_and(|host| !is_own(host, node)) {
        let why = "this Host is not answered to: use an IP address, localhost or the node's name";
        return Err(Refusal { status: StatusCode::MISDIRECTED_REQUEST, why });
    }
    let foreign = |origin: &str| origin.strip_prefix("http://") != host;
    let is_cross_site = text("sec-fetch-site").is_some_and(|site| matches!(site, "cross-site" | "same-site"));
    let navigates = text("sec-fetch-mode") == Some("navigate");
    if text(ORIGIN.as_str()).is_some_and(foreign) || is_cross_site && !navigates {
        return Err(Refusal { status: StatusCode::FORBIDDEN, why: "other sites may not read this" });
    }
    Ok(())
}

/// Whether a `Host` can't be a name of somebody else's.
fn is_own(host: &str, node: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let unbracketed = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    unbracketed.unwrap_or(name).parse::<std::net::IpAddr>().is_ok()
        || name.eq_ignore_ascii_case("localhost")
        || !node.is_empty() && name.eq_ignore_ascii_case(node)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_headers(headers: &[(&'static str, &str)], expected: Option<u16>) {
        let headers: HeaderMap =
            headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        assert_eq!(check(&headers, "node-1").err().map(|refusal| refusal.status.as_u16()), expected);
    }

    #[test]
    fn only_own_names_are_answered_to() {
        for host in [
            "127.0.0.1:10249",
            "[::1]:10249",
            "10.0.0.1",
            "localhost:8080",
            "LOCALHOST",
            "node-1:10249",
            "[fd00::1]",
        ] {
            check_headers(&[("host", host)], None);
        }
        for host in [
            "rebound.example:10249",
            "localhost.example",
            "127.0.0.1.example:80",
            "",
            "node-1.example",
            "[::1",
            "::g",
        ] {
            check_headers(&[("host", host)], Some(421));
        }
        check_headers(&[], None);
    }

    #[test]
    fn other_sites_may_not_read() {
        let host = ("host", "127.0.0.1:10249");
        check_headers(&[host, ("origin", "http://127.0.0.1:10249")], None);
        check_headers(&[host, ("origin", "http://evil.example")], Some(403));
        check_headers(&[host, ("origin", "http://127.0.0.1:8080")], Some(403));
        check_headers(&[host, ("origin", "null")], Some(403));
        check_headers(&[host, ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors")], Some(403));
        check_headers(&[host, ("sec-fetch-site", "same-origin")], None);
        // A link to here that somebody follows.
        check_headers(&[host, ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")], None);
    }

    #[test]
    fn two_hosts_are_one_too_many() {
        let mut headers = HeaderMap::new();
        headers.append("host", "127.0.0.1".parse().unwrap());
        headers.append("host", "evil.example".parse().unwrap());
        assert_eq!(check(&headers, "n").unwrap_err().status, StatusCode::BAD_REQUEST);
    }
}
