//! One object, in either format, and the envelope that protobuf bodies have.

use model::{Interner, Kind};
use serde::Deserialize;

use crate::convert::{Raw, convert, object_name};
use crate::proto::{Fields, WireError};
use crate::protobuf::Message;
use crate::raw;
use crate::report::{Outcome, Parsed, Rejection, bounded};

/// A wire format of the API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// `application/vnd.kubernetes.protobuf`.
    Protobuf,
    /// `application/json`.
    Json,
}

/// A body that can't be read at all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// A protobuf body that does not begin with `k8s\0`.
    #[error("the body is not kubernetes protobuf")]
    NoMagic,
    /// Broken protobuf.
    #[error("the body can't be read: {0}")]
    Protobuf(String),
    /// Broken JSON.
    #[error("the body is not the expected json: {0}")]
    Json(String),
    /// Something else than was asked for.
    #[error("the body is a {found}, not a {expected}")]
    WrongKind {
        /// What was asked for.
        expected: String,
        /// What the body says it is.
        found: String,
    },
}

impl From<WireError> for BodyError {
    fn from(error: WireError) -> Self {
        Self::Protobuf(format!("{}: {}", error.path(), error.fault()))
    }
}

/// Decodes one object of a known kind. Protobuf comes without envelope, as inside lists.
///
/// Never fails: an object that can't be used is an [`Outcome::Reject`].
pub fn decode_object(kind: Kind, format: Format, object: &[u8], interner: &mut Interner) -> Parsed {
    match (format, kind) {
        (Format::Protobuf, Kind::Service) => protobuf::<raw::Service<'_>>(object, interner),
        (Format::Protobuf, Kind::EndpointSlice) => protobuf::<raw::EndpointSlice<'_>>(object, interner),
        (Format::Protobuf, Kind::Node) => protobuf::<raw::Node<'_>>(object, interner),
        (Format::Protobuf, Kind::ServiceCidr) => protobuf::<raw::ServiceCidr<'_>>(object, interner),
        (Format::Json, Kind::Service) => json::<raw::Service<'_>>(object, interner),
        (Format::Json, Kind::EndpointSlice) => json::<raw::EndpointSlice<'_>>(object, interner),
        (Format::Json, Kind::Node) => json::<raw::Node<'_>>(object, interner),
        (Format::Json, Kind::ServiceCidr) => json::<raw::ServiceCidr<'_>>(object, interner),
    }
}

/// Decodes only what every object has.
pub(crate) fn decode_head(format: Format, object: &[u8]) -> Result<raw::Head<'_>, BodyError> {
    match format {
        Format::Protobuf => {
            let mut head = raw::Head::default();
            head.merge(object)?;
            Ok(head)
        }
        Format::Json => serde_json::from_slice(object).map_err(|error| BodyError::Json(bounded(error))),
    }
}

fn protobuf<'a, R: Raw + Message<'a>>(object: &'a [u8], interner: &mut Interner) -> Parsed {
    let mut raw = R::default();
    match raw.merge(object) {
        Ok(()) => convert(&raw, interner),
        Err(error) => {
            // The metadata may come behind the fault; whatever of it can be read names the object.
            let mut head = raw::Head::default();
            drop(head.merge(object));
            rejected(R::KIND, &head.metadata, error.path(), error.fault(), interner)
        }
    }
}

fn json<'a, R: Raw + Deserialize<'a>>(object: &'a [u8], interner: &mut Interner) -> Parsed {
    if let Ok(raw) = serde_json::from_slice::<R>(object) {
        return convert(&raw, interner);
    }
    // Only a broken object pays for finding out where it is broken.
    let mut deserializer = serde_json::Deserializer::from_slice(object);
    match serde_path_to_error::deserialize::<_, R>(&mut deserializer) {
        Err(error) => {
            let head = serde_json::from_slice::<raw::Head<'_>>(object).unwrap_or_default();
            rejected(R::KIND, &head.metadata, path_of(&error), error.inner(), interner)
        }
        // Sound up to its end, and then there is more.
        Ok(_) => {
            rejected(R::KIND, &raw::Meta::default(), "", "there is something behind the object", interner)
        }
    }
}

/// Converts an object that a manifest holds; the same as [`decode_object`] for an already parsed tree.
pub(crate) fn from_value<'a, R: Raw + Deserialize<'a>>(
    value: &'a serde_json::Value,
    complete: impl FnOnce(&mut R),
    interner: &mut Interner,
) -> Parsed {
    match serde_path_to_error::deserialize::<_, R>(value) {
        Ok(mut raw) => {
            complete(&mut raw);
            convert(&raw, interner)
        }
        Err(error) => {
            let head = raw::Head::deserialize(value).unwrap_or_default();
            rejected(R::KIND, &head.metadata, path_of(&error), error.inner(), interner)
        }
    }
}

fn path_of<E>(error: &serde_path_to_error::Error<E>) -> String {
    match error.path().to_string() {
        path if path == "." => String::new(),
        path => path,
    }
}

fn rejected(
    kind: Kind,
    meta: &raw::Meta<'_>,
    path: impl std::fmt::Display,
    reason: impl std::fmt::Display,
    interner: &mut Interner,
) -> Parsed {
    let name = object_name(kind, meta, interner).ok();
    Parsed {
        kind,
        outcome: Outcome::Reject(Rejection::new(kind, name, path, reason)),
        notes: Vec::new(),
        resource_version: meta.resource_version.to_string(),
    }
}

/// A protobuf body: `k8s\0` and a `runtime.Unknown` that holds the object and says what it is.
///
/// Source: `staging/src/k8s.io/apimachinery/pkg/runtime/generated.proto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Envelope<'a> {
    pub(crate) kind: &'a str,
    pub(crate) object: &'a [u8],
}

impl<'a> Envelope<'a> {
    pub(crate) fn open(body: &'a [u8]) -> Result<Self, BodyError> {
        let unknown = body.strip_prefix(b"k8s\0").ok_or(BodyError::NoMagic)?;
        let mut envelope = Self { kind: "", object: &[] };
        let mut fields = Fields::new(unknown);
        while let Some((number, value)) = fields.next_field()? {
            match number {
                1 => envelope.kind = kind_of(value.bytes()?)?,
                2 => envelope.object = value.bytes()?,
                _ => {}
            }
        }
        Ok(envelope)
    }
}

/// Field `kind` of a `TypeMeta`.
fn kind_of(type_meta: &[u8]) -> Result<&str, WireError> {
    let mut kind = "";
    let mut fields = Fields::new(type_meta);
    while let Some((number, value)) = fields.next_field()? {
        if number == 2 {
            kind = value.text()?;
        }
    }
    Ok(kind)
}
