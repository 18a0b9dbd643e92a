//! Lists: items are handed over one by one, so that no decoded list is ever held and a bad item costs only itself.

use std::fmt;

use model::{Interner, Kind};
use serde::de::{Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::decode::{BodyError, Envelope, Format, decode_object};
use crate::proto::Fields;
use crate::raw::Text;
use crate::report::{Parsed, bounded};

/// What a list says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListMeta {
    /// The version that the list shows; a watch goes on from here.
    pub resource_version: String,
    /// Asks for the next page; empty on the last one.
    pub continue_token: String,
}

/// Decodes the body of a list answer and hands over each item as it comes.
///
/// # Errors
/// The body is broken, or is not a list of `kind`. Items may have been handed over before that was found, so the caller
/// must not use them until the list has ended well.
pub fn decode_list(
    kind: Kind,
    format: Format,
    body: &[u8],
    interner: &mut Interner,
    mut each: impl FnMut(Parsed),
) -> Result<ListMeta, BodyError> {
    let mut take = |item: &[u8]| each(decode_object(kind, format, item, interner));
    match format {
        Format::Protobuf => protobuf_list(kind, body, &mut take),
        Format::Json => json_list(kind, body, &mut take),
    }
}

/// Fails unless `found` is the name of a list of `kind`. A list without name is taken for the right one.
fn check_kind(kind: Kind, found: &str) -> Result<(), BodyError> {
    if found.is_empty() || found.strip_suffix("List") == Some(kind.as_str()) {
        return Ok(());
    }
    Err(BodyError::WrongKind { expected: format!("{kind}List"), found: bounded(found) })
}

fn protobuf_list(kind: Kind, body: &[u8], take: &mut impl FnMut(&[u8])) -> Result<ListMeta, BodyError> {
    let envelope = Envelope::open(body)?;
    check_kind(kind, envelope.kind)?;
    let mut meta = ListMeta::default();
    let mut fields = Fields::new(envelope.object);
    while let Some((number, value)) = fields.next_field()? {
        match number {
            1 => protobuf_meta(value.bytes()?, &mut meta)?,
            2 => take(value.bytes()?),
            _ => {}
        }
    }
    Ok(meta)
}

fn protobuf_meta(message: &[u8], meta: &mut ListMeta) -> Result<(), BodyError> {
    let mut fields = Fields::new(message);
    while let Some((number, value)) = fields.next_field()? {
        match number {
            2 => value.text()?.clone_into(&mut meta.resource_version),
            3 => value.text()?.clone_into(&mut meta.continue_token),
            _ => {}
        }
    }
    Ok(())
}

fn json_list(kind: Kind, body: &[u8], take: &mut impl FnMut(&[u8])) -> Result<ListMeta, BodyError> {
    let json_error = |error: serde_json::Error| BodyError::Json(bounded(error));
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let (found, meta) = deserializer.deserialize_map(JsonList { take }).map_err(json_error)?;
    deserializer.end().map_err(json_error)?;
    // The kind may come behind the items; what they were taken for does no harm, since the caller drops them.
    check_kind(kind, &found)?;
    Ok(meta)
}

#[derive(serde::Deserialize)]
struct JsonMeta<'a> {
    #[serde(borrow, rename = "resourceVersion")]
    resource_version: Option<Text<'a>>,
    #[serde(borrow, rename = "continue")]
    continue_token: Option<Text<'a>>,
}

struct JsonList<'f, F> {
    take: &'f mut F,
}

impl<'de, F: FnMut(&[u8])> Visitor<'de> for JsonList<'_, F> {
    type Value = (String, ListMeta);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut kind, mut list_meta) = (String::new(), ListMeta::default());
        while let Some(key) = map.next_key::<Text<'de>>()? {
            match &*key {
                "kind" => kind = map.next_value::<Text<'de>>()?.to_string(),
                "metadata" => {
                    let meta: JsonMeta<'de> = map.next_value()?;
                    let text =
                        |text: Option<Text<'_>>| text.map(|text| text.0.into_owned()).unwrap_or_default();
                    list_meta.resource_version = text(meta.resource_version);
                    list_meta.continue_token = text(meta.continue_token);
                }
                "items" => map.next_value_seed(JsonItems { take: &mut *self.take })?,
                _ => _ = map.next_value::<IgnoredAny>()?,
            }
        }
        Ok((kind, list_meta))
    }
}

struct JsonItems<'f, F> {
    take: &'f mut F,
}

impl<'de, F: FnMut(&[u8])> DeserializeSeed<'de> for JsonItems<'_, F> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, F: FnMut(&[u8])> Visitor<'de> for JsonItems<'_, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of items")
    }

    /// An empty list is `null` in some servers' answers.
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while let Some(item) = items.next_element_seed(RawItem)? {
            (self.take)(item.get().as_bytes());
        }
        Ok(())
    }
}

struct RawItem;

impl<'de> DeserializeSeed<'de> for RawItem {
    type Value = &'de RawValue;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<&'de RawValue, D::Error> {
        <&RawValue>::deserialize(deserializer)
    }
}
