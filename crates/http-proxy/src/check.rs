//! Asks an endpoint whether it serves.

use std::net::SocketAddr;

use balance::Probe;
use bytes::{BufMut as _, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HOST, HeaderValue, TE, USER_AGENT};
use http::{HeaderMap, Method, Request, Response, Version};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

/// Why an endpoint does not serve.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// It takes no connection.
    #[error("it takes no connection")]
    NotConnected(#[source] std::io::Error),
    /// What it says is not HTTP, or it breaks off.
    #[error("it gives no valid answer")]
    Broken(#[source] hyper::Error),
    /// It answers, but not that it serves.
    #[error("it answers {0}")]
    Answer(String),
}

/// An answer of gRPC is not longer; of HTTP the body is not looked at.
const MAX_ANSWER_BYTES: usize = 4096;
/// `grpc.health.v1.HealthCheckResponse.ServingStatus.SERVING`
const SERVING: u8 = 1;

/// Asks an endpoint, for as long as that takes: whoever asks has a limit. The connection begins with `preface`.
///
/// # Errors
/// It does not serve.
pub async fn check(probe: &Probe, address: SocketAddr, preface: &[u8]) -> Result<(), CheckError> {
    let mut stream = TcpStream::connect(address).await.map_err(CheckError::NotConnected)?;
    stream.write_all(preface).await.map_err(CheckError::NotConnected)?;
    match probe {
        Probe::Tcp => Ok(()),
        Probe::Http(path) => check_http(stream, path, address).await,
        Probe::Grpc(service) => check_grpc(stream, service, address).await,
    }
}

async fn check_http(stream: TcpStream, path: &str, address: SocketAddr) -> Result<(), CheckError> {
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(CheckError::Broken)?;
    let mut request = request(Method::GET, path.to_owned(), Full::default());
    if let Ok(host) = HeaderValue::try_from(address.to_string()) {
        request.headers_mut().insert(HOST, host);
    }
    let asked = async {
        let status = sender.send_request(request).await.map_err(CheckError::Broken)?.status();
        let serves = status.is_success() || status.is_redirection();
        serves.then_some(()).ok_or_else(|| CheckError::Answer(status.to_string()))
    };
    beside(connection, asked).await
}

async fn check_grpc(stream: TcpStream, service: &str, address: SocketAddr) -> Result<(), CheckError> {
    let made = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (mut sender, connection) = made.map_err(CheckError::Broken)?;
    let uri = format!("http://{address}/grpc.health.v1.Health/Check");
    let mut request = request(Method::POST, uri, Full::new(grpc_question(service)));
    *request.version_mut() = Version::HTTP_2;
    let headers = request.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(TE, HeaderValue::from_static("trailers"));
    let asked = async {
        let response = sender.send_request(request).await.map_err(CheckError::Broken)?;
        grpc_answer(response).await
    };
    beside(connection, asked).await
}

fn request(method: Method, uri: String, body: Full<Bytes>) -> Request<Full<Bytes>> {
    let mut request = Request::new(body);
    *request.method_mut() = method;
    // What was checked to be a path can be one.
    *request.uri_mut() = uri.try_into().unwrap_or_default();
    request.headers_mut().insert(USER_AGENT, HeaderValue::from_static("kube-proxy-check/1"));
    request
}

/// Has a connection go on for as long as something is asked on it.
async fn beside(
    connection: impl Future<Output = hyper::Result<()>>,
    asked: impl Future<Output = Result<(), CheckError>>,
) -> Result<(), CheckError> {
    let ended = async {
        match connection.await {
            Err(error) => CheckError::Broken(error),
            // The answer tells.
            Ok(()) => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        answer = asked => answer,
        error = ended => Err(error),
    }
}

/// `HealthCheckRequest { service }`, as one message. (gRPC over HTTP2, "Length-Prefixed-Message".)
fn grpc_question(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(0x0a);
        let mut len = service.len();
        while len >= 0x80 {
            message.put_u8(u8::try_from(len & 0x7f).unwrap_or_default() | 0x80);
            len >>= 7;
        }
        message.put_u8(u8::try_from(len).unwrap_or_default());
        message.put_slice(service.as_bytes());
    }
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).unwrap_or_default());
    framed.extend_from_slice(&message);
    framed.freeze()
}

async fn grpc_answer(response: Response<Incoming>) -> Result<(), CheckError> {
    let status = response.status();
    if !status.is_success() {
        return Err(CheckError::Answer(status.to_string()));
    }
    if let Some(refusal) = grpc_refusal(response.headers()) {
        return Err(refusal);
    }
    let whole = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
    let whole = whole.map_err(|_broken| CheckError::Answer("no message of gRPC".to_owned()))?;
    if let Some(refusal) = whole.trailers().and_then(grpc_refusal) {
        return Err(refusal);
    }
    match serving_status(&whole.to_bytes()) {
        Some(SERVING) => Ok(()),
        Some(other) => Err(CheckError::Answer(format!("with serving status {other}"))),
        None => Err(CheckError::Answer("no message of gRPC".to_owned())),
    }
}

/// What a status says, unless it is `OK`. It comes before the message or behind it.
fn grpc_refusal(headers: &HeaderMap) -> Option<CheckError> {
    let status = headers.get("grpc-status")?;
    let is_ok = status == "0";
    (!is_ok).then(|| {
        CheckError::Answer(format!("with status {} of gRPC", String::from_utf8_lossy(status.as_bytes())))
    })
}

/// `HealthCheckResponse.status`, field 1 of the message: one byte, since there are four values. It is 0 if it is left out.
fn serving_status(framed: &[u8]) -> Option<u8> {
    let (prefix, message) = framed.split_first_chunk::<5>()?;
    let len = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]);
    let is_whole = prefix[0] == 0 && usize::try_from(len).ok()? == message.len();
    match message {
        _ if !is_whole => None,
        [] => Some(0),
        [0x08, status, ..] => Some(*status),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages_of_grpc_are_as_protobuf_has_them() {
        assert_eq!(&*grpc_question(""), b"\0\0\0\0\0");
        assert_eq!(&*grpc_question("shop.Cart"), b"\0\0\0\0\x0b\x0a\x09shop.Cart");
        let long = grpc_question(&"x".repeat(300));
        assert_eq!(&long[..8], b"\0\0\0\x01\x2f\x0a\xac\x02");
        for (framed, status) in [
            (&b"\0\0\0\0\x02\x08\x01"[..], Some(1)),
            (b"\0\0\0\0\x02\x08\x02", Some(2)),
            (b"\0\0\0\0\0", Some(0)),
            (b"\0\0\0\0\x03\x08\x01", None),
            (b"\x01\0\0\0\x02\x08\x01", None),
            (b"", None),
        ] {
            assert_eq!(serving_status(framed), status, "{framed:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_an_endpoint_answers_to_a_check_is_read_with_no_panic(bytes: Vec<u8>) {
            serving_status(&bytes);
        }
    }
}
