//! Answers, with the headers that upstream's have.

use std::convert::Infallible;

use http::header::{CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use http::{Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;

/// What a server sends: a body that is there, or one that comes piece by piece (`http_body_util::StreamBody`). A client that takes
/// no further piece is left after [`Limits::answer`](crate::Limits), and any after the age of a connection.
pub(crate) type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

pub(crate) const TEXT: &str = "text/plain; charset=utf-8";
pub(crate) const JSON: &str = "application/json";
pub(crate) const HTML: &str = "text/html; charset=utf-8";

/// An answer of this type, which browsers must not guess anew.
pub(crate) fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()).boxed_unsync());
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}

/// A text with status 200.
pub(crate) fn text(body: impl Into<Bytes>) -> Answer {
    answer(StatusCode::OK, TEXT, body)
}

/// There is no such path.
pub(crate) fn not_found() -> Answer {
    answer(StatusCode::NOT_FOUND, TEXT, "404 page not found\n")
}

/// 200, or 503.
pub(crate) fn ok_or_unavailable(ok: bool) -> StatusCode {
    if ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}
