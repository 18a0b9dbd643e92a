//! Bodies of answers.

use std::io::{self, Read as _};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, Stream, StreamExt};
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;

use super::negotiate::Format;
use super::status::Status;

/// The body of every answer. An error in it breaks the connection.
pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Chunks of a streamed body are about this long.
pub(super) const CHUNK_BYTES: usize = 32 * 1024;

pub(super) fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

pub(super) fn streamed(chunks: impl Stream<Item = io::Result<Bytes>> + Send + 'static) -> Body {
    StreamBody::new(chunks.map(|chunk| chunk.map(Frame::data))).boxed_unsync()
}

/// A body of many pieces, put together into chunks only while they are sent.
pub(super) fn gathered(pieces: impl Iterator<Item = Bytes> + Send + 'static) -> Body {
    let mut pieces = pieces.fuse();
    let chunks = std::iter::from_fn(move || {
        let mut chunk = Vec::new();
        for piece in pieces.by_ref() {
            chunk.extend_from_slice(&piece);
            if chunk.len() >= CHUNK_BYTES {
                break;
            }
        }
        (!chunk.is_empty()).then(|| Ok(Bytes::from(chunk)))
    });
    streamed(stream::iter(chunks))
}

/// Ends a body with an error after `limit` bytes; a shorter one ends so too.
pub(super) fn truncated(body: Body, limit: usize) -> Body {
    let data = body.into_data_stream();
    let chunks = stream::unfold(Some((data, limit)), |state| async {
        let (mut data, left) = state?;
        match data.next().await {
            Some(Ok(mut chunk)) if left > 0 => {
                chunk.truncate(left);
                let left = left - chunk.len();
                Some((Ok(chunk), Some((data, left))))
            }
            _ => {
                flushed().await;
                Some((Err(broken()), None))
            }
        }
    });
    streamed(chunks)
}

/// One byte after each pause, for ever.
pub(super) fn dripping(pause: Duration) -> Body {
    streamed(stream::unfold((), move |()| async move {
        tokio::time::sleep(pause).await;
        Some((Ok(Bytes::from_static(b".")), ()))
    }))
}

/// Compresses a whole answer, unless it is short.
pub(super) async fn compressed(answer: Response<Body>, min_bytes: usize) -> Response<Body> {
    let (mut head, body) = answer.into_parts();
    let bytes = match body.collect().await {
        Ok(collected) => collected.to_bytes(),
        Err(error) => return Response::from_parts(head, streamed(stream::iter([Err(error)]))),
    };
    if bytes.len() < min_bytes {
        return Response::from_parts(head, whole(bytes));
    }
    let mut compressed = Vec::new();
    // A slice can always be read.
    let mut encoder = flate2::bufread::GzEncoder::new(&bytes[..], flate2::Compression::fast());
    drop(encoder.read_to_end(&mut compressed));
    head.headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    Response::from_parts(head, whole(compressed))
}

/// Waits until what was given to hyper is on its way: an error drops what is still buffered.
pub(super) async fn flushed() {
    tokio::time::sleep(Duration::from_millis(20)).await;
}

/// The error with which a connection is broken on purpose.
pub(super) fn broken() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "broken on purpose")
}

pub(super) fn response(code: u16, content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

pub(super) fn status_response(status: &Status, format: Format) -> Response<Body> {
    let format = status.format(format);
    let mut response = response(status.code, format.content_type(), whole(status.to_body(format)));
    if let Some(seconds) = status.retry_after {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    response
}
