//! IPVS of the network namespace in which the socket was opened.

use std::net::{IpAddr, Ipv4Addr};

use ipvs::{
    Command, Connections, Flags, Ipvs, Reader, RealServer, Scheduler, ServerId, Timeouts, VirtualServer,
    family, request_family, request_real_servers, request_timeouts, request_virtual_servers,
};
use netlink::NetlinkError;

use crate::netlink::{Netlink, Protocol};

const ENOENT: i32 = 2;
/// Commands that are sent in one go: some 200 KiB.
const AT_ONCE: usize = 1000;
/// How often virtual servers are read that change meanwhile.
const READ_ATTEMPTS: u32 = 10;

/// IPVS over generic netlink.
#[derive(Debug)]
pub struct KernelIpvs {
    netlink: Netlink,
    reader: Reader,
}

impl KernelIpvs {
    /// Opens a socket. The kernel loads its module `ip_vs` by this, if it can.
    ///
    /// # Errors
    /// [`NetlinkError::Missing`] if there is no IPVS.
    pub fn open() -> Result<Self, NetlinkError> {
        let mut netlink = Netlink::open(Protocol::Generic).map_err(failed("open a socket for IPVS"))?;
        let mut number = None;
        match netlink.ask(request_family, |message| number = family(message).or(number)) {
            Err(error) if error.refusal() == Some(ENOENT) => return Err(no_ipvs()),
            other => other.map_err(failed("look for IPVS"))?,
        }
        let family = number.ok_or_else(no_ipvs)?;
        Ok(Self { netlink, reader: Reader { family } })
    }

    fn apply_at_once(&mut self, commands: &[Command], results: &mut Vec<Result<(), NetlinkError>>) {
        let family = self.reader.family;
        let begin = results.len();
        let sent = self.netlink.send_each(commands.len(), |out, position, seq, flags| {
            commands[position].encode(out, family, seq, flags);
        });
        match sent {
            Ok(refusals) => {
                results.extend(commands.iter().map(|_| Ok(())));
                for (position, refusal) in refusals {
                    let command = commands[position].to_string();
                    results[begin + position] = Err(refusal.of(command));
                }
            }
            Err(error) => {
                results.push(Err(failed("change virtual servers")(error)));
                let unknown =
                    || NetlinkError::OutcomeUnknown { why: "sent together with one that was not answered" };
                results.extend(commands.iter().skip(1).map(|_| Err(unknown())));
            }
        }
    }
}

fn failed(action: &'static str) -> impl FnOnce(NetlinkError) -> NetlinkError {
    move |error| match error {
        NetlinkError::Interrupted => NetlinkError::Interrupted,
        error => error.during(action),
    }
}

fn no_ipvs() -> NetlinkError {
    let what = "the kernel has no IPVS: its module ip_vs is not loaded, and could not be";
    NetlinkError::Missing { what: what.to_owned() }
}

impl Ipvs for KernelIpvs {
    fn apply(&mut self, commands: &[Command]) -> Vec<Result<(), NetlinkError>> {
        let mut results = Vec::with_capacity(commands.len());
        for commands in commands.chunks(AT_ONCE) {
            self.apply_at_once(commands, &mut results);
        }
        results
    }

    fn virtual_servers(&mut self) -> Result<Vec<VirtualServer>, NetlinkError> {
        let Reader { family } = self.reader;
        let mut attempt = 1;
        loop {
            let mut servers = Vec::new();
            let request = |seq| request_virtual_servers(family, seq);
            let asked =
                self.netlink.ask(request, |message| servers.extend(self.reader.virtual_server(message)));
            match asked {
                Ok(()) => return Ok(servers),
                Err(NetlinkError::Interrupted) if attempt < READ_ATTEMPTS => attempt += 1,
                Err(error) => return Err(failed("read virtual servers")(error)),
            }
        }
    }

    fn real_servers(&mut self, id: &ServerId) -> Result<Vec<(RealServer, Connections)>, NetlinkError> {
        let Reader { family } = self.reader;
        let mut servers = Vec::new();
        let request = |seq| request_real_servers(family, id, seq);
        let asked = self.netlink.ask(request, |message| servers.extend(self.reader.real_server(id, message)));
        asked.map_err(failed("read real servers"))?;
        Ok(servers)
    }

    fn timeouts(&mut self) -> Result<Timeouts, NetlinkError> {
        let Reader { family } = self.reader;
        let mut timeouts = None;
        let request = |seq| request_timeouts(family, seq);
        let asked =
            self.netlink.ask(request, |message| timeouts = self.reader.timeouts(message).or(timeouts));
        asked.map_err(failed("read time-outs"))?;
        timeouts.ok_or(NetlinkError::OutcomeUnknown { why: "time-outs were asked for and not told" })
    }
}

/// A scheduler that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum SchedulerError {
    /// The kernel has none of this name, or can't load its module.
    #[error(
        "the kernel has no scheduler {scheduler} for IPVS: its module ip_vs_{scheduler} is not loaded, and could not be; \
         it has {}", names(.usable)
    )]
    Unknown {
        /// The one that is wanted.
        scheduler: Scheduler,
        /// Those that could be used instead.
        usable: Vec<Scheduler>,
    },
    /// It could not be tried.
    #[error("try scheduler {scheduler} for IPVS")]
    NotTried {
        /// The one that is wanted.
        scheduler: Scheduler,
        /// Why not.
        #[source]
        source: NetlinkError,
    },
}

fn names(schedulers: &[Scheduler]) -> String {
    if schedulers.is_empty() {
        return "none".to_owned();
    }
    schedulers.iter().map(Scheduler::as_str).collect::<Vec<_>>().join(", ")
}

/// Where schedulers are tried: an address for documentation (RFC 5737), as upstream does it.
const TRIAL: ServerId =
    ServerId { address: IpAddr::V4(Ipv4Addr::new(198, 51, 100, 0)), protocol: 6, port: 20_000 };

/// Makes sure that a scheduler can be used, with a virtual server that is gone afterwards. The kernel loads the scheduler's
/// module by this, if it can.
///
/// # Errors
/// It can't; names those that can.
pub fn check_scheduler(ipvs: &mut dyn Ipvs, scheduler: Scheduler) -> Result<(), SchedulerError> {
    let not_tried = |source| SchedulerError::NotTried { scheduler, source };
    if has_scheduler(ipvs, scheduler).map_err(not_tried)? {
        return Ok(());
    }
    let others = Scheduler::ALL.into_iter().filter(|other| *other != scheduler);
    let usable = others.filter(|other| has_scheduler(ipvs, *other).unwrap_or(false)).collect();
    Err(SchedulerError::Unknown { scheduler, usable })
}

fn has_scheduler(ipvs: &mut dyn Ipvs, scheduler: Scheduler) -> Result<bool, NetlinkError> {
    let trial = VirtualServer { id: TRIAL, scheduler, flags: Flags::OWN, persistence: None };
    // One that an earlier process left when it was killed here would make the trial say nothing.
    let commands = [Command::DeleteVirtual(TRIAL), Command::NewVirtual(trial), Command::DeleteVirtual(TRIAL)];
    let made = ipvs.apply(&commands).into_iter().nth(1);
    match made.unwrap_or(Err(NetlinkError::OutcomeUnknown { why: "a command was not answered" })) {
        Ok(()) => Ok(true),
        Err(error) if error.errno() == Some(ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}
