//! TCP: accepts a connection, finds out what it was made to, connects to an endpoint, and carries bytes.

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustc_hash::FxBuildHasher;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tracing::{debug, warn};

use crate::frame::Protocol;
use crate::relay::relay;
use crate::table::{Flow, LivePool, Traffic};
use crate::worker::Shared;

/// Endpoints that are tried for one connection.
const MAX_ATTEMPTS: usize = 5;
/// How long a connection is idle before it is asked whether the other side is still there.
const KEEPALIVE: Duration = Duration::from_mins(2);
/// The pause after the system had no room for a connection.
const NO_ROOM_PAUSE: Duration = Duration::from_millis(20);

/// Local ends of this worker's own connections. Rules may lead one to a listener of ours, if an endpoint is itself an address of a
/// Service on this node; that would go round for ever.
#[derive(Debug, Default)]
pub(crate) struct OwnConnections(Mutex<HashSet<SocketAddr, FxBuildHasher>>);

impl OwnConnections {
    fn contains(&self, end: SocketAddr) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&end)
    }

    fn note(&self, end: SocketAddr) -> OwnConnection<'_> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(end);
        OwnConnection(self, end)
    }
}

struct OwnConnection<'o>(&'o OwnConnections, SocketAddr);

impl Drop for OwnConnection<'_> {
    fn drop(&mut self) {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.1);
    }
}

/// Serves a listener for as long as it is asked for.
pub(crate) async fn serve(shared: Arc<Shared>, listener: TcpListener, traffic: Traffic) {
    loop {
        let room = shared.room().await;
        match listener.accept().await {
            Ok((client, peer)) => {
                let shared = shared.clone();
                tokio::spawn(async move {
                    carry(&shared, client, peer, traffic).await;
                    drop(room);
                });
            }
            Err(error) if is_of_one(&error) => {}
            Err(error) => {
                warn!(%error, "connections can't be accepted");
                tokio::time::sleep(NO_ROOM_PAUSE).await;
            }
        }
    }
}

/// The error is that of one connection, which has gone already.
fn is_of_one(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}

async fn carry(shared: &Shared, client: TcpStream, peer: SocketAddr, traffic: Traffic) {
    if shared.own.contains(peer) {
        debug!(%peer, "an endpoint is an address that leads back here");
        return reset(&[&client]);
    }
    let sent_to = original_destination(&client);
    let pool = sent_to.ok().and_then(|sent_to| shared.table.pool(Protocol::Tcp, sent_to, traffic));
    let Some(pool) = pool else { return reset(&[&client]) };
    let Some((endpoint, flow)) = connect(shared, &pool, peer).await else { return reset(&[&client]) };
    for stream in [&client, &endpoint] {
        // A connection works without either.
        drop(stream.set_nodelay(true));
        drop(SockRef::from(stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE)));
    }
    let own = endpoint.local_addr().ok().map(|end| shared.own.note(end));
    let drained = async {
        flow.endpoint_gone().await;
        tokio::time::sleep(shared.drain).await;
    };
    let carried = tokio::select! {
        carried = relay(&client, &endpoint) => carried,
        () = drained => Err(io::Error::other("the endpoint is gone, and its time is over")),
    };
    drop(own);
    if let Err(error) = carried {
        debug!(%peer, endpoint = %flow.address(), %error, "a connection broke");
        reset(&[&client, &endpoint]);
    }
}

/// What the client sent to, before the kernel translated it.
fn original_destination(client: &TcpStream) -> io::Result<SocketAddr> {
    let socket = SockRef::from(client);
    let found = if client.local_addr()?.is_ipv4() {
        socket.original_dst_v4()
    } else {
        socket.original_dst_v6()
    };
    found?.as_socket().ok_or_else(|| io::Error::other("no address of a known family"))
}

/// A connection to an endpoint: the first that answers, of those that are chosen one after the other.
async fn connect(shared: &Shared, pool: &LivePool, client: SocketAddr) -> Option<(TcpStream, Flow)> {
    let mut tried = Vec::new();
    while tried.len() < MAX_ATTEMPTS {
        let flow = pool.pick(client.ip(), &tried)?;
        let address = flow.address();
        match tokio::time::timeout(shared.connect_timeout, TcpStream::connect(address)).await {
            Ok(Ok(endpoint)) => return Some((endpoint, flow)),
            Ok(Err(error)) => debug!(%client, endpoint = %address, %error, "an endpoint can't be reached"),
            Err(_elapsed) => debug!(%client, endpoint = %address, "an endpoint does not answer"),
        }
        tried.push(address);
    }
    None
}

/// Has them closed in a way that tells the other side that something went wrong.
fn reset(streams: &[&TcpStream]) {
    for stream in streams {
        // It is closed in any case.
        drop(SockRef::from(*stream).set_linger(Some(Duration::ZERO)));
    }
}
