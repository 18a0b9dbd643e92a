//! What went through Service ports: readings of counters that begin anew at any time, made into sums that never go backwards.
//!
//! A counter lives as long as what it belongs to, an element or a rule. What it counted between the last reading and its end is
//! not known to anybody.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use mode::{Counters, Meter};
use model::ServicePortName;
use tokio::time::Instant;

/// What went through the Service ports of a family.
#[derive(Clone, Debug, PartialEq)]
pub struct Traffic {
    /// Those through which anything went.
    pub ports: BTreeMap<ServicePortName, PortTraffic>,
    /// What went through since the first reading, through former Service ports too.
    pub since_start: Counters,
    /// When it was read.
    pub read_at: Instant,
    /// It was read before, so that rates are known.
    pub has_rates: bool,
}

impl Traffic {
    /// What went through a Service port; nothing, if that is not among them.
    pub fn of(&self, service: &ServicePortName) -> Flow {
        self.ports.get(service).map_or(self.nothing(), |port| port.flow)
    }

    /// What went to an endpoint of a Service port; `None` where that is not known.
    pub fn to(&self, service: &ServicePortName, endpoint: &SocketAddr) -> Option<Flow> {
        let Some(port) = self.ports.get(service) else { return Some(self.nothing()) };
        port.is_by_endpoint.then(|| port.endpoints.get(endpoint).copied().unwrap_or(self.nothing()))
    }

    fn nothing(&self) -> Flow {
        Flow { total: Counters::default(), per_second: self.has_rates.then(Rates::default) }
    }
}

/// What went through a Service port.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PortTraffic {
    /// Since the Service port is known; where counters were found at the start, since those were made.
    pub flow: Flow,
    /// The part of that which counters said when they were first read: what was counted before this program.
    pub found: Counters,
    /// New flows are counted by endpoint too, not only for all of them together.
    pub is_by_endpoint: bool,
    /// By endpoint, those of former endpoints as well as far as they are still known. Empty unless that is counted.
    pub endpoints: BTreeMap<SocketAddr, Flow>,
}

/// A sum, and how fast it grows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Flow {
    /// The sum.
    pub total: Counters,
    /// By how much it grew in each second between the last two readings; `None` after the first one.
    pub per_second: Option<Rates>,
}

/// New flows and packets in a second; see [`Counters`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[expect(missing_docs, reason = "as those of `Counters`")]
pub struct Rates {
    pub connections: f64,
    pub refused: f64,
    pub dropped: f64,
}

/// Sums of what was read so far.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    accounts: BTreeMap<ServicePortName, Account>,
    since_start: Counters,
    read_at: Option<Instant>,
}

/// One Service port's.
#[derive(Debug, Default)]
struct Account {
    total: Counters,
    found: Counters,
    lines: BTreeMap<(Option<SocketAddr>, u64), Line>,
}

/// One counter's.
#[derive(Debug, Default)]
struct Line {
    /// What it said when it was last read.
    last: Counters,
    total: Counters,
    /// By how much it grew with the last reading.
    grown: Counters,
    /// Readings in a row without it.
    unseen: u32,
}

/// A counter that so many readings in a row don't have has gone, or has counted nothing since it began anew. One reading may
/// miss one: while a hash table is resized, or while its Service port changes.
const GONE_AFTER: u32 = 2;
/// So many counters of former endpoints are kept for each Service port, so that an endpoint that comes back goes on counting.
const MAX_FORMER: usize = 32;

impl Ledger {
    /// Takes in a reading, and forgets Service ports that are no more.
    pub(crate) fn take(&mut self, meters: Vec<Meter>, gone: &[ServicePortName], now: Instant) -> Traffic {
        for service in gone {
            self.accounts.remove(service);
        }
        for account in self.accounts.values_mut() {
            account.begin_reading();
        }
        let gone: BTreeSet<&ServicePortName> = gone.iter().collect();
        for Meter { service, endpoint, id, counters } in meters {
            if !gone.contains(&service) {
                self.accounts.entry(service).or_default().read((endpoint, id), counters);
            }
        }
        let before = self.read_at.replace(now);
        let seconds = before.map(|before| now.saturating_duration_since(before).as_secs_f64());
        for account in self.accounts.values_mut() {
            match before {
                Some(_) => self.since_start = self.since_start.plus(account.grown()),
                None => account.found = account.total,
            }
        }
        let ports = self.accounts.iter_mut().map(|(service, account)| {
            account.forget_former();
            (service.clone(), account.publish(seconds))
        });
        Traffic {
            ports: ports.collect(),
            since_start: self.since_start,
            read_at: now,
            has_rates: seconds.is_some(),
        }
    }
}

impl Account {
    fn begin_reading(&mut self) {
        for line in self.lines.values_mut() {
            line.grown = Counters::default();
            line.unseen = line.unseen.saturating_add(1);
            if line.unseen > GONE_AFTER {
                line.last = Counters::default();
            }
        }
    }

    fn read(&mut self, key: (Option<SocketAddr>, u64), counters: Counters) {
        let line = self.lines.entry(key).or_default();
        let grown = counters.since(line.last);
        *line =
            Line { last: counters, total: line.total.plus(grown), grown: line.grown.plus(grown), unseen: 0 };
        self.total = self.total.plus(grown);
    }

    /// By how much it grew with the last reading.
    fn grown(&self) -> Counters {
        self.lines.values().fold(Counters::default(), |sum, line| sum.plus(line.grown))
    }

    fn forget_former(&mut self) {
        let mut former: Vec<_> = self.lines.iter().filter(|(_, line)| line.unseen > GONE_AFTER).collect();
        if former.len() <= MAX_FORMER {
            return;
        }
        former.sort_by_key(|(_, line)| line.unseen);
        let forgotten: Vec<_> = former[MAX_FORMER..].iter().map(|(key, _)| **key).collect();
        for key in forgotten {
            self.lines.remove(&key);
        }
    }

    fn publish(&self, seconds: Option<f64>) -> PortTraffic {
        let mut endpoints: BTreeMap<SocketAddr, (Counters, Counters)> = BTreeMap::new();
        let is_of_all = |((endpoint, _), line): (&(Option<SocketAddr>, u64), &Line)| {
            endpoint.is_none() && line.total.connections > 0
        };
        let is_by_endpoint = !self.lines.iter().any(is_of_all);
        for ((endpoint, _), line) in self.lines.iter().filter(|_| is_by_endpoint) {
            if let Some(endpoint) = endpoint {
                let sums = endpoints.entry(*endpoint).or_default();
                *sums = (sums.0.plus(line.total), sums.1.plus(line.grown));
            }
        }
        let flow = |(total, grown): (Counters, Counters)| Flow { total, per_second: rates(grown, seconds) };
        PortTraffic {
            flow: flow((self.total, self.grown())),
            found: self.found,
            is_by_endpoint,
            endpoints: endpoints.into_iter().map(|(endpoint, sums)| (endpoint, flow(sums))).collect(),
        }
    }
}

fn rates(grown: Counters, seconds: Option<f64>) -> Option<Rates> {
    let seconds = seconds.filter(|seconds| *seconds > 0.0)?;
    #[expect(clippy::cast_precision_loss, reason = "a rate need not be exact")]
    let rate = |grown: u64| grown as f64 / seconds;
    let Counters { connections, refused, dropped, .. } = grown;
    Some(Rates { connections: rate(connections), refused: rate(refused), dropped: rate(dropped) })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use model::{ObjectName, Protocol};
    use proptest::prelude::*;

    use super::*;

    fn service(n: u8) -> ServicePortName {
        let service = ObjectName::new("ns", &format!("svc-{n}"));
        ServicePortName { service, port: "".into(), protocol: Protocol::Tcp }
    }

    fn endpoint(n: u8) -> SocketAddr {
        SocketAddr::from(([10, 244, 0, n], 80))
    }

    fn meter(of: u8, to: u8, id: u64, connections: u64) -> Meter {
        let counters = Counters::connections(connections);
        Meter { service: service(of), endpoint: Some(endpoint(to)), id, counters }
    }

    /// Takes in readings ten seconds apart; the last one's outcome.
    fn after(readings: &[Vec<Meter>]) -> Traffic {
        let (mut ledger, start) = (Ledger::default(), Instant::now());
        let taken = readings
            .iter()
            .zip(0_u32..)
            .map(|(reading, n)| ledger.take(reading.clone(), &[], start + Duration::from_secs(10) * n));
        taken.last().expect("there is a reading")
    }

    fn connections(traffic: &Traffic, of: u8) -> u64 {
        traffic.ports.get(&service(of)).map_or(0, |port| port.flow.total.connections)
    }

    #[test]
    fn what_is_there_at_the_start_counts() {
        let traffic = after(&[vec![meter(1, 1, 1, 30)]]);
        assert_eq!(connections(&traffic, 1), 30);
        assert_eq!(traffic.ports[&service(1)].flow.per_second, None);
    }

    #[test]
    fn rates_are_of_the_time_between_readings() {
        let traffic = after(&[vec![meter(1, 1, 1, 30)], vec![meter(1, 1, 1, 50), meter(1, 2, 2, 20)]]);
        let port = &traffic.ports[&service(1)];
        let rates = |connections| Some(Rates { connections, ..Rates::default() });
        assert_eq!(port.flow.per_second, rates(4.0));
        assert_eq!(port.endpoints[&endpoint(1)].per_second, rates(2.0));
    }

    /// As after a repair that wrote the table anew, and when an endpoint moves to another slot.
    #[test]
    fn a_counter_that_begins_anew_is_added() {
        let traffic = after(&[vec![meter(1, 1, 1, 30)], vec![meter(1, 1, 1, 5)], vec![meter(1, 1, 2, 7)]]);
        assert_eq!(connections(&traffic, 1), 42);
        assert_eq!(traffic.ports[&service(1)].endpoints[&endpoint(1)].total.connections, 42);
    }

    #[test]
    fn a_reading_that_misses_a_counter_does_not_count_it_twice() {
        let traffic = after(&[vec![meter(1, 1, 1, 30)], vec![], vec![meter(1, 1, 1, 31)]]);
        assert_eq!(connections(&traffic, 1), 31);
    }

    #[test]
    fn a_counter_that_was_gone_for_long_is_another_one() {
        let traffic = after(&[vec![meter(1, 1, 1, 30)], vec![], vec![], vec![], vec![meter(1, 1, 1, 31)]]);
        assert_eq!(connections(&traffic, 1), 61);
    }

    /// As in large tables. What an endpoint has had before is no share of what is counted since.
    #[test]
    fn where_only_all_is_counted_no_share_is_told() {
        let of_all = |n| Meter { endpoint: None, ..meter(1, 1, 9, n) };
        let (known, unknown) =
            (after(&[vec![meter(1, 1, 1, 30)]]), after(&[vec![meter(1, 1, 1, 30)], vec![of_all(5)]]));
        assert_eq!(known.to(&service(1), &endpoint(1)).map(|flow| flow.total.connections), Some(30));
        assert_eq!(known.to(&service(2), &endpoint(1)).map(|flow| flow.total.connections), Some(0));
        assert_eq!((connections(&unknown, 1), unknown.to(&service(1), &endpoint(1))), (35, None));
        assert!(unknown.ports[&service(1)].endpoints.is_empty());
    }

    #[test]
    fn services_that_are_gone_are_forgotten_and_others_are_not() {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        ledger.take(vec![meter(1, 1, 1, 30), meter(2, 1, 1, 8)], &[], now);
        let traffic = ledger.take(vec![meter(1, 1, 1, 40)], &[service(1)], now);
        assert_eq!((connections(&traffic, 1), connections(&traffic, 2)), (0, 8));
    }

    #[test]
    fn former_endpoints_are_bounded() {
        let readings: Vec<_> = (0..200).map(|n| vec![meter(1, n, u64::from(n), 10)]).collect();
        let traffic = after(&readings);
        assert_eq!(connections(&traffic, 1), 2000);
        let former = MAX_FORMER + GONE_AFTER as usize + 1;
        assert_eq!(traffic.ports[&service(1)].endpoints.len(), former);
    }

    proptest! {
        /// Whatever is read: sums grow, and by no more than was ever counted.
        #[test]
        fn sums_never_go_backwards(
            readings in prop::collection::vec(
                prop::collection::vec((1..4_u8, 1..4_u8, 0..3_u64, 0..100_u64), 0..12), 1..20),
        ) {
            let (mut ledger, now) = (Ledger::default(), Instant::now());
            let (mut before, mut counted) = (BTreeMap::new(), 0);
            for (reading, n) in readings.into_iter().zip(0_u32..) {
                let mut meters: Vec<_> =
                    reading.into_iter().map(|(of, to, id, count)| meter(of, to, id, count)).collect();
                meters.sort_by_key(|meter| (meter.service.clone(), meter.endpoint, meter.id));
                meters.dedup_by_key(|meter| (meter.service.clone(), meter.endpoint, meter.id));
                counted += meters.iter().map(|meter| meter.counters.connections).sum::<u64>();
                let traffic = ledger.take(meters, &[], now + Duration::from_secs(1) * n);
                for (service, before) in &before {
                    prop_assert!(traffic.ports[service].flow.total.connections >= *before);
                }
                for port in traffic.ports.values() {
                    let of_endpoints = port.endpoints.values().map(|flow| flow.total.connections);
                    prop_assert_eq!(of_endpoints.sum::<u64>(), port.flow.total.connections);
                }
                let totals = traffic.ports.into_iter().map(|(service, port)| (service, port.flow.total.connections));
                before = totals.collect();
                prop_assert!(before.values().sum::<u64>() <= counted);
            }
        }
    }
}
