//! Watch streams: frames out of chunks, events out of frames.
//!
//! Protobuf frames carry a 4-byte big-endian length and hold a `WatchEvent` whose object has an envelope of its own; JSON
//! events are values one after the other. Source: `apimachinery/pkg/runtime/serializer/{protobuf,streaming}` and
//! `apis/meta/v1/generated.proto`.

use model::{Interner, Kind, ObjectName};
use serde_json::value::RawValue;

use crate::convert::object_name;
use crate::decode::{BodyError, Envelope, Format, decode_head, decode_object};
use crate::proto::{Fields, WireError};
use crate::raw::{Head, Text};
use crate::report::{Parsed, bounded};
use crate::status::{Status, decode_status, protobuf_status};

/// A frame above this size (64 MiB) is taken for garbage. The API server's objects are at most a few MiB.
pub const MAX_FRAME_BYTES: usize = 64 << 20;

/// Consumed bytes at the front of the buffer are kept up to this many, so that not every event moves the rest.
const COMPACT_BYTES: usize = 64 << 10;

/// One event of a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchEvent {
    /// An object appeared or changed (`ADDED`, `MODIFIED`).
    Applied(Parsed),
    /// An object is gone, or no longer matches the watch's selectors.
    Deleted {
        /// Its name.
        name: ObjectName,
        /// The version of the deletion.
        resource_version: String,
    },
    /// The watch has come this far without events for us.
    Bookmark {
        /// The version reached.
        resource_version: String,
        /// The streamed initial list is complete.
        initial_events_end: bool,
    },
    /// The server ends the watch.
    Error(Status),
}

/// A stream that can't be read on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A frame larger than the limit, most likely garbage.
    #[error("a frame of {size} bytes exceeds the limit of {limit}")]
    TooLarge {
        /// The size announced or reached.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// A frame that is no watch event.
    #[error("a frame can't be read")]
    Unreadable(#[source] BodyError),
    /// An event of a type that the API does not have.
    #[error("an event has the unknown type {0:?}")]
    UnknownType(String),
    /// A deletion that does not say of what.
    #[error("a deletion names no object: {0}")]
    Nameless(String),
    /// A JSON stream with something else than objects in it.
    #[error("there is garbage between the events")]
    Garbage,
    /// The stream ended inside a frame.
    #[error("the stream ended inside an event")]
    Truncated,
}

/// Cuts a byte stream into watch events.
#[derive(Debug)]
pub struct FrameReader {
    format: Format,
    limit: usize,
    buffer: Vec<u8>,
    /// Where the next frame begins.
    start: usize,
    scan: JsonScan,
}

/// How far the JSON value at the buffer's start has been looked at.
#[derive(Clone, Copy, Debug, Default)]
struct JsonScan {
    /// Bytes looked at, from the value's start.
    seen: usize,
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl FrameReader {
    /// A reader for a stream in this format, refusing frames of more than `limit` bytes.
    pub fn new(format: Format, limit: usize) -> Self {
        Self { format, limit, buffer: Vec::new(), start: 0, scan: JsonScan::default() }
    }

    /// Takes bytes in as they arrive.
    pub fn push(&mut self, chunk: &[u8]) {
        if self.start == self.buffer.len() {
            self.buffer.clear();
            self.start = 0;
        } else if self.start >= COMPACT_BYTES {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(chunk);
    }

    /// The next event, or `None` until more bytes have come.
    ///
    /// # Errors
    /// The stream can't be trusted from here on; the reader must not be used further.
    pub fn next_event(
        &mut self,
        kind: Kind,
        interner: &mut Interner,
    ) -> Result<Option<WatchEvent>, FrameError> {
        let frame = match self.format {
            Format::Protobuf => self.protobuf_frame()?,
            Format::Json => self.json_frame()?,
        };
        let Some(frame) = frame else { return Ok(None) };
        let event = event(kind, self.format, &self.buffer[frame], interner);
        event.map(Some)
    }

    /// Checks that the stream ended between two events.
    ///
    /// # Errors
    /// [`FrameError::Truncated`] when it did not.
    pub fn finish(&self) -> Result<(), FrameError> {
        if self.is_between_events() { Ok(()) } else { Err(FrameError::Truncated) }
    }

    /// Whether all that was pushed has become events. A stream that stays within an event for long is garbage: a wrong
    /// length, or a brace too many, swallows whatever comes next.
    pub fn is_between_events(&self) -> bool {
        let rest = &self.buffer[self.start..];
        match self.format {
            Format::Protobuf => rest.is_empty(),
            Format::Json => rest.iter().all(u8::is_ascii_whitespace),
        }
    }

    fn protobuf_frame(&mut self) -> Result<Option<std::ops::Range<usize>>, FrameError> {
        let Some((length, rest)) = self.buffer[self.start..].split_first_chunk::<4>() else {
            return Ok(None);
        };
        let size = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        self.check_size(size)?;
        if rest.len() < size {
            return Ok(None);
        }
        let begin = self.start + length.len();
        self.start = begin + size;
        Ok(Some(begin..self.start))
    }

    fn json_frame(&mut self) -> Result<Option<std::ops::Range<usize>>, FrameError> {
        if self.scan.seen == 0 {
            let rest = &self.buffer[self.start..];
            self.start += rest.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        }
        let value = &self.buffer[self.start..];
        if value.first().is_some_and(|byte| *byte != b'{') {
            return Err(FrameError::Garbage);
        }
        let end = self.scan.find_end(value)?;
        self.check_size(self.scan.seen)?;
        let Some(end) = end else { return Ok(None) };
        let begin = self.start;
        self.start += end;
        self.scan = JsonScan::default();
        Ok(Some(begin..self.start))
    }

    fn check_size(&self, size: usize) -> Result<(), FrameError> {
        if size > self.limit {
            return Err(FrameError::TooLarge { size, limit: self.limit });
        }
        Ok(())
    }
}

impl JsonScan {
    /// The length of the object that `value` begins with, once all of it is there. A line that ends inside a string is
    /// garbage at once, or a single stray quote would swallow the events behind it.
    fn find_end(&mut self, value: &[u8]) -> Result<Option<usize>, FrameError> {
        for byte in &value[self.seen..] {
            self.seen += 1;
            if self.in_string {
                match byte {
                    b'\n' => return Err(FrameError::Garbage),
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.in_string = false,
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => self.depth = self.depth.saturating_sub(1),
                _ => {}
            }
            if self.depth == 0 {
                return Ok(Some(self.seen));
            }
        }
        Ok(None)
    }
}

/// An event's type and the object in it, without envelope.
struct Frame<'a> {
    r#type: Text<'a>,
    object: &'a [u8],
    /// What a protobuf envelope says that the object is; empty in JSON.
    kind: &'a str,
}

fn event(
    kind: Kind,
    format: Format,
    frame: &[u8],
    interner: &mut Interner,
) -> Result<WatchEvent, FrameError> {
    let frame = match format {
        Format::Protobuf => protobuf_event(frame),
        Format::Json => json_event(frame),
    };
    let frame = frame.map_err(FrameError::Unreadable)?;
    match &*frame.r#type {
        "ADDED" | "MODIFIED" => {
            check_kind(kind, frame.kind)?;
            Ok(WatchEvent::Applied(decode_object(kind, format, frame.object, interner)))
        }
        "DELETED" => {
            check_kind(kind, frame.kind)?;
            deleted(kind, &head(format, frame.object)?, interner)
        }
        "BOOKMARK" => {
            let meta = head(format, frame.object)?.metadata;
            Ok(WatchEvent::Bookmark {
                resource_version: meta.resource_version.to_string(),
                initial_events_end: meta.annotations.initial_events_end,
            })
        }
        "ERROR" => status(format, frame.object).map(WatchEvent::Error),
        other => Err(FrameError::UnknownType(bounded(other))),
    }
}

fn check_kind(expected: Kind, found: &str) -> Result<(), FrameError> {
    if found.is_empty() || found == expected.as_str() {
        return Ok(());
    }
    let error = BodyError::WrongKind { expected: expected.to_string(), found: bounded(found) };
    Err(FrameError::Unreadable(error))
}

fn head(format: Format, object: &[u8]) -> Result<Head<'_>, FrameError> {
    decode_head(format, object).map_err(FrameError::Unreadable)
}

fn deleted(kind: Kind, head: &Head<'_>, interner: &mut Interner) -> Result<WatchEvent, FrameError> {
    match object_name(kind, &head.metadata, interner) {
        Ok(name) => {
            Ok(WatchEvent::Deleted { name, resource_version: head.metadata.resource_version.to_string() })
        }
        Err(rejection) => Err(FrameError::Nameless(rejection.to_string())),
    }
}

fn status(format: Format, object: &[u8]) -> Result<Status, FrameError> {
    let status = match format {
        Format::Protobuf => protobuf_status(object).map_err(BodyError::from),
        Format::Json => decode_status(format, object).ok_or(BodyError::Json("it is no Status".to_owned())),
    };
    status.map_err(FrameError::Unreadable)
}

/// `WatchEvent`: type is field 1, object (a `RawExtension`, whose bytes are its field 1) is field 2.
fn protobuf_event(frame: &[u8]) -> Result<Frame<'_>, BodyError> {
    let (mut r#type, mut body) = ("", &[][..]);
    let mut fields = Fields::new(frame);
    while let Some((number, value)) = fields.next_field()? {
        match number {
            1 => r#type = value.text()?,
            2 => body = raw_extension(value.bytes()?)?,
            _ => {}
        }
    }
    let Envelope { kind, object } = Envelope::open(body)?;
    Ok(Frame { r#type: r#type.into(), object, kind })
}

fn raw_extension(message: &[u8]) -> Result<&[u8], WireError> {
    let mut raw = &[][..];
    let mut fields = Fields::new(message);
    while let Some((number, value)) = fields.next_field()? {
        if number == 1 {
            raw = value.bytes()?;
        }
    }
    Ok(raw)
}

fn json_event(frame: &[u8]) -> Result<Frame<'_>, BodyError> {
    #[derive(serde::Deserialize)]
    struct Event<'a> {
        #[serde(borrow)]
        r#type: Text<'a>,
        #[serde(borrow)]
        object: &'a RawValue,
    }
    let event: Event<'_> = serde_json::from_slice(frame).map_err(|error| BodyError::Json(bounded(error)))?;
    Ok(Frame { r#type: event.r#type, object: event.object.get().as_bytes(), kind: "" })
}
