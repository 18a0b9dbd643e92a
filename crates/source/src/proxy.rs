//! Which proxy leads to the server: what the environment says, by the rules of Go's `golang.org/x/net/http/httpproxy`,
//! which client-go and so upstream follow.

use std::net::IpAddr;

use http::Uri;
use http::uri::Scheme;
use ipnet::IpNet;

use crate::environment::Environment;

/// A proxy.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Proxy {
    pub(crate) protocol: Protocol,
    /// Host and port, as `http://HOST:PORT`.
    pub(crate) address: Uri,
    /// Name and password.
    pub(crate) login: Option<(String, String)>,
}

impl std::fmt::Debug for Proxy {
    /// Without the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Proxy({self})")
    }
}

impl std::fmt::Display for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let authority = self.address.authority().map_or("", |authority| authority.as_str());
        write!(f, "{}://{authority}", self.protocol.scheme())
    }
}

/// How a proxy is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http,
    Https,
    Socks5,
}

impl Protocol {
    fn scheme(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
            Self::Socks5 => "socks5",
        }
    }

    fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
            Self::Socks5 => 1080,
        }
    }
}

/// A proxy's address that makes no sense.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    /// It is no URL with a host.
    #[error("it is no url of a proxy")]
    NoUrl,
    /// It is of a kind that nobody speaks.
    #[error("the scheme is {0:?}, not http, https, socks5 or socks5h")]
    Scheme(String),
}

impl Proxy {
    /// Reads a URL, whose scheme may be missing (`http` is meant then).
    pub(crate) fn parse(text: &str) -> Result<Self, ProxyError> {
        let text = text.trim();
        let with_scheme = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let uri: Uri = with_scheme.parse().map_err(|_invalid| ProxyError::NoUrl)?;
        let protocol = match uri.scheme_str() {
            Some("http") => Protocol::Http,
            Some("https") => Protocol::Https,
            Some("socks5" | "socks5h") => Protocol::Socks5,
            other => return Err(ProxyError::Scheme(other.unwrap_or_default().to_owned())),
        };
        let authority = uri.authority().filter(|authority| !authority.host().is_empty());
        let authority = authority.ok_or(ProxyError::NoUrl)?;
        let port = authority.port_u16().unwrap_or(protocol.default_port());
        let address = format!("http://{}:{port}", authority.host());
        let address = address.parse().map_err(|_invalid| ProxyError::NoUrl)?;
        let login = authority.as_str().rsplit_once('@').map(|(login, _)| {
            let (name, password) = login.split_once(':').unwrap_or((login, ""));
            (unescape(name), unescape(password))
        });
        Ok(Self { protocol, address, login })
    }

    /// The proxy that the environment names for a server. One that can't be read counts as none, as in Go.
    pub(crate) fn of_environment(environment: &Environment, server: &Uri) -> Option<Self> {
        let is_tls = server.scheme() == Some(&Scheme::HTTPS);
        let names = if is_tls { ["HTTPS_PROXY", "https_proxy"] } else { ["HTTP_PROXY", "http_proxy"] };
        let proxy = Self::parse(environment.first(names)?).ok()?;
        let exceptions = environment.first(["NO_PROXY", "no_proxy"]).unwrap_or_default();
        let port = server.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        (!is_direct(exceptions, server.host()?, port)).then_some(proxy)
    }
}

/// Percent-decodes (RFC 3986).
fn unescape(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let [first, after @ ..] = rest {
        let digits = after.first_chunk::<2>().and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) if *first == b'%' => {
                bytes.push(byte);
                rest = &after[2..];
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Whether `NO_PROXY` or the host itself says that no proxy is asked.
fn is_direct(exceptions: &str, host: &str, port: u16) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
    let address: Option<IpAddr> = host.parse().ok().map(|address: IpAddr| address.to_canonical());
    host == "localhost"
        || address.is_some_and(|address| address.is_loopback())
        || exceptions.split(',').any(|exception| matches(exception, &host, address, port))
}

/// Whether an item of `NO_PROXY` means this server.
fn matches(exception: &str, host: &str, address: Option<IpAddr>, port: u16) -> bool {
    let exception = exception.trim().to_ascii_lowercase();
    if exception == "*" {
        return true;
    }
    if let Ok(network) = exception.parse::<IpNet>() {
        return address.is_some_and(|address| network.contains(&address));
    }
    let (name, wanted_port) = split_port(&exception);
    if wanted_port.is_some_and(|wanted| wanted != port.to_string()) {
        return false;
    }
    if let Ok(wanted) = name.parse::<IpAddr>() {
        return address == Some(wanted.to_canonical());
    }
    match name.strip_prefix('*').filter(|name| name.starts_with('.')).unwrap_or(name) {
        "" => false,
        subdomains if subdomains.starts_with('.') => host.ends_with(subdomains),
        domain => host == domain || host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.')),
    }
}

/// `HOST:PORT` or `[HOST]:PORT` or only a host, which may be an IPv6 address.
fn split_port(text: &str) -> (&str, Option<&str>) {
    match text.rsplit_once(':') {
        Some((host, port)) if host.starts_with('[') && host.ends_with(']') => {
            (&host[1..host.len() - 1], Some(port))
        }
        Some((host, port)) if !host.contains(':') => (host, Some(port)),
        _ => (text, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(variables: &[(&str, &str)]) -> Environment {
        Environment::new(variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
    }

    #[track_caller]
    fn check(server: &str, no_proxy: &str, is_proxied: bool) {
        let environment = environment(&[("HTTPS_PROXY", "http://127.0.0.1:9"), ("NO_PROXY", no_proxy)]);
        let proxy = Proxy::of_environment(&environment, &server.parse().unwrap());
        assert_eq!(proxy.is_some(), is_proxied, "{server} with {no_proxy:?}");
    }

    #[test]
    fn no_proxy_in_all_its_forms() {
        for direct in [
            "10.0.0.0/8,192.0.2.0/24,.svc",
            "192.0.2.1",
            "192.0.2.1:7443",
            " 192.0.2.1 , x",
            "*",
            "x,*",
            "::ffff:192.0.2.1",
        ] {
            check("https://192.0.2.1:7443", direct, false);
        }
        for other in ["", ",", "192.0.2.2", "192.0.2.1:443", "192.0.2.0", ":7443", "10.0.0.0/8"] {
            check("https://192.0.2.1:7443", other, true);
        }
        for direct in ["2001:db8::/32", "2001:db8::1", "[2001:db8::1]:6443", "2001:DB8:0::1"] {
            check("https://[2001:db8::1]:6443", direct, false);
        }
        check("https://[2001:db8::1]:6443", "[2001:db8::1]:443", true);
        for direct in
            ["example.com", "API.example.com", ".example.com", "*.example.com", "com", "example.com:443"]
        {
            check("https://api.Example.com", direct, false);
        }
        for other in ["ample.com", "example.com:6443", "api.example.com.", ".api.example.com", "example.*"] {
            check("https://api.example.com", other, true);
        }
        check("https://example.com", ".example.com", true);
    }

    #[test]
    fn loopback_is_never_proxied() {
        for server in
            ["https://127.0.0.1:6443", "https://127.9.9.9", "https://[::1]:6443", "https://localhost:6443"]
        {
            check(server, "", false);
        }
        check("https://localhost.example.com", "localhost,.svc", true);
    }

    #[test]
    fn the_environment_names_the_proxy() {
        let of = |variables: &[(&str, &str)], server: &str| {
            Proxy::of_environment(&environment(variables), &server.parse().unwrap())
                .map(|proxy| proxy.to_string())
        };
        let http = [("HTTP_PROXY", "proxy.example.com"), ("ALL_PROXY", "http://all:1")];
        assert_eq!(of(&http, "http://192.0.2.1").unwrap(), "http://proxy.example.com:80");
        assert_eq!(of(&http, "https://192.0.2.1"), None, "ALL_PROXY is not Go's");
        let lower = [("https_proxy", "socks5://[::1]"), ("no_proxy", "192.0.2.9")];
        assert_eq!(of(&lower, "https://192.0.2.1").unwrap(), "socks5://[::1]:1080");
        assert_eq!(of(&lower, "https://192.0.2.9"), None);
        let both = [("HTTPS_PROXY", ""), ("https_proxy", "https://b")];
        assert_eq!(of(&both, "https://192.0.2.1").unwrap(), "https://b:443");
        assert_eq!(of(&[("HTTPS_PROXY", "ftp://b")], "https://192.0.2.1"), None);
    }

    #[test]
    fn addresses_of_proxies() {
        let proxy = Proxy::parse("socks5h://user:p%40ss@proxy:1081/").unwrap();
        assert_eq!(proxy.protocol, Protocol::Socks5);
        assert_eq!(proxy.address, "http://proxy:1081");
        assert_eq!(proxy.login, Some(("user".to_owned(), "p@ss".to_owned())));
        assert_eq!(format!("{proxy:?}"), "Proxy(socks5://proxy:1081)", "no password");
        assert_eq!(Proxy::parse("quic://a"), Err(ProxyError::Scheme("quic".to_owned())));
        assert_eq!(Proxy::parse("http://"), Err(ProxyError::NoUrl));
        assert_eq!(Proxy::parse("a b"), Err(ProxyError::NoUrl));
    }

    #[test]
    fn escapes() {
        assert_eq!(unescape("a%20b%zz%4"), "a b%zz%4");
        assert_eq!(unescape("%c3%a4"), "ä");
    }
}
