//! What arrives of messages: bodies, trailers, other protocols, and answers in between.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use balance::Policy;
use bytes::Bytes;
use common::{BOTH, Body, OneConnection, PATIENCE, Proxy, Server, Version, full, request};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

/// Answers with what it gets.
async fn echo() -> Server {
    Server::start(|request: Request<Incoming>| async move { Response::new(request.into_body().boxed()) })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn big_bodies_come_back_as_they_went() {
    const BYTES: usize = 64 << 20;
    let server = echo().await;
    let proxy = Proxy::start(Policy::RoundRobin, &[server.address]).await;
    let folder = tempfile::tempdir().unwrap();
    let (sent, received) = (folder.path().join("sent"), folder.path().join("received"));
    let mut random = fastrand::Rng::with_seed(7);
    let bytes: Vec<u8> =
        std::iter::repeat_with(|| random.u64(..).to_le_bytes()).take(BYTES / 8).flatten().collect();
    std::fs::write(&sent, &bytes).unwrap();
    for arguments in
        [&["--http1.1"][..], &["--http2-prior-knowledge"], &["--http1.1", "-H", "transfer-encoding: chunked"]]
    {
        let curl = Command::new("curl")
            .args(["-sS", "--max-time", "600", "-T"])
            .args([&sent, &"-o".into(), &received])
            .args(arguments)
            .arg(proxy.url("/"))
            .output();
        let output = curl.await.expect("curl is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(std::fs::read(&received).unwrap() == bytes, "{arguments:?}");
    }
}

/// A body of which each piece is counted when it is taken.
fn counted_body(taken: Arc<AtomicUsize>, n_pieces: usize) -> Body {
    let piece = Bytes::from(vec![b'x'; 16 * 1024]);
    let pieces = futures_util::stream::iter(0..n_pieces).map_frames(taken, piece);
    StreamBody::new(pieces).boxed()
}

trait MapFrames: futures_util::Stream<Item = usize> + Sized {
    fn map_frames(
        self,
        taken: Arc<AtomicUsize>,
        piece: Bytes,
    ) -> impl futures_util::Stream<Item = Result<Frame<Bytes>, hyper::Error>> {
        futures_util::StreamExt::map(self, move |_| {
            taken.fetch_add(piece.len(), Ordering::Relaxed);
            Ok(Frame::data(piece.clone()))
        })
    }
}

impl<S: futures_util::Stream<Item = usize>> MapFrames for S {}

/// When nothing was taken for a while.
async fn settled(taken: &AtomicUsize) -> usize {
    let mut before = usize::MAX;
    loop {
        let now = taken.load(Ordering::Relaxed);
        if now == before && now > 0 {
            return now;
        }
        before = now;
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    }
}

/// What may be under way: buffers of the kernel, whose sizes it bounds, and ours.
const UNDER_WAY: usize = 64 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_reads_nothing_stops_the_endpoint_and_nobody_else() {
    let taken = Arc::new(AtomicUsize::new(0));
    let counted = taken.clone();
    let server = Server::start(move |request: Request<Incoming>| {
        let counted = counted.clone();
        async move {
            match request.uri().path() {
                "/big" => Response::new(counted_body(counted, 1 << 20)),
                _ => Response::new(full("small")),
            }
        }
    })
    .await;
    let proxy = Proxy::start(Policy::RoundRobin, &[server.address]).await;
    for version in BOTH {
        taken.store(0, Ordering::Relaxed);
        let mut slow = Vec::new();
        for _ in 0..5 {
            let mut client = OneConnection::to(proxy.address, version).await;
            let mut big = request("GET", "");
            *big.uri_mut() = "http://web/big".parse().unwrap();
            slow.push((client.send(big).await.unwrap(), client));
        }
        let bytes = settled(&taken).await;
        assert!(bytes < UNDER_WAY, "{version:?}: {bytes} bytes that nobody reads");
        let mut other = OneConnection::to(proxy.address, version).await;
        assert_eq!(other.get().await.unwrap(), (200, "small".to_owned()));
        drop(slow);
        while proxy.load() > 0 {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_reads_nothing_stops_the_client() {
    let server = Server::start(|request: Request<Incoming>| async move {
        // It keeps the body without reading it.
        std::future::pending::<()>().await;
        drop(request);
        Response::new(full(""))
    })
    .await;
    let proxy = Proxy::start(Policy::RoundRobin, &[server.address]).await;
    for (version, method) in [(Version::Http1, "POST"), (Version::Http2, "POST"), (Version::Http1, "PUT")] {
        let taken = Arc::new(AtomicUsize::new(0));
        let mut client = OneConnection::to(proxy.address, version).await;
        let body = counted_body(taken.clone(), 1 << 20);
        let sending = tokio::spawn(async move {
            client
                .send(
                    Request::builder()
                        .method(method)
                        .uri("http://web/")
                        .header("host", "web")
                        .body(body)
                        .unwrap(),
                )
                .await
        });
        let bytes = settled(&taken).await;
        assert!(bytes < UNDER_WAY, "{version:?} {method}: {bytes} bytes that nobody reads");
        sending.abort();
    }
}

#[tokio::test]
async fn trailers_arrive_both_ways() {
    let server = Server::start(|request: Request<Incoming>| async move {
        let body = request.into_body().collect().await.unwrap();
        let sum = body.trailers().and_then(|trailers| trailers.get("x-sum")).cloned();
        let mut response = Response::new(summed(sum.unwrap_or(HeaderValue::from_static("none"))));
        response.headers_mut().insert("trailer", HeaderValue::from_static("x-sum"));
        response
    })
    .await;
    let proxy = Proxy::start(Policy::RoundRobin, &[server.address]).await;
    for version in BOTH {
        let mut client = OneConnection::to(proxy.address, version).await;
        let body = summed(HeaderValue::from_static("7"));
        let builder = Request::builder().method("POST").uri("http://web/").header("host", "web");
        let request = builder.header("te", "trailers").header("trailer", "x-sum").body(body).unwrap();
        let response = client.send(request).await.unwrap().into_body().collect().await.unwrap();
        assert_eq!(
            response.trailers().map(|trailers| &trailers["x-sum"]),
            Some(&HeaderValue::from_static("7")),
            "{version:?}"
        );
        assert_eq!(response.to_bytes(), "body");
    }
}

/// A body of unknown length with this sum in its trailers.
fn summed(sum: HeaderValue) -> Body {
    let trailers = HeaderMap::from_iter([("x-sum".parse().unwrap(), sum)]);
    let frames = [Frame::data(Bytes::from_static(b"body")), Frame::trailers(trailers)];
    StreamBody::new(futures_util::stream::iter(frames.map(Ok))).boxed()
}

/// What the endpoint got, and what the client got, of headers.
#[tokio::test]
async fn headers_arrive_as_they_were_sent() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::start(Policy::RoundRobin, &[listener.local_addr().unwrap()]).await;
    let mut client = TcpStream::connect(proxy.address).await.unwrap();
    let request = "GET /a?b HTTP/1.1\r\nHost: shop.example\r\nX-CaSe: 1\r\nconnection: keep-alive\r\n\
        traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n";
    client.write_all(request.as_bytes()).await.unwrap();
    let (mut endpoint, _) = listener.accept().await.unwrap();
    let received = head(&mut endpoint).await;
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(lines(&received), lines(&request.replace("connection: keep-alive\r\n", "")));
    let response = "HTTP/1.1 203 Somehow\r\nX-CaSe: 2\r\ncontent-length: 0\r\n\r\n";
    endpoint.write_all(response.as_bytes()).await.unwrap();
    assert_eq!(head(&mut client).await, response);
}

/// Up to the empty line.
async fn head(stream: &mut TcpStream) -> String {
    let mut received = Vec::new();
    while !received.ends_with(b"\r\n\r\n") {
        received.push(tokio::time::timeout(PATIENCE, stream.read_u8()).await.unwrap().unwrap());
    }
    String::from_utf8(received).unwrap()
}

#[tokio::test]
async fn a_client_sends_its_body_when_the_endpoint_asks_for_it() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::start(Policy::RoundRobin, &[listener.local_addr().unwrap()]).await;
    let request = "POST / HTTP/1.1\r\nhost: web\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n";
    let mut client = TcpStream::connect(proxy.address).await.unwrap();
    client.write_all(request.as_bytes()).await.unwrap();
    let (mut endpoint, _) = listener.accept().await.unwrap();
    assert!(head(&mut endpoint).await.contains("expect: 100-continue"));
    endpoint.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
    assert_eq!(head(&mut client).await, "HTTP/1.1 100 Continue\r\n\r\n");
    client.write_all(b"body").await.unwrap();
    let mut body = [0; 4];
    endpoint.read_exact(&mut body).await.unwrap();
    assert_eq!(&body, b"body");
    endpoint.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    assert!(head(&mut client).await.starts_with("HTTP/1.1 200 OK"));
}

#[tokio::test]
async fn an_endpoint_may_not_want_the_body() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::start(Policy::RoundRobin, &[listener.local_addr().unwrap()]).await;
    for method in ["POST", "PUT"] {
        let request =
            format!("{method} / HTTP/1.1\r\nhost: web\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n");
        let mut client = TcpStream::connect(proxy.address).await.unwrap();
        client.write_all(request.as_bytes()).await.unwrap();
        let (mut endpoint, _) = listener.accept().await.unwrap();
        head(&mut endpoint).await;
        endpoint.write_all(b"HTTP/1.1 417 No\r\ncontent-length: 3\r\n\r\nno\n").await.unwrap();
        let answer = head(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 417 No"), "{answer}");
        let mut rest = [0; 3];
        client.read_exact(&mut rest).await.unwrap();
        assert_eq!(&rest, b"no\n");
        // Neither connection can be used again, since nobody knows whether the body comes.
        assert_eq!(endpoint.read(&mut rest).await.unwrap_or(0), 0);
    }
}

/// Changes to another protocol, and sends back what it gets.
async fn changes_protocol() -> Server {
    Server::start(|mut request: Request<Incoming>| async move {
        let status = match (request.method(), request.headers().get("upgrade")) {
            (&Method::CONNECT, _) => StatusCode::OK,
            (_, Some(_)) => StatusCode::SWITCHING_PROTOCOLS,
            _ => return Response::new(full("plain")),
        };
        let upgraded = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let (mut read, mut write) = tokio::io::split(TokioIo::new(upgraded.await.unwrap()));
            tokio::io::copy(&mut read, &mut write).await.unwrap();
            write.shutdown().await.unwrap();
        });
        let mut response = Response::new(full(""));
        *response.status_mut() = status;
        if status == StatusCode::SWITCHING_PROTOCOLS {
            response.headers_mut().insert("connection", HeaderValue::from_static("upgrade"));
            response.headers_mut().insert("upgrade", HeaderValue::from_static("echo"));
        }
        response
    })
    .await
}

async fn tunnel(proxy: &Proxy, request: &str, status: &str) {
    let mut client = TcpStream::connect(proxy.address).await.unwrap();
    client.write_all(request.as_bytes()).await.unwrap();
    let answer = head(&mut client).await;
    assert!(answer.starts_with(status), "{answer}");
    let bytes = vec![7; 1 << 20];
    let (mut read, mut write) = client.split();
    let mut received = Vec::new();
    let sent = async {
        write.write_all(&bytes).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let ((), read) = tokio::join!(sent, read.read_to_end(&mut received));
    read.unwrap();
    assert!(received == bytes);
}

#[tokio::test]
async fn a_client_and_an_endpoint_may_change_to_another_protocol() {
    let server = changes_protocol().await;
    let proxy = Proxy::start(Policy::RoundRobin, &[server.address]).await;
    let upgrade = "GET / HTTP/1.1\r\nhost: web\r\nconnection: Upgrade\r\nupgrade: echo\r\n\r\n";
    tunnel(&proxy, upgrade, "HTTP/1.1 101").await;
    tunnel(&proxy, "CONNECT there:1 HTTP/1.1\r\nhost: there:1\r\n\r\n", "HTTP/1.1 200").await;
    while proxy.load() > 0 || proxy.n_connections() > 0 {
        tokio::task::yield_now().await;
    }
    // HTTP/2 on the same connection is not another protocol, but nobody has to take it up.
    let h2c = "GET / HTTP/1.1\r\nhost: web\r\nconnection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n\r\n";
    let mut client = TcpStream::connect(proxy.address).await.unwrap();
    client.write_all(h2c.as_bytes()).await.unwrap();
    assert!(head(&mut client).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_client_with_http_2_may_have_a_tunnel() {
    let server = changes_protocol().await;
    let proxy = Proxy::start(Policy::RoundRobin, &[server.address]).await;
    let mut client = OneConnection::to(proxy.address, Version::Http2).await;
    let connect = Request::builder().method("CONNECT").uri("there:1").body(full("")).unwrap();
    let mut response = client.send(connect).await.unwrap();
    assert_eq!(response.status(), 200);
    let mut tunnel = TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
    tunnel.write_all(b"there and back").await.unwrap();
    tunnel.shutdown().await.unwrap();
    let mut received = Vec::new();
    tunnel.read_to_end(&mut received).await.unwrap();
    assert_eq!(received, b"there and back");
}

/// A protocol that nobody asked for would have the rest of the connection misread.
#[tokio::test]
async fn an_endpoint_that_changes_protocol_unasked_gave_no_answer() {
    let address =
        answers(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n").await;
    let proxy = Proxy::start(Policy::RoundRobin, &[address]).await;
    let mut client = OneConnection::to(proxy.address, Version::Http1).await;
    assert_eq!(client.text(request("POST", "")).await.unwrap().0, 502);
}

#[tokio::test]
async fn an_answer_that_is_none_is_a_bad_gateway() {
    for bytes in [&b"SSH-2.0-OpenSSH_9.2\r\n"[..], b"", b"HTTP/1.1 20", b"\0\0\0\0\0\0"] {
        let proxy = Proxy::start(Policy::RoundRobin, &[answers(bytes).await]).await;
        for version in BOTH {
            let mut client = OneConnection::to(proxy.address, version).await;
            assert_eq!(client.text(request("POST", "")).await.unwrap().0, 502, "{version:?} {bytes:?}");
        }
    }
}

/// Answers everything with these bytes, and closes.
async fn answers(bytes: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                assert!(stream.read(&mut [0; 4096]).await.unwrap() > 0);
                stream.write_all(bytes).await.unwrap();
                stream.shutdown().await.unwrap();
                while stream.read(&mut [0; 4096]).await.is_ok_and(|n| n > 0) {}
            });
        }
    });
    address
}

#[tokio::test]
async fn the_end_waits_for_requests_and_not_for_idle_connections() {
    let server = Server::named("a").await;
    for version in BOTH {
        let proxy = Proxy::start(Policy::RoundRobin, &[server.address]).await;
        let mut silent = TcpStream::connect(proxy.address).await.unwrap();
        let mut client = OneConnection::to(proxy.address, version).await;
        assert_eq!(client.get().await.unwrap().0, 200);
        proxy.end();
        while client.get().await.is_ok() {}
        assert_eq!(silent.read(&mut [0]).await.unwrap(), 0);
    }
}

#[tokio::test]
async fn real_clients_of_many_requests_see_no_error() {
    let servers = [Server::named("a").await, Server::named("b").await];
    let proxy = Proxy::start(Policy::LeastRequest, &servers.each_ref().map(|server| server.address)).await;
    for arguments in [&["--h1", "-c", "20"][..], &["-c", "5", "-m", "20"]] {
        let mut h2load = Command::new("h2load");
        h2load.args(["-n", "4000", "-t", "1"]).args(arguments).arg(proxy.url("/")).stdin(Stdio::null());
        let output = h2load.output().await.expect("h2load is installed (Debian: nghttp2-client)");
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("4000 succeeded, 0 failed, 0 errored, 0 timeout"), "{text}");
        assert!(text.contains("status codes: 4000 2xx"), "{text}");
    }
}

/// How an endpoint of HTTP/2 ends an answer of which it has sent the head and four bytes.
#[derive(Clone, Copy, Debug)]
enum Ending {
    /// It was whole.
    Whole,
    GivenUp,
}

/// An endpoint that ends its answers so, and resets their streams for this reason, once it is told to go on.
async fn resets(ending: Ending, reason: h2::Reason, go_on: Arc<tokio::sync::Notify>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut connection = h2::server::handshake(stream).await.unwrap();
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            let mut body = respond.send_response(Response::new(()), false).unwrap();
            body.send_data(Bytes::from_static(b"half"), matches!(ending, Ending::Whole)).unwrap();
            let go_on = go_on.clone();
            tokio::spawn(async move {
                go_on.notified().await;
                body.send_reset(reason);
                drop(request);
            });
        }
    });
    address
}

/// `NO_ERROR` after half of an answer is no end of it, and after all of it no error.
#[tokio::test]
async fn half_an_answer_is_never_taken_for_all_of_it() {
    for (ending, reason) in [
        (Ending::GivenUp, h2::Reason::NO_ERROR),
        (Ending::GivenUp, h2::Reason::CANCEL),
        (Ending::Whole, h2::Reason::NO_ERROR),
    ] {
        let go_on = Arc::new(tokio::sync::Notify::new());
        let address = resets(ending, reason, go_on.clone()).await;
        let proxy = Proxy::start(Policy::RoundRobin, &[address]).await;
        let mut client = OneConnection::to(proxy.address, Version::Http2).await;
        // A body that does not end, so that only the endpoint can end this.
        let body = StreamBody::new(futures_util::stream::pending::<Result<Frame<Bytes>, hyper::Error>>());
        let response = client.send(request("POST", "").map(|_| body.boxed())).await.unwrap();
        go_on.notify_one();
        let received = response.into_body().collect().await;
        match ending {
            Ending::Whole => assert_eq!(received.unwrap().to_bytes(), "half", "{reason:?}"),
            Ending::GivenUp => assert!(received.is_err(), "{reason:?}"),
        }
    }
}
