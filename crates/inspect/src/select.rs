//! Which Services and endpoints are asked for.

use std::net::IpAddr;

use agent::snapshot::{AddressKind, Service, Wanted};

use crate::document::ServiceRow;
use crate::query::{Query, QueryError};

/// What a Service must be like; what is not said does not matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    /// In this namespace.
    pub namespace: Option<String>,
    /// Of this name; a `*` at an end stands for anything.
    pub name: Option<String>,
    /// With this address, of whatever kind but endpoints.
    pub address: Option<IpAddr>,
    /// With this node port.
    pub node_port: Option<u16>,
    /// With an endpoint of this address.
    pub endpoint: Option<IpAddr>,
    /// Without an endpoint that takes new flows.
    pub no_endpoints: bool,
}

impl Selector {
    /// Reads the parameters `namespace`, `name`, `address`, `nodePort`, `endpoint` and `noEndpoints`.
    ///
    /// # Errors
    /// One of them can't be understood, or there are others.
    pub(crate) fn read(mut query: Query) -> Result<Self, QueryError> {
        let selector = Self {
            namespace: query.text("namespace"),
            name: query.text("name"),
            address: query.parsed("address", "an IP address")?,
            node_port: query.parsed("nodePort", "a port")?,
            endpoint: query.parsed("endpoint", "an IP address")?,
            no_endpoints: query.parsed("noEndpoints", "true or false")?.unwrap_or_default(),
        };
        query.end()?;
        Ok(selector)
    }

    /// The parameters, to ask another proxy with.
    pub fn to_query(&self) -> String {
        let pairs = [
            ("namespace", self.namespace.clone()),
            ("name", self.name.clone()),
            ("address", self.address.map(|address| address.to_string())),
            ("nodePort", self.node_port.map(|port| port.to_string())),
            ("endpoint", self.endpoint.map(|address| address.to_string())),
            ("noEndpoints", self.no_endpoints.then(|| "true".to_owned())),
        ];
        let given =
            pairs.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", encoded(&value?))));
        given.collect::<Vec<_>>().join("&")
    }

    /// What the agent can tell apart: these, and perhaps others.
    pub(crate) fn wanted(&self) -> Wanted {
        match (self.endpoint.or(self.address), self.node_port) {
            // Each that is asked for has the address, whatever else it has.
            (address @ Some(_), _) => Wanted { address, ..Wanted::default() },
            (None, node_port) => Wanted { node_port, ..Wanted::default() },
        }
    }

    /// Whether a Service is asked for.
    pub(crate) fn selects(&self, service: &Service, row: &ServiceRow) -> bool {
        let of_port = |kind, port| kind == AddressKind::NodePort && Some(port) == self.node_port;
        let addresses = || ports(service).flat_map(|port| &port.addresses);
        self.namespace.as_ref().is_none_or(|namespace| *namespace == service.namespace)
            && self.name.as_ref().is_none_or(|name| matches(name, &service.name))
            && self.address.is_none_or(|ip| addresses().any(|address| address.address == Some(ip)))
            && (self.node_port.is_none() || addresses().any(|address| of_port(address.kind, address.port)))
            && self.endpoint.is_none_or(|ip| {
                ports(service).flat_map(|port| &port.endpoints).any(|endpoint| endpoint.address.ip() == ip)
            })
            && (!self.no_endpoints || row.endpoints.serving == 0)
    }
}

pub(crate) fn ports(service: &Service) -> impl Iterator<Item = &agent::snapshot::Port> {
    service.families.iter().flat_map(|family| &family.ports)
}

/// Whether a name is as a pattern says; a `*` at an end of that stands for anything.
pub fn matches(pattern: &str, name: &str) -> bool {
    match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        (Some(rest), Some(_)) => name.contains(rest.trim_end_matches('*')),
        (Some(end), None) => name.ends_with(end),
        (None, Some(start)) => name.starts_with(start),
        (None, None) => name == pattern,
    }
}

/// A value of a query, percent-encoded.
fn encoded(value: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~*".contains(&byte);
    let encode = |byte: u8| {
        if is_plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }
    };
    value.bytes().map(encode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, name, expected) in [
            ("web", "web", true),
            ("web", "web-1", false),
            ("web*", "web-1", true),
            ("*-1", "web-1", true),
            ("*eb*", "web-1", true),
            ("*", "web", true),
            ("*x*", "web", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn what_is_asked_is_understood() {
        let selector = Selector {
            namespace: Some("shop".into()),
            name: Some("a b&c*".into()),
            address: Some("fd00::1".parse().unwrap()),
            node_port: Some(30080),
            endpoint: Some("10.0.0.1".parse().unwrap()),
            no_endpoints: true,
        };
        let query = selector.to_query();
        assert_eq!(Selector::read(Query::parse(&query).unwrap()).unwrap(), selector, "{query}");
        let error = |text: &str| Selector::read(Query::parse(text).unwrap()).unwrap_err().to_string();
        assert_eq!(error("address=x"), "parameter address: \"x\" is not an IP address");
        assert_eq!(error("adress=10.0.0.1"), "there is no parameter adress");
    }
}
