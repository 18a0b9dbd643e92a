//! JSON as the API server writes it: fields in the order of the Go structs, empty ones left out, unknown ones
//! dropped.

use serde_json::{Map, Value};

use super::error::SchemaError;
use super::schema::{Field, Message, Presence, Type};

/// The canonical JSON of `value` as a `message`, without `kind` and `apiVersion`.
///
/// # Errors
///
/// When a field's value is of another type than `message` says.
pub(super) fn canonical(message: &Message, value: &Value) -> Result<String, SchemaError> {
    let mut out = String::with_capacity(1024);
    put_message(message, as_object(value)?, &mut out)?;
    Ok(out)
}

fn as_object(value: &Value) -> Result<&Map<String, Value>, SchemaError> {
    value.as_object().ok_or_else(|| SchemaError::new("object"))
}

fn put_message(message: &Message, map: &Map<String, Value>, out: &mut String) -> Result<(), SchemaError> {
    out.push('{');
    let mut first = true;
    for field in message.fields {
        let value = map.get(field.name).filter(|v| !v.is_null());
        if is_omitted(field, value) {
            continue;
        }
        if !first {
            out.push(',');
        }
        first = false;
        put_text(field.name, out);
        out.push(':');
        put_value(&field.ty, value, out).map_err(|e| e.within(field.name))?;
    }
    out.push('}');
    Ok(())
}

fn is_omitted(field: &Field, value: Option<&Value>) -> bool {
    match (field.presence, &field.ty) {
        (Presence::Always, _) | (Presence::Value, Type::Message(_)) => false,
        (Presence::Pointer, _) => value.is_none(),
        (Presence::Value, _) => value.is_none_or(is_empty),
    }
}

/// Whether Go's `omitempty` would leave the value out.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

fn put_value(ty: &Type, value: Option<&Value>, out: &mut String) -> Result<(), SchemaError> {
    match (ty, value) {
        (Type::Text, None) => out.push_str("\"\""),
        (Type::Int | Type::IntOrText, None) => out.push('0'),
        (Type::Quantity, None) => out.push_str("\"0\""),
        (Type::Bool, None) => out.push_str("false"),
        (Type::Time | Type::MicroTime | Type::RawJson | Type::List(_) | Type::Map(_), None) => {
            out.push_str("null");
        }
        (Type::Message(message), None) => put_message(message, &Map::new(), out)?,
        (Type::Text, Some(Value::String(text))) => put_text(text, out),
        (Type::Time | Type::MicroTime, Some(Value::String(text))) => put_time(text, out),
        (Type::Int, Some(Value::Number(number))) if number.is_i64() => out.push_str(&number.to_string()),
        (Type::Bool, Some(Value::Bool(value))) => out.push_str(if *value { "true" } else { "false" }),
        (Type::IntOrText | Type::Quantity, Some(value @ (Value::String(_) | Value::Number(_)))) => {
            out.push_str(&value.to_string());
        }
        (Type::RawJson, Some(value)) => out.push_str(&value.to_string()),
        (Type::Message(message), Some(value)) => put_message(message, as_object(value)?, out)?,
        (Type::List(item), Some(Value::Array(items))) => put_list(item, items, out)?,
        (Type::Map(item), Some(Value::Object(map))) => put_map(item, map, out)?,
        (ty, Some(_)) => return Err(SchemaError::new(format!("{ty:?}").to_lowercase())),
    }
    Ok(())
}

fn put_time(text: &str, out: &mut String) {
    if text.is_empty() {
        out.push_str("null");
    } else {
        put_text(text, out);
    }
}

/// An empty list comes back from the store as Go's nil slice, which is written as null.
fn put_list(item: &Type, items: &[Value], out: &mut String) -> Result<(), SchemaError> {
    if items.is_empty() {
        out.push_str("null");
        return Ok(());
    }
    for (i, value) in items.iter().enumerate() {
        out.push(if i == 0 { '[' } else { ',' });
        put_value(item, Some(value), out)?;
    }
    out.push(']');
    Ok(())
}

fn put_map(item: &Type, map: &Map<String, Value>, out: &mut String) -> Result<(), SchemaError> {
    let mut entries: Vec<_> = map.iter().collect();
    entries.sort_unstable_by_key(|(key, _)| *key);
    out.push('{');
    for (i, (key, value)) in entries.into_iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        put_text(key, out);
        out.push(':');
        put_value(item, Some(value), out)?;
    }
    out.push('}');
    Ok(())
}

fn put_text(text: &str, out: &mut String) {
    out.push_str(&Value::from(text).to_string());
}
