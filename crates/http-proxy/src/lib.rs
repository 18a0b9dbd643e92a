//! HTTP by request: a client's connection is served here, and each of its requests goes to an endpoint of its own.
//!
//! A request goes on in the version of HTTP in which it came, and with the headers that it came with, except those that are meant
//! for one connection: an endpoint sees what it would see if nobody were in between. Which endpoint gets it, a [`Pool`] says;
//! connections to endpoints are kept and shared by an [`Upstream`].
//!
//! - [`serve()`] has a client's connection, with its limits.
//! - `forward` has one request: which endpoint is tried, and what is tried again (`retry`).
//! - `upstream` has the connections to endpoints.
//! - What is decided without I/O is in `retry`, `headers`, `answer` and `trace`.
#![forbid(unsafe_code)]

mod answer;
mod check;
mod client_io;
mod forward;
mod gauge;
mod headers;
mod request_body;
mod requests;
mod response_body;
mod retry;
mod serve;
mod times;
mod trace;
mod tunnel;
mod upstream;
mod waiting;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode, Version};

pub use check::{CheckError, check};
pub use forward::Client;
pub use gauge::{Gauge, Held};
pub use serve::serve;
pub use times::{Times, idle_for};
pub use trace::{Outcome, Recorder, SpanId, Trace, TraceId, Try};
pub use upstream::{Settings, Sockets, Upstream, tune};

/// What a client connected to.
pub trait Frontend: Send + Sync + 'static {
    /// Its endpoints.
    type Pool: Pool;

    /// Where its requests go now; `None` if nobody serves them any more. It is asked for each request.
    fn pool(&self) -> Option<Self::Pool>;

    /// For how long a connection lasts without a request, and a tunnel without bytes; `None`: as long as it may. It is asked for once.
    fn idle_limit(&self) -> Option<Duration> {
        None
    }

    /// A request is answered, by an endpoint or in its place. One that its client gave up before is not.
    fn answered(&self, answer: &Answer) {
        let _ = answer;
    }

    /// Whether the answer to the next request is to tell what was asked.
    fn wants_question(&self) -> bool {
        false
    }

    /// The client's connection is idle: what it took for requests is free again.
    fn idles(&self) {}

    /// Of a million traces that begin with a request here, how many are recorded; those of others go on as these want. `None`: nothing
    /// is recorded.
    fn sampling(&self) -> Option<u32> {
        None
    }

    /// Who gets what is recorded of a request, once that is over.
    fn recorder(&self) -> Recorder {
        Box::new(drop)
    }
}

/// The beginning of an answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// How long it took to begin.
    pub took: Duration,
    /// Who gave it; `None`: no endpoint did.
    pub endpoint: Option<SocketAddr>,
    /// How often the request was sent again.
    pub retries: u32,
    /// What was asked, if that is wanted.
    pub question: Option<Question>,
}

/// What was asked. A query is left out, since it may be nobody else's business.
#[derive(Clone, Debug, Default)]
pub struct Question {
    /// The method.
    pub method: Method,
    /// The path; of `CONNECT` nothing.
    pub path: String,
    /// Where the request was made to, as the client calls it.
    pub host: Option<String>,
    /// The version of HTTP.
    pub version: Version,
}

/// Endpoints of a Service port.
pub trait Pool: Send + Sync + 'static {
    /// What an endpoint has to do for one request.
    type Turn: Turn;

    /// An endpoint for a client's request, none of those to avoid.
    ///
    /// # Errors
    /// There is none.
    fn pick(&self, client: IpAddr, avoid: &[SocketAddr]) -> Result<Self::Turn, NoTurn>;

    /// A request is answered without an endpoint, since there is none, or since too much is under way.
    fn refused(&self) {}

    /// Connections to these endpoints.
    fn upstream(&self) -> &Upstream;

    /// What each connection to an endpoint begins with, if that is said of the client: then no other client has a part in it.
    fn preface(&self) -> Option<Arc<[u8]>> {
        None
    }
}

/// Why there is no endpoint for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoTurn {
    /// There is none that is not to be avoided.
    NoEndpoint,
    /// All have as many requests as they may have.
    Full,
}

/// A request at an endpoint: it counts there until this is dropped.
pub trait Turn: Send + 'static {
    /// The endpoint.
    fn address(&self) -> SocketAddr;

    /// It answered; `is_failure`: that it failed, by a status of 500 or more, or gRPC's `UNAVAILABLE`.
    fn answered(&self, is_failure: bool) {
        let _ = is_failure;
    }

    /// It did not, and the request may go to another one.
    fn failed(&self) {}
}
