//! The arbiter of all measurements: packets, each on a flow of its own, until one arrives where it should.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use lab::client::Reply;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use tokio::time::Instant;

/// The shortest and the longest time between two packets. In between it is [`PACE`] of what has passed already, so that
/// a wait of any length is known well enough, and a long one neither fills the table of tracked flows nor costs the
/// program under test a processor.
const SHORTEST: Duration = Duration::from_micros(100);
const LONGEST: Duration = Duration::from_millis(20);
const PACE: u32 = 100;
/// How many flows may be without an answer before the oldest is given up.
const OUTSTANDING: usize = 64;

/// Addresses to send from, all of them the client's. Each packet takes another one, so that its flow is a new one to the
/// kernel: a source port by itself may have been used before, and the kernel would send the packet where it sent the others.
#[derive(Debug)]
pub(crate) struct Sources {
    first: u32,
    count: u32,
    taken: AtomicU32,
}

impl Sources {
    /// So many addresses from the first one on.
    pub(crate) fn new(first: Ipv4Addr, count: u32) -> Self {
        Self { first: first.into(), count, taken: AtomicU32::new(0) }
    }

    fn next(&self) -> Ipv4Addr {
        (self.first + self.taken.fetch_add(1, Ordering::Relaxed) % self.count).into()
    }
}

/// Sends packets from the calling thread's namespace until a server answers whose name is wanted; yields when that was.
///
/// # Errors
/// Sockets can't be had, `go_on` says so, or the limit has passed.
pub(crate) fn seek(
    sources: &Sources,
    target: SocketAddr,
    wanted: impl Fn(&str) -> bool,
    go_on: impl Fn() -> bool,
    limit: Duration,
) -> anyhow::Result<Instant> {
    let begun = Instant::now();
    let mut flows: VecDeque<UdpSocket> = VecDeque::new();
    let mut due = begun;
    loop {
        let now = Instant::now();
        anyhow::ensure!(
            now - begun < limit,
            "no packet to {target} has arrived where it should in {limit:?}"
        );
        anyhow::ensure!(go_on(), "the program ended before packets to {target} arrived");
        if now >= due {
            if flows.len() == OUTSTANDING {
                flows.pop_front();
            }
            flows.push_back(send(sources.next(), target).with_context(|| format!("send to {target}"))?);
            due = now + ((now - begun) / PACE).clamp(SHORTEST, LONGEST);
        }
        wait(&flows, due.saturating_duration_since(Instant::now())).context("wait for answers")?;
        let arrived = Instant::now();
        let mut found = false;
        // An answer ends a flow, a refusal too.
        flows.retain(|flow| match answer(flow) {
            Ok(Some(name)) => {
                found |= wanted(&name);
                false
            }
            Ok(None) => true,
            Err(_refused) => false,
        });
        if found {
            return Ok(arrived);
        }
    }
}

fn send(source: Ipv4Addr, target: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((source, 0))?;
    socket.set_nonblocking(true)?;
    socket.connect(target)?;
    match socket.send(b"?") {
        // Refused by a rule on the way, in which case another packet may fare better.
        Ok(_) | Err(_) => Ok(socket),
    }
}

fn wait(flows: &VecDeque<UdpSocket>, limit: Duration) -> nix::Result<()> {
    let mut polled: Vec<PollFd<'_>> =
        flows.iter().map(|flow| PollFd::new(flow.as_fd(), PollFlags::POLLIN)).collect();
    match ppoll(&mut polled, Some(TimeSpec::from_duration(limit)), None) {
        Ok(_) | Err(nix::Error::EINTR) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Who answered, if somebody has.
fn answer(flow: &UdpSocket) -> io::Result<Option<String>> {
    let mut buffer = [0; 512];
    match flow.recv(&mut buffer) {
        Ok(length) => {
            let reply: Result<Reply, _> = String::from_utf8_lossy(&buffer[..length]).parse();
            reply.map(|reply| Some(reply.name)).map_err(io::Error::other)
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    fn sources() -> Sources {
        Sources::new(Ipv4Addr::new(127, 0, 0, 2), 2)
    }

    /// A server that says so.
    fn serve(names: &'static [&'static str]) -> SocketAddr {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = socket.local_addr().unwrap();
        std::thread::spawn(move || {
            for name in names {
                let (_, client) = socket.recv_from(&mut [0; 16]).unwrap();
                let line = format!("name={name} client={client} server={address}\n");
                socket.send_to(line.as_bytes(), client).unwrap();
            }
        });
        address
    }

    #[test]
    fn the_first_wanted_answer_ends_the_search() {
        let target = serve(&["old", "old", "new"]);
        seek(&sources(), target, |name| name == "new", || true, LIMIT).unwrap();
    }

    #[test]
    fn each_packet_has_another_source() {
        let sources = sources();
        let taken = [(); 3].map(|()| sources.next().octets()[3]);
        assert_eq!(taken, [2, 3, 2]);
    }

    #[test]
    fn it_ends_with_the_program() {
        let silent = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let asked = AtomicBool::new(false);
        let go_on = || !asked.swap(true, Ordering::Relaxed);
        let error = seek(&sources(), silent.local_addr().unwrap(), |_| true, go_on, LIMIT).unwrap_err();
        assert!(error.to_string().contains("the program ended"), "{error}");
    }
}
