//! Time-outs that a Service asks for.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use balance::Policy;
use bytes::Bytes;
use common::{BOTH, OneConnection, Proxy, Server, full, grpc_call, request};
use http::{HeaderValue, Response};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A server that answers `/` only when it is released, and all else at once.
async fn holding() -> (Server, watch::Sender<bool>) {
    let (release, released) = watch::channel(false);
    let server = Server::start(move |request| {
        let (mut released, waits) = (released.clone(), request.uri().path() == "/");
        async move {
            if waits {
                released.wait_for(|released| *released).await.unwrap();
            }
            Response::new(full("answer"))
        }
    });
    (server.await, release)
}

#[tokio::test]
async fn a_request_without_an_answer_in_time_is_answered_here() {
    for version in BOTH {
        let (server, _release) = holding().await;
        let proxy = Proxy::start(Policy::RoundRobin, &[server.address]).await;
        proxy.time("request=200ms");
        let mut client = OneConnection::to(proxy.address, version).await;
        let late = "the endpoint gave no answer in time\n".to_owned();
        assert_eq!(client.get().await.unwrap(), (504, late), "{version:?}");
        assert_eq!(server.n_requests(), 1, "it is not sent again");
        // The connection goes on, for what is answered.
        let mut other = request("GET", "");
        *other.uri_mut() = "http://web/other".parse().unwrap();
        assert_eq!(client.text(other).await.unwrap(), (200, "answer".to_owned()));
    }
}

#[tokio::test]
async fn a_call_without_an_answer_in_time_exceeds_its_deadline() {
    let (server, _release) = holding().await;
    let proxy = Proxy::start(Policy::RoundRobin, &[server.address]).await;
    proxy.time("request=200ms");
    let mut client = OneConnection::to(proxy.address, common::Version::Http2).await;
    let response = client.send(grpc_call()).await.unwrap();
    assert_eq!(response.headers()["grpc-status"], HeaderValue::from_static("4"));
}

/// What is limited is when an answer begins.
#[tokio::test]
async fn an_answer_that_has_begun_has_time() {
    for version in BOTH {
        let (release, released) = watch::channel(false);
        let slow = Server::start(move |_| {
            let mut released = released.clone();
            let frames = async move {
                released.wait_for(|released| *released).await.unwrap();
                Ok::<_, hyper::Error>(Frame::data(Bytes::from_static(b"late")))
            };
            async move { Response::new(StreamBody::new(futures_util::stream::once(frames)).boxed()) }
        })
        .await;
        let (never, _kept) = holding().await;
        let proxy = Proxy::start(Policy::RoundRobin, &[slow.address, never.address]).await;
        proxy.time("request=200ms");
        let mut client = OneConnection::to(proxy.address, version).await;
        let response = client.send(request("GET", "")).await.unwrap();
        // Another request, which begins later, is over its time first.
        let mut other = OneConnection::to(proxy.address, version).await;
        assert_eq!(other.get().await.unwrap().0, 504);
        release.send_replace(true);
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(&*body, b"late", "{version:?}");
    }
}

/// Waits until the proxy closes a connection on which nothing goes on.
async fn idle_to_its_end(proxy: &Proxy, version: common::Version) {
    let mut client = OneConnection::to(proxy.address, version).await;
    assert_eq!(client.get().await.unwrap().0, 200);
    match client {
        OneConnection::Http1(sender) => {
            while !sender.is_closed() {
                tokio::task::yield_now().await;
            }
        }
        OneConnection::Http2(sender) => {
            while !sender.is_closed() {
                tokio::task::yield_now().await;
            }
        }
    }
}

#[tokio::test]
async fn a_connection_without_requests_ends_and_one_with_a_request_does_not() {
    for version in BOTH {
        let (held, release) = holding().await;
        let quick = Server::named("quick").await;
        let holding = Proxy::start(Policy::RoundRobin, &[held.address]).await;
        let proxy = Proxy::start(Policy::RoundRobin, &[quick.address]).await;
        for proxy in [&holding, &proxy] {
            proxy.time("idle=200ms");
        }
        let mut client = OneConnection::to(holding.address, version).await;
        let waiting = tokio::spawn(async move { client.get().await.unwrap() });
        while held.n_requests() == 0 {
            tokio::task::yield_now().await;
        }
        // Each takes longer than the time that an idle connection has.
        for _ in 0..2 {
            idle_to_its_end(&proxy, version).await;
        }
        release.send_replace(true);
        assert_eq!(waiting.await.unwrap(), (200, "answer".to_owned()), "{version:?}");
    }
}

#[tokio::test]
async fn a_client_that_says_nothing_is_not_waited_for() {
    let proxy = Proxy::start(Policy::RoundRobin, &[]).await;
    proxy.time("idle=200ms");
    let mut client = TcpStream::connect(proxy.address).await.unwrap();
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
}

/// An endpoint that agrees to another protocol, and then says nothing.
async fn agreeing() -> (TcpListener, std::net::SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

#[tokio::test]
async fn a_tunnel_that_carries_nothing_ends() {
    let (listener, address) = agreeing().await;
    let proxy = Proxy::start(Policy::RoundRobin, &[address]).await;
    proxy.time("idle=200ms");
    let mut client = TcpStream::connect(proxy.address).await.unwrap();
    let upgrade = "GET / HTTP/1.1\r\nhost: web\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
    client.write_all(upgrade.as_bytes()).await.unwrap();
    let (mut endpoint, _) = listener.accept().await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(endpoint.read_u8().await.unwrap());
    }
    let agreed = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
    endpoint.write_all(agreed.as_bytes()).await.unwrap();
    let mut answer = vec![0; agreed.len()];
    client.read_exact(&mut answer).await.unwrap();
    // It carries both ways.
    client.write_all(b"there").await.unwrap();
    endpoint.read_exact(&mut [0; 5]).await.unwrap();
    endpoint.write_all(b"back").await.unwrap();
    client.read_exact(&mut [0; 4]).await.unwrap();
    // Each sees an end, of whichever kind.
    let mut rest = [0; 1];
    assert_eq!(client.read(&mut rest).await.unwrap_or(0), 0);
    assert_eq!(endpoint.read(&mut rest).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn an_endpoint_that_does_not_answer_in_the_time_for_a_connection_is_passed_over() {
    let (_waiting, silent) = full_listener();
    let good = Server::named("good").await;
    let proxy = Proxy::start(Policy::RoundRobin, &[silent, good.address]).await;
    proxy.time("connect=100ms");
    let mut client = OneConnection::to(proxy.address, common::Version::Http1).await;
    assert_eq!(client.get().await.unwrap(), (200, "good".to_owned()));
}

/// A listener with so many connections waiting that it takes no more, and these.
fn full_listener() -> ((std::net::TcpListener, Vec<std::net::TcpStream>), std::net::SocketAddr) {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let listener = socket.listen(1).unwrap().into_std().unwrap();
    let address = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    let patience = std::time::Duration::from_millis(200);
    while let Ok(stream) = std::net::TcpStream::connect_timeout(&address, patience) {
        waiting.push(stream);
        assert!(waiting.len() < 16, "the queue takes any number");
    }
    ((listener, waiting), address)
}
