//! One log record, apart from how it is written.

use std::fmt::{self, Write as _};

use jiff::Timestamp;
use tracing::field::{Field, Visit};
use tracing::{Level, Metadata};

/// How bad a record's news are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Severity {
    Info,
    Warning,
    Error,
}

impl Severity {
    pub(crate) fn of(level: Level) -> Self {
        match level {
            Level::ERROR => Self::Error,
            Level::WARN => Self::Warning,
            _ => Self::Info,
        }
    }
}

/// A field's value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Text(String),
    Int(i64),
    Uint(u64),
    Float(f64),
    Bool(bool),
}

/// One record.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Record {
    pub(crate) time: Timestamp,
    pub(crate) severity: Severity,
    /// klog's number.
    pub(crate) v: u32,
    pub(crate) place: Place,
    pub(crate) message: String,
    /// Those of spans, then its own in the order of the callsite.
    pub(crate) fields: Fields,
}

/// Names and values.
pub(crate) type Fields = Vec<(&'static str, Value)>;

/// Where in the source a record comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The file's path as the compiler has it.
    pub(crate) file: &'static str,
    pub(crate) line: u32,
    /// The crate.
    pub(crate) krate: &'static str,
}

impl Place {
    pub(crate) fn of(metadata: &Metadata<'static>) -> Self {
        let module = metadata.module_path().unwrap_or_else(|| metadata.target());
        Self {
            file: metadata.file().unwrap_or("unknown"),
            line: metadata.line().unwrap_or_default(),
            krate: module.split("::").next().unwrap_or(module),
        }
    }

    /// The file's name.
    pub(crate) fn file_name(&self) -> &'static str {
        self.file.rsplit('/').next().unwrap_or(self.file)
    }

    /// The file's folder: the crate's name in place of `src`.
    pub(crate) fn folder(&self) -> &'static str {
        match self.file.rsplit('/').nth(1) {
            Some("src") | None => self.krate,
            Some(folder) => folder,
        }
    }
}

/// What a callsite gives along.
#[derive(Debug, Default)]
pub(crate) struct Content {
    pub(crate) message: String,
    pub(crate) fields: Fields,
}

/// The field `v`, if there is one.
#[derive(Debug, Default)]
pub(crate) struct Number {
    pub(crate) v: Option<u32>,
}

impl Visit for Number {
    fn record_debug(&mut self, _field: &Field, _value: &dyn fmt::Debug) {}

    fn record_i64(&mut self, field: &Field, value: i64) {
        if field.name() == "v" {
            self.v = u32::try_from(value).ok();
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == "v" {
            self.v = u32::try_from(value).ok();
        }
    }
}

impl Content {
    fn push(&mut self, field: &Field, value: Value) {
        let name = match field.name() {
            "v" => return,
            // klog's key for what went wrong.
            "error" => "err",
            name => name,
        };
        self.fields.push((name, value));
    }
}

impl Visit for Content {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut text = String::new();
        if write!(text, "{value:?}").is_err() {
            "(a value that can't be shown)".clone_into(&mut text);
        }
        if field.name() == "message" {
            self.message = text;
        } else {
            self.push(field, Value::Text(text));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.message);
        } else {
            self.push(field, Value::Text(value.to_owned()));
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.push(field, Value::Int(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.push(field, Value::Uint(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.push(field, Value::Float(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.push(field, Value::Bool(value));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.push(field, Value::Text(value.to_string()));
    }
}
