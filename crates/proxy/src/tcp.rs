//! TCP: accepts a connection, finds out what it was made to, connects to an endpoint, and carries bytes.

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_proxy::{Client, Sockets, idle_for, tune};
use rustc_hash::FxBuildHasher;
use socket2::SockRef;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::frame::Protocol;
use crate::http;
use crate::pool::{Flow, LivePool};
use crate::proxy_header;
use crate::relay::relay;
use crate::table::Traffic;
use crate::worker::{Closing, Shared};

/// Endpoints that are tried for one connection.
const MAX_ATTEMPTS: usize = 5;
/// The pause after the system had no room for a connection.
const NO_ROOM_PAUSE: Duration = Duration::from_millis(20);

/// This worker's own connections, by their local ends and endpoints. Rules may lead one to a listener of ours, if an endpoint is
/// itself an address of a Service on this node; that would go round for ever. The local end alone says nothing: a client on this
/// node may have the same one, for another destination.
#[derive(Debug, Default)]
pub(crate) struct OwnConnections(Mutex<HashSet<Ends, FxBuildHasher>>);

type Ends = (SocketAddr, SocketAddr);

impl OwnConnections {
    fn contains(&self, ends: Ends) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&ends)
    }

    fn note(&self, ends: Ends) -> OwnConnection<'_> {
        self.opened(ends.0, ends.1);
        OwnConnection(self, ends)
    }
}

struct OwnConnection<'o>(&'o OwnConnections, Ends);

impl Drop for OwnConnection<'_> {
    fn drop(&mut self) {
        self.0.closed(self.1.0, self.1.1);
    }
}

impl Sockets for OwnConnections {
    fn opened(&self, local: SocketAddr, endpoint: SocketAddr) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert((local, endpoint));
    }

    fn closed(&self, local: SocketAddr, endpoint: SocketAddr) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&(local, endpoint));
    }
}

/// Serves a listener until no more flows are expected and none waits.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    listener: TcpListener,
    traffic: Traffic,
    mut closing: Closing,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = closing.wait_for(|closing| *closing) => break,
        };
        match accepted {
            Ok((client, peer)) => begin(&shared, client, peer, traffic).await,
            Err(error) if is_of_one(&error) => {}
            Err(error) => {
                warn!(%error, "connections can't be accepted");
                tokio::time::sleep(NO_ROOM_PAUSE).await;
            }
        }
    }
    for (client, peer) in waiting(listener) {
        begin(&shared, client, peer, traffic).await;
    }
}

/// Carries a connection, as soon as there is room. Others wait in the listener's queue meanwhile.
async fn begin(shared: &Arc<Shared>, client: TcpStream, peer: SocketAddr, traffic: Traffic) {
    let (room, shared) = (shared.room().await, shared.clone());
    tokio::spawn(async move {
        carry(&shared, client, peer, traffic).await;
        drop(room);
    });
}

/// What is in a listener's queue. With the listener the kernel would break all of it off.
fn waiting(listener: TcpListener) -> impl Iterator<Item = (TcpStream, SocketAddr)> {
    let listener = listener.into_std().ok();
    std::iter::from_fn(move || {
        loop {
            match listener.as_ref()?.accept() {
                Ok((client, peer)) => {
                    let client = client.set_nonblocking(true).and_then(|()| TcpStream::from_std(client));
                    return Some((client.ok()?, peer));
                }
                Err(error) if is_of_one(&error) => {}
                Err(_empty) => return None,
            }
        }
    })
}

/// The error is that of one connection, which has gone already.
fn is_of_one(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}

async fn carry(shared: &Arc<Shared>, client: TcpStream, peer: SocketAddr, traffic: Traffic) {
    let Ok(sent_to) = original_destination(&client) else { return reset(&[&client]) };
    if shared.own.contains((peer, sent_to)) {
        debug!(%peer, "an endpoint is an address that leads back here");
        return reset(&[&client]);
    }
    let pool = shared.table.pool(Protocol::Tcp, sent_to, traffic);
    let Some(pool) = pool else { return reset(&[&client]) };
    let from = Client { address: peer, sent_to };
    if pool.is_by_request() {
        tune(&client);
        return http::carry(shared, client, from, traffic).await;
    }
    let (place, began) = (pool.take_connection(), Instant::now());
    let log = |endpoint, bytes| {
        if shared.access_log.draws() {
            shared.access_log.connection(pool.service(), from, endpoint, began.elapsed(), bytes);
        }
    };
    let connected = if place.is_some() { connect(shared, &pool, from).await } else { None };
    let Some((endpoint, flow)) = connected else {
        pool.note_refusal();
        log(None, 0);
        return reset(&[&client]);
    };
    carry_to(shared, &client, &endpoint, &flow).await;
    drop(place);
    log(Some(flow.address()), flow.bytes());
}

async fn carry_to(shared: &Shared, client: &TcpStream, endpoint: &TcpStream, flow: &Flow) {
    tune(client);
    tune(endpoint);
    let own = endpoint.local_addr().ok().map(|end| shared.own.note((end, flow.address())));
    let drained = async {
        flow.endpoint_gone().await;
        tokio::time::sleep(flow.times(&shared.times).drain).await;
    };
    let idle = async {
        let Some(limit) = flow.times(&shared.times).idle else { return std::future::pending().await };
        let mut seen = flow.bytes();
        idle_for(limit, || std::mem::replace(&mut seen, flow.bytes()) == seen).await;
    };
    let carried = tokio::select! {
        carried = relay(client, endpoint, |n| flow.note_bytes(n)) => carried,
        () = idle => Err(io::Error::other("nothing was carried for too long")),
        () = drained => Err(io::Error::other("the endpoint is gone, and its time is over")),
    };
    drop(own);
    if let Err(error) = carried {
        debug!(endpoint = %flow.address(), %error, "a connection broke");
        reset(&[client, endpoint]);
    }
}

/// What the client sent to, before the kernel translated it.
fn original_destination(client: &TcpStream) -> io::Result<SocketAddr> {
    let socket = SockRef::from(client);
    let found =
        if client.local_addr()?.is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
    found?.as_socket().ok_or_else(|| io::Error::other("no address of a known family"))
}

/// A connection to an endpoint: the first that answers, of those that are chosen one after the other. Each is told whose it is, where the
/// Service wants that.
async fn connect(shared: &Shared, pool: &Arc<LivePool>, from: Client) -> Option<(TcpStream, Flow)> {
    let _pending = pool.take_pending()?;
    let (client, limit) = (from.address, pool.times(&shared.times).connect);
    let header = pool.proxy_protocol().map(|version| proxy_header::of_client(version, client, from.sent_to));
    let mut tried = Vec::new();
    while tried.len() < MAX_ATTEMPTS {
        let flow = pool.pick(client.ip(), &tried).ok()?;
        let address = flow.address();
        match tokio::time::timeout(limit, open(address, header.as_deref())).await {
            Ok(Ok(endpoint)) => {
                flow.note_connection(true);
                return Some((endpoint, flow));
            }
            Ok(Err(error)) => debug!(%client, endpoint = %address, %error, "an endpoint can't be reached"),
            Err(_elapsed) => debug!(%client, endpoint = %address, "an endpoint does not answer"),
        }
        flow.note_retry();
        tried.push(address);
    }
    None
}

async fn open(address: SocketAddr, header: Option<&[u8]>) -> io::Result<TcpStream> {
    let mut endpoint = TcpStream::connect(address).await?;
    if let Some(header) = header {
        endpoint.write_all(header).await?;
    }
    Ok(endpoint)
}

/// Has them closed in a way that tells the other side that something went wrong.
fn reset(streams: &[&TcpStream]) {
    for stream in streams {
        // It is closed in any case.
        drop(SockRef::from(*stream).set_linger(Some(Duration::ZERO)));
    }
}

#[cfg(test)]
mod tests {
    use balance::{Policy, ProxyProtocol, Resilience, Timeouts};
    use tokio::io::AsyncReadExt as _;

    use super::*;
    use crate::control::Control;
    use crate::frame::{Counts, Frontend, Pool, Route, Routes, Settings};

    fn shared(connect_timeout_ms: u64, drain_ms: u64) -> Shared {
        let settings = Settings {
            connect_timeout_ms,
            udp_idle_ms: 1000,
            drain_ms,
            idle_ms: None,
            request_ms: None,
            linger_ms: 0,
            policy: Policy::RoundRobin,
            max_flows: None,
            access_log_per_million: 0,
            traces_per_million: None,
        };
        Shared::new(Control::new().0, &settings, 1024)
    }

    const FRONTEND: Frontend = Frontend { address: None, protocol: Protocol::Tcp, port: 80 };

    fn set(shared: &Shared, endpoints: &[SocketAddr]) -> Arc<LivePool> {
        set_asking(shared, endpoints, Resilience::default())
    }

    fn set_asking(shared: &Shared, endpoints: &[SocketAddr], resilience: Resilience) -> Arc<LivePool> {
        let endpoints = endpoints.to_vec();
        let pool = Pool { name: "a".to_owned(), endpoints, resilience, ..Pool::default() };
        let route = Route { frontend: FRONTEND, any: pool, internal: None, policy: None };
        shared.table.apply(Routes { set: vec![route], ..Routes::default() });
        shared.table.pool(Protocol::Tcp, ([192, 0, 2, 1], 80).into(), Traffic::Any).unwrap()
    }

    async fn listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    const fn v4(address: [u8; 4], port: u16) -> SocketAddr {
        let [a, b, c, d] = address;
        SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(a, b, c, d)), port)
    }

    const CLIENT: Client = Client { address: v4([192, 0, 2, 9], 40_000), sent_to: v4([192, 0, 2, 1], 80) };

    #[tokio::test]
    async fn endpoints_that_refuse_are_passed_over() {
        let (_listener, there) = listener().await;
        let (gone, refuses) = listener().await;
        drop(gone);
        let shared = shared(10_000, 0);
        let pool = set(&shared, &[refuses, there]);
        for _ in 0..4 {
            let (_stream, flow) = connect(&shared, &pool, CLIENT).await.unwrap();
            assert_eq!(flow.address(), there);
        }
        let counted: Vec<_> =
            shared.table.tally().take().into_iter().map(|count| (count.endpoint, count.counts)).collect();
        let taken = (Some(there), Counts { connections: 4, ..Counts::default() });
        assert!(counted.contains(&taken), "{counted:?}");
        let retries = |(endpoint, counts): &(_, Counts)| *endpoint == Some(refuses) && counts.retries > 0;
        assert!(counted.iter().any(retries) && counted.len() == 2, "{counted:?}");
        let pool = set(&shared, &[refuses]);
        assert!(connect(&shared, &pool, CLIENT).await.is_none());
    }

    /// A listener whose queue is full does not answer.
    #[tokio::test]
    async fn endpoints_that_do_not_answer_are_passed_over() {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        socket.listen(0).unwrap();
        let silent = socket.local_addr().unwrap().as_socket().unwrap();
        let mut waiting = Vec::new();
        while let Ok(connected) =
            tokio::time::timeout(Duration::from_millis(200), TcpStream::connect(silent)).await
        {
            waiting.push(connected.unwrap());
            assert!(waiting.len() < 16, "the queue takes any number");
        }
        let (_listener, there) = listener().await;
        let shared = shared(200, 0);
        let pool = set(&shared, &[silent, there]);
        let (_stream, flow) = connect(&shared, &pool, CLIENT).await.unwrap();
        assert_eq!(flow.address(), there);
    }

    /// Client, endpoint, and the end of what is between them.
    async fn carried(shared: &Arc<Shared>) -> (TcpStream, TcpStream, tokio::task::JoinHandle<()>) {
        carried_asking(shared, Resilience::default()).await
    }

    async fn carried_asking(
        shared: &Arc<Shared>,
        asked: Resilience,
    ) -> (TcpStream, TcpStream, tokio::task::JoinHandle<()>) {
        let (near, near_address) = listener().await;
        let (far, far_address) = listener().await;
        let (client, accepted) = tokio::join!(TcpStream::connect(near_address), near.accept());
        let pool = set_asking(shared, &[far_address], asked);
        let (endpoint, flow) = connect(shared, &pool, CLIENT).await.unwrap();
        let (accepted, shared) = (accepted.unwrap().0, shared.clone());
        let carried = tokio::spawn(async move { carry_to(&shared, &accepted, &endpoint, &flow).await });
        (client.unwrap(), far.accept().await.unwrap().0, carried)
    }

    #[tokio::test]
    async fn connections_to_an_endpoint_that_is_gone_end_at_their_deadline() {
        let shared = Arc::new(shared(10_000, 300));
        let (mut client, mut endpoint, carried) = carried(&shared).await;
        set(&shared, &[([127, 0, 0, 1], 1).into()]);
        // They go on meanwhile.
        client.write_all(b"still there?").await.unwrap();
        let mut received = [0; 12];
        endpoint.read_exact(&mut received).await.unwrap();
        carried.await.unwrap();
        // A flow's last bytes are told with its end.
        let bytes: u64 = shared.table.tally().take().iter().map(|count| count.counts.bytes).sum();
        assert_eq!(bytes, 12);
        assert_eq!(client.read(&mut received).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    /// The Service's own time, in place of a worker's hour, also if the Service goes as a whole.
    #[tokio::test]
    async fn a_service_may_say_how_long_connections_go_on_at_an_endpoint_that_is_gone() {
        for goes_as_a_whole in [false, true] {
            let shared = Arc::new(shared(10_000, 3_600_000));
            let (mut client, _endpoint, carried) = carried(&shared).await;
            let timeouts = Timeouts::parse("drain=100ms").unwrap();
            let asked = Resilience { timeouts, ..Resilience::default() };
            let there = shared.table.pool(Protocol::Tcp, ([192, 0, 2, 1], 80).into(), Traffic::Any).unwrap();
            let flow = there.pick(CLIENT.address.ip(), &[]).unwrap().address();
            set_asking(&shared, &[flow], asked.clone());
            if goes_as_a_whole {
                drop(there);
                shared.table.apply(Routes { replace: true, ..Routes::default() });
            } else {
                set_asking(&shared, &[([127, 0, 0, 1], 1).into()], asked);
            }
            carried.await.unwrap();
            let error = client.read(&mut [0]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
    }

    #[tokio::test]
    async fn a_connection_on_which_nothing_is_carried_ends() {
        let shared = Arc::new(shared(10_000, 0));
        let timeouts = Timeouts::parse("idle=200ms").unwrap();
        let asked = Resilience { timeouts, ..Resilience::default() };
        let (mut client, mut endpoint, carried) = carried_asking(&shared, asked).await;
        // One after the other, it takes longer than it may be idle.
        for _ in 0..8 {
            client.write_all(b"still there?").await.unwrap();
            endpoint.read_exact(&mut [0; 12]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(40)).await;
        }
        assert!(!carried.is_finished());
        carried.await.unwrap();
        assert_eq!(client.read(&mut [0]).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    /// A client and what it was connected to, of a family.
    fn from(is_v4: bool) -> Client {
        if is_v4 {
            return CLIENT;
        }
        let address = |text: &str| text.parse().unwrap();
        Client { address: address("[2001:db8::9]:40000"), sent_to: address("[fd00::10]:443") }
    }

    #[tokio::test]
    async fn connections_begin_with_whose_they_are_at_whichever_endpoint() {
        for (is_v4, version) in [true, false]
            .into_iter()
            .flat_map(|is_v4| [ProxyProtocol::V1, ProxyProtocol::V2].map(|version| (is_v4, version)))
        {
            let loopback = if is_v4 { "127.0.0.1:0" } else { "[::1]:0" };
            let bind = async || TcpListener::bind(loopback).await.unwrap();
            let (there, gone) = (bind().await, bind().await);
            let endpoints = [gone.local_addr().unwrap(), there.local_addr().unwrap()];
            drop(gone);
            let shared = Arc::new(shared(10_000, 0));
            let asked = Resilience { proxy_protocol: Some(version), ..Resilience::default() };
            let pool = set_asking(&shared, &endpoints, asked);
            for _ in 0..2 {
                let from = from(is_v4);
                let (stream, flow) = connect(&shared, &pool, from).await.unwrap();
                assert_eq!(flow.address(), endpoints[1]);
                let (mut accepted, _) = there.accept().await.unwrap();
                let expected: &[u8] = match (is_v4, version) {
                    (true, ProxyProtocol::V1) => b"PROXY TCP4 192.0.2.9 192.0.2.1 40000 80\r\n",
                    (false, ProxyProtocol::V1) => b"PROXY TCP6 2001:db8::9 fd00::10 40000 443\r\n",
                    (true, ProxyProtocol::V2) => {
                        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x09\xc0\0\x02\x01\x9c\x40\0\x50"
                    }
                    (false, ProxyProtocol::V2) => {
                        b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x24\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x09\
                          \xfd\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x10\x9c\x40\x01\xbb"
                    }
                };
                drop(stream);
                let mut received = Vec::new();
                accepted.read_to_end(&mut received).await.unwrap();
                assert_eq!(received, expected, "{version:?}");
            }
        }
    }

    /// With the listener the kernel would break off what is in its queue.
    #[tokio::test]
    async fn what_waits_in_the_queue_is_carried_before_a_listener_closes() {
        let shared = Arc::new(shared(10_000, 0));
        let (listener, address) = listener().await;
        let mut clients = Vec::new();
        for _ in 0..3 {
            clients.push(TcpStream::connect(address).await.unwrap());
        }
        let mut taken = Vec::new();
        while let Some(room) = shared.try_room() {
            taken.push(room);
        }
        let (closing, told) = tokio::sync::watch::channel(true);
        let serving = tokio::spawn(serve(shared.clone(), listener, Traffic::Any, told));
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
        for client in &clients {
            assert_eq!(client.try_read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock, "it waits");
        }
        drop(taken);
        serving.await.unwrap();
        for mut client in clients {
            // No rule led it here.
            assert_eq!(client.read(&mut [0]).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        }
        drop(closing);
    }

    #[tokio::test]
    async fn what_leads_back_here_is_known_while_it_lasts() {
        let shared = Arc::new(shared(10_000, 0));
        let (client, endpoint, carried) = carried(&shared).await;
        let own = (endpoint.peer_addr().unwrap(), endpoint.local_addr().unwrap());
        while !shared.own.contains(own) {
            tokio::task::yield_now().await;
        }
        // A client on this node may use the same port for another destination.
        assert!(!shared.own.contains((own.0, ([10, 96, 0, 10], 80).into())));
        drop((client, endpoint));
        carried.await.unwrap();
        assert!(!shared.own.contains(own));
    }
}
