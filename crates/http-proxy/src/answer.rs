//! What is answered when no endpoint answers.

use http::header::{CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, Response, StatusCode};

use crate::response_body::ResponseBody;

/// Why a request has no endpoint's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Failed {
    /// There is no endpoint.
    #[error("no endpoint serves this")]
    NoEndpoint,
    /// There is no room for more requests.
    #[error("too many requests are under way")]
    Overloaded,
    /// No connection could be made.
    #[error("no endpoint could be reached")]
    Unreachable,
    /// No connection could be made in time.
    #[error("no endpoint could be reached in time")]
    TimedOut,
    /// The endpoint did not begin to answer in time.
    #[error("the endpoint gave no answer in time")]
    Late,
    /// The endpoint broke off, or answered something else than HTTP.
    #[error("the endpoint gave no valid answer")]
    BadAnswer,
    /// The request lacks something that it must have.
    #[error("the request is not valid")]
    BadRequest,
}

impl Failed {
    pub(crate) const fn status(self) -> StatusCode {
        match self {
            Self::NoEndpoint | Self::Overloaded | Self::Unreachable => StatusCode::SERVICE_UNAVAILABLE,
            Self::TimedOut | Self::Late => StatusCode::GATEWAY_TIMEOUT,
            Self::BadAnswer => StatusCode::BAD_GATEWAY,
            Self::BadRequest => StatusCode::BAD_REQUEST,
        }
    }

    /// The status of gRPC: `UNAVAILABLE`, `DEADLINE_EXCEEDED` for what may have been done, or `INTERNAL` for what no client should do again. (gRPC, "HTTP to gRPC Status Code
    /// Mapping".)
    const fn grpc_status(self) -> &'static str {
        match self {
            Self::BadRequest => "13",
            Self::Late => "4",
            Self::NoEndpoint | Self::Overloaded | Self::Unreachable | Self::TimedOut | Self::BadAnswer => {
                "14"
            }
        }
    }

    /// The answer, in words that the client's protocol has for it.
    pub(crate) fn response(self, is_grpc: bool) -> Response<ResponseBody> {
        let text = self.to_string();
        let mut response = Response::new(ResponseBody::default());
        if is_grpc {
            let headers = response.headers_mut();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers.insert("grpc-status", HeaderValue::from_static(self.grpc_status()));
            // It is ASCII without `%`, as gRPC wants it.
            if let Ok(message) = HeaderValue::try_from(text) {
                headers.insert("grpc-message", message);
            }
            return response;
        }
        *response.status_mut() = self.status();
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        *response.body_mut() = ResponseBody::text(format!("{text}\n"));
        response
    }
}

/// Whether a request is one of gRPC.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    const TYPE: &[u8] = b"application/grpc";
    let Some(found) = headers.get(CONTENT_TYPE) else { return false };
    match found.as_bytes().split_at_checked(TYPE.len()) {
        // Not application/grpc-web, which is another protocol.
        Some((TYPE, rest)) => matches!(rest.first(), None | Some(b'+' | b';' | b' ')),
        _ => false,
    }
}

/// Whether an answer says that its endpoint failed. Of gRPC only what is said before the call, since its status comes last.
pub(crate) fn is_failure(response: &Response<impl Sized>, is_grpc: bool) -> bool {
    response.status().is_server_error() || is_grpc && is_grpc_unavailable(response.headers())
}

/// Whether an endpoint says, before anything else, that it can't serve a call of gRPC: a response that is its own trailers.
pub(crate) fn is_grpc_unavailable(headers: &HeaderMap) -> bool {
    headers.get("grpc-status").is_some_and(|status| status == "14")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_type(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_str(value).unwrap())])
    }

    #[test]
    fn grpc_is_known_by_its_content_type() {
        for (value, is) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc; charset=utf-8", true),
            ("application/grpc-web", false),
            ("application/grp", false),
            ("text/plain", false),
        ] {
            assert_eq!(is_grpc(&of_type(value)), is, "{value}");
        }
        assert!(!is_grpc(&HeaderMap::new()));
    }

    #[test]
    fn each_failure_has_its_status() {
        for (failed, status, grpc) in [
            (Failed::NoEndpoint, 503, "14"),
            (Failed::Overloaded, 503, "14"),
            (Failed::Unreachable, 503, "14"),
            (Failed::TimedOut, 504, "14"),
            (Failed::Late, 504, "4"),
            (Failed::BadAnswer, 502, "14"),
            (Failed::BadRequest, 400, "13"),
        ] {
            assert_eq!(failed.response(false).status(), status);
            let response = failed.response(true);
            assert_eq!(
                (response.status().as_u16(), &response.headers()["grpc-status"]),
                (200, &HeaderValue::from_static(grpc))
            );
            assert!(is_grpc(response.headers()));
            assert!(response.headers().contains_key("grpc-message"));
        }
    }
}
