//! Connected sockets of UDP whose endpoint is gone are ended, in all namespaces, and no others.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use conntrack::{Conntrack, Filter, Flow};
use kernel::{Bpf, Endings, EndingsError, FlowsAndSockets};
use lab::Namespace;
use model::{Family, V4, V6};
use netlink::NetlinkError;
use tempfile::TempDir;

use crate::site::{Site, all_with_datagrams, apply, datagram_frontend, namespace};

const UDP: u8 = 17;
const LOCALHOST: Ipv4Addr = Ipv4Addr::LOCALHOST;
const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
const GONE: u16 = 5301;
const LEFT: u16 = 5302;

/// No tracked flows.
struct Nothing;

impl Conntrack for Nothing {
    fn each(&mut self, _: &Filter, _: &mut dyn FnMut(&Flow)) -> Result<(), NetlinkError> {
        Ok(())
    }

    fn delete(&mut self, _: &Filter, _: &mut dyn FnMut(&Flow) -> bool) -> Result<u64, NetlinkError> {
        Ok(0)
    }
}

/// A directory with names of namespaces.
struct Names {
    dir: TempDir,
    ended: Arc<AtomicU64>,
}

impl Names {
    fn of(namespaces: &[(&str, &Namespace)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (name, namespace) in namespaces {
            std::os::unix::fs::symlink(namespace.path(), dir.path().join(name)).unwrap();
        }
        // What is no namespace, or not there any more, is in nobody's way.
        std::fs::write(dir.path().join("file"), "").unwrap();
        std::os::unix::fs::symlink("/nowhere", dir.path().join("gone")).unwrap();
        Self { dir, ended: Arc::default() }
    }

    /// In the node's namespace.
    fn prove<F: Family>(&self, site: &Site) -> Arc<Endings> {
        let bpffs = site.socket_site.bpffs();
        site.node.run(|| Arc::new(Endings::proven::<F>(bpffs, self.dir.path()).unwrap()))
    }

    fn flows(&self, endings: &Arc<Endings>) -> FlowsAndSockets {
        let ended = self.ended.clone();
        let tell = Box::new(move |count| {
            ended.fetch_add(count, Ordering::SeqCst);
        });
        FlowsAndSockets::new(Box::new(Nothing), endings.clone(), tell)
    }
}

fn bound(namespace: &Namespace, address: impl Into<IpAddr>) -> UdpSocket {
    let address = address.into();
    namespace.run(|| UdpSocket::bind((address, 0)).unwrap())
}

fn connected(namespace: &Namespace, own: impl Into<IpAddr>, to: SocketAddr) -> UdpSocket {
    let socket = bound(namespace, own);
    socket.connect(to).unwrap();
    socket
}

/// Why a socket has ended, if it has.
fn end_of(socket: &UdpSocket) -> Option<io::ErrorKind> {
    socket.take_error().unwrap().map(|error| error.kind())
}

/// A Service with one endpoint.
fn serve(site: &Site, path: &mut backend_ebpf::SocketPath<V4>, endpoint: u16) {
    let frontend = datagram_frontend("dns", VIP, &[(LOCALHOST, endpoint)]);
    apply(site, path, &all_with_datagrams(vec![frontend]));
}

#[test]
fn sockets_of_an_endpoint_that_is_gone_are_ended_in_every_namespace_and_no_others() {
    let site = Site::new();
    let (pod, other_pod) = (namespace("pod"), namespace("other"));
    let names = Names::of(&[("pod", &pod), ("other", &other_pod)]);
    let endings = names.prove::<V4>(&site);
    let mut path = site.datagram_path::<V4>(&Bpf::default());
    let (vip, gone) = (SocketAddr::from((VIP, 53)), SocketAddr::from((LOCALHOST, GONE)));
    let mapped = SocketAddr::from((VIP.to_ipv6_mapped(), 53));
    serve(&site, &mut path, LEFT);
    let stays = connected(&pod, LOCALHOST, vip);
    serve(&site, &mut path, GONE);
    let everywhere = [&site.node, &pod, &other_pod];
    let stale: Vec<UdpSocket> = everywhere
        .into_iter()
        .flat_map(|ns| [connected(ns, LOCALHOST, vip), connected(ns, Ipv6Addr::UNSPECIFIED, mapped)])
        .collect();
    assert!(stale.iter().all(|socket| [vip, mapped].contains(&socket.peer_addr().unwrap())));
    // To the same endpoint, but not by a program; without a peer; and connected elsewhere since.
    let direct = connected(&pod, LOCALHOST, gone);
    let unconnected = bound(&pod, LOCALHOST);
    unconnected.send_to(b"?", vip).unwrap();
    let reconnected = connected(&pod, LOCALHOST, vip);
    reconnected.connect((LOCALHOST, LEFT)).unwrap();
    let reconnected_there = connected(&pod, LOCALHOST, vip);
    reconnected_there.connect(gone).unwrap();

    let mut flows = names.flows(&endings);
    let filter = Filter::new(conntrack::Family::Ip, UDP).to(vip);
    let is_stale = |flow: &Flow| flow.answered_by() == gone && flow.is_dnat();
    // Of another protocol, and to another Service: nothing.
    let elsewhere = Filter::new(conntrack::Family::Ip, UDP).to(([10, 96, 0, 2], 53).into());
    for filter in [Filter { protocol: 132, ..filter }, elsewhere] {
        assert_eq!(site.node.run(|| flows.delete(&filter, &mut |_| true)).unwrap(), 0);
    }
    assert_eq!(names.ended.load(Ordering::SeqCst), 0);
    site.node.run(|| flows.delete(&filter, &mut |flow| is_stale(flow))).unwrap();
    assert_eq!(names.ended.load(Ordering::SeqCst), 6);
    for socket in &stale {
        assert_eq!(end_of(socket), Some(io::ErrorKind::ConnectionAborted));
        // It has no peer any more, and its program connects it anew.
        assert!(socket.send(b"?").is_err());
    }
    for socket in [&stays, &direct, &unconnected, &reconnected, &reconnected_there] {
        assert_eq!(end_of(socket), None);
    }
    assert_eq!(stays.peer_addr().unwrap(), vip);
    assert_eq!(direct.peer_addr().unwrap(), gone);
    // Once more there is nothing to end.
    site.node.run(|| flows.delete(&filter, &mut |flow| is_stale(flow))).unwrap();
    assert_eq!(names.ended.load(Ordering::SeqCst), 6);
}

#[test]
fn sockets_of_ipv6_alike() {
    let site = Site::new();
    let pod = namespace("pod");
    let names = Names::of(&[("pod", &pod)]);
    let endings = names.prove::<V6>(&site);
    let mut path = site.datagram_path::<V6>(&Bpf::default());
    let vip: Ipv6Addr = "fd00:10:96::a".parse().unwrap();
    let frontend = datagram_frontend::<V6>("dns", vip, &[(Ipv6Addr::LOCALHOST, GONE)]);
    apply(&site, &mut path, &all_with_datagrams(vec![frontend]));
    let to = SocketAddr::from((vip, 53));
    let stale = connected(&pod, Ipv6Addr::LOCALHOST, to);
    let direct = connected(&pod, Ipv6Addr::LOCALHOST, (Ipv6Addr::LOCALHOST, GONE).into());
    let filter = Filter::new(conntrack::Family::Ip6, UDP);
    site.node.run(|| names.flows(&endings).delete(&filter, &mut |flow| flow.is_dnat())).unwrap();
    assert_eq!(end_of(&stale), Some(io::ErrorKind::ConnectionAborted));
    assert_eq!(end_of(&direct), None);
}

/// A socket that was there before the process that ends it, as after a restart.
#[test]
fn what_an_earlier_process_has_connected_is_known() {
    let site = Site::new();
    let pod = namespace("pod");
    let names = Names::of(&[("pod", &pod)]);
    let mut path = site.datagram_path::<V4>(&Bpf::default());
    serve(&site, &mut path, GONE);
    let stale = connected(&pod, LOCALHOST, (VIP, 53).into());
    drop(path);
    let mut path = site.datagram_path::<V4>(&Bpf::default());
    serve(&site, &mut path, LEFT);
    let endings = names.prove::<V4>(&site);
    let filter = Filter::new(conntrack::Family::Ip, UDP);
    let is_stale = |flow: &Flow| flow.answered_by().port() == GONE;
    site.node.run(|| names.flows(&endings).delete(&filter, &mut |flow| is_stale(flow))).unwrap();
    assert_eq!(end_of(&stale), Some(io::ErrorKind::ConnectionAborted));
}

#[test]
fn what_can_not_be_proven_is_told() {
    let site = Site::new();
    let names = Names::of(&[]);
    let prove = |bpffs: &Path, names: &Path| site.node.run(|| Endings::proven::<V4>(bpffs, names));
    let bpffs = site.socket_site.bpffs();
    let error = prove(bpffs, Path::new("/nowhere")).unwrap_err();
    assert_eq!(error.to_string(), "list the network namespaces in /nowhere");
    let error = prove(Path::new("/proc"), names.dir.path()).unwrap_err();
    assert!(matches!(error, EndingsError::Storage(_)), "{error}");
    // Where no program has connected anything, there is nothing to end.
    let endings = names.prove::<V6>(&site);
    let filter = Filter::new(conntrack::Family::Ip6, UDP);
    site.node.run(|| names.flows(&endings).delete(&filter, &mut |_| true)).unwrap();
    assert_eq!(names.ended.load(Ordering::SeqCst), 0);
}
