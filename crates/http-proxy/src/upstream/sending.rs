//! One request on a connection to an endpoint.

use std::error::Error as _;
use std::sync::Arc;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use tracing::debug;

use super::Endpoint;
use super::life::{Life, Use};
use crate::request_body::RequestBody;

/// A connection that has room for a request.
pub(crate) struct Connection {
    kind: Kind,
    life: Arc<Life>,
    used: Use,
}

enum Kind {
    Http1(http1::SendRequest<RequestBody>, Arc<Endpoint>),
    Http2(http2::SendRequest<RequestBody>),
}

/// A connection that has a request, to be given back after the response. To drop it earlier is to give the request up.
pub(crate) struct Lent(Connection);

/// Why there is no response.
pub(crate) enum SendError {
    /// Nothing was sent of this.
    NotSent(Box<Request<RequestBody>>),
    /// The endpoint says that it did nothing about it.
    Refused,
    /// The endpoint may have done what was asked for.
    Broken,
}

impl Connection {
    pub(super) fn http1(
        sender: http1::SendRequest<RequestBody>,
        life: &Arc<Life>,
        endpoint: Arc<Endpoint>,
    ) -> Self {
        Self { kind: Kind::Http1(sender, endpoint), used: life.begin(), life: life.clone() }
    }

    pub(super) fn http2(sender: http2::SendRequest<RequestBody>, life: &Arc<Life>) -> Self {
        Self { kind: Kind::Http2(sender), used: life.begin(), life: life.clone() }
    }

    /// Sends a request, and waits for the head of its response.
    pub(crate) async fn send(
        mut self,
        request: Request<RequestBody>,
    ) -> Result<(Response<Incoming>, Lent), SendError> {
        let outcome = match &mut self.kind {
            Kind::Http1(sender, _) => sender.try_send_request(request).await,
            Kind::Http2(sender) => sender.try_send_request(request).await,
        };
        match outcome {
            Ok(response) => Ok((response, Lent(self))),
            Err(error) => Err(SendError::of(error)),
        }
    }
}

impl SendError {
    fn of(mut error: TrySendError<Request<RequestBody>>) -> Self {
        if let Some(request) = error.take_message() {
            return Self::NotSent(Box::new(request));
        }
        let error = error.into_error();
        debug!(error = %error, cause = error.source().map(tracing::field::display), "no response");
        let http2 = error.source().and_then(|source| source.downcast_ref::<h2::Error>());
        match http2 {
            Some(error) if is_refusal(error) => Self::Refused,
            _ => Self::Broken,
        }
    }
}

/// A stream that is refused, or above the last one that an endpoint says it will serve, was not looked at. (RFC 9113, sections 6.8
/// and 8.7.)
fn is_refusal(error: &h2::Error) -> bool {
    error.is_remote() && (error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM))
}

impl Lent {
    /// The response is over: others may have the connection.
    pub(crate) fn give_back(self) {
        let Connection { kind, life, used } = self.0;
        drop(used);
        let Kind::Http1(mut sender, endpoint) = kind else { return };
        if sender.is_ready() {
            endpoint.keep(sender, life);
        } else if !sender.is_closed() {
            // The connection does not know yet that the response is over, or its request is not.
            tokio::spawn(async move {
                if sender.ready().await.is_ok() {
                    endpoint.keep(sender, life);
                }
            });
        }
    }
}
