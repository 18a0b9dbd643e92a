//! Flows of UDP that are with a worker, among all that the kernel tracks: an endpoint does not answer them, and yet they are right.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};

use conntrack::{Conntrack, Filter, Flow};
use netlink::NetlinkError;
use proxy::frame::{Frontend, Protocol};

/// What a family's worker carries. Clones are the same thing.
#[derive(Clone, Debug, Default)]
pub struct WithWorker(Arc<RwLock<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    listeners: Vec<SocketAddr>,
    frontends: BTreeSet<Frontend>,
}

impl WithWorker {
    /// A worker has routes for these, and none for those.
    pub(crate) fn set_frontends<'a>(
        &self,
        there: impl IntoIterator<Item = &'a Frontend>,
        gone: impl IntoIterator<Item = &'a Frontend>,
    ) {
        let mut inner = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for frontend in gone {
            inner.frontends.remove(frontend);
        }
        inner.frontends.extend(there.into_iter().filter(|frontend| frontend.protocol == Protocol::Udp));
    }

    /// A worker takes flows here.
    pub(crate) fn set_listeners(&self, listeners: Vec<SocketAddr>) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).listeners = listeners;
    }

    /// No worker takes flows any more; gives where one did.
    pub(crate) fn take_listeners(&self) -> Vec<SocketAddr> {
        std::mem::take(&mut self.0.write().unwrap_or_else(PoisonError::into_inner).listeners)
    }

    fn contains(&self, flow: &Flow) -> bool {
        let inner = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let to = |address| Frontend { address, protocol: Protocol::Udp, port: flow.orig.dst_port };
        inner.listeners.contains(&flow.answered_by())
            && [Some(flow.orig.dst), None].into_iter().any(|address| inner.frontends.contains(&to(address)))
    }
}

/// Tracked flows, of which those that a worker carries are never deleted as stale: the worker itself moves its clients to
/// other endpoints, and a flow that the kernel forgets is taken for a new one, whose answers on their way are lost.
pub struct UncarriedFlows {
    flows: Box<dyn Conntrack>,
    carried: WithWorker,
}

impl UncarriedFlows {
    /// These flows, except for what is carried.
    pub fn new(flows: Box<dyn Conntrack>, carried: WithWorker) -> Self {
        Self { flows, carried }
    }
}

impl Conntrack for UncarriedFlows {
    fn each(&mut self, filter: &Filter, visit: &mut dyn FnMut(&Flow)) -> Result<(), NetlinkError> {
        self.flows.each(filter, visit)
    }

    fn delete(&mut self, filter: &Filter, stale: &mut dyn FnMut(&Flow) -> bool) -> Result<u64, NetlinkError> {
        let carried = &self.carried;
        self.flows.delete(filter, &mut |flow| stale(flow) && !carried.contains(flow))
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use conntrack::Tuple;

    use super::*;

    const UDP: u8 = 17;
    const LISTENER: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(192, 168, 0, 7)), 40_000);

    /// A table of flows of which all are deleted that may be.
    struct Flows(Vec<Flow>);

    impl Conntrack for Flows {
        fn each(&mut self, _: &Filter, visit: &mut dyn FnMut(&Flow)) -> Result<(), NetlinkError> {
            self.0.iter().for_each(visit);
            Ok(())
        }

        fn delete(&mut self, _: &Filter, stale: &mut dyn FnMut(&Flow) -> bool) -> Result<u64, NetlinkError> {
            Ok(self.0.iter().filter(|flow| stale(flow)).count().try_into().unwrap())
        }
    }

    fn flow(to: &str, answered_by: SocketAddr) -> Flow {
        let (to, client): (SocketAddr, SocketAddr) = (to.parse().unwrap(), ([10, 0, 0, 1], 5000).into());
        let tuple = |src: SocketAddr, dst: SocketAddr| Tuple {
            src: src.ip(),
            dst: dst.ip(),
            src_port: src.port(),
            dst_port: dst.port(),
        };
        Flow {
            protocol: UDP,
            orig: tuple(client, to),
            reply: tuple(answered_by, client),
            id: 1,
            status: 0,
            orig_zone: 0,
            reply_zone: 0,
        }
    }

    #[track_caller]
    fn check(carried: &WithWorker, to: &str, answered_by: SocketAddr, deleted: u64) {
        let flows = Box::new(Flows(vec![flow(to, answered_by)]));
        let filter = Filter::new(conntrack::Family::Ip, UDP);
        let result = UncarriedFlows::new(flows, carried.clone()).delete(&filter, &mut |_| true);
        assert_eq!(result.unwrap(), deleted, "to {to}, answered by {answered_by}");
    }

    #[test]
    fn what_a_worker_carries_is_not_stale_for_as_long_as_it_does() {
        let carried = WithWorker::default();
        let frontend = |address: Option<&str>, protocol, port| Frontend {
            address: address.map(|ip| ip.parse().unwrap()),
            protocol,
            port,
        };
        let dns = frontend(Some("10.96.0.10"), Protocol::Udp, 53);
        let there =
            [dns, frontend(None, Protocol::Udp, 30053), frontend(Some("10.96.0.10"), Protocol::Tcp, 80)];
        carried.set_frontends(&there, []);
        check(&carried, "10.96.0.10:53", LISTENER, 1);
        carried.set_listeners(vec![LISTENER]);
        check(&carried, "10.96.0.10:53", LISTENER, 0);
        check(&carried, "192.168.0.7:30053", LISTENER, 0);
        // Of another protocol, to nobody's address, and with an endpoint.
        check(&carried, "10.96.0.10:80", LISTENER, 1);
        check(&carried, "10.96.0.11:53", LISTENER, 1);
        check(&carried, "10.96.0.10:53", ([10, 0, 0, 9], 53).into(), 1);
        carried.set_frontends([], [&dns]);
        check(&carried, "10.96.0.10:53", LISTENER, 1);
        assert_eq!(carried.take_listeners(), [LISTENER]);
        check(&carried, "192.168.0.7:30053", LISTENER, 1);
    }
}
