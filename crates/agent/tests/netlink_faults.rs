//! The agent on a real kernel, through netlink sockets of which each single call fails once, in every way that calls fail:
//! it ends with the right rules in the kernel, and nothing is lost.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    unreachable_pub,
    dead_code,
    reason = "a test fails by panicking and says on the way what it tries; not all that tests share is used here"
)]

mod common;

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{fs, io, thread};

use agent::Input;
use backend_nftables::table_name;
use common::{difference, served_nftables, service, settings, slice, telemetry};
use kernel::{Channel, Socket, SocketOption, Wait};
use lab::Namespace;
use model::{Change, Kind, Store, Touched};
use nft::Kernel;
use tokio::sync::mpsc::{Sender, channel};

const EINTR: i32 = 4;
const EBADF: i32 = 9;
const ENOBUFS: i32 = 105;

/// How a call fails.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// Nothing is sent.
    Send(i32),
    /// Nothing is received; what is there stays.
    Receive(i32),
    /// The kernel does what it is asked, and says that it did not.
    Denied(i32),
    /// Of several answers only the first arrives.
    FirstAnswerOnly,
    /// The socket is closed, from here on.
    Closed,
}

const FAULTS: [Fault; 11] = [
    Fault::Send(ENOBUFS),
    Fault::Send(EINTR),
    Fault::Send(1),
    Fault::Receive(ENOBUFS),
    Fault::Receive(EINTR),
    Fault::Denied(2),
    Fault::Denied(16),
    Fault::Denied(17),
    Fault::Denied(EINTR),
    Fault::FirstAnswerOnly,
    Fault::Closed,
];

impl Fault {
    /// Whether it is one of sending calls, or one of receiving calls.
    fn concerns(self, call: Call) -> bool {
        match self {
            Self::Send(_) => call == Call::Send,
            Self::Receive(_) | Self::Denied(_) | Self::FirstAnswerOnly => call == Call::Receive,
            Self::Closed => true,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Send,
    Receive,
}

/// What happens to the sockets of one network namespace.
#[derive(Debug, Default)]
struct Script {
    /// The fault to stage and at which call.
    staged: Option<(Fault, usize)>,
    /// The calls so far.
    calls: Vec<Call>,
}

impl Script {
    /// The staged fault, if this is its call.
    fn next_call(&mut self, call: Call) -> Option<Fault> {
        self.calls.push(call);
        self.staged.filter(|(_, at)| *at + 1 == self.calls.len()).map(|(fault, _)| fault)
    }
}

/// By the number of the network namespace, which is all that a socket knows of whose it is.
static SCRIPTS: Mutex<BTreeMap<u64, Arc<Mutex<Script>>>> = Mutex::new(BTreeMap::new());

/// The script of the calling thread's network namespace.
fn script() -> Arc<Mutex<Script>> {
    let namespace = fs::metadata("/proc/thread-self/ns/net").unwrap().ino();
    SCRIPTS.lock().unwrap().entry(namespace).or_default().clone()
}

/// A real socket that fails on demand.
#[derive(Debug)]
struct Faulty {
    socket: Socket,
    script: Arc<Mutex<Script>>,
    closed: AtomicBool,
}

impl Faulty {
    fn fault(&self, call: Call) -> Option<Fault> {
        let fault = self.script.lock().unwrap().next_call(call);
        if matches!(fault, Some(Fault::Closed)) {
            self.closed.store(true, Ordering::SeqCst);
        }
        if self.closed.load(Ordering::SeqCst) { Some(Fault::Closed) } else { fault }
    }
}

impl Channel for Faulty {
    fn open() -> io::Result<Self> {
        Ok(Self { socket: Socket::open()?, script: script(), closed: AtomicBool::new(false) })
    }

    fn set(&self, option: SocketOption, value: i32) -> io::Result<()> {
        self.socket.set(option, value)
    }

    fn get(&self, option: SocketOption) -> io::Result<i32> {
        self.socket.get(option)
    }

    fn port(&self) -> io::Result<u32> {
        self.socket.port()
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        match self.fault(Call::Send) {
            Some(Fault::Send(errno)) => Err(io::Error::from_raw_os_error(errno)),
            Some(Fault::Closed) => Err(io::Error::from_raw_os_error(EBADF)),
            _ => self.socket.send(bytes),
        }
    }

    fn receive<'b>(&self, buffer: &'b mut [u8], wait: Wait) -> io::Result<&'b [u8]> {
        let fault = self.fault(Call::Receive);
        match fault {
            Some(Fault::Receive(errno)) => return Err(io::Error::from_raw_os_error(errno)),
            Some(Fault::Closed) => return Err(io::Error::from_raw_os_error(EBADF)),
            _ => {}
        }
        let len = self.socket.receive(buffer, wait)?.len();
        let first = u32::from_ne_bytes(*buffer.first_chunk().unwrap()) as usize;
        let is_error = u16::from_ne_bytes([buffer[4], buffer[5]]) == 2;
        match fault {
            Some(Fault::Denied(errno)) if is_error => {
                buffer[16..20].copy_from_slice(&(-errno).to_ne_bytes());
                Ok(&buffer[..len])
            }
            // The rest of a dump never gets lost without an error.
            Some(Fault::FirstAnswerOnly) if wait == Wait::Never => Ok(&buffer[..first]),
            _ => Ok(&buffer[..len]),
        }
    }
}

/// An agent in the namespace of the calling thread.
struct Bench {
    inputs: Sender<Input>,
    store: Store,
}

impl Bench {
    fn start() -> Self {
        let (inputs, receiver) = channel(64);
        let families = served_nftables(kernel::Nftables::<Faulty>::over_channel);
        tokio::spawn(agent::run(families, settings(), telemetry(), receiver, Some));
        Self { inputs, store: Store::default() }
    }

    async fn apply(&mut self, object: model::Object) {
        let change = Change::Apply(object);
        self.store.apply(change.clone(), &mut Touched::default());
        self.inputs.send(Input::Change(change)).await.unwrap();
    }

    async fn converged(&self) {
        let mut kernel = kernel::Nftables::open().unwrap();
        let mut left = None;
        for _ in 0..10_000 {
            let found = kernel.read(nft::Family::Ip, &table_name()).unwrap().whole().unwrap();
            left = difference(&self.store, found.as_ref());
            if left.is_none() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("not converged; left to do:\n{}", left.unwrap_or_default());
    }

    /// A life: a start with a Service, an endpoint replaced, one added, a second Service.
    async fn live(&mut self) {
        self.apply(service(1)).await;
        self.apply(slice(1, &[1, 2])).await;
        for kind in Kind::ALL {
            self.inputs.send(Input::Listed(kind)).await.unwrap();
        }
        self.converged().await;
        self.apply(slice(1, &[2, 3])).await;
        self.converged().await;
        self.apply(slice(1, &[2, 3, 4])).await;
        self.converged().await;
        self.apply(service(2)).await;
        self.converged().await;
    }
}

/// Lives once, beginning with what the life before has left; says what calls that took.
fn live(staged: Option<(Fault, usize)>) -> Vec<Call> {
    let script = script();
    *script.lock().unwrap() = Script { staged, calls: Vec::new() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async { Bench::start().live().await });
    std::mem::take(&mut *script.lock().unwrap()).calls
}

/// Each kind of fault in a network namespace of its own, all at once: a life is mostly pauses.
#[test]
fn every_call_fails_once_and_nothing_is_lost() {
    thread::scope(|scope| {
        for fault in FAULTS {
            scope.spawn(move || Namespace::new("faults").unwrap().run(|| each_call_fails(fault)));
        }
    });
}

fn each_call_fails(fault: Fault) {
    live(None);
    let calls = live(None);
    assert!(calls.len() > 60, "{calls:?} are no life");
    let concerned = calls.iter().enumerate().filter(|(_, call)| fault.concerns(**call));
    for (at, call) in concerned {
        eprintln!("{fault:?} at call {at} of {}, {call:?}", calls.len());
        live(Some((fault, at)));
    }
}
