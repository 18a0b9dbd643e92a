//! A table of tracked flows in memory, with failures on demand.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use conntrack::{Conntrack, Filter, Flow, Tuple, status};
use netlink::NetlinkError;

use crate::kernel::Fault;

/// Tracked flows in memory. Clones are connections to the same table.
#[derive(Clone, Debug, Default)]
pub struct FakeConntrack {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    flows: Vec<Flow>,
    /// In the order of deletion.
    deleted: Vec<Flow>,
    /// One for each call.
    filters: Vec<Filter>,
    /// Answers to give instead of doing the next calls; `None`: do this one.
    faults: VecDeque<Option<Fault>>,
}

/// A flow from a client to a Service. If something else than the Service itself answers, it is translated and was
/// answered. For [`FakeConntrack::add`], which gives it a number.
pub fn flow(protocol: u8, client: SocketAddr, service: SocketAddr, answered_by: SocketAddr) -> Flow {
    let tuple = |src: SocketAddr, dst: SocketAddr| Tuple {
        src: src.ip(),
        dst: dst.ip(),
        src_port: src.port(),
        dst_port: dst.port(),
    };
    Flow {
        protocol,
        orig: tuple(client, service),
        reply: tuple(answered_by, client),
        id: 0,
        status: if answered_by == service { 0 } else { status::DST_NAT | status::SEEN_REPLY },
        orig_zone: 0,
        reply_zone: 0,
    }
}

impl FakeConntrack {
    /// A table without flows.
    pub fn new() -> Self {
        Self::default()
    }

    /// A packet came: tracks the flow, under a number of its own.
    pub fn add(&self, flow: Flow) {
        let mut state = self.state();
        let n_flows = state.flows.len() + state.deleted.len();
        let id = u32::try_from(n_flows + 1).unwrap_or(u32::MAX);
        state.flows.push(Flow { id, ..flow });
    }

    /// The flows that there are.
    pub fn flows(&self) -> Vec<Flow> {
        self.state().flows.clone()
    }

    /// The flows deleted so far.
    pub fn deleted(&self) -> Vec<Flow> {
        self.state().deleted.clone()
    }

    /// What was asked for, call by call: each is a walk through the kernel's table.
    pub fn filters(&self) -> Vec<Filter> {
        self.state().filters.clone()
    }

    /// The next calls fail so, in order; `None` lets one pass. [`Fault::AnswerLost`] is a disturbed reading.
    pub fn fail_next(&self, faults: impl IntoIterator<Item = Option<Fault>>) {
        self.state().faults.extend(faults);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FakeConntrack {
    /// Notes a call; yields its fault and the flows that its filter selects.
    fn begin(&self, filter: &Filter) -> Result<(Option<Fault>, Vec<Flow>), NetlinkError> {
        let mut state = self.state();
        state.filters.push(*filter);
        let fault = state.faults.pop_front().flatten();
        let selected = state.flows.iter().copied().filter(|flow| filter.matches(flow)).collect();
        // The caller's closures may use this table too.
        drop(state);
        match fault {
            Some(Fault::Errno(errno)) => {
                let object = format!("reading of {filter}");
                Err(NetlinkError::Refused { object, errno, message: None })
            }
            Some(Fault::Panic) => panic_on_request(),
            None | Some(Fault::AnswerLost) => Ok((fault, selected)),
        }
    }

    /// Deletes the flow, if it is still there as it was.
    fn remove(&self, flow: &Flow) -> bool {
        let mut state = self.state();
        let place = state.flows.iter().position(|other| other == flow);
        if let Some(idx) = place {
            let flow = state.flows.remove(idx);
            state.deleted.push(flow);
        }
        place.is_some()
    }
}

impl Conntrack for FakeConntrack {
    fn each(&mut self, filter: &Filter, visit: &mut dyn FnMut(&Flow)) -> Result<(), NetlinkError> {
        let (fault, selected) = self.begin(filter)?;
        selected.iter().for_each(visit);
        if fault.is_some() { Err(NetlinkError::Interrupted) } else { Ok(()) }
    }

    fn delete(&mut self, filter: &Filter, stale: &mut dyn FnMut(&Flow) -> bool) -> Result<u64, NetlinkError> {
        let (fault, selected) = self.begin(filter)?;
        let mut deleted = 0;
        for flow in selected {
            if stale(&flow) && self.remove(&flow) {
                deleted += 1;
            }
        }
        if fault.is_some() {
            Err(NetlinkError::Interrupted.besides(deleted, "deleted flows"))
        } else {
            Ok(deleted)
        }
    }
}

#[expect(clippy::panic, reason = "to see that its callers survive one")]
fn panic_on_request() -> ! {
    panic!("staged")
}

#[cfg(test)]
mod tests {
    use conntrack::Family;

    use super::*;

    const UDP: u8 = 17;

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn to(service: &str, answered_by: &str) -> Flow {
        flow(UDP, addr("10.0.0.1:5000"), addr(service), addr(answered_by))
    }

    fn dns() -> Filter {
        Filter::new(Family::Ip, UDP).to(addr("10.96.0.10:53"))
    }

    fn table() -> FakeConntrack {
        let table = FakeConntrack::new();
        table.add(to("10.96.0.10:53", "10.244.0.3:53"));
        table.add(to("10.96.0.10:53", "10.244.0.4:53"));
        table.add(to("10.96.0.10:53", "10.96.0.10:53"));
        table.add(to("10.96.0.11:53", "10.244.0.3:53"));
        table
    }

    #[test]
    fn what_is_stale_is_deleted() {
        let (mut table, gone) = (table(), addr("10.244.0.3:53"));
        let deleted = table.delete(&dns(), &mut |flow| flow.answered_by() == gone || !flow.is_dnat());
        assert_eq!(deleted.unwrap(), 2);
        let left: Vec<u32> = table.flows().iter().map(|flow| flow.id).collect();
        assert_eq!((left, table.deleted().len(), table.filters()), (vec![2, 4], 2, vec![dns()]));
        let mut visited = Vec::new();
        table.each(&dns(), &mut |flow| visited.push(flow.id)).unwrap();
        assert_eq!(visited, [2]);
    }

    #[test]
    fn what_took_the_place_of_a_flow_is_not_hit() {
        let mut table = table();
        let behind = table.clone();
        let deleted = table.delete(&dns(), &mut |flow| {
            if flow.id == 1 && behind.remove(flow) {
                behind.add(*flow);
            }
            flow.id == 1
        });
        assert_eq!((deleted.unwrap(), behind.flows().len()), (0, 4));
    }

    #[test]
    fn faults_come_in_order() {
        let mut table = table();
        table.fail_next([Some(Fault::Errno(1)), None, Some(Fault::AnswerLost), Some(Fault::AnswerLost)]);
        let error = table.delete(&dns(), &mut |_| true).unwrap_err();
        assert!(!error.is_retryable() && table.deleted().is_empty(), "{error}");
        assert_eq!(table.delete(&dns(), &mut |flow| flow.id == 1).unwrap(), 1);
        let error = table.delete(&dns(), &mut |_| true).unwrap_err();
        assert_eq!((error.done(), error.is_retryable(), table.flows().len()), (2, true, 1));
        assert!(matches!(table.each(&dns(), &mut |_| ()), Err(NetlinkError::Interrupted)));
        assert!(table.each(&dns(), &mut |_| ()).is_ok());
    }
}
