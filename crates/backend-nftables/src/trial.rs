//! Whether a kernel takes rules like ours: told by a transaction that it refuses in any case, so that nothing of it stays.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::IpNet;
use model::{
    AddressKind, Affinity, Balancer, Destination, EndpointNode, Extent, Family, Frontend, FrontendAddress,
    FrontendKey, IpFamily, ObjectName, Pool, Protocol, ServicePortName, Table, TrafficPolicy, Verdict,
};
use netlink::NetlinkError;
use nft::{Applied, Name, Op, Transaction};

use crate::config::Config;
use crate::plan::Backend;

/// A table of its own, which never comes to be.
const TABLE: &str = "kube-proxy-trial";
/// A set that nobody has.
const ABSENT: &str = "absent";

/// A whole table, with an element of each kind, and at last a change that is refused. To be sent in one piece: the kernel looks at
/// each change even after one that it has refused (`nfnetlink_rcv_batch` of `net/netfilter/nfnetlink.c`), and undoes all of them.
pub fn trial<F: Family>(balancer: Balancer) -> Transaction {
    let config = Config { balancer, ..Config::default() };
    let mut table = Table::default();
    for frontend in frontends::<F>() {
        table.set_service(&frontend.service.service.clone(), vec![frontend]);
    }
    let whole = Backend::new(config.clone()).repair(&config, &table, None, Extent::Rebuild).transaction;
    let table_ops = whole.ops.into_iter().filter(|op| *op != Op::DeleteTable);
    let ops = table_ops.chain([Op::DeleteSet(Name::from_static(ABSENT))]).collect();
    Transaction { table: Name::from_static(TABLE), ops, ..whole }
}

/// What the kernel refuses of our rules, given its answer to a [`trial`]; `None`: nothing but what it has to refuse.
///
/// # Errors
/// The answer tells nothing of our rules: permission is lacking, or the transaction could not be sent.
pub fn refused(answer: Result<Applied, NetlinkError>) -> Result<Option<NetlinkError>, NetlinkError> {
    const EPERM: i32 = 1;
    match answer {
        Ok(_) => Ok(None),
        Err(NetlinkError::Refused { object, .. }) if object == format!("set {ABSENT}") => Ok(None),
        Err(error @ NetlinkError::Refused { .. }) if error.refusal() != Some(EPERM) => Ok(Some(error)),
        Err(error) => Err(error),
    }
}

/// A Service in each situation that has elements of its own.
fn frontends<F: Family>() -> Vec<Frontend<F>> {
    use AddressKind::{ClusterIp, ExternalIp, LoadBalancerIp, NodePort};
    let (served, local) = (pool(Verdict::Reject, &[11, 12]), pool(Verdict::Drop, &[11]));
    let (refused, dropped) = (pool(Verdict::Reject, &[]), pool(Verdict::Drop, &[]));
    let affinity = Some(Affinity { timeout: Duration::from_hours(3), service: None });
    let allowed_sources = Some([IpNet::from(address::<F>(1).into())].into());
    let with_short_cut = |frontend: Frontend<F>| {
        let internal_pool = Some(served.clone());
        Frontend { policy: TrafficPolicy::Local, internal_pool, ..frontend }
    };
    vec![
        frontend("served", ClusterIp, 1, served.clone()),
        Frontend { affinity, ..frontend("affine", ClusterIp, 2, served.clone()) },
        Frontend { allowed_sources, ..with_short_cut(frontend("local", LoadBalancerIp, 3, local.clone())) },
        frontend("refused", ClusterIp, 4, refused.clone()),
        frontend("dropped", ExternalIp, 5, dropped.clone()),
        frontend("node-port", NodePort, 6, served.clone()),
        with_short_cut(frontend("local-node-port", NodePort, 7, local)),
        frontend("refused-node-port", NodePort, 8, refused),
        frontend("dropped-node-port", NodePort, 9, dropped),
    ]
}

fn frontend<F: Family>(name: &str, kind: AddressKind, number: u8, pool: Pool<F>) -> Frontend<F> {
    let protocol = Protocol::Tcp;
    let address = match kind {
        AddressKind::NodePort => FrontendAddress::Node,
        _ => FrontendAddress::Ip(address::<F>(number)),
    };
    let service = ServicePortName { service: ObjectName::new("trial", name), port: "main".into(), protocol };
    Frontend::new(FrontendKey { address, protocol, port: number.into() }, kind, service, pool)
}

fn pool<F: Family>(when_empty: Verdict, endpoints: &[u8]) -> Pool<F> {
    let endpoint = |number: &u8| Destination {
        address: address::<F>(*number),
        port: 8080,
        node: EndpointNode::this_if(*number == 11),
    };
    Pool::new(endpoints.iter().map(endpoint).collect::<BTreeSet<_>>(), when_empty)
}

/// An address for documentation (RFC 5737, RFC 3849).
fn address<F: Family>(number: u8) -> F::Addr {
    let address: IpAddr = match F::FAMILY {
        IpFamily::V4 => Ipv4Addr::new(192, 0, 2, number).into(),
        IpFamily::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number.into()).into(),
    };
    F::narrow(address).expect("it is made of this family")
}

#[cfg(test)]
mod tests {
    use model::{V4, V6};

    use super::*;

    fn answer(object: &str, errno: i32) -> Result<Applied, NetlinkError> {
        Err(NetlinkError::refused(object, errno, None))
    }

    #[test]
    fn only_what_has_to_be_refused_may_be() {
        assert!(refused(answer("set absent", 2)).unwrap().is_none());
        let refusal = refused(answer("map endpoints", 95)).unwrap().unwrap();
        assert!(refusal.to_string().contains("map endpoints"), "{refusal}");
        assert!(refused(answer("table ip kube-proxy-trial", 1)).is_err());
        assert!(refused(Err(NetlinkError::OutcomeUnknown { why: "nobody knows" })).is_err());
    }

    /// What none of the samples has an element in would not be tried. Rules alone write to the map of a pool's clients.
    #[test]
    fn every_map_is_tried_with_an_element() {
        for ops in [trial::<V4>(Balancer::Rules).ops, trial::<V6>(Balancer::Rules).ops] {
            let declared = ops.iter().filter_map(|op| match op {
                Op::AddSet(set) => Some(&set.name),
                _ => None,
            });
            let is_filled = |name: &Name| {
                ops.iter().any(|op| matches!(op, Op::AddElements { set, .. } if set.name == *name))
            };
            let empty: Vec<&str> = declared.filter(|name| !is_filled(name)).map(Name::as_str).collect();
            assert_eq!(empty, ["affinity-1"]);
        }
    }
}
