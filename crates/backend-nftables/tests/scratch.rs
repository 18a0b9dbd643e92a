#![allow(clippy::all, clippy::pedantic, missing_docs, unreachable_pub, clippy::unwrap_used, clippy::print_stderr)]
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use backend_nftables::*;
use model::*;
use model::Pool;
use nft::Kernel;
use testkit::lab::Namespace;

fn svc(n: u32, endpoints: u32, first: u32, sticky: bool, five: bool, secs: u64) -> (ObjectName, Vec<Frontend<V4>>) {
    let name = ObjectName::new("ns", &format!("svc-{n}"));
    let a = |base: u32, n: u32| std::net::Ipv4Addr::from(base + n);
    let dest = |w| Destination { address: a(0x0a80_0000, n * 16 + w), port: 8080, local: false };
    let pool = Pool::new((first..first + endpoints).map(dest).collect::<BTreeSet<_>>(), Verdict::Reject);
    let f = |kind, address, port| Frontend { key: FrontendKey { address, protocol: Protocol::Tcp, port }, kind,
        service: ServicePortName { service: name.clone(), port: "http".into(), protocol: Protocol::Tcp },
        pool: pool.clone(), policy: TrafficPolicy::Cluster, internal_pool: None,
        affinity: sticky.then_some(Affinity { timeout: Duration::from_secs(secs), service: None }),
        masquerade: if kind == AddressKind::ClusterIp { Masquerade::UnlessFromPod } else { Masquerade::Always }, allowed_sources: None, flow_endpoints: [].into() };
    let ip = |b: u32| FrontendAddress::Ip(a(b, n));
    let mut v = vec![f(AddressKind::ClusterIp, ip(0x0a60_0000), 80)];
    if five {
        v.push(f(AddressKind::LoadBalancerIp, ip(0x0b60_0000), 80));
        v.push(f(AddressKind::ExternalIp, ip(0x0c60_0000), 80));
        v.push(f(AddressKind::ExternalIp, ip(0x0d60_0000), 80));
        v.push(f(AddressKind::NodePort, FrontendAddress::Node, 20000 + n as u16));
    }
    (name, v)
}
fn rss() -> u64 { std::fs::read_to_string("/proc/self/smaps_rollup").unwrap().lines().find(|l| l.starts_with("Rss")).unwrap().split_whitespace().nth(1).unwrap().parse().unwrap() }
fn slab() -> u64 { std::fs::read_to_string("/proc/meminfo").unwrap().lines().filter(|l| l.starts_with("SUnreclaim")||l.starts_with("VmallocUsed")).map(|l| l.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()).sum() }
#[test]
fn sizes() {
    let n_svc: u32 = std::env::var("N").map_or(1000, |v| v.parse().unwrap());
    let n_sticky: u32 = std::env::var("STICKY").map_or(0, |v| v.parse().unwrap());
    let five = std::env::var("FIVE").is_ok();
    Namespace::new("scratch").unwrap().run(|| {
        let r0 = rss();
        let mut table = Table::default();
        for n in 0..n_svc { let (name, f) = svc(n, 10, 0, n < n_sticky, five, 10800); table.set_service(&name, f); }
        let r1 = rss();
        let config = Config::default();
        let mut backend = Backend::<V4>::new(config.clone());
        let plan = backend.repair(&config, &table, None, Extent::Difference);
        let mut kernel = kernel::Nftables::open().unwrap();
        let s0 = slab();
        let t = Instant::now();
        let a = kernel.apply(&plan.transaction).unwrap();
        eprintln!("load {n_svc} sticky {n_sticky}: {} elements {} messages {} bytes kernel {:?} total {:?}, slab {} kB", plan.transaction.element_count(), a.messages, a.bytes, a.kernel_time, t.elapsed(), slab() - s0);
        backend.committed(plan);
        eprintln!("table {} kB, with held+plan {} kB", r1 - r0, rss() - r0);
        let mut step = |what: &str, mk: &dyn Fn(u32) -> (ObjectName, Vec<Frontend<V4>>)| {
            let mut times = vec![]; let mut el = 0; let mut by = 0;
            for i in 0..20 {
                let (name, f) = mk(i);
                let d = table.set_service(&name, f);
                let plan = backend.plan(&table, &d);
                el = plan.transaction.element_count();
                let a = kernel.apply(&plan.transaction).unwrap();
                by = a.bytes;
                times.push(a.kernel_time); backend.committed(plan);
            }
            times.sort();
            eprintln!("{what}: {el} elements {by} bytes median {:?} max {:?}", times[10], times[19]);
        };
        let mid = n_svc - 50;
        step("replace", &|i| svc(mid + i, 10, 1, false, five, 1));
        step("add", &|i| svc(mid + i, 11, 1, false, five, 1));
        step("remove", &|i| svc(mid + i, 10, 1, false, five, 1));
        step("create sticky", &|i| svc(n_svc + i, 4, 0, true, five, 1000));
        step("edit sticky", &|i| svc(n_svc + i, 4, 0, true, five, 1001));
        step("replace sticky", &|i| svc(n_svc + i, 4, 1, true, five, 1001));
        step("delete sticky", &|i| (svc(n_svc + i, 4, 0, true, five, 1001).0, vec![]));
        step("create plain", &|i| svc(n_svc + i, 4, 0, false, five, 1000));
        step("delete plain", &|i| (svc(n_svc + i, 4, 0, false, five, 1001).0, vec![]));
    });
}
