//! A client's connection as bytes: what was read ahead comes first, a head that does not come to its end ends it, and its end waits
//! for the client to have read all.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

use crate::requests::Requests;
use crate::waiting::Waiting;

/// A client's connection.
#[derive(Debug)]
pub(crate) struct ClientIo {
    stream: TcpStream,
    read_ahead: Bytes,
    head: Option<HeadLimit>,
    waiting: Waiting,
    linger: Option<Pin<Box<Sleep>>>,
    n_unwanted: usize,
}

/// For how long a client may go on sending what nobody wants any more. If the connection were closed with unread bytes, the kernel
/// would break it off, and the client might never see the answer.
const LINGER: Duration = Duration::from_secs(2);
/// And no more than this.
const MAX_UNWANTED_BYTES: usize = 4 * 1024 * 1024;

/// For HTTP/1.1: a client may be idle for long, but once it has begun with the head of a request, it has to go on.
#[derive(Debug)]
struct HeadLimit {
    limit: Duration,
    requests: Arc<Requests>,
    /// Bytes came when no request was under way; there had been so many before.
    began_after: Option<usize>,
    end: Option<Pin<Box<Sleep>>>,
}

impl ClientIo {
    /// With these bytes, which were read already.
    pub(crate) fn new(stream: TcpStream, read_ahead: Bytes) -> Self {
        let (waiting, head, linger) = (Waiting::default(), None, None);
        Self { stream, read_ahead, head, waiting, linger, n_unwanted: 0 }
    }

    /// Tells this what it is at.
    pub(crate) fn waiting(self, waiting: Waiting) -> Self {
        Self { waiting, ..self }
    }

    /// With these bytes, which were read already, before what there is.
    pub(crate) fn with_read_ahead(self, bytes: &[u8]) -> Self {
        let read_ahead = [bytes, &self.read_ahead].concat().into();
        Self { read_ahead, ..self }
    }

    /// Ends when there is something to read, if only its end.
    pub(crate) async fn readable(&self) {
        if !self.read_ahead.has_remaining() {
            // An error is found by reading.
            drop(self.stream.readable().await);
        }
    }

    /// Reads until the client closes, or its time is over.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut unwanted = [0; 4096];
        loop {
            let mut buffer = ReadBuf::new(&mut unwanted);
            match Pin::new(&mut self.stream).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(()))
                    if !buffer.filled().is_empty() && self.n_unwanted < MAX_UNWANTED_BYTES =>
                {
                    self.n_unwanted += buffer.filled().len();
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => break,
            }
        }
        self.linger.get_or_insert_with(|| Box::pin(sleep(LINGER))).as_mut().poll(cx)
    }

    /// Has the head of a request come within this time. These are the connection's requests.
    pub(crate) fn with_head_limit(self, limit: Duration, requests: Arc<Requests>) -> Self {
        Self { head: Some(HeadLimit { limit, requests, began_after: None, end: None }), ..self }
    }
}

impl HeadLimit {
    fn received(&mut self) {
        let began_after = (self.requests.n_under_way() == 0).then(|| self.requests.n_begun());
        // More of the same head gets no more time.
        if self.began_after != began_after {
            self.began_after = began_after;
            self.end = None;
        }
    }

    /// There are no bytes to read.
    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let is_in_head =
            self.requests.n_under_way() == 0 && self.began_after == Some(self.requests.n_begun());
        if !is_in_head {
            self.end = None;
            return Poll::Pending;
        }
        ready!(self.end.get_or_insert_with(|| Box::pin(sleep(self.limit))).as_mut().poll(cx));
        Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, "a request's head does not come to its end"))
    }
}

impl AsyncRead for ClientIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.read_ahead.has_remaining() {
            let n = this.read_ahead.len().min(buffer.remaining());
            buffer.put_slice(&this.read_ahead.split_to(n));
        } else if Pin::new(&mut this.stream).poll_read(cx, buffer)?.is_pending() {
            let Some(head) = &mut this.head else { return Poll::Pending };
            return head.poll_over(cx).map(Err);
        }
        if let Some(head) = &mut this.head {
            head.received();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ClientIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.waiting.note_write(written.is_pending());
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.waiting.note_end();
        if self.linger.is_none() {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
        }
        // In HTTP/2 an end is told, and a client that goes on after that gets no more time.
        if self.head.is_none() { Poll::Ready(Ok(())) } else { self.poll_linger(cx).map(Ok) }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, pieces);
        self.waiting.note_write(written.is_pending());
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio::time::Instant;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    async fn connected() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (accepted, connected) = tokio::join!(listener.accept(), TcpStream::connect(address));
        (accepted.unwrap().0, connected.unwrap())
    }

    #[tokio::test]
    async fn what_was_read_ahead_comes_first() {
        let (ours, mut theirs) = connected().await;
        let mut io = ClientIo::new(ours, Bytes::from_static(b"GET /"));
        theirs.write_all(b" HTTP").await.unwrap();
        let mut received = [0; 10];
        io.read_exact(&mut received).await.unwrap();
        assert_eq!(&received, b"GET / HTTP");
    }

    /// One that sends a byte now and then would stay for ever.
    #[tokio::test(start_paused = true)]
    async fn a_head_has_its_time_however_it_comes() {
        let (ours, mut theirs) = connected().await;
        let requests = Arc::new(Requests::default());
        let mut io = ClientIo::new(ours, Bytes::new()).with_head_limit(LIMIT, requests);
        let sending = tokio::spawn(async move {
            for byte in b"GET / HTTP/1.1\r\nhost: a\r\nx-slow: ".iter().cycle() {
                if theirs.write_all(&[*byte]).await.is_err() {
                    break;
                }
                tokio::time::sleep(LIMIT / 4).await;
            }
        });
        let begun = Instant::now();
        let mut received = [0; 64];
        let error = loop {
            if let Err(error) = io.read(&mut received).await {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!((LIMIT..LIMIT * 2).contains(&begun.elapsed()));
        sending.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_between_requests_has_time() {
        let (ours, mut theirs) = connected().await;
        let requests = Arc::new(Requests::default());
        let mut io = ClientIo::new(ours, Bytes::new()).with_head_limit(LIMIT, requests.clone());
        let mut received = [0; 64];
        for pause in [0, 1, 10] {
            tokio::time::sleep(LIMIT * pause).await;
            theirs.write_all(b"GET").await.unwrap();
            assert_eq!(io.read(&mut received).await.unwrap(), 3);
            let mut request = requests.begin();
            theirs.write_all(b"body").await.unwrap();
            assert_eq!(io.read(&mut received).await.unwrap(), 4);
            request.answered();
            drop(request);
            let idle = tokio::time::timeout(LIMIT * 2, io.read(&mut received)).await;
            assert!(idle.is_err(), "it is not closed");
        }
    }

    #[tokio::test]
    async fn a_client_that_still_sends_sees_the_answer() {
        let (mut ours, mut theirs) = connected().await;
        ours.write_all(b"answer").await.unwrap();
        theirs.write_all(&vec![0; 100_000]).await.unwrap();
        let mut io = ClientIo::new(ours, Bytes::new()).with_head_limit(LIMIT, Arc::default());
        let ending = tokio::spawn(async move { io.shutdown().await });
        let mut received = Vec::new();
        theirs.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, b"answer");
        drop(theirs);
        ending.await.unwrap().unwrap();
    }
}
