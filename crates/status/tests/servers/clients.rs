//! Clients that are slow, silent, many, or talk nonsense.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use status::Server;
use tokio::time::Instant;

use crate::client::{PATIENCE, get, raw};
use crate::support::Bench;

/// It says nothing, and is cut off.
#[test]
fn a_silent_client_is_left() {
    let bench = Bench::start_with(|config| config.limits.head = Duration::from_millis(50));
    let address = bench.address(Server::Health);
    for begin in ["", "GET /livez HT", "GET /livez HTTP/1.1\r\nhost: x\r\n"] {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(begin.as_bytes()).unwrap();
        let mut answer = Vec::new();
        let ended = stream.read_to_end(&mut answer);
        assert!(
            ended.is_ok() || ended.unwrap_err().kind() == std::io::ErrorKind::ConnectionReset,
            "{begin:?}"
        );
    }
    assert_eq!(get(address, "/livez").status, 200);
}

/// After a request, a connection does not stay for ever.
#[test]
fn an_idle_connection_is_closed() {
    // Long enough for a request on a machine that is busy.
    let bench = Bench::start_with(|config| config.limits.head = Duration::from_secs(2));
    let address = bench.address(Server::Health);
    let answer = raw(address, b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

/// Not even one that keeps asking.
#[test]
fn an_old_connection_is_closed() {
    let bench = Bench::start_with(|config| config.limits.age = Duration::from_secs(1));
    let mut stream = TcpStream::connect(bench.address(Server::Health)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let (mut buffer, mut answers, begin) = ([0; 4096], 0, Instant::now());
    loop {
        assert!(begin.elapsed() < PATIENCE, "it is kept open");
        if stream.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").is_err() {
            break;
        }
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(_) => answers += 1,
        }
    }
    assert!(answers > 0);
}

#[test]
fn nonsense_is_refused() {
    let bench = Bench::start();
    let address = bench.address(Server::Metrics);
    let long = format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "a".repeat(100_000));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(10_000));
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"\0\0\0\0\r\n\r\n",
        b"hello\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\ncontent-length: x\r\n\r\n",
        long.as_bytes(),
        many.as_bytes(),
    ] {
        let answer = raw(address, bytes);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
        assert_eq!(get(address, "/healthz").status, 200);
    }
}

/// A body that nobody reads does no harm, however long it claims to be.
#[test]
fn unwanted_bodies_are_not_waited_for() {
    let bench = Bench::start();
    let request = b"POST /healthz HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000000\r\n\r\nabc";
    let answer = raw(bench.address(Server::Metrics), request);
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("ok"), "{answer}");
}

/// Who occupies all connections can't keep others away.
#[test]
fn the_oldest_connection_goes_when_there_are_too_many() {
    let bench = Bench::start_with(|config| config.limits.connections = 4);
    let address = bench.address(Server::Health);
    let mut idle: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(address).unwrap()).collect();
    assert_eq!(get(address, "/livez").status, 200);
    idle[0].set_read_timeout(Some(PATIENCE)).unwrap();
    let mut buffer = [0; 1];
    assert!(matches!(idle[0].read(&mut buffer), Ok(0) | Err(_)), "the oldest was closed");
    assert_eq!(get(address, "/livez").status, 200);
}

/// It asks and asks, and takes no answer.
#[test]
fn a_client_that_does_not_read_is_left() {
    let bench = Bench::start_with(|config| config.limits.answer = Duration::from_millis(50));
    let mut stream = TcpStream::connect(bench.address(Server::Metrics)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    let requests = b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n".repeat(1000);
    let error = loop {
        if let Err(error) = stream.write_all(&requests) {
            break error;
        }
    };
    let closed = [std::io::ErrorKind::ConnectionReset, std::io::ErrorKind::BrokenPipe];
    assert!(closed.contains(&error.kind()), "{error}");
}

/// Each of many that come at once is answered, though there is room for few.
#[test]
fn a_crowd_is_answered() {
    let bench = Bench::start_with(|config| config.limits.connections = 2);
    let address = bench.address(Server::Health);
    let request = b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let mut crowd: Vec<TcpStream> = (0..100)
        .map(|_| {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(request).unwrap();
            stream
        })
        .collect();
    for stream in &mut crowd {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer:?}");
    }
}
