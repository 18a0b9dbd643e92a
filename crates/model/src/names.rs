//! Interned names and the identities built from them.

use arcstr::ArcStr;
use rustc_hash::FxBuildHasher;
use std::borrow::Borrow;
use std::collections::HashSet;
use std::fmt;
use std::ops::Deref;

use crate::Protocol;

/// A name from the API (namespace, object, port, node, zone). Cloning shares the text. One pointer large, since each endpoint
/// has one, and each Service a dozen.
///
/// Equality and order are those of the bytes, so two names are equal whether or not one [`Interner`] made both.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(ArcStr);

impl Name {
    /// A name of its own, shared with nobody. Decoders use an [`Interner`] instead.
    pub fn new(text: &str) -> Self {
        Self(ArcStr::from(text))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Deref for Name {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Name {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

/// Makes one [`Name`] per distinct text, so that 100,000 endpoints on 100 nodes hold 100 node names.
///
/// Names that nobody else holds any more are dropped whenever the table has doubled since the last time, so a long life
/// with changing objects does not grow it.
#[derive(Debug)]
pub struct Interner {
    names: HashSet<Name, FxBuildHasher>,
    sweep_at: usize,
}

/// Below this many names a sweep is not worth its walk.
const MIN_SWEEP: usize = 4096;

impl Default for Interner {
    fn default() -> Self {
        Self { names: HashSet::default(), sweep_at: MIN_SWEEP }
    }
}

impl Interner {
    /// The shared name for `text`.
    pub fn intern(&mut self, text: &str) -> Name {
        if let Some(name) = self.names.get(text) {
            return name.clone();
        }
        if self.names.len() >= self.sweep_at {
            self.names.retain(|name| ArcStr::strong_count(&name.0).is_some_and(|count| count > 1));
            self.sweep_at = (self.names.len() * 2).max(MIN_SWEEP);
        }
        let name = Name::new(text);
        self.names.insert(name.clone());
        name
    }
}

/// Namespace and name of an object. Cluster-scoped objects (Node, `ServiceCIDR`) have an empty namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    /// Namespace; empty for cluster-scoped kinds.
    pub namespace: Name,
    /// Name within the namespace.
    pub name: Name,
}

/// The name of a Service, also the key under which its `EndpointSlice`s are gathered.
pub type ServiceName = ObjectName;

impl ObjectName {
    /// A name of its own; decoders build the fields from an [`Interner`].
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{}", self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// One port of one Service: the unit that is programmed (svc-port).
///
/// Shown as `namespace/name:port`, or `namespace/name` when the port has no name; the protocol is not shown. Comments
/// in rules and labels of metrics have this shape upstream, so it must not change
/// (`pkg/proxy/types.go`, `ServicePortName.String`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServicePortName {
    /// The Service.
    pub service: ServiceName,
    /// The port's name; empty when a Service has a single, unnamed port.
    pub port: Name,
    /// The port's protocol.
    pub protocol: Protocol,
}

impl fmt::Display for ServicePortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.port.is_empty() {
            write!(f, "{}", self.service)
        } else {
            write!(f, "{}:{}", self.service, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interning_shares_text_and_forgets_unused_names() {
        let mut interner = Interner::default();
        let kept = interner.intern("node-1");
        assert!(ArcStr::ptr_eq(&kept.0, &interner.intern("node-1").0));
        for i in 0..3 * MIN_SWEEP {
            interner.intern(&format!("pod-{i}"));
        }
        assert!(interner.names.len() <= 2 * MIN_SWEEP);
        assert!(ArcStr::ptr_eq(&kept.0, &interner.intern("node-1").0));
    }

    #[test]
    fn service_port_name_is_shown_as_upstream_shows_it() {
        let service = ObjectName::new("shop", "front");
        let port = |port: &str| ServicePortName {
            service: service.clone(),
            port: port.into(),
            protocol: Protocol::Tcp,
        };
        assert_eq!(port("http").to_string(), "shop/front:http");
        assert_eq!(port("").to_string(), "shop/front");
        assert_eq!(ObjectName::new("", "node-1").to_string(), "node-1");
    }
}
