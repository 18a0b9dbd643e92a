//! What agent and worker say to each other: frames of JSON, each behind its length.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use balance::{Policy, Resilience};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// What an agent tells a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToWorker {
    /// Comes first, and once.
    Settings(Settings),
    /// Other routes.
    Routes(Routes),
    /// The answer to [`ToAgent::WhereTo`].
    To {
        /// The question's number.
        id: u64,
        /// Where the flow was sent to; `None`: nobody knows.
        destination: Option<SocketAddr>,
    },
    /// No flows come any more: what waits is served, then the worker ends with its last connection.
    Drain,
}

/// How a worker works.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// For how long a connection to an endpoint is tried, before another endpoint is.
    pub connect_timeout_ms: u64,
    /// For how long a client of UDP has its endpoint after its last datagram. Shorter than the kernel remembers the flow, so that
    /// a flow that is new to the kernel is new to the worker.
    pub udp_idle_ms: u64,
    /// For how long connections to an endpoint that is gone may go on, and those of a worker that is to end.
    pub drain_ms: u64,
    /// For how long a connection lasts while nothing is carried; `None`: for ever.
    #[serde(default)]
    pub idle_ms: Option<u64>,
    /// For how long a request waits for its answer to begin; `None`: for ever.
    #[serde(default)]
    pub request_ms: Option<u64>,
    /// For how long flows may come after the last word from an agent: a lease, and a little more.
    pub linger_ms: u64,
    /// How endpoints are chosen.
    pub policy: Policy,
    /// Connections and UDP clients at a time; `None`: as many as there may be open files.
    pub max_flows: Option<usize>,
    /// Of a million requests and connections, how many have a line in the access log.
    #[serde(default)]
    pub access_log_per_million: u32,
    /// Of a million traces that begin with a request here, how many are recorded; those of others as these want. `None`: nothing is.
    #[serde(default)]
    pub traces_per_million: Option<u32>,
}

/// Routes that are new, other ones or gone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Routes {
    /// To be named when they are in force.
    pub generation: u64,
    /// These are all; others are forgotten.
    pub replace: bool,
    /// In force from now on.
    pub set: Vec<Route>,
    /// No longer.
    pub gone: Vec<Frontend>,
}

/// Where flows to one frontend go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// What flows were sent to.
    pub frontend: Frontend,
    /// The endpoints for flows from anywhere.
    pub any: Pool,
    /// The endpoints for internal flows, where these take a short cut.
    pub internal: Option<Pool>,
    /// How its endpoints are chosen, if not as [`Settings`] say.
    #[serde(default)]
    pub policy: Option<Policy>,
}

/// What a flow was sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Frontend {
    /// An address; `None`: any of the node's, by node port.
    pub address: Option<IpAddr>,
    /// The protocol.
    pub protocol: Protocol,
    /// The port, in host byte order.
    pub port: u16,
}

/// A protocol that workers know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
}

/// Endpoints of a Service port. Frontends with pools of the same name share its turns, its clients and its connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// Service, port, protocol and traffic policy.
    pub name: String,
    /// One or more.
    pub endpoints: Vec<SocketAddr>,
    /// The weight of each, for [`Policy::Weighted`]; empty: all have 1.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub weights: Vec<u32>,
    /// `ClientIP` affinity: for how long, in seconds.
    pub affinity_secs: Option<u64>,
    /// What goes there is HTTP, and each request may go to another endpoint.
    #[serde(default)]
    pub by_request: bool,
    /// What its Service asks for besides a policy.
    #[serde(default, skip_serializing_if = "Resilience::is_none")]
    pub resilience: Resilience,
}

/// What a worker tells an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToAgent {
    /// New flows go by these routes.
    InForce {
        /// [`Routes::generation`]
        generation: u64,
    },
    /// Where a UDP flow was sent to, before the kernel translated it.
    WhereTo {
        /// For the answer.
        id: u64,
        /// Whose flow, as it arrives.
        client: SocketAddr,
        /// Where it arrives.
        listener: SocketAddr,
    },
    /// Whether it has as many flows as it can have.
    Full(bool),
    /// What went through, in addition to what it has told.
    Counted(Count),
    /// An endpoint gets nothing for now, or does again.
    Availability(Availability),
    /// Requests that were answered, in addition to those that it has told.
    Requests(RequestCount),
    /// A request that is recorded is over.
    Traced(Box<RequestTrace>),
    /// So many more requests that are recorded were not told, since there was no room.
    TracesLost(u64),
}

/// What is recorded of a request. Numbers are those of OpenTelemetry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestTrace {
    /// [`Pool::name`]
    pub pool: String,
    /// The trace's number, both halves.
    pub trace: (u64, u64),
    /// The number of the request's span.
    pub span: u64,
    /// The span that it is a part of; `None`: the trace begins with it.
    pub parent: Option<u64>,
    /// When it came, in microseconds since 1970.
    pub began_us: u64,
    /// How long it took to the end of its answer.
    pub took_us: u64,
    /// Who asked.
    pub client: SocketAddr,
    /// What it was sent to.
    pub sent_to: SocketAddr,
    /// Its method.
    pub method: String,
    /// Its path, without a query.
    pub path: String,
    /// What it calls the server.
    pub host: Option<String>,
    /// The version of HTTP, such as `HTTP/1.1`.
    pub version: String,
    /// The status of the answer; `None`: the client did not wait for it.
    pub status: Option<u16>,
    /// Of gRPC the status of the call.
    pub grpc_status: Option<u32>,
    /// What was sent to endpoints, in this order.
    pub tries: Vec<TraceTry>,
}

/// A request that was sent to an endpoint: a span below the request's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceTry {
    /// Its number.
    pub span: u64,
    /// Where.
    pub endpoint: SocketAddr,
    /// When, after the request came.
    pub after_us: u64,
    /// How long it took to the end of the answer.
    pub took_us: u64,
    /// The status of the answer, if there is one.
    pub status: Option<u16>,
    /// Why there is none, in a word.
    pub failure: Option<String>,
}

/// Requests of a pool that were answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestCount {
    /// [`Pool::name`]
    pub pool: String,
    /// How many, and how.
    pub counts: RequestCounts,
}

/// See [`RequestCount`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestCounts {
    /// By the first digit of their status, from 1 on.
    pub by_class: [u64; 5],
    /// By how long the answer took to begin, each at the first of [`ANSWER_BOUNDS_MS`] that holds it; the last ones took longer.
    pub by_time: [u64; ANSWER_BOUNDS_MS.len() + 1],
    /// How long all of the answers took to begin, in microseconds.
    pub micros: u64,
    /// Requests that were sent again.
    pub retries: u64,
}

/// In milliseconds.
pub const ANSWER_BOUNDS_MS: [u64; 12] = [1, 3, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 10_000];

impl RequestCounts {
    /// Counts an answer.
    pub fn note(&mut self, status: u16, took: Duration, retries: u32) {
        let class = usize::from((status / 100).clamp(1, 5)) - 1;
        self.by_class[class] = self.by_class[class].saturating_add(1);
        let bound = ANSWER_BOUNDS_MS.iter().position(|bound| took <= Duration::from_millis(*bound));
        let place = &mut self.by_time[bound.unwrap_or(ANSWER_BOUNDS_MS.len())];
        *place = place.saturating_add(1);
        self.micros = self.micros.saturating_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        self.retries = self.retries.saturating_add(u64::from(retries));
    }

    /// Both together.
    #[must_use]
    pub fn plus(mut self, other: &Self) -> Self {
        let add = |into: &mut [u64], more: &[u64]| {
            into.iter_mut().zip(more).for_each(|(into, more)| *into = into.saturating_add(*more));
        };
        add(&mut self.by_class, &other.by_class);
        add(&mut self.by_time, &other.by_time);
        self.micros = self.micros.saturating_add(other.micros);
        self.retries = self.retries.saturating_add(other.retries);
        self
    }
}

/// Whether an endpoint of a pool gets anything, as far as one thing is concerned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Availability {
    /// [`Pool::name`]
    pub pool: String,
    /// The endpoint.
    pub endpoint: SocketAddr,
    /// What decides.
    pub by: OutBy,
    /// `None`: it does.
    pub out: Option<Out>,
}

/// What has an endpoint get nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum OutBy {
    /// What it was given failed.
    Ejection,
    /// Its health check fails.
    HealthCheck,
}

/// An endpoint gets nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Out {
    /// Why, in a few words.
    pub why: String,
    /// For how long; `None`: until something else is told.
    pub lasting_ms: Option<u64>,
}

/// What went to an endpoint of a pool, or to none of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// [`Pool::name`]
    pub pool: String,
    /// `None`: what found no endpoint.
    pub endpoint: Option<SocketAddr>,
    /// How much.
    pub counts: Counts,
}

/// See [`Count`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Flows that the endpoint took.
    pub connections: u64,
    /// Connections that no endpoint took.
    pub refused: u64,
    /// Times that the endpoint did not take a connection, so that another one was tried.
    pub retries: u64,
    /// Bytes that were carried, both ways. Those of a flow are told now and then, and at its end.
    pub bytes: u64,
}

impl Counts {
    /// Both together.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            connections: self.connections.saturating_add(other.connections),
            refused: self.refused.saturating_add(other.refused),
            retries: self.retries.saturating_add(other.retries),
            bytes: self.bytes.saturating_add(other.bytes),
        }
    }
}

/// The other side does not keep to this.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// A frame is longer than any can be.
    #[error("a frame of {len} bytes, of {limit} at most")]
    TooLong {
        /// The length that it says.
        len: usize,
        /// The limit.
        limit: usize,
    },
    /// A frame is not what it should be.
    #[error("a frame that makes no sense")]
    Malformed {
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
}

/// The longest frame to a worker. It is the whole table of a cluster of a million endpoints.
pub const MAX_TO_WORKER_BYTES: usize = 256 << 20;
/// The longest frame to an agent, which does not believe its workers everything.
pub const MAX_TO_AGENT_BYTES: usize = 4096;
const LENGTH_BYTES: usize = 4;

/// A frame, as it is sent.
///
/// # Errors
/// It would be longer than any can be.
pub fn encode<T: Serialize>(frame: &T, limit: usize) -> Result<Vec<u8>, FrameError> {
    let mut bytes = vec![0; LENGTH_BYTES];
    serde_json::to_writer(&mut bytes, frame).map_err(|source| FrameError::Malformed { source })?;
    let len = bytes.len() - LENGTH_BYTES;
    match u32::try_from(len) {
        Ok(prefix) if len <= limit => bytes[..LENGTH_BYTES].copy_from_slice(&prefix.to_be_bytes()),
        _ => return Err(FrameError::TooLong { len, limit }),
    }
    Ok(bytes)
}

/// Takes frames out of a stream of bytes.
#[derive(Debug)]
pub struct FrameReader {
    bytes: Vec<u8>,
    limit: usize,
}

impl FrameReader {
    /// For frames of at most so many bytes.
    pub const fn new(limit: usize) -> Self {
        Self { bytes: Vec::new(), limit }
    }

    /// Takes in what was received.
    pub fn extend(&mut self, received: &[u8]) {
        self.bytes.extend_from_slice(received);
    }

    /// The next frame, if it is complete.
    ///
    /// # Errors
    /// The other side does not keep to this; nothing that follows can be understood.
    pub fn next_frame<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        let Some((prefix, rest)) = self.bytes.split_first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let len = usize::try_from(u32::from_be_bytes(*prefix)).unwrap_or(usize::MAX);
        if len > self.limit {
            return Err(FrameError::TooLong { len, limit: self.limit });
        }
        let Some(frame) = rest.get(..len) else { return Ok(None) };
        let frame = serde_json::from_slice(frame).map_err(|source| FrameError::Malformed { source })?;
        self.bytes.drain(..LENGTH_BYTES + len);
        Ok(Some(frame))
    }
}

#[cfg(test)]
mod tests {
    use balance::{Ejection, HealthCheck};
    use proptest::prelude::*;

    use super::*;

    fn routes(generation: u64) -> ToWorker {
        let frontend = |address| Frontend { address, protocol: Protocol::Tcp, port: 80 };
        let pool = |name: &str| Pool {
            name: name.to_owned(),
            endpoints: vec!["10.0.0.1:8080".parse().unwrap(), "[fd00::1]:8080".parse().unwrap()],
            weights: vec![3, 0],
            affinity_secs: Some(10_800),
            by_request: true,
            resilience: Resilience {
                ejection: Some(Ejection::default()),
                health_check: HealthCheck::parse("grpc,service=shop.Cart").ok(),
                ..Resilience::default()
            },
        };
        ToWorker::Routes(Routes {
            generation,
            replace: true,
            set: vec![Route {
                frontend: frontend(None),
                any: pool("default/web:http/TCP local"),
                internal: Some(pool("default/web:http/TCP")),
                policy: Some(Policy::Maglev),
            }],
            gone: vec![frontend(Some("10.96.0.10".parse().unwrap()))],
        })
    }

    #[test]
    fn answers_are_counted_by_class_and_time() {
        let mut counts = RequestCounts::default();
        for (status, millis) in [(200, 1), (204, 2), (404, 3), (503, 10_001), (101, 0), (999, 10_000)] {
            counts.note(status, Duration::from_millis(millis), u32::from(status == 503));
        }
        assert_eq!(counts.by_class, [1, 2, 0, 1, 2]);
        assert_eq!(counts.by_time, [2, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
        assert_eq!((counts.micros, counts.retries), (20_007_000, 1));
        assert_eq!(counts.plus(&counts).by_class, [2, 4, 0, 2, 4]);
    }

    #[test]
    fn what_exceeds_the_limit_is_neither_written_nor_taken() {
        let frame = routes(1);
        let len = encode(&frame, usize::MAX).unwrap().len() - LENGTH_BYTES;
        assert!(encode(&frame, len).is_ok());
        assert!(matches!(encode(&frame, len - 1), Err(FrameError::TooLong { .. })));
        let mut reader = FrameReader::new(10);
        reader.extend(&11_u32.to_be_bytes());
        assert!(matches!(reader.next_frame::<ToAgent>(), Err(FrameError::TooLong { len: 11, limit: 10 })));
    }

    proptest! {
        #[test]
        fn frames_come_out_as_they_went_in_however_the_stream_is_cut(
            generations in proptest::collection::vec(any::<u64>(), 1..5),
            cut in 1..200_usize,
        ) {
            let frames: Vec<_> = generations.into_iter().map(routes).collect();
            let bytes: Vec<u8> =
                frames.iter().flat_map(|frame| encode(frame, MAX_TO_WORKER_BYTES).unwrap()).collect();
            let (mut reader, mut found) = (FrameReader::new(MAX_TO_WORKER_BYTES), Vec::new());
            for piece in bytes.chunks(cut) {
                reader.extend(piece);
                while let Some(frame) = reader.next_frame::<ToWorker>().unwrap() {
                    found.push(frame);
                }
            }
            prop_assert_eq!(found, frames);
        }

        #[test]
        fn whatever_a_worker_sends_is_taken_or_refused_with_no_panic(bytes: Vec<u8>, damage in any::<(usize, u8)>()) {
            let mut reader = FrameReader::new(MAX_TO_AGENT_BYTES);
            reader.extend(&bytes);
            while let Ok(Some(_)) = reader.next_frame::<ToAgent>() {}
            let mut sound = encode(&ToAgent::InForce { generation: 7 }, MAX_TO_AGENT_BYTES).unwrap();
            let position = damage.0 % sound.len();
            sound[position] = damage.1;
            let mut reader = FrameReader::new(MAX_TO_AGENT_BYTES);
            reader.extend(&sound);
            drop(reader.next_frame::<ToAgent>());
        }
    }
}
