//! Connections that wait for their next request, for longer than what a request needs is kept.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use balance::Policy;
use common::{OneConnection, Proxy, Server, Version, full};
use http::{Request, Response};
use hyper::body::Incoming;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Time is paused in these tests, and goes on by itself when nothing else does.
const LONG: Duration = Duration::from_secs(10);

const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: web\r\n\r\n";

/// Reads until what was received ends so.
async fn read_to(stream: &mut TcpStream, end: &[u8]) -> String {
    let mut received = Vec::new();
    while !received.ends_with(end) {
        let n = stream.read_buf(&mut received).await.unwrap();
        assert!(n > 0, "{:?}", String::from_utf8_lossy(&received));
    }
    String::from_utf8(received).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_client_goes_on_after_long_pauses() {
    let server = Server::named("well").await;
    let proxy = Proxy::start(Policy::RoundRobin, &[server.address]).await;
    let mut client = OneConnection::to(proxy.address, Version::Http1).await;
    for n in 0..5 {
        assert_eq!(client.get().await.unwrap(), (200, "well".to_owned()), "request {n}");
        tokio::time::sleep(LONG * n).await;
    }
}

/// A head that came with the request before it is half a head, too, and has to go on.
#[tokio::test(start_paused = true)]
async fn a_head_in_pieces_is_one_head_and_has_its_time() {
    let server = Server::named("well").await;
    let proxy = Proxy::start(Policy::RoundRobin, &[server.address]).await;
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    let half = GET.len() / 2;
    stream.write_all(&[GET, &GET[..half]].concat()).await.unwrap();
    read_to(&mut stream, b"well").await;
    tokio::time::sleep(LONG).await;
    stream.write_all(&GET[half..]).await.unwrap();
    read_to(&mut stream, b"well").await;
    stream.write_all(&[GET, &GET[..half]].concat()).await.unwrap();
    read_to(&mut stream, b"well").await;
    let ended = tokio::time::timeout(Duration::from_mins(2), stream.read(&mut [0; 64])).await;
    assert!(matches!(ended, Ok(Ok(0) | Err(_))), "{ended:?}");
    assert_eq!(server.n_requests(), 3);
}

/// The rest of a body that nobody wanted is no request, whenever it comes.
#[tokio::test(start_paused = true)]
async fn what_is_left_of_a_body_is_never_a_request() {
    let server = Server::start(|_: Request<Incoming>| async { Response::new(full("enough")) }).await;
    let proxy = Proxy::start(Policy::RoundRobin, &[server.address]).await;
    for head in
        ["content-length: 100", "transfer-encoding: chunked", "expect: 100-continue\r\ncontent-length: 100"]
    {
        let before = server.n_requests();
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        let head = format!("POST / HTTP/1.1\r\nhost: web\r\n{head}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        read_to(&mut stream, b"enough").await;
        tokio::time::sleep(LONG).await;
        // It may be closed.
        drop(stream.write_all(GET).await);
        drop(tokio::time::timeout(LONG, stream.read_to_end(&mut Vec::new())).await);
        assert_eq!(server.n_requests(), before + 1, "{head}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_reads_late_gets_all() {
    const LEN: usize = 32 << 20;
    let server = Server::start(|_: Request<Incoming>| async { Response::new(full(vec![7; LEN])) }).await;
    let proxy = Proxy::start(Policy::RoundRobin, &[server.address]).await;
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    stream.write_all(GET).await.unwrap();
    for pause in [LONG, LONG * 6] {
        tokio::time::sleep(pause).await;
        let mut some = vec![0; 4096];
        stream.read_exact(&mut some).await.unwrap();
    }
    let mut n_read = 2 * 4096;
    let mut buffer = vec![0; 1 << 20];
    while n_read < LEN {
        let n = stream.read(&mut buffer).await.unwrap();
        assert!(n > 0, "{n_read} bytes came");
        n_read += n;
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_becomes_a_tunnel_after_long_pauses() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                while let Ok(n) = stream.read(&mut [0; 4096]).await
                    && n > 0
                {
                    let asked = "HTTP/1.1 101 Other\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
                    stream.write_all(asked.as_bytes()).await.unwrap();
                    let (mut read, mut write) = stream.split();
                    drop(tokio::io::copy(&mut read, &mut write).await);
                }
            });
        }
    });
    let plain = Server::named("well").await;
    let proxy = Proxy::start(Policy::RoundRobin, &[plain.address]).await;
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    stream.write_all(GET).await.unwrap();
    read_to(&mut stream, b"well").await;
    tokio::time::sleep(LONG).await;
    proxy.set(&[address]);
    let asked = b"GET / HTTP/1.1\r\nhost: web\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
    stream.write_all(asked).await.unwrap();
    let head = read_to(&mut stream, b"\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    for _ in 0..2 {
        stream.write_all(b"hello").await.unwrap();
        read_to(&mut stream, b"hello").await;
        tokio::time::sleep(LONG).await;
    }
}

#[tokio::test(start_paused = true)]
async fn idle_connections_end_with_the_proxy() {
    let server = Server::named("well").await;
    let proxy = Proxy::start(Policy::RoundRobin, &[server.address]).await;
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    stream.write_all(GET).await.unwrap();
    read_to(&mut stream, b"well").await;
    tokio::time::sleep(LONG).await;
    proxy.end();
    assert_eq!(stream.read(&mut [0; 64]).await.unwrap(), 0);
}
