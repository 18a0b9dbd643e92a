//! Addresses to listen on.

use std::net::SocketAddr;

/// What is wrong with the text of an address; the text itself is in the message's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ListenerError<'a> {
    /// It is not `host:port`.
    NoPort,
    /// The host is no IP address.
    Host(&'a str),
    /// The port is none.
    Port(&'a str),
}

/// Reads `IP:port` or `[IPv6]:port`; port 0 is allowed here and means that nobody listens.
pub(crate) fn parse(text: &str) -> Result<SocketAddr, ListenerError<'_>> {
    let (host, port) = split(text).ok_or(ListenerError::NoPort)?;
    let ip = model::parse_addr(host).map_err(|_no_ip| ListenerError::Host(host))?;
    let is_number = !port.is_empty() && port.bytes().all(|digit| digit.is_ascii_digit());
    let port = port.parse().ok().filter(|_| is_number).ok_or(ListenerError::Port(port))?;
    Ok(SocketAddr::new(ip, port))
}

/// Go's `net.SplitHostPort`.
fn split(text: &str) -> Option<(&str, &str)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, port) = rest.split_once("]:")?;
        return Some((host, port));
    }
    let (host, port) = text.rsplit_once(':')?;
    (!host.contains([':', '[', ']'])).then_some((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_a_host_and_a_port() {
        assert_eq!(parse("0.0.0.0:10256"), Ok("0.0.0.0:10256".parse().unwrap()));
        assert_eq!(parse("[::1]:0"), Ok("[::1]:0".parse().unwrap()));
        for text in ["0.0.0.0", "::1", "[::1]", "", "::1:80", "a:b:80"] {
            assert_eq!(parse(text), Err(ListenerError::NoPort), "{text}");
        }
        assert_eq!(parse("localhost:80"), Err(ListenerError::Host("localhost")));
        for port in ["", "x", "65536", "-1", "+1", "80x"] {
            assert_eq!(parse(&format!("1.2.3.4:{port}")), Err(ListenerError::Port(port)), "{port}");
        }
    }
}
