//! UDP: each client has an endpoint for as long as it sends or is answered.

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustc_hash::FxBuildHasher;
use tokio::net::UdpSocket;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::frame::Protocol;
use crate::pool::{Flow, LivePool};
use crate::table::Traffic;
use crate::worker::{Closing, Shared};

/// Datagrams of one client that may wait; more are dropped.
const WAITING: usize = 64;
/// No datagram is longer.
const DATAGRAM_BYTES: usize = 65_536;

type Clients = Arc<Mutex<HashMap<SocketAddr, mpsc::Sender<Vec<u8>>, FxBuildHasher>>>;

/// Serves a listener until no more flows are expected and all its clients are idle.
pub(crate) async fn serve(shared: Arc<Shared>, listener: UdpSocket, traffic: Traffic, mut closing: Closing) {
    let (listener, clients) = (Arc::new(listener), Clients::default());
    let mut buffer = vec![0; DATAGRAM_BYTES];
    loop {
        let received = tokio::select! {
            received = listener.recv_from(&mut buffer) => received,
            () = all_idle(&clients, &mut closing) => return,
        };
        match received {
            Ok((len, client)) => pass(&shared, &listener, &clients, traffic, client, buffer[..len].to_vec()),
            // An ICMP error about some answer, to a client that is no more.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(error) => warn!(%error, "datagrams can't be received"),
        }
    }
}

/// Ends when no more flows are expected, and there is no client.
async fn all_idle(clients: &Clients, closing: &mut Closing) {
    // If nobody can say it any more, it is so.
    drop(closing.wait_for(|closing| *closing).await);
    while !clients.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
        tokio::time::sleep(LOOK).await;
    }
}

/// How often it is looked whether there are still clients.
const LOOK: Duration = Duration::from_millis(100);

/// Passes a datagram on to its client's task, which begins with the first.
fn pass(
    shared: &Arc<Shared>,
    listener: &Arc<UdpSocket>,
    clients: &Clients,
    traffic: Traffic,
    client: SocketAddr,
    datagram: Vec<u8>,
) {
    let mut known = clients.lock().unwrap_or_else(PoisonError::into_inner);
    let sender = match known.entry(client) {
        Entry::Occupied(entry) => entry.into_mut(),
        Entry::Vacant(entry) => {
            // Without room for another client its datagram is dropped; the client will send it again.
            let Some(room) = shared.try_room() else { return };
            let (sender, received) = mpsc::channel(WAITING);
            let session = Session { shared: shared.clone(), listener: listener.clone(), client, traffic };
            tokio::spawn(session.run(received, clients.clone(), room));
            entry.insert(sender)
        }
    };
    // A client that sends faster than its endpoint takes loses some.
    drop(sender.try_send(datagram));
}

/// One client of a listener.
struct Session {
    shared: Arc<Shared>,
    listener: Arc<UdpSocket>,
    client: SocketAddr,
    traffic: Traffic,
}

impl Session {
    async fn run(self, mut received: mpsc::Receiver<Vec<u8>>, clients: Clients, room: OwnedSemaphorePermit) {
        if let Err(error) = self.carry(&mut received).await {
            debug!(client = %self.client, %error, "datagrams can't be carried");
        }
        clients.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.client);
        drop(room);
    }

    async fn carry(&self, received: &mut mpsc::Receiver<Vec<u8>>) -> io::Result<()> {
        let sent_to = self.shared.control.where_to(self.client, self.listener.local_addr()?).await;
        let pool = sent_to.and_then(|to| self.shared.table.pool(Protocol::Udp, to, self.traffic));
        let Some(pool) = pool else { return Err(io::Error::other("it is not known where they are to go")) };
        while self.carry_to_one(&pool, received).await? == Ended::EndpointGone {}
        Ok(())
    }

    /// Carries datagrams to and from one endpoint.
    async fn carry_to_one(
        &self,
        pool: &Arc<LivePool>,
        received: &mut mpsc::Receiver<Vec<u8>>,
    ) -> io::Result<Ended> {
        let none = |_| io::Error::other("there is no endpoint");
        let flow = pool.pick(self.client.ip(), &[]).map_err(none)?;
        let socket = connect(&flow).await?;
        flow.note_connection(true);
        let times = flow.times(&self.shared.times);
        let idle = times.idle.map_or(self.shared.udp_idle, |idle| idle.min(self.shared.udp_idle));
        let mut ends = Instant::now() + idle;
        let gone = flow.endpoint_gone();
        tokio::pin!(gone);
        loop {
            tokio::select! {
                datagram = received.recv() => match datagram {
                    Some(datagram) => {
                        flow.note_bytes(datagram.len());
                        drop(socket.send(&datagram).await);
                    }
                    None => return Ok(Ended::Idle),
                },
                readable = socket.readable() => {
                    readable?;
                    self.answer(&socket, &flow).await;
                }
                () = &mut gone => return Ok(Ended::EndpointGone),
                () = tokio::time::sleep_until(ends) => return Ok(Ended::Idle),
            }
            ends = Instant::now() + idle;
        }
    }

    /// Passes answers on. What fails is lost, as datagrams may be.
    async fn answer(&self, socket: &UdpSocket, flow: &Flow) {
        while let Some(answer) = receive(socket) {
            flow.note_bytes(answer.len());
            drop(self.listener.send_to(&answer, self.client).await);
        }
    }
}

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; DATAGRAM_BYTES].into());
}

fn receive(socket: &UdpSocket) -> Option<Vec<u8>> {
    BUFFER.with_borrow_mut(|buffer| socket.try_recv(buffer).ok().map(|len| buffer[..len].to_vec()))
}

/// Why an endpoint is no longer a client's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Idle,
    EndpointGone,
}

async fn connect(flow: &Flow) -> io::Result<UdpSocket> {
    let any = match flow.address() {
        SocketAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(flow.address()).await?;
    Ok(socket)
}
