//! Connections to endpoints that begin with something about the client, as in the PROXY protocol.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use balance::Policy;
use common::{BOTH, OneConnection, Proxy, Version, full, preface, request};
use http::Response;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinHandle;

/// A server whose connections begin with a line, with which it answers each request.
struct Listening {
    address: SocketAddr,
    n_connections: Arc<AtomicUsize>,
    serving: JoinHandle<()>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn read_line(stream: &mut TcpStream) -> String {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        line.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(line).unwrap()
}

/// The first so many connections are broken off when their line is read.
async fn listening(breaks: usize) -> Listening {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let n_connections = Arc::new(AtomicUsize::new(0));
    let counted = n_connections.clone();
    let serving = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            let nth = counted.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                let line = read_line(&mut stream).await;
                if nth < breaks {
                    return;
                }
                let service = service_fn(move |_| {
                    let line = line.clone();
                    async move { Ok::<_, Infallible>(Response::new(full(line))) }
                });
                let builder = auto::Builder::new(TokioExecutor::new());
                drop(builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await);
            });
        }
    });
    Listening { address, n_connections, serving }
}

/// A client that knows its own address.
async fn client(proxy: &Proxy, version: Version) -> (OneConnection, String) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let stream = socket.connect(proxy.address).await.unwrap();
    let line = preface(stream.local_addr().unwrap());
    (OneConnection::over(stream, version).await, line)
}

/// Connections are kept for the requests of one client, and are nobody else's.
#[tokio::test]
async fn each_client_has_connections_of_its_own() {
    for version in BOTH {
        let server = listening(0).await;
        let proxy = Proxy::start(Policy::RoundRobin, &[server.address]).await;
        proxy.name_clients();
        let (mut one, one_line) = client(&proxy, version).await;
        let (mut other, other_line) = client(&proxy, version).await;
        for _ in 0..3 {
            assert_eq!(one.get().await.unwrap(), (200, one_line.clone()), "{version:?}");
            assert_eq!(other.get().await.unwrap(), (200, other_line.clone()), "{version:?}");
        }
        assert_eq!(server.n_connections.load(Ordering::Relaxed), 2, "{version:?}");
        // They go with their client.
        drop((one, other));
        while proxy.n_connections() > 0 {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn a_request_that_is_sent_again_has_its_line_again() {
    for version in BOTH {
        let (breaking, server) = (listening(usize::MAX).await, listening(0).await);
        let nobody = common::nobody();
        let endpoints = [nobody.address, breaking.address, server.address];
        let proxy = Proxy::start(Policy::RoundRobin, &endpoints).await;
        proxy.name_clients();
        let (mut client, line) = client(&proxy, version).await;
        assert_eq!(client.get().await.unwrap(), (200, line), "{version:?}");
        assert_eq!(breaking.n_connections.load(Ordering::Relaxed), 1);
    }
}

/// What can't be sent twice gets a connection that was used just now, or one with the line before it.
#[tokio::test]
async fn what_can_be_sent_once_has_the_line_as_well() {
    let server = listening(0).await;
    let proxy = Proxy::start(Policy::RoundRobin, &[server.address]).await;
    proxy.name_clients();
    let (mut client, line) = client(&proxy, Version::Http1).await;
    for _ in 0..3 {
        assert_eq!(client.text(request("POST", "body")).await.unwrap(), (200, line.clone()));
    }
}

#[tokio::test]
async fn connections_of_clients_go_with_their_endpoint() {
    for version in BOTH {
        let (one, other) = (listening(0).await, listening(0).await);
        let proxy = Proxy::start(Policy::RoundRobin, &[one.address]).await;
        proxy.name_clients();
        let (mut client, line) = client(&proxy, version).await;
        assert_eq!(client.get().await.unwrap(), (200, line.clone()));
        proxy.set(&[other.address]);
        while proxy.n_connections() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(client.get().await.unwrap(), (200, line.clone()), "{version:?}");
        // One that comes back has a new connection.
        proxy.set(&[one.address]);
        assert_eq!(client.get().await.unwrap(), (200, line), "{version:?}");
        assert_eq!(one.n_connections.load(Ordering::Relaxed), 2, "{version:?}");
    }
}
