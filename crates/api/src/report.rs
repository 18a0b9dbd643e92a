//! What became of an object: kept, ignored or rejected, and what was left out of it.

use std::fmt;

use model::{Kind, Object, ObjectName};

/// Longest reason in bytes; input may hold megabytes and must not fill the log.
const MAX_REASON: usize = 256;
/// Most notes about one object; a slice may hold a thousand bad endpoints.
const MAX_NOTES: usize = 16;

/// One decoded object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// The object's kind.
    pub kind: Kind,
    /// What to do with it.
    pub outcome: Outcome,
    /// Items that were left out of it; the rest of the object stands.
    pub notes: Vec<Rejection>,
    /// `metadata.resourceVersion`, an opaque text; empty when there is none.
    pub resource_version: String,
}

/// What to do with a decoded object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The proxy serves it.
    Keep(Object),
    /// It is sound, but does not concern the proxy: as if it did not exist.
    Ignore(ObjectName, IgnoreReason),
    /// It is unusable. What was known of it before stays in force.
    Reject(Rejection),
}

impl Parsed {
    /// The object's name, where it has a usable one.
    pub fn name(&self) -> Option<&ObjectName> {
        match &self.outcome {
            Outcome::Keep(object) => Some(object.name()),
            Outcome::Ignore(name, _) => Some(name),
            Outcome::Reject(rejection) => rejection.name.as_ref(),
        }
    }
}

/// Why an object does not concern the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IgnoreReason {
    /// A Service with label `service.kubernetes.io/service-proxy-name`, whatever its value.
    OtherProxy,
    /// A Service whose `clusterIP` is empty or `None`.
    NoClusterIp,
    /// A Service of type `ExternalName`.
    ExternalName,
    /// A slice with label `service.kubernetes.io/headless`.
    Headless,
    /// A slice without label `kubernetes.io/service-name`.
    NoOwner,
    /// A slice of `addressType: FQDN`.
    Fqdn,
}

impl fmt::Display for IgnoreReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OtherProxy => "another proxy serves it",
            Self::NoClusterIp => "it has no cluster ip",
            Self::ExternalName => "it is a dns name only",
            Self::Headless => "it belongs to a headless service",
            Self::NoOwner => "it names no service",
            Self::Fqdn => "it holds dns names, not addresses",
        })
    }
}

/// An object, or an item of one, that can't be used.
///
/// Shown as `EndpointSlice shop/front-abc: endpoints[3].addresses[0]: "10.0.0.999" is not an IP address`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The object's kind.
    pub kind: Kind,
    /// The object's name; `None` when it can't be read either.
    pub name: Option<ObjectName>,
    /// The field in the API's spelling; empty when the object as a whole is meant.
    pub path: String,
    /// What is wrong with it, of bounded length.
    pub reason: String,
}

impl Rejection {
    pub(crate) fn new(
        kind: Kind,
        name: Option<ObjectName>,
        path: impl fmt::Display,
        reason: impl fmt::Display,
    ) -> Self {
        Self { kind, name, path: bounded(path), reason: bounded(reason) }
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind)?;
        match &self.name {
            Some(name) => write!(f, " {name}: ")?,
            None => write!(f, " without a usable name: ")?,
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.reason)
    }
}

impl std::error::Error for Rejection {}

/// The text, cut to a bounded length.
pub(crate) fn bounded(text: impl fmt::Display) -> String {
    let mut text = text.to_string();
    if text.len() > MAX_REASON {
        text.truncate(text.floor_char_boundary(MAX_REASON));
        text.push('…');
    }
    text
}

/// A value from the input, quoted and cut, for use inside a reason.
pub(crate) fn quoted(value: &str) -> String {
    let cut: String = value.chars().take(64).collect();
    format!("{cut:?}")
}

/// Gathers what is left out of one object.
pub(crate) struct Notes {
    kind: Kind,
    name: ObjectName,
    kept: Vec<Rejection>,
    n_more: usize,
}

impl Notes {
    pub(crate) fn new(kind: Kind, name: ObjectName) -> Self {
        Self { kind, name, kept: Vec::new(), n_more: 0 }
    }

    /// Notes an item that is left out.
    pub(crate) fn add(&mut self, path: impl fmt::Display, reason: impl fmt::Display) {
        if self.kept.len() < MAX_NOTES {
            self.kept.push(Rejection::new(self.kind, Some(self.name.clone()), path, reason));
        } else {
            self.n_more += 1;
        }
    }

    pub(crate) fn finish(mut self) -> Vec<Rejection> {
        if self.n_more > 0 {
            let reason = format_args!("{} more items are unusable", self.n_more);
            self.kept.push(Rejection::new(self.kind, Some(self.name), "", reason));
        }
        self.kept
    }
}
