//! What idle connections take of a worker's memory.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use fakes::objects::{self, Port};
use lab::Host;
use lab::proxy::wait_until;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{SysconfVar, sysconf};

use super::{HTTP_PORT, cluster, serve_http, wait_for_capture, workers};
use crate::support::{PATIENCE, apply_web, ip, start};

const CONNECTIONS: usize = 1000;
/// 10,000 in less than 100 MB.
const LIMIT_BYTES: u64 = 10_000;
/// Of this process at both ends of each connection, and of a worker for each: pipes are counted as well.
const FILES: u64 = 6 * 2400;

const BYTES_PORT: u16 = 8091;
const BY_REQUEST: &str = "10.96.0.53";
const AS_BYTES: &str = "10.96.0.54";

/// A pod that answers each connection once, and keeps it.
fn keep(pod: &Host) {
    let listener = pod.run(|| TcpListener::bind(("::", BYTES_PORT))).unwrap();
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            drop(stream.read(&mut [0; 1024]));
            drop(stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n"));
            kept.push(stream);
        }
    });
}

/// A connection that has had an answer.
fn connect(to: SocketAddr) -> Option<TcpStream> {
    let stream = TcpStream::connect(to).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    (&stream).write_all(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n").ok()?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let mut received = [0; 1024];
        let n = (&stream).read(&mut received).ok().filter(|n| *n > 0)?;
        answer.extend_from_slice(&received[..n]);
    }
    Some(stream)
}

/// Pages that a process has in memory, in bytes.
fn resident(pid: i32) -> u64 {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or_default();
    let page = sysconf(SysconfVar::PAGE_SIZE).unwrap().unwrap();
    pages * u64::try_from(page).unwrap()
}

#[test]
fn ten_thousand_idle_connections_would_take_less_than_a_hundred_megabytes() {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    assert!(hard >= FILES, "{FILES} open files are needed");
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(FILES), hard).unwrap();
    let cluster = cluster(2, 0);
    serve_http(cluster.lab.pod(0), 0);
    keep(cluster.lab.pod(0));
    for (name, address, target, protocol) in
        [("requests", BY_REQUEST, HTTP_PORT, Some("http")), ("bytes", AS_BYTES, BYTES_PORT, None)]
    {
        let port = Port { name: "web", protocol: "TCP", port: 80, target, node_port: None };
        let mut service = objects::service(name, &[ip(address)], &[port]);
        service["spec"]["ports"][0]["appProtocol"] = protocol.into();
        cluster.apply(service).unwrap();
        cluster.apply(objects::slice(name, "v4", &[port], &cluster.endpoints(false)[..1])).unwrap();
    }
    apply_web(&cluster);
    let proxy = start(&cluster);
    wait_for_capture(&cluster, true);
    let outside = cluster.lab.outside();
    let mut kept = Vec::new();
    for address in [AS_BYTES, BY_REQUEST] {
        let to: SocketAddr = (ip(address), 80).into();
        let connections =
            |n: usize| outside.run(move || (0..n).filter_map(|_| connect(to)).collect::<Vec<_>>());
        // What is there once.
        assert!(wait_until(PATIENCE, || connections(100).len() == 100), "{address} is not served");
        let all = || workers(&proxy).into_iter().map(resident).sum::<u64>();
        let before = all();
        // To the end, so that nobody gets the memory of what was measured before.
        kept.push(connections(CONNECTIONS));
        assert_eq!(kept.last().map(Vec::len), Some(CONNECTIONS));
        let of_each = || all().saturating_sub(before) / u64::try_from(CONNECTIONS).unwrap();
        let is_little = wait_until(PATIENCE, || of_each() <= LIMIT_BYTES);
        // It may become less.
        std::thread::sleep(Duration::from_secs(1));
        println!("{address}: {} bytes for each of {CONNECTIONS} connections", of_each());
        assert!(is_little, "{address}: {} bytes for each of {CONNECTIONS} connections", of_each());
    }
}
