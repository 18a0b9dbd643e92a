//! Raw form to model object: every rule about which objects and items count.
//!
//! The rules are those of upstream's `pkg/proxy/serviceport.go`, `endpointslicecache.go` and `node.go`, with its known
//! faults left out: what can't be parsed is left out with a note instead of being passed on.

mod node;
mod service;
mod slice;

use std::fmt;
use std::net::IpAddr;

use model::{Interner, Kind, Name, Object, ObjectName, Protocol};

use crate::raw;
use crate::report::{IgnoreReason, Notes, Outcome, Parsed, Rejection, quoted};

/// Longest name that the API allows for anything (a DNS subdomain, RFC 1123).
const MAX_NAME: usize = 253;

/// An address of a Service or an endpoint, or why it can't be one.
fn served_address(text: &str) -> Result<IpAddr, String> {
    let addr = model::parse_addr(text).map_err(|error| error.to_string())?;
    model::special_use(addr).map_or(Ok(addr), |what| Err(format!("{} is {what}", quoted(text))))
}

/// What an annotation says. One that makes no sense takes only itself away.
fn annotation<T, E: fmt::Display>(
    name: &str,
    text: Option<&raw::Text<'_>>,
    parse: fn(&str) -> Result<T, E>,
    notes: &mut Notes,
) -> Option<T> {
    match parse(text?) {
        Ok(value) => Some(value),
        Err(reason) => {
            notes.add(format_args!("metadata.annotations[{name}]"), reason.to_string());
            None
        }
    }
}

/// What a kind's conversion comes to, apart from the notes.
pub(crate) type Converted = Result<Object, Refusal>;

/// Why there is no object.
pub(crate) enum Refusal {
    Ignore(IgnoreReason),
    Reject { path: &'static str, reason: String },
}

/// A raw object of any kind.
pub(crate) trait Raw {
    /// Which kind it is.
    const KIND: Kind;
    /// Its metadata.
    fn meta(&self) -> &raw::Meta<'_>;
    /// The object in the model's form; items that are left out are noted.
    fn convert(&self, name: ObjectName, interner: &mut Interner, notes: &mut Notes) -> Converted;
}

macro_rules! raw_kind {
    ($type:ident, $kind:ident, $convert:path) => {
        impl Raw for raw::$type<'_> {
            const KIND: Kind = Kind::$kind;
            fn meta(&self) -> &raw::Meta<'_> {
                &self.metadata
            }
            fn convert(&self, name: ObjectName, interner: &mut Interner, notes: &mut Notes) -> Converted {
                $convert(self, name, interner, notes)
            }
        }
    };
}

raw_kind!(Service, Service, service::convert);
raw_kind!(EndpointSlice, EndpointSlice, slice::convert);
raw_kind!(Node, Node, node::convert_node);
raw_kind!(ServiceCidr, ServiceCidr, node::convert_cidr);

/// Converts one object.
pub(crate) fn convert<R: Raw>(raw: &R, interner: &mut Interner) -> Parsed {
    let (kind, meta) = (R::KIND, raw.meta());
    let resource_version = meta.resource_version.to_string();
    let (outcome, notes) = match object_name(kind, meta, interner) {
        Err(rejection) => (Outcome::Reject(rejection), Vec::new()),
        Ok(name) => {
            let mut notes = Notes::new(kind, name.clone());
            let outcome = match raw.convert(name.clone(), interner, &mut notes) {
                Ok(object) => Outcome::Keep(object),
                Err(Refusal::Ignore(reason)) => Outcome::Ignore(name, reason),
                Err(Refusal::Reject { path, reason }) => {
                    Outcome::Reject(Rejection::new(kind, Some(name), path, reason))
                }
            };
            (outcome, notes.finish())
        }
    };
    Parsed { kind, outcome, notes, resource_version }
}

/// The object's name. Namespaces of cluster-scoped kinds are dropped.
pub(crate) fn object_name(
    kind: Kind,
    meta: &raw::Meta<'_>,
    interner: &mut Interner,
) -> Result<ObjectName, Rejection> {
    let part = |path: &str, text: &str| {
        let bad = |reason| Err(Rejection::new(kind, None, path, reason));
        match fault_of_name(text) {
            _ if text.is_empty() => bad("is empty".to_owned()),
            Some(reason) => bad(reason),
            None => Ok(()),
        }
    };
    part("metadata.name", &meta.name)?;
    let namespace = match kind {
        Kind::Service | Kind::EndpointSlice => {
            part("metadata.namespace", &meta.namespace)?;
            &*meta.namespace
        }
        Kind::Node | Kind::ServiceCidr => "",
    };
    Ok(ObjectName { namespace: interner.intern(namespace), name: interner.intern(&meta.name) })
}

/// What is wrong with a name, if anything. Names end up in rule comments and logs, so only the characters that
/// Kubernetes allows in some name or label value pass; the stricter rules of each field are the API server's business.
fn fault_of_name(text: &str) -> Option<String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    if text.len() > MAX_NAME {
        Some(format!("{} is longer than {MAX_NAME} bytes", quoted(text)))
    } else if !text.bytes().all(plain) {
        Some(format!("{} is not a name", quoted(text)))
    } else {
        None
    }
}

/// A name inside an object, or a note.
fn item_name(
    text: &str,
    path: std::fmt::Arguments<'_>,
    interner: &mut Interner,
    notes: &mut Notes,
) -> Option<Name> {
    match fault_of_name(text) {
        Some(reason) => {
            notes.add(path, reason);
            None
        }
        None => Some(interner.intern(text)),
    }
}

/// A port number, or a note; 0 counts as a fault.
fn port_number(number: i64, path: std::fmt::Arguments<'_>, notes: &mut Notes) -> Option<u16> {
    let port = u16::try_from(number).ok().filter(|port| *port != 0);
    if port.is_none() {
        notes.add(path, format_args!("{number} is not a port number"));
    }
    port
}

/// A protocol, or a note. Empty means TCP, the API's default.
fn protocol(text: &str, path: std::fmt::Arguments<'_>, notes: &mut Notes) -> Option<Protocol> {
    let text = if text.is_empty() { "TCP" } else { text };
    let protocol = text.parse().ok();
    if protocol.is_none() {
        notes.add(path, format_args!("{} is not a protocol", quoted(text)));
    }
    protocol
}

/// The ranges that parse; a note for each that does not.
fn cidrs(texts: &[raw::Text<'_>], path: &str, notes: &mut Notes) -> Vec<ipnet::IpNet> {
    let mut cidrs = Vec::with_capacity(texts.len());
    for (i, text) in texts.iter().enumerate() {
        match model::parse_cidr(text.trim()) {
            Ok(cidr) => cidrs.push(cidr),
            Err(error) => notes.add(format_args!("{path}[{i}]"), error),
        }
    }
    cidrs
}
