//! `Status`: what the server says instead of an answer.

use std::time::Duration;

use serde::Deserialize;

use crate::decode::{Envelope, Format};
use crate::proto::{Fields, Value, WireError};
use crate::raw::Text;
use crate::report::bounded;

/// A `v1` Status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The HTTP status code; 0 when the server gave none.
    pub code: u16,
    /// The reason in one word, such as `Expired`.
    pub reason: String,
    /// The reason in words, of bounded length.
    pub message: String,
    /// `details.retryAfterSeconds`: come back no earlier.
    pub retry_after: Option<Duration>,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let reason = if self.reason.is_empty() { "no reason" } else { &self.reason };
        write!(f, "status {} ({reason}): {}", self.code, self.message)
    }
}

/// Decodes a body that holds a Status; `None` when it holds something else.
pub fn decode_status(format: Format, body: &[u8]) -> Option<Status> {
    match format {
        Format::Protobuf => {
            let envelope = Envelope::open(body).ok()?;
            (envelope.kind == "Status").then(|| protobuf_status(envelope.object).ok()).flatten()
        }
        Format::Json => json_status(body),
    }
}

/// Decodes the `runtime.Unknown`'s content.
pub(crate) fn protobuf_status(message: &[u8]) -> Result<Status, WireError> {
    let mut status = Status::default();
    let mut fields = Fields::new(message);
    while let Some((number, value)) = fields.next_field()? {
        match number {
            3 => status.message = bounded(value.text()?),
            4 => status.reason = bounded(value.text()?),
            5 => status.retry_after = protobuf_retry_after(value)?,
            6 => status.code = code(value.int()?),
            _ => {}
        }
    }
    Ok(status)
}

fn protobuf_retry_after(details: Value<'_>) -> Result<Option<Duration>, WireError> {
    let mut retry_after = None;
    let mut fields = Fields::new(details.bytes()?);
    while let Some((number, value)) = fields.next_field()? {
        if number == 5 {
            retry_after = seconds(value.int()?);
        }
    }
    Ok(retry_after)
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct JsonStatus<'a> {
    #[serde(borrow)]
    kind: Text<'a>,
    #[serde(borrow)]
    message: Option<Text<'a>>,
    #[serde(borrow)]
    reason: Option<Text<'a>>,
    code: i64,
    details: Option<JsonDetails>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct JsonDetails {
    retry_after_seconds: i64,
}

fn json_status(body: &[u8]) -> Option<Status> {
    let status: JsonStatus<'_> = serde_json::from_slice(body).ok()?;
    (&*status.kind == "Status").then(|| Status {
        code: code(status.code),
        reason: bounded(status.reason.as_deref().unwrap_or("")),
        message: bounded(status.message.as_deref().unwrap_or("")),
        retry_after: status.details.and_then(|details| seconds(details.retry_after_seconds)),
    })
}

fn code(code: i64) -> u16 {
    u16::try_from(code).unwrap_or(0)
}

/// 0 means that the server did not say.
fn seconds(seconds: i64) -> Option<Duration> {
    u64::try_from(seconds).ok().filter(|seconds| *seconds > 0).map(Duration::from_secs)
}
