//! A worker for measurements: `carry tcp|http SERVICE ENDPOINT...` carries connections that rules have led to the port of the loopback
//! interface that it prints, and that were made to SERVICE. It ends with its standard input.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a program for measurements")]

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;

use balance::Policy;
use proxy::frame::{
    Frontend, MAX_TO_WORKER_BYTES, Pool, Protocol, Route, Routes, Settings, ToWorker, encode,
};
use proxy::{Listeners, Process, hand_over};

fn settings() -> Settings {
    Settings {
        connect_timeout_ms: 4000,
        udp_idle_ms: 20_000,
        drain_ms: 60_000,
        idle_ms: None,
        request_ms: None,
        linger_ms: 0,
        policy: Policy::LeastRequest,
        max_flows: None,
        access_log_per_million: 0,
        traces_per_million: None,
    }
}

fn routes(service: SocketAddr, endpoints: Vec<SocketAddr>, by_request: bool) -> Routes {
    let frontend = Frontend { address: Some(service.ip()), protocol: Protocol::Tcp, port: service.port() };
    let pool = Pool { name: "bench/bench/Tcp".to_owned(), endpoints, by_request, ..Pool::default() };
    let set = vec![Route { frontend, any: pool, internal: None, policy: None }];
    Routes { generation: 1, set, ..Routes::default() }
}

fn main() {
    // As the program does.
    kernel::share_heap();
    let mut arguments = std::env::args().skip(1);
    let by_request = arguments.next().is_some_and(|kind| kind == "http");
    let mut addresses = arguments.map(|text| text.parse::<SocketAddr>().unwrap());
    let routes = routes(addresses.next().unwrap(), addresses.collect(), by_request);
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    let (mut control, theirs) = UnixStream::pair().unwrap();
    let process =
        Process { max_files: usize::try_from(limit).unwrap(), release_memory: kernel::release_memory };
    std::thread::spawn(move || proxy::run(&theirs, process).unwrap());
    let listeners = Listeners::at(Ipv4Addr::LOCALHOST.into()).unwrap();
    hand_over(&control, &listeners).unwrap();
    for frame in [ToWorker::Settings(settings()), ToWorker::Routes(routes)] {
        control.write_all(&encode(&frame, MAX_TO_WORKER_BYTES).unwrap()).unwrap();
    }
    println!("{}", listeners.any.tcp.local_addr().unwrap().port());
    // What it tells is of no matter.
    std::thread::spawn(move || while control.read(&mut [0; 4096]).is_ok_and(|n| n > 0) {});
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).unwrap();
}
