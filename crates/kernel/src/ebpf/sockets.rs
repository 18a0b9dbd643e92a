//! Connected sockets of UDP whose endpoint is gone, in all network namespaces of the node.

use std::fs::{self, File};
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use conntrack::{Conntrack, Filter, Flow, Tuple, status};
use ebpf::{
    FastPathError, MapName, TranslatedSocket, VerifierLog, list_request, original, read_told, socket_family,
    told_program,
};
use model::{Family, IpFamily};
use netlink::NetlinkError;
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};

use super::sys::{self, Bpf, Map};
use super::{ORIGINAL, btf, family_dir, last_lines, open_in_sockets, refused};
use crate::netlink::{Netlink, Protocol};

const UDP: u8 = 17;
/// What is counted.
const ENDED: &str = "ended sockets";

/// Told how many sockets were ended.
pub type TellEnded = Box<dyn Fn(u64) + Send>;

/// Tracked flows, and beside them sockets that programs have connected to an endpoint, which are flows that nobody tracks: those that
/// are stale are deleted, and these are ended.
pub struct FlowsAndSockets {
    flows: Box<dyn Conntrack>,
    endings: Arc<Endings>,
    tell: TellEnded,
}

/// What ends connected sockets of a family, in the network namespace of this process and in those that have a name in a directory.
#[derive(Debug)]
pub struct Endings {
    bpf: Bpf,
    family: IpFamily,
    /// Tells what sockets keep.
    told: OwnedFd,
    namespaces: PathBuf,
}

/// The kernel's function that the program is run for.
const EACH_SOCKET: &str = "bpf_iter_udp";

impl Endings {
    /// Shows that connected sockets can be found and ended, by one of its own. Without that nobody may connect them.
    ///
    /// # Errors
    /// There is no such directory, a privilege is missing, or the kernel can't.
    pub fn proven<F: Family>(bpffs: &Path, namespaces: &Path) -> Result<Self, EndingsError> {
        fs::read_dir(namespaces)
            .map_err(|source| EndingsError::Namespaces { path: namespaces.to_owned(), source })?;
        let bpf = Bpf::default();
        let dir = family_dir(bpffs, F::FAMILY);
        super::require(bpffs, nix::sys::statfs::BPF_FS_MAGIC, "bpf")?;
        fs::create_dir_all(&dir).map_err(refused("make", dir.display()))?;
        let original = open_in_sockets::<F>(&bpf, MapName::Original, &dir.join(ORIGINAL))?;
        let told = load_told::<F>(&bpf, &original)?;
        let endings = Self { bpf, family: F::FAMILY, told, namespaces: namespaces.to_owned() };
        std::thread::scope(|scope| {
            let entered = scope.spawn(|| File::open("/proc/thread-self/ns/net").and_then(|own| enter(&own)));
            entered.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))
        })
        .map_err(EndingsError::Enter)?;
        let canary = Canary::new::<F>(&endings.bpf, &original).map_err(EndingsError::Canary)?;
        // Without addresses of the family there are no sockets either.
        let Some(canary) = canary else { return Ok(endings) };
        endings.end_all(&mut |flow| flow.orig.ends() == (canary.local, canary.wanted))?;
        match canary.socket.take_error() {
            Ok(Some(_)) => Ok(endings),
            _ => Err(EndingsError::Survived),
        }
    }
}

fn load_told<F: Family>(bpf: &Bpf, original: &Map) -> Result<OwnedFd, EndingsError> {
    let types = fs::read("/sys/kernel/btf/vmlinux").map_err(EndingsError::Types)?;
    let function = btf::function(&types, EACH_SOCKET).ok_or(EndingsError::NoIteration)?;
    let (name, lines) = told_program(F::FAMILY);
    let descriptor = |map: &str| match MapName::in_source(map) {
        Some(MapName::Original) => Ok(original.fd().as_raw_fd()),
        _ => Err(FastPathError::NoMaps),
    };
    let mut code = Vec::new();
    for line in lines {
        code.extend(line.instructions(descriptor)?);
    }
    let loaded = bpf.load_program(name, sys::Kind::Iteration(function), &code);
    let (told, _) = loaded.map_err(|(source, log)| FastPathError::Program {
        program: name,
        log: VerifierLog(last_lines(&log)),
        source,
    })?;
    Ok(bpf.create_iteration(told.as_fd()).map_err(refused("attach", name))?)
}

/// Why sockets can't be ended.
#[derive(Debug, thiserror::Error)]
pub enum EndingsError {
    /// There is no such directory.
    #[error("list the network namespaces in {path}")]
    Namespaces {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel does not tell of its types.
    #[error("read the kernel's types")]
    Types(#[source] io::Error),
    /// The kernel runs no programs for sockets of UDP (5.9).
    #[error("the kernel can't tell what sockets keep")]
    NoIteration,
    /// `CAP_SYS_ADMIN` is missing.
    #[error("enter a network namespace")]
    Enter(#[source] io::Error),
    /// What sockets keep can't be had.
    #[error(transparent)]
    Storage(#[from] FastPathError),
    /// No socket could be made for a trial.
    #[error("make a socket for a trial")]
    Canary(#[source] io::Error),
    /// The kernel refused.
    #[error("end a socket for a trial")]
    Refused(#[from] NetlinkError),
    /// The kernel ended nothing.
    #[error("a socket that was ended for a trial goes on")]
    Survived,
}

/// A socket that looks as if a program had connected it.
struct Canary {
    socket: UdpSocket,
    local: SocketAddr,
    wanted: SocketAddr,
}

impl Canary {
    /// `None`: this host has no such addresses.
    fn new<F: Family>(bpf: &Bpf, map: &Map) -> io::Result<Option<Self>> {
        let loopback: &str = match F::FAMILY {
            IpFamily::V4 => "127.0.0.1:0",
            IpFamily::V6 => "[::1]:0",
        };
        let socket = match UdpSocket::bind(loopback) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT)) => {
                return Ok(None);
            }
            other => other?,
        };
        let local = socket.local_addr()?;
        // To itself: nobody else's.
        socket.connect(local)?;
        let wanted = super::canary::nobody(F::FAMILY);
        let value = original(wanted, local);
        bpf.update(map, &socket.as_raw_fd().to_ne_bytes(), &value)?;
        Ok(Some(Self { socket, local, wanted }))
    }
}

impl FlowsAndSockets {
    /// These flows, and the sockets that programs have connected.
    pub fn new(flows: Box<dyn Conntrack>, endings: Arc<Endings>, tell: TellEnded) -> Self {
        Self { flows, endings, tell }
    }
}

impl Conntrack for FlowsAndSockets {
    fn each(&mut self, filter: &Filter, visit: &mut dyn FnMut(&Flow)) -> Result<(), NetlinkError> {
        self.flows.each(filter, visit)
    }

    fn delete(&mut self, filter: &Filter, stale: &mut dyn FnMut(&Flow) -> bool) -> Result<u64, NetlinkError> {
        let deleted = self.flows.delete(filter, stale);
        if filter.protocol != UDP {
            return deleted;
        }
        let ended = self.endings.end_all(&mut |flow| filter.matches(flow) && stale(flow));
        (self.tell)(ended.as_ref().map_or_else(NetlinkError::done, |ended| *ended));
        let deleted = deleted?;
        ended.map_err(|error| error.during("end connected sockets of UDP"))?;
        Ok(deleted)
    }
}

impl Endings {
    /// Ends all that are stale; gives how many.
    fn end_all(&self, stale: &mut dyn FnMut(&Flow) -> bool) -> Result<u64, NetlinkError> {
        let (namespaces, unopened) = self.open_namespaces();
        let (found, all_found) = channel();
        let (to_end, chosen) = channel();
        std::thread::scope(|scope| {
            let walk = Walk { endings: self, found, chosen };
            // A thread of its own, since it stays in the last one.
            let walker = scope.spawn(move || walk.through(&namespaces));
            for sockets in all_found {
                let sockets: Vec<TranslatedSocket> = sockets;
                let stale = sockets.into_iter().filter(|socket| stale(&flow(socket))).collect();
                if to_end.send(stale).is_err() {
                    break;
                }
            }
            let ended = walker.join().unwrap_or(Err(NetlinkError::OutcomeUnknown { why: "a panic" }))?;
            unopened.map_or(Ok(ended), |error| Err(error.besides(ended, ENDED)))
        })
    }

    /// Those that are gone before they are open need nobody; any other failure is told, too.
    fn open_namespaces(&self) -> (Vec<File>, Option<NetlinkError>) {
        let refused = |error: &io::Error| {
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            NetlinkError::refused(
                format!("to open a network namespace in {}", self.namespaces.display()),
                errno,
                None,
            )
        };
        let entries = match fs::read_dir(&self.namespaces) {
            Ok(entries) => entries,
            Err(error) => return (Vec::new(), Some(refused(&error))),
        };
        let (mut opened, mut failure) = (Vec::new(), None);
        for entry in entries.flatten() {
            match File::open(entry.path()) {
                Ok(file) => opened.push(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => failure = failure.or(Some(refused(&error))),
            }
        }
        (opened, failure)
    }
}

/// The socket as a flow whose destination was rewritten.
fn flow(socket: &TranslatedSocket) -> Flow {
    let tuple = |from: SocketAddr, to: SocketAddr| Tuple {
        src: from.ip(),
        dst: to.ip(),
        src_port: from.port(),
        dst_port: to.port(),
    };
    Flow {
        protocol: UDP,
        orig: tuple(socket.local, socket.wanted),
        reply: tuple(socket.endpoint, socket.local),
        id: 0,
        status: status::DST_NAT,
        orig_zone: 0,
        reply_zone: 0,
    }
}

/// A way through network namespaces: what is found in each goes out, and what comes back is ended.
struct Walk<'e> {
    endings: &'e Endings,
    found: Sender<Vec<TranslatedSocket>>,
    chosen: Receiver<Vec<TranslatedSocket>>,
}

impl Walk<'_> {
    /// Begins where the thread is. One namespace that fails keeps none of the others.
    fn through(&self, namespaces: &[File]) -> Result<u64, NetlinkError> {
        let (mut ended, mut failure) = self.end_here();
        for namespace in namespaces {
            match enter(namespace) {
                Ok(()) => {
                    let (more, refusal) = self.end_here();
                    ended += more;
                    failure = failure.or(refusal);
                }
                // Something else has a name there.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                Err(error) => {
                    let errno = error.raw_os_error().unwrap_or(libc::EIO);
                    let refusal = NetlinkError::refused("to enter a network namespace", errno, None);
                    failure = failure.or(Some(refusal));
                }
            }
        }
        failure.map_or(Ok(ended), |error| Err(error.besides(ended, ENDED)))
    }

    fn end_here(&self) -> (u64, Option<NetlinkError>) {
        let mut ended = 0;
        let failure = self.end_into(&mut ended).err();
        (ended, failure)
    }

    /// In the network namespace of the thread.
    fn end_into(&self, ended: &mut u64) -> Result<(), NetlinkError> {
        let Endings { bpf, family, told, .. } = self.endings;
        let told = bpf.iterate(told.as_fd());
        let told =
            told.map_err(|source| NetlinkError::Receive { source }.during("read what sockets keep"))?;
        let told = read_told(*family, &told);
        if told.is_empty() {
            return Ok(());
        }
        let mut netlink = Netlink::open(Protocol::SocketDiag)?;
        // Sockets of IPv6 may be connected to addresses of IPv4.
        let of_v4 = (*family == IpFamily::V4).then_some(IpFamily::V4);
        for family in of_v4.into_iter().chain([IpFamily::V6]) {
            let mut sockets = Vec::new();
            let number = socket_family(family);
            netlink.ask(
                |seq| list_request(number, seq),
                |message| sockets.extend(TranslatedSocket::read(message, &told)),
            )?;
            if sockets.is_empty() || self.found.send(sockets).is_err() {
                continue;
            }
            for socket in self.chosen.recv().unwrap_or_default() {
                match netlink.ask(|seq| socket.destroy_request(seq), |_| ()) {
                    Ok(()) => *ended += 1,
                    // It is closed, or connected to somebody else.
                    Err(error) if matches!(error.refusal(), Some(libc::ENOENT | libc::ESTALE)) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }
}

/// Moves the calling thread.
fn enter(namespace: &File) -> io::Result<()> {
    setns(namespace, CloneFlags::CLONE_NEWNET).map_err(Errno::into)
}
