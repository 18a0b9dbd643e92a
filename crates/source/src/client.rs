//! Writing single objects to the API server, for what the proxy has to tell the cluster.

use std::sync::Arc;
use std::time::Duration;

use http::header::{ACCEPT, CONTENT_TYPE};

use crate::machine::Failure;
use crate::transport::{Generation, Transport};

/// Writes to the API server. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    transport: Arc<Transport>,
}

impl std::fmt::Debug for Client {
    /// Without what it holds, which are credentials.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

/// How an object is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// `POST` to a collection: a new object.
    Create,
    /// `PATCH` of an object, with a merge patch (RFC 7386).
    MergePatch,
    /// `PATCH` of an object, with a patch of operations (RFC 6902), all of which are made or none.
    JsonPatch,
}

/// Why something was not written, or perhaps not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// It makes no request.
    #[error("the request can't be built: {0}")]
    Request(String),
    /// There was no answer: the object may have been written or not.
    #[error("{0}")]
    NoAnswer(String),
    /// The server refused.
    #[error("the server says {code} {reason}: {message}")]
    Refused {
        /// HTTP status code.
        code: u16,
        /// The machine-readable reason, such as `AlreadyExists`; may be empty.
        reason: String,
        /// The reason for people.
        message: String,
        /// The server asks to try again after this time.
        retry_after: Option<Duration>,
    },
}

impl Client {
    pub(crate) fn new(transport: Arc<Transport>) -> Self {
        Self { transport }
    }

    /// Sends one object, or a part of one, as JSON and waits for the answer, at most `limit`. Nothing is tried again, except
    /// that credentials which the server does not accept are read again once.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub async fn write(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
        limit: Duration,
    ) -> Result<(), WriteError> {
        let generation = self.transport.current();
        let failure = match generation.write(request(method, path, body.clone())?, limit).await {
            Ok(()) => return Ok(()),
            Err(failure) => failure,
        };
        let is_unauthorized = matches!(&failure, Failure::Status(status) if status.code == 401);
        // If they can't be read either, the server's refusal says enough.
        if !is_unauthorized || self.transport.renew(&generation).await.is_err() {
            return Err(write_error(failure, &generation));
        }
        let generation = self.transport.current();
        let result = generation.write(request(method, path, body)?, limit).await;
        result.map_err(|failure| write_error(failure, &generation))
    }
}

fn request(method: Method, path: &str, body: Vec<u8>) -> Result<http::Request<Vec<u8>>, WriteError> {
    let (method, content_type) = match method {
        Method::Create => (http::Method::POST, "application/json"),
        Method::MergePatch => (http::Method::PATCH, "application/merge-patch+json"),
        Method::JsonPatch => (http::Method::PATCH, "application/json-patch+json"),
    };
    http::Request::builder()
        .method(method)
        .uri(path)
        .header(ACCEPT, "application/json")
        .header(CONTENT_TYPE, content_type)
        .body(body)
        .map_err(|error| WriteError::Request(error.to_string()))
}

fn write_error(failure: Failure, generation: &Generation) -> WriteError {
    match failure {
        Failure::Status(status) => WriteError::Refused {
            code: status.code,
            reason: status.reason,
            message: status.message,
            retry_after: status.retry_after,
        },
        other => WriteError::NoAnswer(generation.describe(&other)),
    }
}
