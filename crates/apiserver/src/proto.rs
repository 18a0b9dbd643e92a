//! Kubernetes protobuf: messages after [`schema`](super::schema), the envelope around an object, and the
//! frames of a watch.

use serde_json::{Map, Value};

use super::error::SchemaError;
use super::schema::{Field, Message, Presence, Type};
use super::time::Timestamp;

/// The first bytes of every Kubernetes protobuf body.
pub(super) const MAGIC: &[u8] = b"k8s\0";

/// The protobuf form of `value`, without an envelope. Fields that `message` does not have are left out.
///
/// # Errors
///
/// When a field's value is of another type than `message` says.
pub(super) fn encode(message: &Message, value: &Value) -> Result<Vec<u8>, SchemaError> {
    let mut out = Vec::with_capacity(512);
    let map = value.as_object().ok_or_else(|| SchemaError::new("object"))?;
    encode_message(message, map, &mut out)?;
    Ok(out)
}

fn encode_message(message: &Message, map: &Map<String, Value>, out: &mut Vec<u8>) -> Result<(), SchemaError> {
    for field in message.by_tag() {
        let value = map.get(field.name).filter(|v| !v.is_null());
        encode_field(field, value, out).map_err(|e| e.within(field.name))?;
    }
    Ok(())
}

fn encode_field(field: &Field, value: Option<&Value>, out: &mut Vec<u8>) -> Result<(), SchemaError> {
    match (&field.ty, value) {
        (Type::List(_) | Type::Map(_), None) => Ok(()),
        (Type::List(item), Some(value)) => {
            let items = value.as_array().ok_or_else(|| SchemaError::new("list"))?;
            items.iter().try_for_each(|v| encode_single(field.tag, item, Some(v), out))
        }
        (Type::Map(item), Some(value)) => {
            let map = value.as_object().ok_or_else(|| SchemaError::new("map"))?;
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_unstable_by_key(|(key, _)| *key);
            entries.into_iter().try_for_each(|(key, value)| {
                let mut entry = Vec::new();
                put_bytes(1, key.as_bytes(), &mut entry);
                encode_single(2, item, Some(value), &mut entry)?;
                put_bytes(field.tag, &entry, out);
                Ok(())
            })
        }
        (_, None) if field.presence == Presence::Pointer => Ok(()),
        (ty, value) => encode_single(field.tag, ty, value, out),
    }
}

/// Writes one tag and value; `None` is the empty value of the type.
fn encode_single(tag: u32, ty: &Type, value: Option<&Value>, out: &mut Vec<u8>) -> Result<(), SchemaError> {
    match ty {
        Type::Text => put_bytes(tag, text(value)?.as_bytes(), out),
        Type::Int => put_int(tag, int(value)?, out),
        Type::Bool => put_int(tag, i64::from(boolean(value)?), out),
        Type::Time | Type::MicroTime => put_bytes(tag, &encode_time(text(value)?)?, out),
        Type::IntOrText => put_bytes(tag, &encode_int_or_text(value)?, out),
        Type::Quantity => {
            let mut inner = Vec::new();
            put_bytes(1, quantity(value)?.as_bytes(), &mut inner);
            put_bytes(tag, &inner, out);
        }
        Type::RawJson => {
            let mut inner = Vec::new();
            if let Some(value) = value {
                put_bytes(1, value.to_string().as_bytes(), &mut inner);
            }
            put_bytes(tag, &inner, out);
        }
        Type::Message(message) => {
            let empty = Map::new();
            let map = match value {
                None => &empty,
                Some(value) => value.as_object().ok_or_else(|| SchemaError::new("object"))?,
            };
            let mut inner = Vec::new();
            encode_message(message, map, &mut inner)?;
            put_bytes(tag, &inner, out);
        }
        Type::List(_) | Type::Map(_) => return Err(SchemaError::new("single value")),
    }
    Ok(())
}

fn text(value: Option<&Value>) -> Result<&str, SchemaError> {
    value.map_or(Ok(""), |v| v.as_str().ok_or_else(|| SchemaError::new("string")))
}

fn int(value: Option<&Value>) -> Result<i64, SchemaError> {
    value.map_or(Ok(0), |v| v.as_i64().ok_or_else(|| SchemaError::new("integer")))
}

fn boolean(value: Option<&Value>) -> Result<bool, SchemaError> {
    value.map_or(Ok(false), |v| v.as_bool().ok_or_else(|| SchemaError::new("boolean")))
}

fn quantity(value: Option<&Value>) -> Result<String, SchemaError> {
    match value {
        None => Ok("0".to_owned()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Number(number)) => Ok(number.to_string()),
        Some(_) => Err(SchemaError::new("quantity")),
    }
}

fn encode_time(text: &str) -> Result<Vec<u8>, SchemaError> {
    let mut out = Vec::new();
    if !text.is_empty() {
        let time = Timestamp::parse(text).ok_or_else(|| SchemaError::new("RFC 3339 time"))?;
        put_int(1, time.seconds, &mut out);
        put_int(2, i64::from(time.nanos), &mut out);
    }
    Ok(out)
}

fn encode_int_or_text(value: Option<&Value>) -> Result<Vec<u8>, SchemaError> {
    let (kind, number, text) = match value {
        None => (0, 0, ""),
        Some(Value::String(text)) => (1, 0, text.as_str()),
        Some(value) => (0, value.as_i64().ok_or_else(|| SchemaError::new("integer or string"))?, ""),
    };
    let mut out = Vec::new();
    put_int(1, kind, &mut out);
    put_int(2, number, &mut out);
    put_bytes(3, text.as_bytes(), &mut out);
    Ok(out)
}

pub(super) fn put_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        #[expect(clippy::cast_possible_truncation, reason = "the lowest seven bits are wanted")]
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    #[expect(clippy::cast_possible_truncation, reason = "less than 0x80")]
    out.push(value as u8);
}

fn put_int(tag: u32, value: i64, out: &mut Vec<u8>) {
    put_varint(u64::from(tag) << 3, out);
    put_varint(value.cast_unsigned(), out);
}

/// Writes a tag and the length of the `len` bytes that the caller puts after it.
pub(super) fn put_length(tag: u32, len: usize, out: &mut Vec<u8>) {
    put_varint(u64::from(tag) << 3 | 2, out);
    put_varint(len as u64, out);
}

pub(super) fn put_bytes(tag: u32, bytes: &[u8], out: &mut Vec<u8>) {
    put_length(tag, bytes.len(), out);
    out.extend_from_slice(bytes);
}

/// How many bytes [`put_bytes`] writes for `len` bytes under a tag below 16.
pub(super) fn field_len(len: usize) -> usize {
    let mut head = Vec::with_capacity(11);
    put_length(1, len, &mut head);
    head.len() + len
}

/// What comes before the `raw_len` bytes of an object in its envelope (`k8s\0` and `runtime.Unknown`).
pub(super) fn envelope_head(api_version: &str, kind: &str, raw_len: usize) -> Vec<u8> {
    let mut type_meta = Vec::new();
    put_bytes(1, api_version.as_bytes(), &mut type_meta);
    put_bytes(2, kind.as_bytes(), &mut type_meta);
    let mut out = MAGIC.to_vec();
    put_bytes(1, &type_meta, &mut out);
    put_length(2, raw_len, &mut out);
    out
}

/// What comes after the object in its envelope: empty content encoding and content type.
pub(super) const ENVELOPE_TAIL: [u8; 4] = [0x1a, 0x00, 0x22, 0x00];

/// `raw` in its envelope.
pub(super) fn envelope(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let mut out = envelope_head(api_version, kind, raw.len());
    out.extend_from_slice(raw);
    out.extend_from_slice(&ENVELOPE_TAIL);
    out
}

/// Appends one frame of a watch to `out`: length (4 bytes, big endian), then `metav1.WatchEvent` with the
/// enveloped `object`.
pub(super) fn put_watch_frame(event_type: &str, object: &[u8], out: &mut Vec<u8>) {
    let raw_extension = field_len(object.len());
    let frame = field_len(event_type.len()) + field_len(raw_extension);
    out.extend_from_slice(&u32::try_from(frame).unwrap_or(u32::MAX).to_be_bytes());
    put_bytes(1, event_type.as_bytes(), out);
    put_length(2, raw_extension, out);
    put_bytes(1, object, out);
}

/// The raw object in an enveloped body.
///
/// # Errors
///
/// When the body does not begin with `k8s\0` or is cut short.
pub(super) fn open_envelope(body: &[u8]) -> Result<&[u8], SchemaError> {
    let rest = body.strip_prefix(MAGIC).ok_or_else(|| SchemaError::new("k8s protobuf"))?;
    let mut reader = Reader(rest);
    while let Some((tag, wire)) = reader.next()? {
        if let (2, Wire::Bytes(raw)) = (tag, wire) {
            return Ok(raw);
        }
    }
    Ok(&[])
}

/// The JSON form of a protobuf message; the inverse of [`encode`]. Unknown tags are skipped, and empty values
/// stay in.
///
/// # Errors
///
/// When the bytes are no such message.
pub(super) fn decode(message: &Message, bytes: &[u8]) -> Result<Value, SchemaError> {
    let mut map = Map::new();
    let mut reader = Reader(bytes);
    while let Some((tag, wire)) = reader.next()? {
        if let Some(field) = message.fields.iter().find(|f| f.tag == tag) {
            decode_field(field, wire, &mut map).map_err(|e| e.within(field.name))?;
        }
    }
    Ok(Value::Object(map))
}

fn decode_field(field: &Field, wire: Wire<'_>, map: &mut Map<String, Value>) -> Result<(), SchemaError> {
    let value = match &field.ty {
        Type::List(item) => {
            let list = map.entry(field.name).or_insert_with(|| Value::Array(Vec::new()));
            if let Value::Array(list) = list {
                list.push(decode_single(item, wire)?);
            }
            return Ok(());
        }
        Type::Map(item) => {
            let entries = map.entry(field.name).or_insert_with(|| Value::Object(Map::new()));
            let (key, value) = decode_entry(item, wire.bytes()?)?;
            if let Value::Object(entries) = entries {
                entries.insert(key, value);
            }
            return Ok(());
        }
        ty => decode_single(ty, wire)?,
    };
    map.insert(field.name.to_owned(), value);
    Ok(())
}

fn decode_entry(item: &Type, bytes: &[u8]) -> Result<(String, Value), SchemaError> {
    let (mut key, mut value) = (String::new(), Value::Null);
    let mut reader = Reader(bytes);
    while let Some((tag, wire)) = reader.next()? {
        match tag {
            1 => wire.text()?.clone_into(&mut key),
            2 => value = decode_single(item, wire)?,
            _ => {}
        }
    }
    Ok((key, value))
}

fn decode_single(ty: &Type, wire: Wire<'_>) -> Result<Value, SchemaError> {
    Ok(match ty {
        Type::Text => wire.text()?.into(),
        Type::Int => wire.int()?.into(),
        Type::Bool => (wire.int()? != 0).into(),
        Type::Time => decode_time(wire.bytes()?, Timestamp::to_seconds_text)?,
        Type::MicroTime => decode_time(wire.bytes()?, Timestamp::to_micros_text)?,
        Type::IntOrText => decode_int_or_text(wire.bytes()?)?,
        Type::Quantity => first_text(wire.bytes()?)?.into(),
        Type::RawJson => {
            let raw = first_text(wire.bytes()?)?;
            serde_json::from_str(raw).map_err(|e| SchemaError::new(format!("JSON ({e})")))?
        }
        Type::Message(message) => decode(message, wire.bytes()?)?,
        Type::List(_) | Type::Map(_) => return Err(SchemaError::new("single value")),
    })
}

fn decode_time(bytes: &[u8], print: impl Fn(Timestamp) -> String) -> Result<Value, SchemaError> {
    let mut time = Timestamp { seconds: 0, nanos: 0 };
    let mut reader = Reader(bytes);
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    while let Some((tag, wire)) = reader.next()? {
        match tag {
            1 => time.seconds = wire.int()?,
            2 => time.nanos = u32::try_from(wire.int()?).unwrap_or(0),
            _ => {}
        }
    }
    Ok(print(time).into())
}

fn decode_int_or_text(bytes: &[u8]) -> Result<Value, SchemaError> {
    let (mut is_text, mut number, mut text) = (false, 0, "");
    let mut reader = Reader(bytes);
    while let Some((tag, wire)) = reader.next()? {
        match tag {
            1 => is_text = wire.int()? != 0,
            2 => number = wire.int()?,
            3 => text = wire.text()?,
            _ => {}
        }
    }
    Ok(if is_text { text.into() } else { number.into() })
}

fn first_text(bytes: &[u8]) -> Result<&str, SchemaError> {
    match Reader(bytes).next()? {
        Some((_, wire)) => wire.text(),
        None => Ok(""),
    }
}

/// A value as it is on the wire; fixed-width numbers do not occur in these types.
#[derive(Debug, Clone, Copy)]
enum Wire<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
}

impl<'a> Wire<'a> {
    fn int(self) -> Result<i64, SchemaError> {
        match self {
            Wire::Varint(value) => Ok(value.cast_signed()),
            Wire::Bytes(_) => Err(SchemaError::new("varint")),
        }
    }

    fn bytes(self) -> Result<&'a [u8], SchemaError> {
        match self {
            Wire::Bytes(bytes) => Ok(bytes),
            Wire::Varint(_) => Err(SchemaError::new("length-delimited field")),
        }
    }

    fn text(self) -> Result<&'a str, SchemaError> {
        std::str::from_utf8(self.bytes()?).map_err(|e| SchemaError::new(format!("UTF-8 ({e})")))
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// The next field, or `None` at the end.
    fn next(&mut self) -> Result<Option<(u32, Wire<'a>)>, SchemaError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let tag = u32::try_from(key >> 3).unwrap_or(u32::MAX);
        let wire = match key & 7 {
            0 => Wire::Varint(self.varint()?),
            2 => {
                let len = usize::try_from(self.varint()?).unwrap_or(usize::MAX);
                let (head, tail) =
                    self.0.split_at_checked(len).ok_or_else(|| SchemaError::new("whole message"))?;
                self.0 = tail;
                Wire::Bytes(head)
            }
            _ => return Err(SchemaError::new("known wire type")),
        };
        Ok(Some((tag, wire)))
    }

    fn varint(&mut self) -> Result<u64, SchemaError> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first().ok_or_else(|| SchemaError::new("whole varint"))?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(SchemaError::new("varint of at most ten bytes"))
    }
}
