//! The body of a request on its way to an endpoint.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::oneshot;
use tokio::time::{Sleep, sleep};

/// What is kept of one body, so that it can be sent again.
const MAX_KEPT_BYTES: usize = 64 * 1024;
/// What is kept of all bodies on the way to the endpoints of a Service.
const MAX_ALL_KEPT_BYTES: usize = 16 * 1024 * 1024;
/// A client that asked whether to send its body sends it after some time in any case; so long an endpoint has for its answer.
const CONTINUE_LIMIT: Duration = Duration::from_secs(1);

/// Why a body does not come to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("the client's body ended early")]
    Client(#[source] hyper::Error),
    #[error("the endpoint answered without the body")]
    NotWanted,
    #[error("the body is sent to another endpoint")]
    SentElsewhere,
}

/// The body of one try.
#[derive(Debug, Default)]
pub(crate) struct RequestBody {
    content: Content,
    gate: Option<Gate>,
}

#[derive(Debug, Default)]
enum Content {
    #[default]
    Empty,
    /// It can be sent once.
    Once(Incoming),
    Kept(Try),
}

/// Holds a body back until the endpoint asks for it.
#[derive(Debug)]
struct Gate {
    asked: oneshot::Receiver<()>,
    limit: Pin<Box<Sleep>>,
}

/// Who has this lets the body go, or has it end in an error when it is dropped.
#[derive(Clone, Debug)]
pub(crate) struct Asks(Arc<Mutex<Option<oneshot::Sender<()>>>>);

impl Asks {
    pub(crate) fn ask(&self) {
        if let Some(asks) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            match asks.send(()) {
                // Nobody may wait for it any more.
                Ok(()) | Err(()) => {}
            }
        }
    }
}

impl RequestBody {
    pub(crate) fn once(body: Incoming) -> Self {
        Self { content: Content::Once(body), gate: None }
    }

    /// Holds it back until the endpoint asks for it.
    pub(crate) fn held_back(self) -> (Self, Asks) {
        let (asks, asked) = oneshot::channel();
        let gate = Gate { asked, limit: Box::pin(sleep(CONTINUE_LIMIT)) };
        (Self { gate: Some(gate), ..self }, Asks(Arc::new(Mutex::new(Some(asks)))))
    }
}

impl Gate {
    /// Whether the body may go.
    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        match Pin::new(&mut self.asked).poll(cx) {
            Poll::Ready(Ok(())) => Poll::Ready(Ok(())),
            Poll::Ready(Err(_dropped)) => Poll::Ready(Err(BodyError::NotWanted)),
            Poll::Pending => self.limit.as_mut().poll(cx).map(Ok),
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if let Some(gate) = &mut this.gate {
            if let Err(error) = ready!(gate.poll_open(cx)) {
                return Poll::Ready(Some(Err(error)));
            }
            this.gate = None;
        }
        match &mut this.content {
            Content::Empty => Poll::Ready(None),
            Content::Once(body) => {
                Pin::new(body).poll_frame(cx).map(|frame| frame.map(|frame| frame.map_err(BodyError::Client)))
            }
            Content::Kept(this_try) => this_try.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Empty => true,
            Content::Once(body) => body.is_end_stream(),
            Content::Kept(this_try) => this_try.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Empty => SizeHint::with_exact(0),
            Content::Once(body) => body.size_hint(),
            Content::Kept(this_try) => this_try.hint,
        }
    }
}

/// A body of which the beginning is kept for another try.
#[derive(Clone, Debug)]
pub(crate) struct KeptBody {
    source: Arc<Mutex<Source>>,
    hint: SizeHint,
}

#[derive(Debug)]
struct Source {
    body: Incoming,
    /// All that was taken of the body; `None` if that was too much, or nobody will want it again.
    kept: Option<Kept>,
    is_ended: bool,
    /// The last of the tries, which alone may take more.
    last_try: u32,
}

#[derive(Debug)]
struct Kept {
    pieces: Vec<Bytes>,
    n_bytes: usize,
    /// Of all bodies.
    all: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct Try {
    source: Arc<Mutex<Source>>,
    number: u32,
    /// Pieces of those that are kept that were sent.
    n_sent: usize,
    hint: SizeHint,
}

impl KeptBody {
    /// `all`: the bytes that are kept of all bodies.
    pub(crate) fn new(body: Incoming, all: &Arc<AtomicUsize>) -> Self {
        let hint = body.size_hint();
        let kept = Kept { pieces: Vec::new(), n_bytes: 0, all: all.clone() };
        let source = Source { body, kept: Some(kept), is_ended: false, last_try: 0 };
        Self { source: Arc::new(Mutex::new(source)), hint }
    }

    /// The body from its beginning; earlier ones get no more of it.
    pub(crate) fn again(&self) -> RequestBody {
        let number = {
            let mut source = lock(&self.source);
            source.last_try += 1;
            source.last_try
        };
        let content = Content::Kept(Try { source: self.source.clone(), number, n_sent: 0, hint: self.hint });
        RequestBody { content, gate: None }
    }

    pub(crate) fn is_whole(&self) -> bool {
        lock(&self.source).kept.is_some()
    }

    /// Nobody will want it again.
    pub(crate) fn forget(&self) {
        lock(&self.source).kept = None;
    }
}

fn lock(source: &Mutex<Source>) -> MutexGuard<'_, Source> {
    source.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Try {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut source = lock(&self.source);
        if source.last_try != self.number {
            return Poll::Ready(Some(Err(BodyError::SentElsewhere)));
        }
        if let Some(piece) = source.kept.as_ref().and_then(|kept| kept.pieces.get(self.n_sent)) {
            self.n_sent += 1;
            return Poll::Ready(Some(Ok(Frame::data(piece.clone()))));
        }
        if source.is_ended {
            return Poll::Ready(None);
        }
        let frame = ready!(Pin::new(&mut source.body).poll_frame(cx));
        self.n_sent += 1;
        source.take_note(frame.as_ref());
        Poll::Ready(frame.map(|frame| frame.map_err(BodyError::Client)))
    }

    fn is_end_stream(&self) -> bool {
        let source = lock(&self.source);
        let rest = source.kept.as_ref().map_or(0, |kept| kept.pieces.len().saturating_sub(self.n_sent));
        rest == 0 && source.body.is_end_stream()
    }
}

impl Source {
    /// Keeps what may be sent again.
    fn take_note(&mut self, frame: Option<&Result<Frame<Bytes>, hyper::Error>>) {
        match frame {
            None => self.is_ended = true,
            Some(Err(_)) => self.kept = None,
            Some(Ok(frame)) => {
                let is_kept = self.kept.as_mut().is_some_and(|kept| kept.take(frame));
                if !is_kept {
                    self.kept = None;
                }
            }
        }
    }
}

impl Kept {
    /// False if there is no room.
    fn take(&mut self, frame: &Frame<Bytes>) -> bool {
        if frame.is_trailers() {
            // Trailers of a request are as good as never used.
            return false;
        }
        let Some(piece) = frame.data_ref() else { return true };
        let n = piece.remaining();
        self.n_bytes += n;
        let all = self.all.fetch_add(n, Ordering::Relaxed) + n;
        self.pieces.push(piece.clone());
        self.n_bytes <= MAX_KEPT_BYTES && all <= MAX_ALL_KEPT_BYTES
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.all.fetch_sub(self.n_bytes, Ordering::Relaxed);
    }
}
