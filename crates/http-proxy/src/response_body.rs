//! The body of a response on its way to a client, and what ends with it.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::request_body::Asks;
use crate::requests::UnderWay;
use crate::trace::Recording;
use crate::upstream::{Lent, Room};

/// The body of a response.
#[derive(Default)]
pub(crate) struct ResponseBody {
    content: Content,
    /// Whether an end is told, so that there is none without that: HTTP/2.
    is_end_told: bool,
    held: Option<Box<Held>>,
}

#[derive(Default)]
enum Content {
    #[default]
    Empty,
    Text(Bytes),
    Endpoint(Incoming),
}

/// Why a body does not come to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BrokenOff {
    #[error("the endpoint's body broke")]
    Body(#[source] hyper::Error),
    #[error("the endpoint gave its answer up")]
    GivenUp,
}

/// What a request has until its response is over.
pub(crate) struct Held {
    pub(crate) under_way: UnderWay,
    /// What the endpoint has to do.
    pub(crate) turn: Option<Box<dyn Send>>,
    /// Its room among all requests.
    pub(crate) room: Option<Room>,
    /// The connection to the endpoint, to be given back.
    pub(crate) lent: Option<Lent>,
    /// A body that the endpoint may never ask for.
    pub(crate) asks: Option<Asks>,
    /// What is recorded.
    pub(crate) recording: Option<Box<Recording>>,
}

impl Held {
    /// What any request has.
    pub(crate) fn of(under_way: UnderWay) -> Self {
        Self { under_way, turn: None, room: None, lent: None, asks: None, recording: None }
    }
}

impl ResponseBody {
    pub(crate) fn text(text: String) -> Self {
        Self { content: Content::Text(text.into()), ..Self::default() }
    }

    /// `is_end_told`: it came by HTTP/2. An endpoint that gives an answer up may say that nothing is wrong (`NO_ERROR`), which the
    /// library takes for the end: it means an answer that was whole before. (RFC 9113, section 8.1.)
    pub(crate) fn of_endpoint(body: Incoming, is_end_told: bool) -> Self {
        let content = if body.is_end_stream() { Content::Empty } else { Content::Endpoint(body) };
        Self { content, is_end_told, held: None }
    }

    /// Has these end with it.
    pub(crate) fn with(self, held: Held) -> Self {
        let mut this = Self { held: Some(Box::new(held)), ..self };
        if matches!(this.content, Content::Empty) {
            this.end();
        }
        this
    }

    fn note_trailers(&mut self, frame: &Frame<Bytes>) {
        let recording = self.held.as_mut().and_then(|held| held.recording.as_mut());
        if let (Some(recording), Some(trailers)) = (recording, frame.trailers_ref()) {
            recording.note_grpc_status(trailers);
        }
    }

    /// All was sent.
    fn end(&mut self) {
        let Some(held) = self.held.take() else { return };
        let Held { mut under_way, turn, room, lent, asks, recording } = *held;
        under_way.answered();
        drop((under_way, turn, room, asks, recording));
        if let Some(lent) = lent {
            lent.give_back();
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        let this = self.get_mut();
        let frame = match &mut this.content {
            Content::Empty => None,
            Content::Text(text) => {
                let text = std::mem::take(text);
                this.content = Content::Empty;
                Some(Ok(Frame::data(text)))
            }
            Content::Endpoint(body) => {
                let frame = ready!(Pin::new(&mut *body).poll_frame(cx));
                let is_over = body.is_end_stream();
                if matches!(frame, None | Some(Ok(_))) && is_over {
                    this.content = Content::Empty;
                }
                match frame {
                    None if this.is_end_told && !is_over => Some(Err(BrokenOff::GivenUp)),
                    frame => frame.map(|frame| frame.map_err(BrokenOff::Body)),
                }
            }
        };
        if let Some(Ok(frame)) = &frame {
            this.note_trailers(frame);
        }
        match frame {
            None => this.end(),
            Some(Ok(_)) if matches!(this.content, Content::Empty) => this.end(),
            Some(_) => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.content, Content::Empty)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Empty => SizeHint::with_exact(0),
            Content::Text(text) => SizeHint::with_exact(u64::try_from(text.len()).unwrap_or(u64::MAX)),
            Content::Endpoint(body) => body.size_hint(),
        }
    }
}
