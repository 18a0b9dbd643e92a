//! Label and field selectors.

use super::kinds::Kind;
use super::object::Object;

/// What an object must satisfy to be seen.
#[derive(Debug, Clone)]
pub(super) struct Selector {
    pub(super) kind: Kind,
    /// Empty for all namespaces.
    pub(super) namespace: String,
    pub(super) labels: Vec<LabelRequirement>,
    pub(super) fields: Vec<FieldRequirement>,
}

impl Selector {
    pub(super) fn matches(&self, object: &Object) -> bool {
        object.kind == self.kind
            && (self.namespace.is_empty() || *self.namespace == *object.namespace)
            && self.labels.iter().all(|r| r.matches(object))
            && self.fields.iter().all(|r| r.matches(object))
    }

    /// Whether the selectors let every object of the namespace through.
    pub(super) fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }
}

/// One requirement of a label selector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LabelRequirement {
    key: String,
    test: LabelTest,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum LabelTest {
    Exists,
    Absent,
    /// The label has one of the values.
    In(Vec<String>),
    /// The label is missing or has none of the values.
    NotIn(Vec<String>),
}

impl LabelRequirement {
    fn matches(&self, object: &Object) -> bool {
        let value = object.labels.iter().find(|(key, _)| **key == *self.key).map(|(_, value)| &**value);
        match (&self.test, value) {
            (LabelTest::Exists, value) => value.is_some(),
            (LabelTest::Absent, value) => value.is_none(),
            (LabelTest::In(values), Some(value)) => values.iter().any(|v| v == value),
            (LabelTest::In(_), None) => false,
            (LabelTest::NotIn(values), Some(value)) => values.iter().all(|v| v != value),
            (LabelTest::NotIn(_), None) => true,
        }
    }
}

/// Parses a label selector.
///
/// # Errors
///
/// The message that a real server gives.
pub(super) fn parse_labels(text: &str) -> Result<Vec<LabelRequirement>, String> {
    let tokens = tokenize(text);
    let mut rest = tokens.as_slice();
    let mut requirements = Vec::new();
    while !rest.is_empty() {
        requirements.push(parse_requirement(&mut rest)?);
        match rest.split_first() {
            None => {}
            Some((&",", tail)) if !tail.is_empty() => rest = tail,
            Some((other, _)) => return Err(format!("found '{other}', expected: ',' or 'end of string'")),
        }
    }
    Ok(requirements)
}

const OPERATORS: &[&str] = &["!=", "==", "=", "!", ",", "(", ")"];

fn tokenize(text: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let operator = OPERATORS.iter().find(|o| rest.starts_with(**o)).map(|o| o.len());
        let is_end = |c: char| c.is_whitespace() || "=!,()".contains(c);
        let len = operator.unwrap_or_else(|| rest.find(is_end).unwrap_or(rest.len()));
        let (token, tail) = rest.split_at(len);
        tokens.push(token);
        rest = tail.trim_start();
    }
    tokens
}

fn is_word(token: &str) -> bool {
    !token.is_empty() && !OPERATORS.contains(&token)
}

fn parse_requirement<'a>(rest: &mut &'a [&'a str]) -> Result<LabelRequirement, String> {
    let fail = |found: &str, expected: &str| {
        Err(format!("unable to parse requirement: found '{found}', expected: {expected}"))
    };
    let mut take = || {
        let (first, tail) = rest.split_first()?;
        *rest = tail;
        Some(*first)
    };
    let first = take().unwrap_or_default();
    if first == "!" {
        let key = take().unwrap_or_default();
        let test = LabelTest::Absent;
        return if is_word(key) {
            Ok(LabelRequirement { key: key.to_owned(), test })
        } else {
            fail(key, "identifier")
        };
    }
    if !is_word(first) {
        return fail(first, "!, identifier, or 'end of string'");
    }
    let key = first.to_owned();
    let test = match rest.first().copied() {
        None | Some(",") => LabelTest::Exists,
        Some(operator @ ("=" | "==" | "!=")) => {
            *rest = &rest[1..];
            let value = parse_value(rest);
            if operator == "!=" { LabelTest::NotIn(vec![value]) } else { LabelTest::In(vec![value]) }
        }
        Some(operator @ ("in" | "notin")) => {
            *rest = &rest[1..];
            let values = parse_values(rest)?;
            if operator == "in" { LabelTest::In(values) } else { LabelTest::NotIn(values) }
        }
        Some(other) => return fail(other, "in, notin, =, ==, !=, gt, lt"),
    };
    Ok(LabelRequirement { key, test })
}

/// The word after an equals sign; nothing there means the empty value.
fn parse_value(rest: &mut &[&str]) -> String {
    match rest.split_first() {
        Some((word, tail)) if is_word(word) => {
            let value = (*word).to_owned();
            *rest = tail;
            value
        }
        _ => String::new(),
    }
}

fn parse_values(rest: &mut &[&str]) -> Result<Vec<String>, String> {
    let Some((&"(", tail)) = rest.split_first() else {
        let found = rest.first().copied().unwrap_or_default();
        return Err(format!("unable to parse requirement: found '{found}' expected: '('"));
    };
    *rest = tail;
    let mut values = Vec::new();
    loop {
        values.push(parse_value(rest));
        let separator = rest.first().copied().unwrap_or_default();
        *rest = rest.get(1..).unwrap_or_default();
        match separator {
            "," => {}
            ")" => return Ok(values),
            found => {
                return Err(format!("unable to parse requirement: found '{found}', expected: ',' or ')'"));
            }
        }
    }
}

/// One requirement of a field selector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FieldRequirement {
    field: SelectedField,
    value: String,
    /// `=` or `!=`.
    equal: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SelectedField {
    Name,
    Namespace,
    /// Position in the kind's selectable fields.
    Other(usize),
}

impl FieldRequirement {
    fn matches(&self, object: &Object) -> bool {
        let value = match self.field {
            SelectedField::Name => &*object.name,
            SelectedField::Namespace => &*object.namespace,
            SelectedField::Other(position) => object.fields.get(position).map_or("", |v| &**v),
        };
        (value == self.value) == self.equal
    }
}

/// Parses a field selector for a kind.
///
/// # Errors
///
/// The message that a real server gives, for bad syntax and for a field that the kind cannot be selected by.
pub(super) fn parse_fields(kind: Kind, text: &str) -> Result<Vec<FieldRequirement>, String> {
    text.split(',').filter(|term| !term.is_empty()).map(|term| parse_field(kind, text, term)).collect()
}

fn parse_field(kind: Kind, whole: &str, term: &str) -> Result<FieldRequirement, String> {
    let (path, value, equal) = if let Some((path, value)) = term.split_once("!=") {
        (path, value, false)
    } else if let Some((path, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
        (path, value, true)
    } else {
        return Err(format!("invalid selector: '{term}'; can't understand '{term}'"));
    };
    let info = kind.info();
    let field = match path {
        "metadata.name" => SelectedField::Name,
        "metadata.namespace" => SelectedField::Namespace,
        path => match info.selectable.iter().position(|f| *f == path) {
            Some(position) => SelectedField::Other(position),
            None => return Err(unsupported_field(kind, whole, path)),
        },
    };
    Ok(FieldRequirement { field, value: value.to_owned(), equal })
}

fn unsupported_field(kind: Kind, whole: &str, path: &str) -> String {
    let info = kind.info();
    format!(
        "Unable to find \"{}/{}, Resource={}\" that match label selector \"\", field selector \"{whole}\": \
         field label not supported: {path}",
        info.group, info.version, info.plural
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(labels: &serde_json::Value, cluster_ip: &str) -> Object {
        let value = json!({
            "metadata": {"name": "web", "namespace": "shop", "labels": labels},
            "spec": {"clusterIP": cluster_ip},
        });
        Object::new(Kind::Service, &value, 1).unwrap()
    }

    #[track_caller]
    fn check(labels: &str, fields: &str, expected: bool) {
        let object = service(&json!({"app": "web", "tier": "front", "empty": ""}), "10.96.0.7");
        let selector = Selector {
            kind: Kind::Service,
            namespace: String::new(),
            labels: parse_labels(labels).unwrap(),
            fields: parse_fields(Kind::Service, fields).unwrap(),
        };
        assert_eq!(selector.matches(&object), expected, "{labels:?} {fields:?}");
    }

    #[test]
    fn label_selectors() {
        for (labels, expected) in [
            ("", true),
            ("app", true),
            ("!app", false),
            ("!service.kubernetes.io/service-proxy-name", true),
            ("app=web", true),
            ("app == web,tier", true),
            ("app=db", false),
            ("app!=db", true),
            ("other!=db", true),
            ("app in (db, web)", true),
            ("app notin (db,web)", false),
            ("other notin (db)", true),
            ("other in (db)", false),
            ("empty=", true),
            ("app=", false),
            ("app in (web),!tier", false),
        ] {
            check(labels, "", expected);
        }
    }

    #[test]
    fn field_selectors() {
        for (fields, expected) in [
            ("metadata.name=web", true),
            ("metadata.name!=web", false),
            ("metadata.name==web,metadata.namespace=shop", true),
            ("metadata.namespace=default", false),
            ("spec.clusterIP!=None", true),
            ("spec.clusterIP=10.96.0.7", true),
        ] {
            check("", fields, expected);
        }
    }

    #[test]
    fn bad_selectors_are_refused() {
        let cases = ["a b c", "!", "a in web", "a in (b", "=b", "a=b c", "a,"];
        for bad in cases {
            assert!(parse_labels(bad).is_err(), "{bad}");
        }
        assert!(parse_fields(Kind::Service, "metadata.name").is_err());
        let unsupported = parse_fields(Kind::EndpointSlice, "spec.clusterIP!=None").unwrap_err();
        assert!(unsupported.ends_with("field label not supported: spec.clusterIP"), "{unsupported}");
    }
}
