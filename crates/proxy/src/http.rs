//! Connections whose requests are carried, each to an endpoint of its own.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http_proxy::{Answer, Client, NoTurn, Recorder, Upstream};
use tokio::net::TcpStream;

use crate::frame::Protocol;
use crate::pool::{Flow, LivePool};
use crate::proxy_header;
use crate::table::Traffic;
use crate::trace;
use crate::worker::Shared;

/// Carries the requests of a client's connection.
pub(crate) async fn carry(shared: &Arc<Shared>, stream: TcpStream, client: Client, traffic: Traffic) {
    let way = Way { shared: shared.clone(), client, traffic };
    http_proxy::serve(stream, client, way, shared.closing.subscribe()).await;
}

/// What a client connected to.
struct Way {
    shared: Arc<Shared>,
    client: Client,
    traffic: Traffic,
}

/// Where its requests go now.
struct Requests {
    pool: Arc<LivePool>,
    upstream: Arc<Upstream>,
    /// What each of the client's connections to endpoints begins with.
    preface: Option<Arc<[u8]>>,
}

impl http_proxy::Frontend for Way {
    type Pool = Requests;

    fn pool(&self) -> Option<Requests> {
        let pool = self.shared.table.pool(Protocol::Tcp, self.client.sent_to, self.traffic)?;
        let upstream = pool.is_by_request().then(|| pool.upstream(&self.shared.upstream))?;
        let Client { address, sent_to } = self.client;
        let header = |version| proxy_header::of_client(version, address, sent_to).into();
        let preface = pool.proxy_protocol().map(header);
        Some(Requests { pool, upstream, preface })
    }

    fn idle_limit(&self) -> Option<Duration> {
        let pool = self.shared.table.pool(Protocol::Tcp, self.client.sent_to, self.traffic)?;
        pool.times(&self.shared.times).idle
    }

    fn answered(&self, answer: &Answer) {
        if let Some(pool) = self.shared.table.pool(Protocol::Tcp, self.client.sent_to, self.traffic) {
            pool.note_answer(answer.status.as_u16(), answer.took, answer.retries);
            self.shared.access_log.request(pool.service(), self.client, answer);
        }
    }

    fn wants_question(&self) -> bool {
        self.shared.access_log.draws()
    }

    fn idles(&self) {
        self.shared.n_idled.fetch_add(1, Ordering::Relaxed);
    }

    fn sampling(&self) -> Option<u32> {
        self.shared.traces_per_million
    }

    fn recorder(&self) -> Recorder {
        match self.shared.table.pool(Protocol::Tcp, self.client.sent_to, self.traffic) {
            Some(pool) => trace::recorder(&self.shared.control, pool.name(), self.client),
            // It is nobody's.
            None => Box::new(drop),
        }
    }
}

impl http_proxy::Pool for Requests {
    type Turn = Flow;

    fn pick(&self, client: IpAddr, avoid: &[SocketAddr]) -> Result<Flow, NoTurn> {
        self.pool.pick(client, avoid)
    }

    fn refused(&self) {
        self.pool.note_refusal();
    }

    fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    fn preface(&self) -> Option<Arc<[u8]>> {
        self.preface.clone()
    }
}

impl http_proxy::Turn for Flow {
    fn address(&self) -> SocketAddr {
        self.address()
    }

    fn answered(&self, is_failure: bool) {
        self.note_connection(!is_failure);
    }

    fn failed(&self) {
        self.note_retry();
    }
}
