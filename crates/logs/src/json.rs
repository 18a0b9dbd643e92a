//! The JSON form, one object a line, as `component-base/logs/json` writes it.

use std::fmt::Write as _;

use serde_json::Value as Json;

use crate::record::{Record, Severity, Value};

/// A record as a line.
pub(crate) fn line(record: &Record) -> String {
    let mut out = String::with_capacity(200);
    let micros = record.time.as_microsecond();
    let place = &record.place;
    let caller = format!("{}/{}:{}", place.folder(), place.file_name(), place.line);
    let (millis, fraction) = (micros.div_euclid(1000), micros.rem_euclid(1000));
    let head = write!(out, "{{\"ts\":{millis}.{fraction:03}");
    debug_assert!(head.is_ok(), "a String takes everything");
    put("caller", &Json::from(caller), &mut out);
    put("msg", &Json::from(record.message.as_str()), &mut out);
    if record.severity != Severity::Error {
        put("v", &Json::from(record.v), &mut out);
    }
    for (key, value) in &record.fields {
        put(key, &json(value), &mut out);
    }
    out.push_str("}\n");
    out
}

fn put(key: &str, value: &Json, out: &mut String) {
    let written = write!(out, ",{}:{value}", Json::from(key));
    debug_assert!(written.is_ok(), "a String takes everything");
}

fn json(value: &Value) -> Json {
    match value {
        Value::Text(text) => Json::from(text.as_str()),
        Value::Int(number) => Json::from(*number),
        Value::Uint(number) => Json::from(*number),
        Value::Float(number) => Json::from(*number),
        Value::Bool(truth) => Json::from(*truth),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Place;

    #[test]
    fn the_form_is_upstreams() {
        let mut record = Record {
            time: "2026-11-21T00:02:16.559325Z".parse().unwrap(),
            severity: Severity::Info,
            v: 2,
            place: Place { file: "crates/agent/src/side.rs", line: 68, krate: "agent" },
            message: "a \"message\"".to_owned(),
            fields: vec![("service", Value::Text("ns/a\n".into())), ("n", Value::Uint(3))],
        };
        assert_eq!(
            line(&record),
            "{\"ts\":1795219336559.325,\"caller\":\"agent/side.rs:68\",\"msg\":\"a \\\"message\\\"\",\"v\":2,\
             \"service\":\"ns/a\\n\",\"n\":3}\n",
        );
        record.severity = Severity::Error;
        record.fields = vec![("err", Value::Text("broke".into()))];
        record.place.file = "crates/source/src/folder/tests.rs";
        assert_eq!(
            line(&record),
            "{\"ts\":1795219336559.325,\"caller\":\"folder/tests.rs:68\",\"msg\":\"a \\\"message\\\"\",\"err\":\"broke\"}\n",
        );
    }
}
