//! How much may go on at a time, and how endpoints are asked whether they serve.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use balance::{Limits, Policy, Probe};
use common::{BOTH, OneConnection, Proxy, Server, Version, full, nobody};
use http::{HeaderMap, HeaderValue, Response};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// A server whose answers come only when they are released.
async fn holding() -> (Server, watch::Sender<bool>) {
    let (release, released) = watch::channel(false);
    let server = Server::start(move |_| {
        let mut released = released.clone();
        async move {
            released.wait_for(|released| *released).await.unwrap();
            Response::new(full("held"))
        }
    });
    (server.await, release)
}

async fn wait_for_requests(server: &Server, n: usize) {
    while server.n_requests() < n {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn requests_beyond_their_limit_are_answered_at_once() {
    for version in BOTH {
        let (server, release) = holding().await;
        let proxy = Proxy::start(Policy::RoundRobin, &[server.address]).await;
        proxy.limit(Limits { requests: Some(2), ..Limits::default() });
        let mut held = Vec::new();
        for _ in 0..2 {
            let mut client = OneConnection::to(proxy.address, version).await;
            held.push(tokio::spawn(async move { client.get().await.unwrap() }));
        }
        wait_for_requests(&server, 2).await;
        let mut third = OneConnection::to(proxy.address, version).await;
        assert_eq!(third.get().await.unwrap(), (503, "too many requests are under way\n".to_owned()));
        release.send_replace(true);
        for held in held {
            assert_eq!(held.await.unwrap(), (200, "held".to_owned()));
        }
        // The connection that was refused goes on, as soon as one of them is known to be over.
        while third.get().await.unwrap().0 != 200 {}
        assert_eq!(server.n_requests(), 3);
    }
}

/// With HTTP/1.1 a request that needs another connection is refused; with HTTP/2 it shares the one that there is.
#[tokio::test]
async fn connections_beyond_their_limit_are_not_made() {
    for limits in [
        Limits { connections: Some(1), ..Limits::default() },
        Limits { endpoint_connections: Some(1), ..Limits::default() },
    ] {
        for (version, status) in [(Version::Http1, 503), (Version::Http2, 200)] {
            let (server, release) = holding().await;
            let proxy = Proxy::start(Policy::RoundRobin, &[server.address]).await;
            proxy.limit(limits);
            let mut client = OneConnection::to(proxy.address, version).await;
            let held = tokio::spawn(async move { client.get().await.unwrap().0 });
            wait_for_requests(&server, 1).await;
            let mut other = OneConnection::to(proxy.address, version).await;
            let other = tokio::spawn(async move { other.get().await.unwrap().0 });
            if status == 200 {
                wait_for_requests(&server, 2).await;
            } else {
                while !other.is_finished() {
                    tokio::task::yield_now().await;
                }
            }
            assert_eq!(proxy.n_connections(), 1, "{version:?}");
            release.send_replace(true);
            assert_eq!((held.await.unwrap(), other.await.unwrap()), (200, status), "{version:?}");
        }
    }
}

/// The endpoint that may have no other connection is passed over.
#[tokio::test]
async fn a_request_goes_to_an_endpoint_that_may_have_a_connection() {
    let (held, release) = holding().await;
    let free = Server::named("free").await;
    let proxy = Proxy::start(Policy::RoundRobin, &[held.address, free.address]).await;
    proxy.limit(Limits { endpoint_connections: Some(1), ..Limits::default() });
    let mut client = OneConnection::to(proxy.address, Version::Http1).await;
    let waiting = tokio::spawn(async move { client.get().await.unwrap() });
    wait_for_requests(&held, 1).await;
    let mut other = OneConnection::to(proxy.address, Version::Http1).await;
    for _ in 0..4 {
        assert_eq!(other.get().await.unwrap(), (200, "free".to_owned()));
    }
    release.send_replace(true);
    assert_eq!(waiting.await.unwrap(), (200, "held".to_owned()));
}

#[tokio::test]
async fn without_retries_the_first_failure_is_the_answer() {
    let breaking = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = breaking.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            // Whatever comes is broken off.
            let (stream, _) = breaking.accept().await.unwrap();
            stream.readable().await.unwrap();
        }
    });
    let good = Server::named("good").await;
    let proxy = Proxy::start(Policy::RoundRobin, &[address, good.address]).await;
    let mut client = OneConnection::to(proxy.address, Version::Http1).await;
    assert_eq!(client.get().await.unwrap().0, 200, "it is tried again");
    proxy.limit(Limits { retries: Some(0), ..Limits::default() });
    let statuses = [client.get().await.unwrap().0, client.get().await.unwrap().0];
    assert!(statuses.contains(&502), "{statuses:?}");
}

/// A server of gRPC that answers a health check with this status.
async fn grpc_server(status: u8) -> Server {
    Server::start(move |request| async move {
        assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
        let asked = request.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(&*asked, b"\0\0\0\0\x06\x0a\x04shop");
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        let message = bytes::Bytes::copy_from_slice(&[0, 0, 0, 0, 2, 8, status]);
        let frames = [Frame::data(message), Frame::trailers(trailers)].map(Ok::<_, hyper::Error>);
        Response::new(StreamBody::new(futures_util::stream::iter(frames)).boxed())
    })
    .await
}

#[tokio::test]
async fn endpoints_are_asked_in_their_own_words() {
    let ask = async |probe: Probe, address| {
        http_proxy::check(&probe, address, b"").await.map_err(|error| error.to_string())
    };
    let http = |path: &str| Probe::Http(path.to_owned());
    let server = Server::start(|request| async move {
        let status = match request.uri().path() {
            "/well" => 204,
            "/elsewhere" => 302,
            _ => 503,
        };
        // In HTTP/2 it is in the address.
        assert!(request.headers().contains_key("host") || request.uri().host().is_some());
        Response::builder().status(status).body(full("")).unwrap()
    })
    .await;
    assert_eq!(ask(Probe::Tcp, server.address).await, Ok(()));
    assert_eq!(ask(http("/well?now=1"), server.address).await, Ok(()));
    assert_eq!(ask(http("/elsewhere"), server.address).await, Ok(()));
    let refused = Err("it answers 503 Service Unavailable".to_owned());
    assert_eq!(ask(http("/"), server.address).await, refused);

    let grpc = || Probe::Grpc("shop".to_owned());
    assert_eq!(ask(grpc(), grpc_server(1).await.address).await, Ok(()));
    let refused = Err("it answers with serving status 2".to_owned());
    assert_eq!(ask(grpc(), grpc_server(2).await.address).await, refused);
    let refused = Err("it answers 503 Service Unavailable".to_owned());
    assert_eq!(ask(grpc(), server.address).await, refused);

    let nobody = nobody();
    for probe in [Probe::Tcp, http("/"), grpc()] {
        assert_eq!(ask(probe, nobody.address).await, Err("it takes no connection".to_owned()));
    }
}
