//! Writes YAML in the form of Kubernetes' tools (`sigs.k8s.io/yaml`): keys sorted, lists not indented, quotes only where they
//! are needed. The general serializer of `serde-saphyr` quotes `0.0.0.0`, which those don't.

use serde_json::{Map, Value};

/// Any value as YAML in the form of Kubernetes' tools.
pub fn yaml(value: &Value) -> String {
    match value {
        Value::Object(fields) if !fields.is_empty() => to_string(fields),
        Value::Array(items) if !items.is_empty() => {
            let mut out = String::new();
            write_items(&mut out, items, 0);
            out
        }
        flat => flat_text(flat) + "\n",
    }
}

/// The text of an object.
pub(crate) fn to_string(fields: &Map<String, Value>) -> String {
    let mut out = String::new();
    write_fields(&mut out, fields, 0);
    out
}

fn write_fields(out: &mut String, fields: &Map<String, Value>, indent: usize) {
    for (index, (key, value)) in fields.iter().enumerate() {
        // The first field of a list's item stands behind the dash.
        if index > 0 || !out.ends_with("- ") {
            out.extend(std::iter::repeat_n(' ', indent));
        }
        out.push_str(&scalar(key));
        out.push(':');
        match value {
            Value::Object(fields) if !fields.is_empty() => {
                out.push('\n');
                write_fields(out, fields, indent + 2);
            }
            Value::Array(items) if !items.is_empty() => {
                out.push('\n');
                write_items(out, items, indent);
            }
            flat => {
                out.push(' ');
                out.push_str(&flat_text(flat));
                out.push('\n');
            }
        }
    }
}

fn write_items(out: &mut String, items: &[Value], indent: usize) {
    for item in items {
        out.extend(std::iter::repeat_n(' ', indent));
        out.push_str("- ");
        match item {
            Value::Object(fields) if !fields.is_empty() => write_fields(out, fields, indent + 2),
            // Lists of lists don't occur; as JSON they are YAML too.
            flat => {
                out.push_str(&flat_text(flat));
                out.push('\n');
            }
        }
    }
}

fn flat_text(value: &Value) -> String {
    match value {
        Value::String(text) => scalar(text),
        // Null, numbers, booleans and empty collections are written as in JSON.
        other => other.to_string(),
    }
}

/// Double quotes where the bare text would be something else than text, single ones where it would break the syntax.
fn scalar(text: &str) -> String {
    if is_ambiguous(text) || text.chars().any(char::is_control) {
        return Value::from(text).to_string();
    }
    if is_plain(text) { text.to_owned() } else { format!("'{}'", text.replace('\'', "''")) }
}

/// Whether it would be read as a number, a boolean, null or a date, also by readers of YAML 1.1.
fn is_ambiguous(text: &str) -> bool {
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let base_60 = text.contains(':') && text.split(':').all(digits);
    let date = text.len() >= 8 && text.split('-').take(3).filter(|part| digits(part)).count() == 3;
    let starts_like_text =
        text.chars().next().is_some_and(|first| first.is_alphanumeric() || "+-.~".contains(first));
    // Only what could be a value is given to the parser: anything else is not one scalar.
    let is_value = starts_like_text && is_plain(text) && {
        let read = serde_saphyr::from_str::<Value>(text);
        read.map_or(true, |value| !value.is_string())
    };
    text.is_empty() || text == "~" || base_60 || date || is_value
}

/// Whether it may stand without quotes (libyaml, `yaml_emitter_analyze_scalar`).
fn is_plain(text: &str) -> bool {
    const INDICATORS: &str = "#,[]{}&*!|>'\"%@`=";
    let starts_badly = text.starts_with(|first| INDICATORS.contains(first))
        || ["- ", "? ", ": "].iter().any(|start| text.starts_with(start))
        || ["-", "?", ":"].contains(&text)
        || ["---", "..."].iter().any(|start| text.starts_with(start));
    let breaks = text.ends_with(':') || text.contains(": ") || text.contains(" #");
    !(starts_badly || breaks || text.trim() != text || text.contains(['\t', '\u{85}', '\u{feff}']))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[track_caller]
    fn writes(value: &Value, text: &str) {
        let Value::Object(fields) = value else { panic!("not an object") };
        assert_eq!(to_string(fields), text);
        assert_eq!(serde_saphyr::from_str::<Value>(text).unwrap(), *value);
    }

    #[test]
    fn objects_and_lists_are_in_block_form() {
        writes(
            &json!({"b": {"y": 1, "x": [{"k": "v", "n": 2}, {"k": "w"}]}, "a": ["p", "0.0.0.0/0"], "e": [], "m": {}, "z": null}),
            "a:\n- p\n- 0.0.0.0/0\nb:\n  x:\n  - k: v\n    \"n\": 2\n  - k: w\n  \"y\": 1\ne: []\nm: {}\nz: null\n",
        );
    }

    #[track_caller]
    fn quotes(text: &str, written: &str) {
        assert_eq!(scalar(text), written);
        assert_eq!(serde_saphyr::from_str::<Value>(&format!("k: {written}")).unwrap(), json!({"k": text}));
    }

    #[test]
    fn texts_are_quoted_where_needed() {
        for plain in [
            "0.0.0.0",
            "0.0.0.0:10256",
            "::1",
            "fd00::/64",
            "1h0m0s",
            "application/json",
            "10.0.0.0/8,fd00::/64",
            "a b",
        ] {
            quotes(plain, plain);
        }
        for other_value in
            ["", "0", "1.5", "yes", "No", "null", "~", "0x10", "10:20", "2001-01-01", "1e3", ".5"]
        {
            quotes(other_value, &format!("\"{other_value}\""));
        }
        quotes("[::]:10256", "'[::]:10256'");
        quotes("::", "'::'");
        quotes("*", "'*'");
        quotes("it's: so", "'it''s: so'");
        quotes("a #b", "'a #b'");
        quotes(" x", "' x'");
        quotes("a\nb", "\"a\\nb\"");
    }
}
