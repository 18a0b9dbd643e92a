//! Each single netlink call of a sweep fails once, in every way that calls fail: another sweep ends with what is stale gone,
//! and nothing else.

use std::cell::{Cell, RefCell};
use std::io;

use conntrack::{Conntrack, Family, Filter};
use kernel::{Channel, Flows, Socket, SocketOption, Wait};

use crate::made::{Made, Maker};
use crate::site::{UDP, count, in_netns};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Send,
    Receive,
}

/// How a call fails.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// With this error number; nothing is sent or received.
    Errno(i32),
    /// What was to be received is lost.
    Lost,
    /// The kernel does what it is asked, and says that it did not.
    Denied(i32),
}

const EPERM: i32 = 1;
const ENOENT: i32 = 2;
const EINTR: i32 = 4;
const EBADF: i32 = 9;
const EBUSY: i32 = 16;
const ENOBUFS: i32 = 105;

const FAULTS: [Fault; 8] = [
    Fault::Errno(EPERM),
    Fault::Errno(EINTR),
    Fault::Errno(EBADF),
    Fault::Errno(ENOBUFS),
    Fault::Lost,
    Fault::Denied(ENOENT),
    Fault::Denied(EINTR),
    Fault::Denied(EBUSY),
];

thread_local! {
    static STAGED: Cell<Option<(Fault, usize)>> = const { Cell::new(None) };
    static CALLS: RefCell<Vec<Call>> = const { RefCell::new(Vec::new()) };
}

fn fault(call: Call) -> Option<Fault> {
    let at = CALLS.with_borrow_mut(|calls| {
        calls.push(call);
        calls.len() - 1
    });
    STAGED.get().filter(|(_, staged)| *staged == at).map(|(fault, _)| fault)
}

/// A real socket that fails on demand.
#[derive(Debug)]
struct Faulty(Socket);

impl Channel for Faulty {
    fn open() -> io::Result<Self> {
        Socket::open().map(Self)
    }

    fn set(&self, option: SocketOption, value: i32) -> io::Result<()> {
        self.0.set(option, value)
    }

    fn get(&self, option: SocketOption) -> io::Result<i32> {
        self.0.get(option)
    }

    fn port(&self) -> io::Result<u32> {
        self.0.port()
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        match fault(Call::Send) {
            Some(Fault::Errno(errno)) => Err(io::Error::from_raw_os_error(errno)),
            _ => self.0.send(bytes),
        }
    }

    fn receive<'b>(&self, buffer: &'b mut [u8], wait: Wait) -> io::Result<&'b [u8]> {
        let fault = fault(Call::Receive);
        if let Some(Fault::Errno(errno)) = fault {
            return Err(io::Error::from_raw_os_error(errno));
        }
        let len = self.0.receive(buffer, wait)?.len();
        let is_error = u16::from_ne_bytes([buffer[4], buffer[5]]) == 2;
        match fault {
            // The kernel never loses an answer without saying so.
            Some(Fault::Lost) => Err(io::Error::from_raw_os_error(ENOBUFS)),
            Some(Fault::Denied(errno)) if is_error => {
                buffer[16..20].copy_from_slice(&(-errno).to_ne_bytes());
                Ok(&buffer[..len])
            }
            _ => Ok(&buffer[..len]),
        }
    }
}

/// Makes 600 flows of which half are stale, and sweeps until that succeeds; says what calls the first sweep took.
fn sweep(maker: &Maker, staged: Option<(Fault, usize)>) -> Vec<Call> {
    let made = |n: u32| Made::new(Family::Ip, n, 1, n % 2);
    maker.make((0..600).map(made));
    let filter = Filter::new(Family::Ip, UDP).to(made(0).service);
    let stale = made(0).endpoint;
    let mut flows = Flows::<Faulty>::over_channel().unwrap();
    STAGED.set(staged);
    CALLS.with_borrow_mut(Vec::clear);
    let mut outcome = flows.delete(&filter, &mut |flow| flow.answered_by() == stale);
    STAGED.set(None);
    let calls = CALLS.take();
    for _ in 0..3 {
        if outcome.is_ok() {
            break;
        }
        outcome = flows.delete(&filter, &mut |flow| flow.answered_by() == stale);
    }
    assert!(outcome.is_ok(), "{staged:?}: {outcome:?}");
    let mut flows = Flows::open().unwrap();
    assert_eq!(count(&mut flows, &filter.answered_by(stale)), 0, "{staged:?}: stale flows are left");
    assert_eq!(count(&mut flows, &filter), 300, "{staged:?}: others are gone");
    calls
}

#[test]
fn every_call_of_a_sweep_fails_once_and_the_next_one_mends_it() {
    in_netns(|| {
        let maker = Maker::open();
        let calls = sweep(&maker, None);
        assert!(calls.len() > 6, "{calls:?} are no sweep");
        for fault in FAULTS {
            let concerned = calls.iter().enumerate();
            for (at, call) in concerned {
                if matches!(fault, Fault::Errno(_)) || *call == Call::Receive {
                    sweep(&maker, Some((fault, at)));
                }
            }
        }
    });
}
