//! IPVS in memory, with failures on demand. It refuses what the kernel refuses: `tests/ipvs_parity.rs` holds it to that.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipvs::{
    Command, Connections, Forwarding, Ipvs, RealServer, RealServerId, Scheduler, ServerId, Statistics,
    Timeouts, VirtualServer,
};
use netlink::NetlinkError;

use crate::kernel::Fault;

const ENOENT: i32 = 2;
const ESRCH: i32 = 3;
const EEXIST: i32 = 17;
const EINVAL: i32 = 22;
const ERANGE: i32 = 34;

/// IPVS in memory. Clones are connections to the same one.
#[derive(Clone, Debug, Default)]
pub struct FakeIpvs {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    servers: BTreeMap<ServerId, Server>,
    timeouts: Timeouts,
    /// Schedulers whose modules are not there.
    missing: Vec<Scheduler>,
    applied: Vec<Command>,
    /// Answers to give instead of doing the next commands; `None`: do this one.
    faults: VecDeque<Option<Fault>>,
    /// How often real servers were asked for.
    readings: usize,
    /// Commands about these virtual servers are refused.
    refusing: BTreeMap<ServerId, i32>,
}

#[derive(Clone, Debug)]
struct Server {
    settings: VirtualServer,
    reals: BTreeMap<RealServerId, (RealServer, Connections)>,
    total: Statistics,
    /// Those of deleted real servers too, which the kernel keeps for a while: one that is made again goes on counting.
    statistics: BTreeMap<RealServerId, Statistics>,
}

/// Virtual servers with their real ones, as they stand.
pub type Servers = BTreeMap<ServerId, (VirtualServer, Vec<RealServer>)>;

impl FakeIpvs {
    /// IPVS without virtual servers, with the time-outs of a fresh kernel.
    pub fn new() -> Self {
        let fake = Self::default();
        fake.state().timeouts = Timeouts { tcp: 900, tcp_fin: 120, udp: 300 };
        fake
    }

    /// What there is.
    pub fn servers(&self) -> Servers {
        let reals = |server: &Server| server.reals.values().map(|(real, _)| *real).collect();
        let state = self.state();
        state.servers.iter().map(|(id, server)| (*id, (server.settings, reals(server)))).collect()
    }

    /// The commands that were done so far.
    pub fn applied(&self) -> Vec<Command> {
        self.state().applied.clone()
    }

    /// How often real servers were asked for.
    pub fn readings(&self) -> usize {
        self.state().readings
    }

    /// The next commands fail so, in order; `None` lets one pass.
    pub fn fail_next(&self, faults: impl IntoIterator<Item = Option<Fault>>) {
        self.state().faults.extend(faults);
    }

    /// Every command about a virtual server is refused with this error from now on; `None`: no more.
    pub fn refuse(&self, id: ServerId, errno: Option<i32>) {
        match errno {
            Some(errno) => self.state().refusing.insert(id, errno),
            None => self.state().refusing.remove(&id),
        };
    }

    /// The scheduler's module is not there.
    pub fn without(&self, scheduler: Scheduler) {
        self.state().missing.push(scheduler);
    }

    /// Gives a real server connections.
    pub fn connect(&self, id: ServerId, real: RealServerId, connections: Connections) {
        if let Some(server) = self.state().servers.get_mut(&id)
            && let Some((_, found)) = server.reals.get_mut(&real)
        {
            *found = connections;
        }
    }

    /// So much more went through a real server.
    pub fn carry(&self, id: ServerId, real: RealServerId, more: Statistics) {
        if let Some(server) = self.state().servers.get_mut(&id) {
            for counters in [&mut server.total, server.statistics.entry(real).or_default()] {
                *counters = plus(*counters, more);
            }
        }
    }

    /// The kernel forgets deleted real servers.
    pub fn empty_trash(&self) {
        for server in self.state().servers.values_mut() {
            let reals = &server.reals;
            server.statistics.retain(|real, _| reals.contains_key(real));
        }
    }

    /// Does something behind everybody's back.
    ///
    /// # Errors
    /// The number of the error with which the kernel refuses it.
    pub fn tamper(&self, command: Command) -> Result<(), i32> {
        self.state().run(&command)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ipvs for FakeIpvs {
    fn apply(&mut self, commands: &[Command]) -> Vec<Result<(), NetlinkError>> {
        commands.iter().map(|command| self.state().answer(command)).collect()
    }

    fn virtual_servers(&mut self) -> Result<Vec<VirtualServer>, NetlinkError> {
        Ok(self.state().servers.values().map(|server| server.settings).collect())
    }

    fn real_servers(&mut self, id: &ServerId) -> Result<Vec<(RealServer, Connections)>, NetlinkError> {
        let mut state = self.state();
        state.readings += 1;
        Ok(state.servers.get(id).map(|server| server.reals.values().copied().collect()).unwrap_or_default())
    }

    fn virtual_statistics(&mut self) -> Result<Vec<(ServerId, Statistics)>, NetlinkError> {
        Ok(self.state().servers.iter().map(|(id, server)| (*id, server.total)).collect())
    }

    fn real_statistics(&mut self, id: &ServerId) -> Result<Vec<(RealServerId, Statistics)>, NetlinkError> {
        let mut state = self.state();
        state.readings += 1;
        let of_server = |server: &Server| {
            let said = |real| server.statistics.get(real).copied().unwrap_or_default();
            server.reals.keys().map(|real| (*real, said(real))).collect()
        };
        Ok(state.servers.get(id).map(of_server).unwrap_or_default())
    }

    fn timeouts(&mut self) -> Result<Timeouts, NetlinkError> {
        Ok(self.state().timeouts)
    }
}

fn plus(a: Statistics, b: Statistics) -> Statistics {
    Statistics {
        connections: a.connections + b.connections,
        packets_in: a.packets_in + b.packets_in,
        packets_out: a.packets_out + b.packets_out,
        bytes_in: a.bytes_in + b.bytes_in,
        bytes_out: a.bytes_out + b.bytes_out,
    }
}

fn subject(command: &Command) -> Option<ServerId> {
    match command {
        Command::NewVirtual(server) | Command::SetVirtual(server) => Some(server.id),
        Command::DeleteVirtual(id)
        | Command::NewReal(id, _)
        | Command::SetReal(id, _)
        | Command::DeleteReal(id, _) => Some(*id),
        Command::SetTimeouts(_) => None,
    }
}

impl State {
    fn answer(&mut self, command: &Command) -> Result<(), NetlinkError> {
        let refused = |errno| NetlinkError::refused(format!("to {command}"), errno, None);
        let fault = self.faults.pop_front().flatten();
        if let Some(errno) = subject(command).and_then(|id| self.refusing.get(&id)) {
            return Err(refused(*errno));
        }
        match fault {
            Some(Fault::Errno(errno)) => return Err(refused(errno)),
            Some(Fault::Panic) => panic_on_request(),
            Some(Fault::AnswerLost) | None => {}
        }
        let done = self.run(command).map_err(refused);
        if done.is_ok() {
            self.applied.push(*command);
        }
        match fault {
            Some(_) => Err(NetlinkError::OutcomeUnknown { why: "staged" }),
            None => done,
        }
    }

    fn run(&mut self, command: &Command) -> Result<(), i32> {
        match command {
            Command::NewVirtual(server) if self.servers.contains_key(&server.id) => Err(EEXIST),
            Command::NewVirtual(server) => {
                self.check(server)?;
                let made = Server {
                    settings: *server,
                    reals: BTreeMap::new(),
                    total: Statistics::default(),
                    statistics: BTreeMap::new(),
                };
                self.servers.insert(server.id, made);
                Ok(())
            }
            Command::SetVirtual(server) => {
                if !self.servers.contains_key(&server.id) {
                    return Err(ESRCH);
                }
                self.check(server)?;
                self.server(&server.id)?.settings = *server;
                Ok(())
            }
            Command::DeleteVirtual(id) => self.servers.remove(id).map(drop).ok_or(ESRCH),
            Command::NewReal(id, real) => new_real(self.server(id)?, real),
            Command::SetReal(id, real) => {
                let server = self.server(id)?;
                check_real(&server.settings, real)?;
                server.reals.get_mut(&real.id).ok_or(ENOENT)?.0 = *real;
                Ok(())
            }
            Command::DeleteReal(id, real) => self.server(id)?.reals.remove(real).map(drop).ok_or(ENOENT),
            Command::SetTimeouts(timeouts) => self.set_timeouts(timeouts),
        }
    }

    fn server(&mut self, id: &ServerId) -> Result<&mut Server, i32> {
        self.servers.get_mut(id).ok_or(ESRCH)
    }

    fn check(&self, server: &VirtualServer) -> Result<(), i32> {
        let is_known =
            Scheduler::ALL.contains(&server.scheduler) && !self.missing.contains(&server.scheduler);
        if is_known { Ok(()) } else { Err(ENOENT) }
    }

    /// Zero keeps what there is.
    fn set_timeouts(&mut self, timeouts: &Timeouts) -> Result<(), i32> {
        /// `MAX_TCP_TIMEOUT` and the like: seconds whose jiffies still fit.
        const LONGEST: u32 = i32::MAX.cast_unsigned() / 250;
        let Timeouts { tcp, tcp_fin, udp } = *timeouts;
        if [tcp, tcp_fin, udp].into_iter().any(|seconds| seconds > LONGEST) {
            return Err(EINVAL);
        }
        let held = &mut self.timeouts;
        for (held, wanted) in [(&mut held.tcp, tcp), (&mut held.tcp_fin, tcp_fin), (&mut held.udp, udp)] {
            *held = if wanted == 0 { *held } else { wanted };
        }
        Ok(())
    }
}

fn new_real(server: &mut Server, real: &RealServer) -> Result<(), i32> {
    check_real(&server.settings, real)?;
    if server.reals.contains_key(&real.id) {
        return Err(EEXIST);
    }
    server.reals.insert(real.id, (*real, Connections::default()));
    Ok(())
}

/// Addresses can't be translated from one family to the other, and weights are signed.
fn check_real(server: &VirtualServer, real: &RealServer) -> Result<(), i32> {
    if server.id.address.is_ipv4() != real.id.address.is_ipv4() && real.forwarding == Forwarding::Masquerade {
        return Err(EINVAL);
    }
    if i32::try_from(real.weight).is_err() { Err(ERANGE) } else { Ok(()) }
}

#[expect(clippy::panic, reason = "to see that its callers survive one")]
fn panic_on_request() -> ! {
    panic!("staged")
}
