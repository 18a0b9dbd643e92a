//! klog's text form, which log collectors of Kubernetes clusters parse.
//!
//! Source: `formatHeader` and `KVFormat` of <https://github.com/kubernetes/klog/tree/v2.130.1>, as observed in the output of
//! Kubernetes' programs.

use std::fmt::Write as _;

use jiff::tz::TimeZone;

use crate::record::{Record, Severity, Value};

/// A record as a line, or several if a value has several; ends with a line break.
pub(crate) fn line(record: &Record, pid: u32, zone: &TimeZone) -> String {
    let mut out = String::with_capacity(160);
    let letter = match record.severity {
        Severity::Info => 'I',
        Severity::Warning => 'W',
        Severity::Error => 'E',
    };
    let time = zone.to_datetime(record.time);
    let place = &record.place;
    let head = write!(
        out,
        "{letter}{:02}{:02} {:02}:{:02}:{:02}.{:06} {pid:>7} {}:{}] ",
        time.month(),
        time.day(),
        time.hour(),
        time.minute(),
        time.second(),
        time.subsec_nanosecond() / 1000,
        place.file_name(),
        place.line,
    );
    debug_assert!(head.is_ok(), "a String takes everything");
    quote(&record.message, &mut out);
    // What went wrong comes first.
    let is_err = |field: &&(&str, Value)| field.0 == "err";
    let errs = record.fields.iter().filter(is_err);
    for (key, value) in errs.chain(record.fields.iter().filter(|field| !is_err(field))) {
        out.push(' ');
        out.push_str(key);
        out.push('=');
        put_value(value, &mut out);
    }
    out.push('\n');
    out
}

fn put_value(value: &Value, out: &mut String) {
    let text = match value {
        Value::Text(text) if text.contains('\n') => return put_lines(text, out),
        Value::Text(text) => return quote(text, out),
        Value::Int(number) => number.to_string(),
        Value::Uint(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Bool(truth) => truth.to_string(),
    };
    out.push_str(&text);
}

/// Several lines stay readable: each on its own, behind a tab.
fn put_lines(text: &str, out: &mut String) {
    out.push_str("<\n");
    for line in text.strip_suffix('\n').unwrap_or(text).split('\n') {
        out.push('\t');
        // A control character could pretend to be something else on a terminal.
        line.chars().for_each(|char| if char == '\t' { out.push(char) } else { put_char(char, out) });
        out.push('\n');
    }
    out.push_str(" >");
}

/// A text in quotes as Go writes it.
fn quote(text: &str, out: &mut String) {
    out.push('"');
    for char in text.chars() {
        match char {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            char => put_char(char, out),
        }
    }
    out.push('"');
}

fn put_char(char: char, out: &mut String) {
    let code = u32::from(char);
    let written = match char {
        '\n' => write!(out, "\\n"),
        '\r' => write!(out, "\\r"),
        '\t' => write!(out, "\\t"),
        char if char.is_ascii_control() => write!(out, "\\x{code:02x}"),
        char if char.is_control() => write!(out, "\\u{code:04x}"),
        char => write!(out, "{char}"),
    };
    debug_assert!(written.is_ok(), "a String takes everything");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Place;

    fn record(fields: Vec<(&'static str, Value)>) -> Record {
        Record {
            time: "2026-01-02T15:04:05.123456789Z".parse().unwrap(),
            severity: Severity::Info,
            v: 2,
            place: Place { file: "crates/agent/src/side.rs", line: 123, krate: "agent" },
            message: "Message".to_owned(),
            fields,
        }
    }

    fn text(text: &str) -> Value {
        Value::Text(text.to_owned())
    }

    #[track_caller]
    fn check(fields: Vec<(&'static str, Value)>, expected: &str) {
        let written = line(&record(fields), 12345, &TimeZone::UTC);
        assert_eq!(written, format!("I0102 15:04:05.123456   12345 side.rs:123] \"Message\"{expected}\n"));
    }

    #[test]
    fn the_form_is_klogs() {
        check(vec![], "");
        check(vec![("key", text("value")), ("n", Value::Uint(3))], " key=\"value\" n=3");
        check(
            vec![("b", Value::Bool(true)), ("i", Value::Int(-1)), ("f", Value::Float(0.5))],
            " b=true i=-1 f=0.5",
        );
        check(vec![("a", text("1")), ("err", text("broke"))], " err=\"broke\" a=\"1\"");
    }

    #[test]
    fn nothing_escapes_from_its_quotes() {
        check(vec![("k", text("a\"b\\c\r\t\u{1b}[31m\u{85}é"))], " k=\"a\\\"b\\\\c\\r\\t\\x1b[31m\\u0085é\"");
    }

    #[test]
    fn several_lines_are_indented() {
        check(vec![("k", text("one\ntwo\u{1b}\n")), ("l", text("x"))], " k=<\n\tone\n\ttwo\\x1b\n > l=\"x\"");
    }

    #[test]
    fn local_time_and_severity_are_shown() {
        let mut record = record(vec![]);
        record.severity = Severity::Error;
        let zone = TimeZone::fixed(jiff::tz::offset(-5));
        assert!(line(&record, 1, &zone).starts_with("E0102 10:04:05.123456       1 side.rs:123] "));
    }
}
