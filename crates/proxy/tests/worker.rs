//! A worker from its start to its end, with the test as its agent.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;
use std::time::Duration;

use balance::{HealthCheck, Policy, Resilience};
use proxy::frame::{
    Availability, Count, Counts, FrameReader, Frontend, MAX_TO_AGENT_BYTES, MAX_TO_WORKER_BYTES, OutBy, Pool,
    Protocol, Route, Routes, Settings, ToAgent, ToWorker, encode,
};
use proxy::{Listeners, Process, WorkerError, hand_over};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// What flows are said to have been sent to.
const SERVICE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10));
/// A limit for what is expected to happen, on a machine that may be busy.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often it is looked for what is expected.
const LOOK: Duration = Duration::from_millis(50);

struct Agent {
    control: UnixStream,
    frames: FrameReader,
    listeners: Listeners,
    worker: JoinHandle<Result<(), WorkerError>>,
    /// What was told meanwhile.
    counted: Vec<Count>,
    availability: Vec<Availability>,
    /// Whether the worker said last that it has no room. A client takes room while it is asked about, so that may come at any time.
    full: bool,
}

impl Agent {
    fn new(udp_idle_ms: u64, max_flows: Option<usize>) -> Self {
        let (control, theirs) = UnixStream::pair().unwrap();
        control.set_read_timeout(Some(PATIENCE)).unwrap();
        let worker = std::thread::spawn(move || {
            proxy::run(&theirs, Process { max_files: 1024, release_memory: || () })
        });
        let listeners = Listeners::at(LOOPBACK).unwrap();
        hand_over(&control, &listeners).unwrap();
        let frames = FrameReader::new(MAX_TO_AGENT_BYTES);
        let (counted, availability) = (Vec::new(), Vec::new());
        let mut agent = Self { control, frames, listeners, worker, counted, availability, full: false };
        agent.say(&ToWorker::Settings(Settings {
            connect_timeout_ms: 10_000,
            udp_idle_ms,
            drain_ms: 60_000,
            idle_ms: None,
            request_ms: None,
            linger_ms: 0,
            policy: Policy::RoundRobin,
            max_flows,
            access_log_per_million: 0,
            traces_per_million: None,
        }));
        agent
    }

    fn say(&mut self, frame: &ToWorker) {
        self.control.write_all(&encode(frame, MAX_TO_WORKER_BYTES).unwrap()).unwrap();
    }

    fn hear(&mut self) -> ToAgent {
        self.hear_within(PATIENCE).expect("the worker says something")
    }

    /// What the worker says next, if it does so in this time.
    fn hear_within(&mut self, time: Duration) -> Option<ToAgent> {
        self.control.set_read_timeout(Some(time)).unwrap();
        loop {
            match self.frames.next_frame().unwrap() {
                Some(ToAgent::Counted(count)) => {
                    self.counted.push(count);
                    continue;
                }
                Some(ToAgent::Availability(told)) => {
                    self.availability.push(told);
                    return Some(ToAgent::Full(self.full));
                }
                Some(frame) => return Some(frame),
                None => {}
            }
            let mut buffer = [0; 1024];
            let n = self.control.read(&mut buffer).ok()?;
            assert!(n > 0, "the worker is gone");
            self.frames.extend(&buffer[..n]);
        }
    }

    /// Has flows of UDP to the Service go to these endpoints.
    fn set(&mut self, generation: u64, endpoints: &[SocketAddr]) {
        let frontend = Frontend { address: Some(SERVICE), protocol: Protocol::Udp, port: 53 };
        let pool = Pool {
            name: "dns".to_owned(),
            endpoints: endpoints.to_vec(),
            affinity_secs: None,
            ..Pool::default()
        };
        let set = vec![Route { frontend, any: pool, internal: None, policy: None }];
        self.say(&ToWorker::Routes(Routes { generation, set, ..Routes::default() }));
        self.wait_until_in_force(generation);
    }

    /// There is no Service any more.
    fn clear(&mut self, generation: u64) {
        self.say(&ToWorker::Routes(Routes { generation, replace: true, ..Routes::default() }));
        self.wait_until_in_force(generation);
    }

    /// Answers where a client sent to.
    fn answer(&mut self, client: &UdpSocket, destination: Option<SocketAddr>) {
        let (id, asked, listener) = loop {
            match self.hear() {
                ToAgent::WhereTo { id, client, listener } => break (id, client, listener),
                ToAgent::Full(full) => self.full = full,
                other => panic!("no question: {other:?}"),
            }
        };
        assert_eq!(asked, client.local_addr().unwrap());
        assert_eq!(listener, self.listeners.any.udp.local_addr().unwrap());
        self.say(&ToWorker::To { id, destination });
    }

    /// Has a client send until `is_over`, which hears whether it was asked about just now, and answers meanwhile where it sends to.
    /// What comes too early, for want of room or while a former flow of the client ends, is lost, as datagrams may be.
    fn send_until(
        &mut self,
        client: &UdpSocket,
        destination: Option<SocketAddr>,
        mut is_over: impl FnMut(bool) -> bool,
    ) {
        let own = client.local_addr().unwrap();
        for _ in 0..PATIENCE.as_millis() / LOOK.as_millis() {
            client.send(b"who?").unwrap();
            let heard = self.hear_within(LOOK);
            let is_asked = match &heard {
                Some(ToAgent::WhereTo { id, client, .. }) if *client == own => {
                    self.say(&ToWorker::To { id: *id, destination });
                    true
                }
                Some(other) => {
                    self.take_note(other);
                    false
                }
                None => false,
            };
            if is_over(is_asked) {
                return;
            }
        }
        panic!("it never comes to an end");
    }

    /// What is said about others: a client that was left while it sent, and room.
    fn take_note(&mut self, heard: &ToAgent) {
        match heard {
            ToAgent::WhereTo { id, .. } => self.say(&ToWorker::To { id: *id, destination: None }),
            ToAgent::Full(full) => self.full = *full,
            other => panic!("nobody asked for {other:?}"),
        }
    }

    fn wait_until_in_force(&mut self, generation: u64) {
        loop {
            match self.hear() {
                ToAgent::InForce { generation: found } if found == generation => return,
                other => self.take_note(&other),
            }
        }
    }

    /// Has a client send until an endpoint answers with this number.
    fn send_until_answered(&mut self, client: &UdpSocket, n: u8) {
        client.set_read_timeout(Some(LOOK)).unwrap();
        let mut answer = [0; 16];
        self.send_until(client, Some((SERVICE, 53).into()), |_| {
            client.recv(&mut answer).is_ok() && answer[0] == n
        });
    }

    fn client(&self) -> UdpSocket {
        let client = udp();
        client.connect(self.listeners.any.udp.local_addr().unwrap()).unwrap();
        client
    }
}

fn udp() -> UdpSocket {
    let socket = UdpSocket::bind((LOOPBACK, 0)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// An endpoint takes a datagram and answers with its number.
fn serve(endpoint: &UdpSocket, n: u8) {
    let mut received = [0; 16];
    let (len, from) = endpoint.recv_from(&mut received).unwrap();
    assert_eq!(&received[..len], b"who?");
    endpoint.send_to(&[n], from).unwrap();
}

/// An endpoint that answers all datagrams with its number, for as long as the test runs.
fn serving(n: u8) -> SocketAddr {
    let endpoint = UdpSocket::bind((LOOPBACK, 0)).unwrap();
    let address = endpoint.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut received = [0; 16];
        while let Ok((_, from)) = endpoint.recv_from(&mut received) {
            // Whoever asked may be gone.
            drop(endpoint.send_to(&[n], from));
        }
    });
    address
}

fn answered(client: &UdpSocket) -> u8 {
    let mut answer = [0; 16];
    assert_eq!(client.recv(&mut answer).unwrap(), 1);
    answer[0]
}

#[test]
fn a_udp_client_keeps_its_endpoint_until_that_is_gone() {
    let mut agent = Agent::new(60_000, None);
    let (one, other) = (udp(), udp());
    let addresses = [one.local_addr().unwrap(), other.local_addr().unwrap()];
    agent.set(1, &addresses[..1]);
    let client = agent.client();
    client.send(b"who?").unwrap();
    agent.answer(&client, Some((SERVICE, 53).into()));
    serve(&one, 1);
    assert_eq!(answered(&client), 1);
    agent.set(2, &addresses);
    // It stays, and nothing is asked again.
    client.send(b"who?").unwrap();
    serve(&one, 1);
    assert_eq!(answered(&client), 1);
    agent.set(3, &addresses[1..]);
    client.send(b"who?").unwrap();
    serve(&other, 2);
    assert_eq!(answered(&client), 2);
}

#[test]
fn a_udp_client_that_was_idle_is_asked_about_again() {
    let mut agent = Agent::new(50, None);
    let endpoint = udp();
    agent.set(1, &[endpoint.local_addr().unwrap()]);
    let client = agent.client();
    for _ in 0..2 {
        client.send(b"who?").unwrap();
        agent.answer(&client, Some((SERVICE, 53).into()));
        serve(&endpoint, 1);
        assert_eq!(answered(&client), 1);
        // Longer than it is remembered, by far.
        std::thread::sleep(Duration::from_secs(1));
    }
}

#[test]
fn what_nobody_knows_goes_nowhere_and_takes_no_room() {
    let mut agent = Agent::new(60_000, Some(1));
    agent.set(1, &[serving(1)]);
    for destination in [None, Some((SERVICE, 54).into())] {
        let client = agent.client();
        agent.send_until(&client, destination, |is_asked| is_asked);
    }
    // There is room for it only if the others take none.
    let client = agent.client();
    agent.send_until_answered(&client, 1);
    // The only room is taken; that is told as soon as it is seen.
    while !agent.full {
        let ToAgent::Full(full) = agent.hear() else { panic!("something else") };
        agent.full = full;
    }
}

#[test]
fn a_connection_that_no_rule_led_here_is_reset() {
    let mut agent = Agent::new(60_000, None);
    agent.set(1, &[]);
    let mut stream = TcpStream::connect(agent.listeners.any.tcp.local_addr().unwrap()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn a_worker_ends_when_it_is_told_or_left_alone() {
    let mut told = Agent::new(50, None);
    told.say(&ToWorker::Drain);
    told.worker.join().unwrap().unwrap();
    let left = Agent::new(50, None);
    drop(left.control);
    left.worker.join().unwrap().unwrap();
}

/// A client of before the first routes is led to an endpoint as soon as there is one.
#[test]
fn what_waits_waits_until_it_is_known_where_it_is_to_go() {
    let mut agent = Agent::new(60_000, None);
    let (client, endpoint) = (agent.client(), udp());
    client.send(b"who?").unwrap();
    let mut stream = TcpStream::connect(agent.listeners.any.tcp.local_addr().unwrap()).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "it waits");
    agent.set(1, &[endpoint.local_addr().unwrap()]);
    agent.answer(&client, Some((SERVICE, 53).into()));
    serve(&endpoint, 1);
    assert_eq!(answered(&client), 1);
}

/// A client of UDP whose Service is gone is forgotten, and finds the next Service at its address.
#[test]
fn a_udp_client_is_forgotten_with_its_service() {
    let mut agent = Agent::new(60_000, None);
    let client = agent.client();
    for (generation, n) in [(1, 1), (3, 2)] {
        agent.set(generation, &[serving(n)]);
        agent.send_until_answered(&client, n);
        agent.clear(generation + 1);
    }
}

/// The worker serves clients that it has for as long as they send, whoever is gone.
#[test]
fn a_udp_client_is_served_on_while_a_worker_drains() {
    let mut agent = Agent::new(60_000, None);
    let endpoint = udp();
    agent.set(1, &[endpoint.local_addr().unwrap()]);
    let client = agent.client();
    client.send(b"who?").unwrap();
    agent.answer(&client, Some((SERVICE, 53).into()));
    serve(&endpoint, 1);
    assert_eq!(answered(&client), 1);
    agent.say(&ToWorker::Drain);
    drop(agent.control);
    // Longer than new flows are expected.
    for _ in 0..40 {
        std::thread::sleep(Duration::from_millis(100));
        client.send(b"who?").unwrap();
        serve(&endpoint, 1);
        assert_eq!(answered(&client), 1);
    }
}

#[test]
fn an_agent_that_makes_no_sense_is_left() {
    let mut agent = Agent::new(50, None);
    agent.control.write_all(&[0, 0, 0, 2, b'?', b'?']).unwrap();
    assert!(matches!(agent.worker.join().unwrap(), Err(WorkerError::Agent { .. })));
}

/// The agent hears of each flow once, with what it carried.
#[test]
fn flows_are_counted() {
    let mut agent = Agent::new(100, None);
    let endpoint = udp();
    let address = endpoint.local_addr().unwrap();
    agent.set(1, &[address]);
    let client = agent.client();
    client.send(b"who?").unwrap();
    agent.answer(&client, Some((SERVICE, 53).into()));
    serve(&endpoint, 1);
    let answer = answered(&client);
    assert_eq!(answer, 1);
    // Which is when the client was idle.
    let mut sum = Counts::default();
    while sum.bytes == 0 {
        let told = std::mem::take(&mut agent.counted);
        for count in told {
            assert_eq!(count.endpoint, Some(address));
            sum = sum.plus(count.counts);
        }
        // Something to be answered, so that all that was told is heard.
        agent.set(2, &[address]);
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!((sum.connections, sum.refused, sum.retries), (1, 0, 0));
    assert!(sum.bytes > 4, "{sum:?}");
}

/// A worker asks endpoints by itself, and tells of each that begins or ceases to answer.
#[test]
fn health_checks_are_made_and_told() {
    let mut agent = Agent::new(60_000, None);
    let listener = std::net::TcpListener::bind((LOOPBACK, 0)).unwrap();
    let endpoint = listener.local_addr().unwrap();
    let health_check = HealthCheck::parse("tcp,interval=100ms,failures=2,successes=1").ok();
    let resilience = Resilience { health_check, ..Resilience::default() };
    let pool = Pool { name: "web".to_owned(), endpoints: vec![endpoint], resilience, ..Pool::default() };
    let frontend = Frontend { address: Some(SERVICE), protocol: Protocol::Tcp, port: 80 };
    let set = vec![Route { frontend, any: pool, internal: None, policy: None }];
    agent.say(&ToWorker::Routes(Routes { generation: 1, set, ..Routes::default() }));
    assert_eq!(agent.hear(), ToAgent::InForce { generation: 1 });
    let told = |agent: &mut Agent| loop {
        agent.hear();
        if let Some(told) = agent.availability.pop() {
            assert_eq!((&*told.pool, told.endpoint, told.by), ("web", endpoint, OutBy::HealthCheck));
            break told.out.map(|out| out.why);
        }
    };
    drop(listener);
    assert_eq!(told(&mut agent).as_deref(), Some("it takes no connection"));
    let _listener = std::net::TcpListener::bind(endpoint).unwrap();
    assert_eq!(told(&mut agent), None);
}
