//! Names of chains. Other software knows them, so they do not change.

use std::fmt::Write as _;
use std::net::SocketAddr;

use data_encoding::BASE32;
use iptables::{ChainName, TableName};
use model::ServicePortName;
use sha2::Digest as _;

/// All chains of ours and of the kubelet begin so.
pub const PREFIX: &str = "KUBE-";

/// The chain whose loss tells that somebody has emptied a table.
pub const CANARY: &str = "KUBE-PROXY-CANARY";

/// The name of a chain that exists whatever Services there are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FixedChain(&'static str);

impl FixedChain {
    pub(crate) fn name(self) -> ChainName {
        ChainName::from_static(self.0)
    }
}

pub(crate) const SERVICES: FixedChain = FixedChain("KUBE-SERVICES");
pub(crate) const EXTERNAL_SERVICES: FixedChain = FixedChain("KUBE-EXTERNAL-SERVICES");
pub(crate) const NODE_PORTS: FixedChain = FixedChain("KUBE-NODEPORTS");
pub(crate) const PROXY_FIREWALL: FixedChain = FixedChain("KUBE-PROXY-FIREWALL");
pub(crate) const FORWARD: FixedChain = FixedChain("KUBE-FORWARD");
pub(crate) const FIREWALL: FixedChain = FixedChain("KUBE-FIREWALL");
pub(crate) const MARK_MASQ: FixedChain = FixedChain("KUBE-MARK-MASQ");
pub(crate) const POSTROUTING: FixedChain = FixedChain("KUBE-POSTROUTING");

/// A chain of a Service port, or of one of its endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Balances over all endpoints (`Cluster` policy).
    Cluster,
    /// Balances over those of this node (`Local` policy).
    Local,
    /// External traffic, before it is balanced.
    External,
    /// Source ranges of load-balancer addresses.
    Firewall,
    /// One endpoint.
    Endpoint,
}

impl Kind {
    const ALL: [Self; 5] = [Self::Cluster, Self::Local, Self::External, Self::Firewall, Self::Endpoint];

    fn prefix(self) -> &'static str {
        match self {
            Self::Cluster => "KUBE-SVC-",
            Self::Local => "KUBE-SVL-",
            Self::External => "KUBE-EXT-",
            Self::Firewall => "KUBE-FW-",
            Self::Endpoint => "KUBE-SEP-",
        }
    }
}

/// Whether a chain is that of some Service port, of this run or an earlier one.
pub(crate) fn is_of_service(table: TableName, chain: &str) -> bool {
    table == TableName::Nat && Kind::ALL.iter().any(|kind| chain.starts_with(kind.prefix()))
}

/// Whether a chain of a Service port is that of an endpoint, and what its name ends with, which is the same for all others of a Service
/// port.
pub(crate) fn kind_and_suffix(chain: &str) -> Option<(bool, &str)> {
    let of = |kind: Kind| Some((kind == Kind::Endpoint, chain.strip_prefix(kind.prefix())?));
    Kind::ALL.into_iter().find_map(of)
}

/// The names of one Service port's chains.
pub(crate) struct ServiceChains {
    /// What is hashed for all of them.
    identity: String,
    suffix: String,
}

impl ServiceChains {
    pub(crate) fn of(name: &ServicePortName) -> Self {
        let identity = format!("{name}{}", name.protocol.to_string().to_lowercase());
        let suffix = suffix(&identity);
        Self { identity, suffix }
    }

    /// A chain that there is one of for the Service port.
    pub(crate) fn chain(&self, kind: Kind) -> ChainName {
        chain(kind, &self.suffix)
    }

    /// An endpoint's chain, which is also its list of clients.
    pub(crate) fn endpoint(&self, endpoint: SocketAddr) -> ChainName {
        let mut identity = self.identity.clone();
        write!(identity, "{endpoint}").expect("a text grows");
        chain(Kind::Endpoint, &suffix(&identity))
    }
}

fn chain(kind: Kind, suffix: &str) -> ChainName {
    ChainName::new(&[kind.prefix(), suffix].concat()).expect("a prefix and sixteen letters and digits")
}

/// The first 16 characters of the base-32 form of the SHA-256 (`portProtoHash` and `servicePortEndpointChainName` in
/// `pkg/proxy/iptables/proxier.go`).
fn suffix(identity: &str) -> String {
    let digest = sha2::Sha256::digest(identity.as_bytes());
    // Ten bytes are sixteen characters of five bits.
    BASE32.encode(&digest[..10])
}

#[cfg(test)]
mod tests {
    use model::{ObjectName, Protocol};

    use super::*;

    #[track_caller]
    fn check((service, port, protocol): (&str, &str, Protocol), endpoint: Option<&str>, expected: &str) {
        let (namespace, service) = service.split_once('/').unwrap();
        let name =
            ServicePortName { service: ObjectName::new(namespace, service), port: port.into(), protocol };
        let chains = ServiceChains::of(&name);
        let chain = match endpoint {
            Some(endpoint) => chains.endpoint(endpoint.parse().unwrap()),
            None => chains.chain(Kind::Cluster),
        };
        assert_eq!(chain.as_str(), expected);
    }

    #[test]
    fn names_are_those_that_upstream_gives() {
        let p80 = ("ns1/svc1", "p80", Protocol::Tcp);
        check(p80, None, "KUBE-SVC-XPGD46QRK7WJZT7O");
        check(p80, Some("10.180.0.1:80"), "KUBE-SEP-SXIVWICOYRO3J4NJ");
        check(p80, Some("[fd00:10::1]:80"), "KUBE-SEP-RT5VHSJR44ZNF7G5");
        check(("default/kubernetes", "https", Protocol::Tcp), None, "KUBE-SVC-NPX46M4PTMTKRN6Y");
        check(("ns/svc", "", Protocol::Udp), None, "KUBE-SVC-HMYKOXKBMOZPKJU5");
    }

    #[test]
    fn chains_of_services_are_told_by_their_beginning() {
        assert!(is_of_service(TableName::Nat, "KUBE-SEP-SXIVWICOYRO3J4NJ"));
        assert!(!is_of_service(TableName::Filter, "KUBE-SVC-SXIVWICOYRO3J4NJ"));
        for kept in ["KUBE-SERVICES", "KUBE-FIREWALL", "KUBE-KUBELET-CANARY", "KUBE-MARK-DROP"] {
            assert!(!is_of_service(TableName::Nat, kept), "{kept}");
        }
    }
}
