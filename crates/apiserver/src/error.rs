//! Errors of the server's own API.

/// An object that does not fit the schema of its kind.
#[derive(Debug, thiserror::Error)]
#[error("field {path:?} is not a {expected}")]
pub struct SchemaError {
    path: String,
    expected: String,
}

impl SchemaError {
    pub(super) fn new(expected: impl Into<String>) -> Self {
        Self { path: String::new(), expected: expected.into() }
    }

    /// The same error seen from the message that holds the field.
    pub(super) fn within(mut self, field: &str) -> Self {
        self.path = if self.path.is_empty() { field.to_owned() } else { format!("{field}.{}", self.path) };
        self
    }
}

/// An object that the server does not take.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// `apiVersion` and `kind` name nothing that the server stores.
    #[error("the server has no kind {api_version:?} {kind:?}")]
    UnknownKind {
        /// The object's `apiVersion`.
        api_version: String,
        /// The object's `kind`.
        kind: String,
    },
    /// `metadata.name` is missing or empty.
    #[error("the object has no name")]
    NoName,
    /// A field is of the wrong type.
    #[error("the {kind} does not fit its schema")]
    Schema {
        /// The object's `kind`.
        kind: &'static str,
        /// Which field.
        #[source]
        source: SchemaError,
    },
}

/// The server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address cannot be listened on.
    #[error("listen on {address}")]
    Listen {
        /// The configured address.
        address: std::net::SocketAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Certificates cannot be made.
    #[error("make the server's certificates")]
    Certificate(#[from] rcgen::Error),
    /// The TLS library refuses the configuration.
    #[error("configure TLS")]
    Tls(#[from] tokio_rustls::rustls::Error),
    /// The verifier of client certificates cannot be built.
    #[error("configure the verifier of client certificates")]
    Verifier(#[from] tokio_rustls::rustls::server::VerifierBuilderError),
    /// The runtime or its thread cannot start.
    #[error("start the server's thread")]
    Thread(#[source] std::io::Error),
}
