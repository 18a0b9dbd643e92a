//! Spans of OpenTelemetry as values, as protobuf, and on their way to a collector (OTLP over gRPC, without TLS).
//!
//! Nobody waits for a collector: spans go into a bounded [queue](Spans), and what finds no room there is dropped and counted.
#![forbid(unsafe_code)]

mod encode;
mod export;
mod protobuf;

pub use encode::encode;
pub use export::{Count, Endpoint, MAX_WAITING, Outcome, Spans, begin};

/// One piece of work. (OTLP, `opentelemetry.proto.trace.v1.Span`.)
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// The trace that it is a part of.
    pub trace: [u8; 16],
    /// Its own number.
    pub span: [u8; 8],
    /// The span that it is a part of; `None`: the trace begins with it.
    pub parent: Option<[u8; 8]>,
    /// What is done.
    pub name: String,
    /// For whom.
    pub kind: Kind,
    /// Nanoseconds since 1970.
    pub began_ns: u64,
    /// Nanoseconds since 1970.
    pub ended_ns: u64,
    /// What is known of it, by names of OpenTelemetry's semantic conventions where there are any.
    pub attributes: Attributes,
    /// Whether it failed.
    pub is_error: bool,
}

/// Names and values.
pub type Attributes = Vec<(&'static str, Value)>;

/// For whom a span's work is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nobody outside.
    Internal,
    /// Whoever asked.
    Server,
    /// Somebody is asked.
    Client,
}

/// What an attribute has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Text.
    Text(String),
    /// A number.
    Int(i64),
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<u16> for Value {
    fn from(number: u16) -> Self {
        Self::Int(number.into())
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::Int(number.into())
    }
}
