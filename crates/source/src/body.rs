//! Bodies of answers, decompressed piece by piece.

use std::io::Write as _;
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use flate2::write::GzDecoder;
use http::HeaderMap;
use http::header::CONTENT_ENCODING;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use crate::machine::Failure;
use crate::transport::chain;

/// So much is decompressed at once: each byte becomes at most about a thousand.
const STEP: usize = 4096;

/// The body of an answer.
pub(crate) struct Body {
    incoming: Incoming,
    gzip: Option<Gzip>,
}

struct Gzip {
    decoder: GzDecoder<Vec<u8>>,
    /// What has come and is still compressed.
    waiting: Bytes,
}

impl Body {
    /// # Errors
    /// It is encoded in a way that nobody asked for.
    pub(crate) fn new(headers: &HeaderMap, incoming: Incoming) -> Result<Self, Failure> {
        let gzip = match headers.get(CONTENT_ENCODING).map(http::HeaderValue::as_bytes) {
            None | Some(b"identity" | b"") => None,
            Some(b"gzip") => Some(Gzip { decoder: GzDecoder::new(Vec::new()), waiting: Bytes::new() }),
            Some(other) => {
                let encoding = String::from_utf8_lossy(other).into_owned();
                return Err(Failure::Unreadable(format!("the answer has the content encoding {encoding:?}")));
            }
        };
        Ok(Self { incoming, gzip })
    }

    /// The next piece, a few MiB at most; `None` at the end.
    pub(crate) async fn chunk(&mut self, limit: Duration) -> Result<Option<Bytes>, Failure> {
        let silent = |_elapsed| Failure::Silent(format!("nothing came for {limit:?}"));
        loop {
            if let Some(piece) = self.gzip.as_mut().map(Gzip::step).transpose()?
                && !piece.is_empty()
            {
                return Ok(Some(piece));
            }
            if self.gzip.as_ref().is_some_and(|gzip| !gzip.waiting.is_empty()) {
                continue;
            }
            match tokio::time::timeout(limit, self.next()).await.map_err(silent)?? {
                None => return self.end(),
                Some(data) => match &mut self.gzip {
                    None => return Ok(Some(data)),
                    Some(gzip) => gzip.waiting = data,
                },
            }
        }
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            match self.incoming.frame().await {
                None => return Ok(None),
                Some(Err(error)) => {
                    return Err(Failure::Broken(format!("the connection broke: {}", chain(&error))));
                }
                // Trailers are of no interest.
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    /// What the decoder has kept back, once.
    fn end(&mut self) -> Result<Option<Bytes>, Failure> {
        let Some(gzip) = self.gzip.take() else { return Ok(None) };
        let rest = gzip.decoder.finish().map_err(|error| unreadable(&error))?;
        Ok((!rest.is_empty()).then(|| rest.into()))
    }

    /// The whole body.
    ///
    /// # Errors
    /// It has not come whole after `limit`, stops for `pause`, or has more than `max_bytes`.
    pub(crate) async fn read(
        mut self,
        pause: Duration,
        limit: Duration,
        max_bytes: usize,
    ) -> Result<Vec<u8>, Failure> {
        let reading = async {
            let mut body = Vec::new();
            while let Some(chunk) = self.chunk(pause).await? {
                if body.len() + chunk.len() > max_bytes {
                    return Err(Failure::Unreadable(format!("the answer exceeds {max_bytes} bytes")));
                }
                body.extend_from_slice(&chunk);
            }
            Ok(body)
        };
        tokio::time::timeout(limit, reading)
            .await
            .map_err(|_elapsed| Failure::Broken(format!("the answer has not ended after {limit:?}")))?
    }

    /// As much as there is, up to limits; what goes wrong ends it.
    pub(crate) async fn read_start(mut self, limit: Duration, max_bytes: usize) -> Vec<u8> {
        let mut start = Vec::new();
        let reading = async {
            while start.len() < max_bytes
                && let Ok(Some(chunk)) = self.chunk(limit).await
            {
                start.extend_from_slice(&chunk);
            }
        };
        // What has come by then is what there is.
        drop(tokio::time::timeout(limit, reading).await);
        start.truncate(max_bytes);
        start
    }
}

impl Gzip {
    /// Decompresses a little of what waits.
    fn step(&mut self) -> Result<Bytes, Failure> {
        if self.waiting.is_empty() {
            return Ok(Bytes::new());
        }
        let step = self.waiting.len().min(STEP);
        self.decoder
            .write_all(&self.waiting[..step])
            .and_then(|()| self.decoder.flush())
            .map_err(|error| unreadable(&error))?;
        self.waiting.advance(step);
        Ok(std::mem::take(self.decoder.get_mut()).into())
    }
}

fn unreadable(error: &std::io::Error) -> Failure {
    Failure::Unreadable(format!("the answer can't be decompressed: {error}"))
}
