//! Between the values of a YAML document and typed fields. Reading goes on after a mistake, so that all are reported.

use std::collections::BTreeMap;

use serde_json::{Map, Number, Value};

use crate::duration::GoDuration;
use crate::field::FieldError;
use crate::quantity::Quantity;

/// What is wrong with a document.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// Values of a wrong type: the document can't be used.
    pub(crate) errors: Vec<FieldError>,
    /// What a strict reading refuses and a lenient one leaves out.
    pub(crate) complaints: Vec<String>,
}

impl Report {
    fn wrong_type(&mut self, path: &str, wanted: &str, value: &Value) {
        self.wrong(path, format!("want {wanted}, found {}", kind(value)));
    }

    fn wrong(&mut self, path: &str, problem: String) {
        self.errors.push(FieldError { path: path.to_owned(), problem });
    }
}

/// A type that a field can have.
pub(crate) trait Field: Default {
    /// Whether `null` says the same as nothing. It does for all but plain durations, as in Go's decoder.
    const NULL_IS_ABSENT: bool = true;

    /// Reads a value; the default if it is of a wrong type, which the report then says.
    fn read(value: &Value, path: &str, report: &mut Report) -> Self;

    /// The value as it is written.
    fn write(&self) -> Value;
}

/// Reads a value that may be `null`.
pub(crate) fn read<F: Field>(value: &Value, path: &str, report: &mut Report) -> F {
    if value.is_null() && F::NULL_IS_ABSENT { F::default() } else { F::read(value, path, report) }
}

/// The path of a field in an object.
pub(crate) fn child(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// The fields of an object, handed one by one to `set`, which says whether it knows the name. A value that is not an object
/// is reported.
pub(crate) fn read_fields(
    value: &Value,
    path: &str,
    report: &mut Report,
    mut set: impl FnMut(&str, &Value, &str, &mut Report) -> bool,
) {
    let Value::Object(fields) = value else {
        report.wrong_type(path, "an object", value);
        return;
    };
    for (key, value) in fields {
        let path = child(path, key);
        if !set(key, value, &path, report) {
            report.complaints.push(format!("unknown field {path:?}"));
        }
    }
}

/// Whether Go's `omitempty` leaves a value out.
pub(crate) fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Number(_) => false,
    }
}

/// Defines an object of the file: its fields, their names there, and whether they are left out when empty.
macro_rules! object {
    ($(#[$doc:meta])* $name:ident {
        $($(#[$field_doc:meta])* $field:ident: $kind:ty = $yaml:literal $($omitempty:ident)?,)*
    }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $kind,)*
        }

        impl $crate::decode::Field for $name {
            fn read(value: &serde_json::Value, path: &str, report: &mut $crate::decode::Report) -> Self {
                let mut this = Self::default();
                $crate::decode::read_fields(value, path, report, |key, value, path, report| {
                    match key {
                        $($yaml => this.$field = $crate::decode::read(value, path, report),)*
                        _ => return false,
                    }
                    true
                });
                this
            }

            fn write(&self) -> serde_json::Value {
                let mut fields = serde_json::Map::new();
                $(
                    let value = self.$field.write();
                    let omit_empty = !stringify!($($omitempty)?).is_empty();
                    if !(omit_empty && $crate::decode::is_empty(&value)) {
                        fields.insert($yaml.to_owned(), value);
                    }
                )*
                serde_json::Value::Object(fields)
            }
        }
    };
}
pub(crate) use object;

fn kind(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => format!("the boolean {value}"),
        Value::Number(value) => format!("the number {value}"),
        Value::String(value) => format!("the string {:?}", value.chars().take(64).collect::<String>()),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}

impl Field for String {
    fn read(value: &Value, path: &str, report: &mut Report) -> Self {
        value.as_str().map_or_else(
            || {
                report.wrong_type(path, "a string", value);
                Self::new()
            },
            str::to_owned,
        )
    }

    fn write(&self) -> Value {
        Value::String(self.clone())
    }
}

impl Field for bool {
    fn read(value: &Value, path: &str, report: &mut Report) -> Self {
        value.as_bool().unwrap_or_else(|| {
            report.wrong_type(path, "true or false", value);
            false
        })
    }

    fn write(&self) -> Value {
        Value::Bool(*self)
    }
}

/// A whole number, also in the form `5.0`, which the conversion of YAML to JSON upstream turns into 5.
fn whole(value: &Value) -> Option<i64> {
    let number = value.as_number()?;
    number.as_i64().or_else(|| {
        let float = number.as_f64().filter(|float| float.fract() == 0.0 && float.abs() < 1e15)?;
        // Writing it without decimals is exact, and needs no cast.
        format!("{float:.0}").parse().ok()
    })
}

impl Field for i32 {
    fn read(value: &Value, path: &str, report: &mut Report) -> Self {
        whole(value).and_then(|number| Self::try_from(number).ok()).unwrap_or_else(|| {
            report.wrong_type(path, "a whole number of at most 32 bits", value);
            0
        })
    }

    fn write(&self) -> Value {
        Value::from(*self)
    }
}

impl Field for u32 {
    fn read(value: &Value, path: &str, report: &mut Report) -> Self {
        whole(value).and_then(|number| Self::try_from(number).ok()).unwrap_or_else(|| {
            report.wrong_type(path, "a whole number of at most 32 bits that is not negative", value);
            0
        })
    }

    fn write(&self) -> Value {
        Value::from(*self)
    }
}

impl Field for f32 {
    fn read(value: &Value, path: &str, report: &mut Report) -> Self {
        // By way of text, so that 0.1 is the nearest value of 32 bits and is written as 0.1 again.
        let number = value.as_number().and_then(|number| number.to_string().parse::<Self>().ok());
        number.filter(|number| number.is_finite()).unwrap_or_else(|| {
            report.wrong_type(path, "a number", value);
            0.0
        })
    }

    fn write(&self) -> Value {
        let text = self.to_string();
        let number = text.parse::<i64>().map(Number::from).ok();
        number.or_else(|| Number::from_f64(text.parse().ok()?)).map_or(Value::Null, Value::Number)
    }
}

impl Field for GoDuration {
    const NULL_IS_ABSENT: bool = false;

    fn read(value: &Value, path: &str, report: &mut Report) -> Self {
        let Some(text) = value.as_str() else {
            report.wrong_type(path, "a duration such as \"30s\"", value);
            return Self::default();
        };
        text.parse().unwrap_or_else(|error: crate::duration::DurationError| {
            report.wrong(path, error.to_string());
            Self::default()
        })
    }

    fn write(&self) -> Value {
        Value::String(self.to_string())
    }
}

/// `logging.flushFrequency`: a duration, or a whole number of nanoseconds (component-base's `TimeOrMetaDuration`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlushFrequency(pub GoDuration);

impl Field for FlushFrequency {
    fn read(value: &Value, path: &str, report: &mut Report) -> Self {
        whole(value).map_or_else(
            || Self(GoDuration::read(value, path, report)),
            |nanos| Self(GoDuration::from_nanos(nanos)),
        )
    }

    fn write(&self) -> Value {
        self.0.write()
    }
}

/// A word of which one is `off`, which YAML 1.1 reads as the boolean false.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Switch(pub String);

impl Field for Switch {
    fn read(value: &Value, path: &str, report: &mut Report) -> Self {
        match value {
            Value::Bool(false) => Self("off".to_owned()),
            other => Self(String::read(other, path, report)),
        }
    }

    fn write(&self) -> Value {
        self.0.write()
    }
}

impl Field for Quantity {
    fn read(value: &Value, path: &str, report: &mut Report) -> Self {
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            _ => {
                report.wrong_type(path, "a quantity such as \"64Ki\"", value);
                return Self::default();
            }
        };
        text.parse().unwrap_or_else(|error: crate::quantity::QuantityError| {
            report.wrong(path, error.to_string());
            Self::default()
        })
    }

    fn write(&self) -> Value {
        Value::String(self.to_string())
    }
}

/// A field where absent and zero differ.
impl<F: Field> Field for Option<F> {
    fn read(value: &Value, path: &str, report: &mut Report) -> Self {
        Some(F::read(value, path, report))
    }

    fn write(&self) -> Value {
        self.as_ref().map_or(Value::Null, F::write)
    }
}

impl<F: Field> Field for Vec<F> {
    fn read(value: &Value, path: &str, report: &mut Report) -> Self {
        let Value::Array(items) = value else {
            report.wrong_type(path, "a list", value);
            return Self::new();
        };
        items
            .iter()
            .enumerate()
            .map(|(index, item)| read(item, &format!("{path}[{index}]"), report))
            .collect()
    }

    fn write(&self) -> Value {
        self.iter().map(F::write).collect()
    }
}

impl<F: Field> Field for BTreeMap<String, F> {
    fn read(value: &Value, path: &str, report: &mut Report) -> Self {
        let Value::Object(fields) = value else {
            report.wrong_type(path, "an object", value);
            return Self::new();
        };
        fields.iter().map(|(key, value)| (key.clone(), read(value, &child(path, key), report))).collect()
    }

    fn write(&self) -> Value {
        let fields: Map<_, _> = self.iter().map(|(key, value)| (key.clone(), value.write())).collect();
        Value::Object(fields)
    }
}
