//! Traces: what a request says of the trace that it is a part of, and what is recorded of it. (W3C Trace Context, level 1.)

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Request, Response, StatusCode};
use tokio::time::Instant;

use crate::Question;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const SAMPLED: u8 = 1;
const MILLION: u64 = 1_000_000;

/// The number of a trace: anything but 0.
pub type TraceId = u128;
/// The number of a span: anything but 0.
pub type SpanId = u64;

/// A span that a request is a part of, as its sender says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Parent {
    pub(crate) trace: TraceId,
    pub(crate) span: SpanId,
    pub(crate) flags: u8,
}

impl Parent {
    /// `None` if nothing is said, or nothing that makes sense.
    pub(crate) fn of(headers: &HeaderMap) -> Option<Self> {
        let mut said = headers.get_all(TRACEPARENT).into_iter();
        let parent = Self::read(said.next()?.as_bytes())?;
        said.next().is_none().then_some(parent)
    }

    /// `version-trace-span-flags`, in lower-case hexadecimal. Later versions may have more behind that. (Section 3.2.)
    fn read(text: &[u8]) -> Option<Self> {
        let (known, rest) = text.split_at_checked(55)?;
        let known = std::str::from_utf8(known).ok()?;
        let mut fields = known.split('-');
        let mut field = |digits: usize| {
            let field = fields.next().filter(|field| field.len() == digits)?;
            let is_hex = field.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
            is_hex.then(|| u128::from_str_radix(field, 16).ok()).flatten()
        };
        let (version, trace, span, flags) = (field(2)?, field(32)?, field(16)?, field(2)?);
        let is_sound = match version {
            0 => rest.is_empty(),
            255 => false,
            _ => rest.first().is_none_or(|byte| *byte == b'-'),
        };
        let (span, flags) = (u64::try_from(span).ok()?, u8::try_from(flags).ok()?);
        (is_sound && trace != 0 && span != 0).then_some(Self { trace, span, flags })
    }

    fn is_sampled(self) -> bool {
        self.flags & SAMPLED != 0
    }

    fn header(self) -> HeaderValue {
        let Self { trace, span, flags } = self;
        let text = format!("00-{trace:032x}-{span:016x}-{flags:02x}");
        // It has digits, letters and dashes.
        HeaderValue::try_from(text).unwrap_or_else(|_invalid| HeaderValue::from_static(""))
    }
}

/// Whether a trace is recorded that begins with this number, if so many of a million are: every proxy with the same share decides the
/// same. (OpenTelemetry, `TraceIdRatioBased`, as its library for Go has it.)
fn is_drawn(trace: TraceId, per_million: u32) -> bool {
    const ALL: u64 = 1 << 63;
    let bound = u128::from(ALL) * u128::from(per_million) / u128::from(MILLION);
    let low = trace & u128::from(u64::MAX);
    low >> 1 < bound
}

/// What is recorded of a request, from its arrival until its answer is over.
#[derive(Clone, Debug)]
pub struct Trace {
    /// The trace.
    pub trace: TraceId,
    /// The request's span.
    pub span: SpanId,
    /// The span that it is a part of; `None`: the trace begins with it.
    pub parent: Option<SpanId>,
    /// When the request came.
    pub began: SystemTime,
    /// How long it took to the end of the answer.
    pub took: Duration,
    /// What was asked.
    pub question: Question,
    /// The status of the answer; `None`: there is none, since the client gave the request up.
    pub status: Option<StatusCode>,
    /// Of gRPC the status of the call.
    pub grpc_status: Option<u32>,
    /// What was sent to endpoints, in this order.
    pub tries: Vec<Try>,
}

/// A request that was sent to an endpoint: a span below the request's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Try {
    /// Its span, which is the parent of what the endpoint records.
    pub span: SpanId,
    /// Where.
    pub endpoint: SocketAddr,
    /// When, after the request came.
    pub after: Duration,
    /// How long it took to the answer's end.
    pub took: Duration,
    /// How it went.
    pub outcome: Outcome,
}

/// How a try went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// There is no answer, since the client gave the request up.
    GivenUp,
    /// There is an answer.
    Status(u16),
    /// There is none, in a word.
    Failed(&'static str),
}

/// Who gets what was recorded.
pub type Recorder = Box<dyn FnOnce(Trace) + Send>;

/// A request is recorded until this is dropped.
pub(crate) struct Recording {
    trace: Trace,
    flags: u8,
    began: Instant,
    recorder: Option<Recorder>,
}

impl Recording {
    /// Records a request, if its parent is recorded, or, without one, if it is drawn: so many of a million are. (OpenTelemetry,
    /// `ParentBased`.)
    pub(crate) fn begin<B>(
        request: &Request<B>,
        per_million: u32,
        question: impl FnOnce() -> Question,
        recorder: impl FnOnce() -> Recorder,
    ) -> Option<Box<Self>> {
        let parent = Parent::of(request.headers());
        let trace = parent.map_or_else(|| fastrand::u128(1..), |parent| parent.trace);
        let is_recorded = parent.map_or_else(|| is_drawn(trace, per_million), Parent::is_sampled);
        is_recorded.then(|| {
            let trace = Trace {
                trace,
                span: fastrand::u64(1..),
                parent: parent.map(|parent| parent.span),
                began: SystemTime::now(),
                took: Duration::ZERO,
                question: question(),
                status: None,
                grpc_status: None,
                tries: Vec::new(),
            };
            let flags = parent.map_or(SAMPLED, |parent| parent.flags);
            Box::new(Self { trace, flags, began: Instant::now(), recorder: Some(recorder()) })
        })
    }

    /// The request is sent to an endpoint: has it say so.
    pub(crate) fn begin_try(&mut self, endpoint: SocketAddr, headers: &mut HeaderMap) {
        let span = fastrand::u64(1..);
        let after = self.began.elapsed();
        let (took, outcome) = (Duration::ZERO, Outcome::GivenUp);
        self.trace.tries.push(Try { span, endpoint, after, took, outcome });
        if self.trace.parent.is_none() {
            // It is another trace's.
            headers.remove(TRACESTATE);
        }
        headers.insert(TRACEPARENT, Parent { trace: self.trace.trace, span, flags: self.flags }.header());
    }

    /// That is over, or at least has its answer.
    pub(crate) fn end_try(&mut self, outcome: Outcome) {
        let elapsed = self.began.elapsed();
        if let Some(last) = self.trace.tries.last_mut() {
            last.took = elapsed.saturating_sub(last.after);
            last.outcome = outcome;
        }
    }

    /// The client gets this for an answer.
    pub(crate) fn answered<B>(mut self: Box<Self>, answer: &Response<B>) -> Box<Self> {
        self.trace.status = Some(answer.status());
        self.note_grpc_status(answer.headers());
        self
    }

    /// What a call of gRPC says of itself, in headers or trailers.
    pub(crate) fn note_grpc_status(&mut self, headers: &HeaderMap) {
        let said = headers.get("grpc-status").and_then(|status| status.to_str().ok()?.parse().ok());
        self.trace.grpc_status = said.or(self.trace.grpc_status);
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        self.trace.took = self.began.elapsed();
        if let Some(last) = self.trace.tries.last_mut()
            && matches!(last.outcome, Outcome::Status(_) | Outcome::GivenUp)
        {
            last.took = self.trace.took.saturating_sub(last.after);
        }
        if let Some(recorder) = self.recorder.take() {
            recorder(self.trace.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TRACE: TraceId = 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c;
    const SPAN: SpanId = 0xb7ad_6b71_6920_3331;

    fn said(values: &[&str]) -> HeaderMap {
        values.iter().map(|value| (TRACEPARENT, HeaderValue::from_str(value).unwrap())).collect()
    }

    #[test]
    fn a_parent_is_read_as_the_standard_has_it() {
        let ids = "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331";
        let parent = |flags| Some(Parent { trace: TRACE, span: SPAN, flags });
        for (text, expected) in [
            (format!("00-{ids}-01"), parent(1)),
            (format!("00-{ids}-00"), parent(0)),
            (format!("00-{ids}-ff"), parent(255)),
            // A version that nobody knows yet.
            (format!("cc-{ids}-01"), parent(1)),
            (format!("cc-{ids}-01-what"), parent(1)),
            (format!("cc-{ids}-01.what"), None),
            (format!("00-{ids}-01-what"), None),
            (format!("ff-{ids}-01"), None),
            (format!("00-{}-01", ids.to_uppercase()), None),
            (format!("00-{ids}-0"), None),
            (format!("00-{ids}-+1"), None),
            (format!("00-{ids}"), None),
            (format!("00-{}-{:016x}-01", "0".repeat(32), SPAN), None),
            (format!("00-{TRACE:032x}-{}-01", "0".repeat(16)), None),
            (String::new(), None),
        ] {
            assert_eq!(Parent::of(&said(&[&text])), expected, "{text}");
        }
        let text = format!("00-{ids}-01");
        assert_eq!(Parent::of(&said(&[&text, &text])), None, "which one?");
        assert_eq!(Parent::of(&said(&[])), None);
        assert_eq!(parent(1).unwrap().header(), text.as_str());
    }

    #[test]
    fn as_many_traces_are_drawn_as_are_wanted() {
        let drawn = |per_million| (0..10_000).filter(|_| is_drawn(fastrand::u128(1..), per_million)).count();
        assert_eq!(drawn(0), 0);
        assert_eq!(drawn(1_000_000), 10_000);
        assert!((700..1300).contains(&drawn(100_000)));
        assert!(is_drawn(1, 1) && !is_drawn(u128::from(u64::MAX), 999_999));
    }

    fn recorded(parent: &[&str], per_million: u32) -> Option<(Trace, HeaderMap)> {
        let (sender, received) = std::sync::mpsc::channel();
        let mut request = Request::new(());
        *request.headers_mut() = said(parent);
        request.headers_mut().insert(TRACESTATE, HeaderValue::from_static("a=b"));
        let recorder = || -> Recorder { Box::new(move |trace| sender.send(trace).unwrap()) };
        let mut recording = Recording::begin(&request, per_million, Question::default, recorder)?;
        let mut headers = request.into_parts().0.headers;
        recording.begin_try(([10, 0, 0, 1], 80).into(), &mut headers);
        recording.end_try(Outcome::Status(200));
        drop(recording);
        Some((received.recv().unwrap(), headers))
    }

    #[test]
    fn a_trace_goes_on_as_its_parent_wants() {
        let parent = |flags: u8| format!("00-{TRACE:032x}-{SPAN:016x}-{flags:02x}");
        assert!(recorded(&[&parent(0)], 1_000_000).is_none(), "it was decided already");
        let (trace, headers) = recorded(&[&parent(3)], 0).unwrap();
        assert_eq!((trace.trace, trace.parent), (TRACE, Some(SPAN)));
        let told = Parent { trace: TRACE, span: trace.tries[0].span, flags: 3 };
        assert_eq!(Parent::of(&headers), Some(told));
        assert_eq!(headers[TRACESTATE], "a=b");
        assert!(recorded(&[], 0).is_none());
        let (trace, headers) = recorded(&["nonsense"], 1_000_000).unwrap();
        assert_eq!(trace.parent, None);
        let told = Parent { trace: trace.trace, span: trace.tries[0].span, flags: SAMPLED };
        assert_eq!(Parent::of(&headers), Some(told));
        assert!(!headers.contains_key(TRACESTATE));
    }

    proptest! {
        #[test]
        fn whatever_a_client_says_of_its_trace_is_read_with_no_panic(
            bytes: Vec<u8>,
            text in "[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-.{0,4})?",
        ) {
            Parent::read(&bytes);
            if let Some(parent) = Parent::read(text.as_bytes()) {
                let written = parent.header();
                prop_assert_eq!(Parent::read(written.as_bytes()), Some(parent));
                prop_assert_eq!(&text.as_bytes()[2..55], &written.as_bytes()[2..55]);
            }
        }
    }
}
