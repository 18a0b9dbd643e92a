//! Which endpoint a request goes to, and what is tried again.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use balance::Policy;
use common::{BOTH, Body, OneConnection, Proxy, Server, Version, full, grpc_call, nobody, request};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

#[tokio::test]
async fn requests_of_one_connection_go_to_all_endpoints_in_turn() {
    let servers = [Server::named("a").await, Server::named("b").await, Server::named("c").await];
    let proxy = Proxy::start(Policy::RoundRobin, &servers.each_ref().map(|server| server.address)).await;
    for version in BOTH {
        let mut client = OneConnection::to(proxy.address, version).await;
        let mut answers = BTreeMap::new();
        for _ in 0..9 {
            let (status, name) = client.get().await.unwrap();
            assert_eq!(status, 200);
            *answers.entry(name).or_insert(0) += 1;
        }
        assert_eq!(answers, BTreeMap::from(["a", "b", "c"].map(|name| (name.to_owned(), 3))), "{version:?}");
    }
    assert_eq!(proxy.n_connections(), 6, "each has one for each version");
    assert_eq!(proxy.load(), 0);
}

#[tokio::test]
async fn a_client_stays_connected_when_endpoints_change() {
    let (one, other) = (Server::named("one").await, Server::named("other").await);
    let proxy = Proxy::start(Policy::RoundRobin, &[one.address]).await;
    for version in BOTH {
        proxy.set(&[one.address]);
        let mut client = OneConnection::to(proxy.address, version).await;
        assert_eq!(client.get().await.unwrap().1, "one");
        proxy.set(&[other.address]);
        assert_eq!(client.get().await.unwrap().1, "other");
        proxy.set(&[]);
        assert_eq!(client.get().await.unwrap().0, 503);
    }
}

/// A request that waits is not broken off, and an idle connection is not kept.
#[tokio::test]
async fn an_endpoint_that_goes_keeps_what_it_has() {
    let (release, released) = watch::channel(false);
    let server = Server::start(move |_| {
        let mut released = released.clone();
        async move {
            released.wait_for(|released| *released).await.unwrap();
            Response::new(full("late"))
        }
    })
    .await;
    for version in BOTH {
        release.send_replace(false);
        let proxy = Proxy::start(Policy::RoundRobin, &[server.address]).await;
        let mut client = OneConnection::to(proxy.address, version).await;
        let waiting = tokio::spawn(async move { client.get().await });
        while proxy.load() == 0 {
            tokio::task::yield_now().await;
        }
        while proxy.n_connections() == 0 {
            tokio::task::yield_now().await;
        }
        proxy.remove();
        release.send_replace(true);
        assert_eq!(waiting.await.unwrap().unwrap(), (200, "late".to_owned()));
        while proxy.n_connections() > 0 {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn endpoints_that_cannot_be_reached_are_passed_over_for_any_request() {
    let (server, one, other) = (Server::named("there").await, nobody(), nobody());
    let proxy = Proxy::start(Policy::RoundRobin, &[one.address, other.address, server.address]).await;
    for version in BOTH {
        let mut client = OneConnection::to(proxy.address, version).await;
        for method in ["GET", "POST"] {
            for _ in 0..3 {
                assert_eq!(client.text(request(method, "body")).await.unwrap(), (200, "there".to_owned()));
            }
        }
    }
}

#[tokio::test]
async fn what_nobody_answers_is_answered_here() {
    let nobody = nobody();
    let proxy = Proxy::start(Policy::RoundRobin, &[nobody.address]).await;
    for (version, is_set) in [(Version::Http1, true), (Version::Http2, true), (Version::Http1, false)] {
        if !is_set {
            proxy.remove();
        }
        let mut client = OneConnection::to(proxy.address, version).await;
        let (status, text) = client.get().await.unwrap();
        assert_eq!(status, 503);
        assert!(text.starts_with("no endpoint"), "{text}");
    }
    let mut client = OneConnection::to(proxy.address, Version::Http2).await;
    let response = client.send(grpc_call()).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["grpc-status"], "14");
}

/// Takes a request and closes, so many times; then it is named.
async fn takes_and_closes(taken: Arc<AtomicUsize>) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let n = stream.read(&mut [0; 4096]).await.unwrap_or(0);
            if n > 0 {
                taken.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    address
}

#[tokio::test]
async fn what_an_endpoint_may_have_begun_is_done_again_only_if_that_is_no_harm() {
    let (taken, server) = (Arc::new(AtomicUsize::new(0)), Server::named("there").await);
    let breaks = takes_and_closes(taken.clone()).await;
    for (method, body, expected) in [
        ("GET", String::new(), 200),
        ("PUT", "small".to_owned(), 200),
        ("PUT", "big".repeat(100_000), 502),
        ("POST", "small".to_owned(), 502),
    ] {
        // Round robin begins with the first.
        let proxy = Proxy::start(Policy::RoundRobin, &[breaks, server.address]).await;
        let mut client = OneConnection::to(proxy.address, Version::Http1).await;
        let status = client.text(request(method, body)).await.map(|(status, _)| status);
        assert_eq!(status.unwrap(), expected, "{method}");
    }
    assert_eq!(taken.load(Ordering::Relaxed), 4);
    assert_eq!(server.n_requests(), 2);
}

#[tokio::test]
async fn a_request_is_done_again_once() {
    let taken = Arc::new(AtomicUsize::new(0));
    let breaks = takes_and_closes(taken.clone()).await;
    let proxy = Proxy::start(Policy::RoundRobin, &[breaks]).await;
    let mut client = OneConnection::to(proxy.address, Version::Http1).await;
    assert_eq!(client.get().await.unwrap().0, 502);
    assert_eq!(taken.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn retries_have_a_budget() {
    let taken = Arc::new(AtomicUsize::new(0));
    let breaks = takes_and_closes(taken.clone()).await;
    let proxy = Proxy::start(Policy::RoundRobin, &[breaks]).await;
    for _ in 0..100 {
        let mut client = OneConnection::to(proxy.address, Version::Http1).await;
        assert_eq!(client.get().await.unwrap().0, 502);
    }
    // A hundred, a fifth of them, and ten; or twenty more, if they took longer than budgets remember.
    let taken = taken.load(Ordering::Relaxed);
    assert!((110..=150).contains(&taken), "{taken}");
}

/// An answer of gRPC: a response that is its own trailers, or a message and trailers.
fn grpc(status: &'static str) -> Response<Body> {
    let mut response = if status == "0" {
        let trailers =
            HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static("0"))]);
        let body = full(&b"\0\0\0\0\x02ok"[..]).with_trailers(async move { Some(Ok(trailers)) });
        Response::new(body.boxed())
    } else {
        Response::builder().header("grpc-status", status).body(full("")).unwrap()
    };
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    response
}

/// The status of gRPC in trailers, or in the head.
async fn grpc_status(response: Response<Incoming>) -> String {
    let in_head = response.headers().get("grpc-status").cloned();
    let collected = response.into_body().collect().await.unwrap();
    let in_trailers = collected.trailers().and_then(|trailers| trailers.get("grpc-status")).cloned();
    in_head.or(in_trailers).unwrap().to_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_call_that_an_endpoint_cannot_serve_goes_to_another_once() {
    let bodies = Arc::new(AtomicUsize::new(0));
    let counted = bodies.clone();
    let serves = Server::start(move |request: Request<Incoming>| {
        let counted = counted.clone();
        async move {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            counted.fetch_add(usize::from(&body[..] == b"\0\0\0\0\x02hi"), Ordering::Relaxed);
            grpc("0")
        }
    })
    .await;
    let unavailable = Server::start(|_| async { grpc("14") }).await;
    let fails = Server::start(|_| async { grpc("13") }).await;

    let proxy = Proxy::start(Policy::RoundRobin, &[unavailable.address, serves.address]).await;
    let mut client = OneConnection::to(proxy.address, Version::Http2).await;
    for _ in 0..4 {
        assert_eq!(grpc_status(client.send(grpc_call()).await.unwrap()).await, "0");
    }
    assert_eq!(bodies.load(Ordering::Relaxed), 4, "the whole message comes again");
    let proxy = Proxy::start(Policy::RoundRobin, &[unavailable.address]).await;
    let mut client = OneConnection::to(proxy.address, Version::Http2).await;
    let before = unavailable.n_requests();
    assert_eq!(grpc_status(client.send(grpc_call()).await.unwrap()).await, "14");
    assert_eq!(unavailable.n_requests() - before, 2);
    let proxy = Proxy::start(Policy::RoundRobin, &[fails.address, serves.address]).await;
    let mut client = OneConnection::to(proxy.address, Version::Http2).await;
    assert_eq!(grpc_status(client.send(grpc_call()).await.unwrap()).await, "13");
}

/// Does so many requests, so many at a time, on this number of connections.
async fn load(
    proxy: &Proxy,
    version: Version,
    n_requests: usize,
    at_a_time: usize,
    after: impl Fn(usize),
) -> Vec<u16> {
    let left = Arc::new(AtomicUsize::new(n_requests));
    let (done, mut answers) = tokio::sync::mpsc::unbounded_channel();
    let mut clients = JoinSet::new();
    let shared = match version {
        Version::Http1 => None,
        Version::Http2 => Some(OneConnection::to(proxy.address, version).await),
    };
    for _ in 0..at_a_time {
        let mut client = match &shared {
            Some(OneConnection::Http2(sender)) => OneConnection::Http2(sender.clone()),
            _ => OneConnection::to(proxy.address, version).await,
        };
        let (left, done) = (left.clone(), done.clone());
        clients.spawn(async move {
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
            {
                done.send(client.get().await.map_or(0, |(status, _)| status)).unwrap();
            }
        });
    }
    drop(done);
    let mut statuses = Vec::new();
    while let Some(status) = answers.recv().await {
        statuses.push(status);
        after(statuses.len());
    }
    statuses
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_dies_fails_no_request_that_may_be_done_again() {
    for version in BOTH {
        let mut servers = Vec::new();
        for _ in 0..5 {
            servers.push(Server::named("a").await);
        }
        let addresses: Vec<_> = servers.iter().map(|server| server.address).collect();
        let dies = std::sync::Mutex::new(servers.pop());
        let proxy = Proxy::start(Policy::LeastRequest, &addresses).await;
        let statuses = load(&proxy, version, 3000, 20, |n_done| {
            if n_done == 1000 {
                dies.lock().unwrap().take();
            }
        });
        let statuses = statuses.await;
        assert_eq!(statuses.len(), 3000);
        assert!(statuses.iter().all(|status| *status == 200), "{version:?}: {statuses:?}");
    }
}

/// Five standard deviations of a tenth of 10,000.
const FIVE_SIGMA: usize = 150;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_of_ten_endpoints_gets_a_tenth_of_one_connections_requests() {
    let mut servers = Vec::new();
    for _ in 0..10 {
        servers.push(Server::named("a").await);
    }
    let addresses: Vec<_> = servers.iter().map(|server| server.address).collect();
    let proxy = Proxy::start(Policy::LeastRequest, &addresses).await;
    let statuses = load(&proxy, Version::Http2, 10_000, 20, |_| {}).await;
    assert!(statuses.iter().all(|status| *status == 200));
    for server in &servers {
        assert!(server.n_requests().abs_diff(1000) <= FIVE_SIGMA, "{} of 10,000", server.n_requests());
    }
}

/// Slow is what answers after the others have answered ten times as many requests as are under way: then it takes ten times as long
/// as they do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_endpoint_gets_less_than_a_fifth_of_its_share() {
    const REQUESTS: usize = 10_000;
    const AT_A_TIME: usize = 40;
    let (count, counted) = watch::channel(0_usize);
    let count = Arc::new(count);
    let mut servers = Vec::new();
    for at in 0..10 {
        let (count, counted) = (count.clone(), counted.clone());
        servers.push(
            Server::start(move |_| {
                let (count, mut counted) = (count.clone(), counted.clone());
                async move {
                    if at == 0 {
                        let until = *counted.borrow() + 10 * AT_A_TIME;
                        counted.wait_for(|count| *count >= until).await.unwrap();
                    } else {
                        count.send_modify(|count| *count += 1);
                    }
                    Response::new(full("a"))
                }
            })
            .await,
        );
    }
    let addresses: Vec<_> = servers.iter().map(|server| server.address).collect();
    let proxy = Proxy::start(Policy::LeastRequest, &addresses).await;
    let statuses = load(&proxy, Version::Http2, REQUESTS, AT_A_TIME, |n_done| {
        // What is slow has to end when nothing else is left.
        if n_done >= REQUESTS - AT_A_TIME {
            count.send_modify(|count| *count += 1000);
        }
    });
    assert!(statuses.await.iter().all(|status| *status == 200));
    let share = servers[0].n_requests();
    assert!(share < REQUESTS / 10 / 5, "{share} of {REQUESTS}");
}

#[tokio::test]
async fn a_connection_that_ended_meanwhile_is_replaced() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    // One request for each connection, without a word about it.
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                assert!(stream.read(&mut [0; 4096]).await.unwrap() > 0);
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
            });
        }
    });
    let proxy = Proxy::start(Policy::RoundRobin, &[address]).await;
    let mut client = OneConnection::to(proxy.address, Version::Http1).await;
    for _ in 0..20 {
        assert_eq!(client.get().await.unwrap(), (200, "ok".to_owned()));
        while proxy.n_connections() > 0 {
            tokio::task::yield_now().await;
        }
    }
}
