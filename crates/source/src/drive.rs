//! Runs one kind's state machine: sends its requests, feeds it what comes back, waits as it says.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use api::{FrameReader, MAX_FRAME_BYTES, WatchEvent, decode_list};
use model::Kind;
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::event::{Closed, Events};
use crate::machine::{Failure, Machine, Next};
use crate::request::{Request, accept, uri};
use crate::transport::{Answer, Generation, Transport, chain};
use crate::{ContentType, SharedInterner, SourceEvent, Timings};

/// A watch that ends sooner than this without an event makes no sense.
const SHORT_WATCH: Duration = Duration::from_secs(1);

/// Why a request ended.
enum End {
    /// A page has come whole.
    Page,
    /// A watch came to its end. `was_useful`: there is no reason to wait before the next request.
    Watch {
        was_useful: bool,
    },
    Failed(Failure),
    Closed,
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<Closed> for End {
    fn from(_closed: Closed) -> Self {
        Self::Closed
    }
}

/// One kind at one server.
pub(crate) struct Driver {
    kind: Kind,
    transport: Arc<Transport>,
    timings: Timings,
    interner: SharedInterner,
    events: Events,
    machine: Machine,
    backoff: Backoff,
    /// Events on their way to the channel; empty between two steps.
    out: Vec<SourceEvent>,
    has_problem: bool,
    /// When the present watch began.
    watching_since: Option<Instant>,
}

impl Driver {
    pub(crate) fn new(
        kind: Kind,
        transport: Arc<Transport>,
        timings: Timings,
        interner: SharedInterner,
        events: Events,
    ) -> Self {
        let machine = Machine::new(kind, transport.config().content_type == ContentType::Protobuf);
        let backoff = Backoff::new(&timings);
        Self {
            kind,
            transport,
            timings,
            interner,
            events,
            machine,
            backoff,
            out: Vec::new(),
            has_problem: false,
            watching_since: None,
        }
    }

    /// Runs until the receiver is gone.
    pub(crate) async fn run(mut self) {
        self.heard(0);
        while self.step().await.is_ok() {}
    }

    /// One request and the wait after it.
    async fn step(&mut self) -> Result<(), Closed> {
        let generation = self.transport.current();
        let end = self.perform(&generation).await;
        if let Some(since) = self.watching_since.take() {
            self.backoff.watched(since.elapsed());
        }
        let (next, trouble) = match end {
            End::Closed => return Err(Closed),
            End::Page => return Ok(()),
            End::Watch { was_useful } => {
                let trouble = "the server ends watches too soon".to_owned();
                (self.machine.ended(was_useful), generation.describe(&Failure::Broken(trouble)))
            }
            End::Failed(failure) => {
                (self.failed(&failure, &generation).await?, generation.describe(&failure))
            }
        };
        let wait = self.wait_of(&next);
        if wait.is_zero() {
            tracing::debug!(v = 3, kind = %self.kind, next = ?next, %trouble, "asking again at once");
            return Ok(());
        }
        self.problem(trouble).await?;
        let lost = async {
            match next {
                Next::Rarely => self.transport.lost().await,
                Next::Now | Next::Lenient | Next::BackOff { .. } => std::future::pending().await,
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = lost => self.machine.doubt_absence(),
            () = self.events.closed() => return Err(Closed),
        }
        Ok(())
    }

    fn wait_of(&mut self, next: &Next) -> Duration {
        let (now, jitter) = (Instant::now(), fastrand::f64());
        match next {
            Next::Now => Duration::ZERO,
            Next::Lenient => self.backoff.next_lenient(now, jitter),
            Next::BackOff { at_least } => self.backoff.next(now, jitter).max(at_least.unwrap_or_default()),
            Next::Rarely => self.timings.absent_retry.mul_f64(1.0 + jitter),
        }
    }

    async fn failed(&mut self, failure: &Failure, generation: &Generation) -> Result<Next, Closed> {
        if self.machine.is_absent(failure) {
            self.events.metrics().resource(self.kind).absent();
            self.machine.tell_absent(&mut self.out);
            self.flush().await?;
        }
        let next = self.machine.failed(failure);
        if matches!(failure, Failure::Unreachable(_) | Failure::Broken(_)) {
            self.transport.tell_lost();
        }
        let is_unauthorized = matches!(failure, Failure::Status(status) if status.code == 401);
        if (is_unauthorized || matches!(failure, Failure::Unreachable(_)))
            && let Err(error) = self.transport.renew(generation).await
        {
            self.problem(format!("the configuration can't be read again: {}", chain(&error))).await?;
        }
        Ok(next)
    }

    async fn problem(&mut self, text: String) -> Result<(), Closed> {
        self.has_problem = true;
        self.send(SourceEvent::Problem { kind: Some(self.kind), text }).await
    }

    async fn recovered(&mut self) -> Result<(), Closed> {
        if std::mem::take(&mut self.has_problem) {
            self.send(SourceEvent::Recovered(self.kind)).await?;
        }
        Ok(())
    }

    async fn send(&self, event: SourceEvent) -> Result<(), Closed> {
        self.events.send(event).await
    }

    async fn flush(&mut self) -> Result<(), Closed> {
        let mut out = std::mem::take(&mut self.out);
        for event in out.drain(..) {
            self.send(event).await?;
        }
        // The buffer keeps its room.
        self.out = out;
        Ok(())
    }

    async fn perform(&mut self, generation: &Generation) -> End {
        let result = match self.machine.request() {
            Request::Page(_) | Request::Version { .. } => self.page(generation).await.map(|()| End::Page),
            Request::StreamedList | Request::Watch { .. } => {
                self.watch(generation).await.map(|was_useful| End::Watch { was_useful })
            }
        };
        result.unwrap_or_else(|end| end)
    }

    async fn open(&self, generation: &Generation, timeout: Duration) -> Result<Answer, Failure> {
        let request = self.machine.request();
        let config = self.transport.config();
        let content_type =
            if self.machine.use_protobuf() { ContentType::Protobuf } else { ContentType::Json };
        let uri = uri(self.kind, &config.node_name, request, timeout);
        let began = Instant::now();
        let is_list = matches!(request, Request::Page(_) | Request::Version { .. });
        let answer = generation.get(&uri, accept(request, content_type), is_list, self.timings.grace).await;
        let code = match &answer {
            Ok(_) => Some(200),
            Err(Failure::Status(status)) => Some(status.code),
            Err(_) => None,
        };
        self.events.metrics().requests.answered("GET", generation.host(), code, began.elapsed());
        if answer.is_ok() {
            self.heard(0);
        }
        answer
    }

    /// Notes that the server has told something, in so many bytes.
    fn heard(&self, bytes: usize) {
        self.events.metrics().resource(self.kind).heard(Instant::now(), bytes);
    }

    async fn page(&mut self, generation: &Generation) -> Result<(), End> {
        let answer = self.open(generation, Duration::ZERO).await?;
        let format = answer.format();
        let body = answer.read(&self.timings).await?;
        self.heard(body.len());
        self.events.metrics().requests.received("GET", generation.host(), body.len());
        let Self { machine, out, interner, kind, .. } = self;
        let list = {
            let mut interner = interner.lock().unwrap_or_else(PoisonError::into_inner);
            decode_list(*kind, format, &body, &mut interner, |item| machine.item(item, out))
        };
        drop(body);
        match list {
            Ok(meta) => machine.page_end(meta, out),
            Err(error) => {
                out.clear();
                return Err(Failure::Unreadable(error.to_string()).into());
            }
        }
        self.flush().await?;
        self.recovered().await.map_err(End::from)
    }

    /// Follows a watch, which may begin with a streamed list, to its end.
    async fn watch(&mut self, generation: &Generation) -> Result<bool, End> {
        let timeout = self.timings.watch_timeout.mul_f64(1.0 + fastrand::f64());
        let begin = Instant::now();
        let mut answer = self.open(generation, timeout).await?;
        self.watching_since = Some(Instant::now());
        self.machine.watch_begins();
        if !self.is_listing() {
            self.recovered().await?;
        }
        let mut reader = FrameReader::new(answer.format(), MAX_FRAME_BYTES);
        let (mut end, mut n_events) = (begin + timeout + self.timings.grace, 0usize);
        let mut event_end = None;
        while let Some(chunk) = self.chunk(&mut answer, end, event_end).await? {
            self.heard(chunk.len());
            reader.push(&chunk);
            let n_before = n_events;
            while let Some(event) = self.next_event(&mut reader)? {
                n_events += 1;
                let was_suspect = self.machine.is_suspect();
                self.take_event(event).await?;
                if self.machine.is_suspect() && !was_suspect {
                    end = end.min(Instant::now() + self.timings.out_of_order);
                }
            }
            event_end = match event_end {
                _ if reader.is_between_events() => None,
                Some(event_end) if n_events == n_before => Some(event_end),
                _ => Some(Instant::now() + self.timings.event),
            };
        }
        reader.finish().map_err(|error| Failure::Broken(error.to_string()))?;
        if self.is_listing() {
            let text = "the server ended the streamed list before it was complete";
            return Err(Failure::Broken(text.to_owned()).into());
        }
        Ok(n_events > 0 || begin.elapsed() >= SHORT_WATCH)
    }

    async fn take_event(&mut self, event: WatchEvent) -> Result<(), End> {
        let was_listing = self.is_listing();
        let result = self.machine.event(event, &mut self.out);
        self.flush().await?;
        result?;
        if !was_listing {
            self.backoff.progress();
        } else if !self.is_listing() {
            self.recovered().await?;
        }
        Ok(())
    }

    fn is_listing(&self) -> bool {
        matches!(self.machine.request(), Request::StreamedList)
    }

    /// The next chunk of a watch, which has to end by `end`, and within an event by `event_end`.
    async fn chunk(
        &self,
        answer: &mut Answer,
        end: Instant,
        event_end: Option<Instant>,
    ) -> Result<Option<bytes::Bytes>, End> {
        let now = Instant::now();
        if event_end.is_some_and(|event_end| event_end <= now) {
            let text = format!("an event has not ended after {:?}", self.timings.event);
            return Err(Failure::Unreadable(text).into());
        }
        let mut limit = event_end.map_or(end, |event_end| event_end.min(end)).saturating_duration_since(now);
        if matches!(self.machine.request(), Request::StreamedList) {
            limit = limit.min(self.timings.grace);
        } else {
            limit = limit.min(self.timings.silence);
        }
        tokio::select! {
            biased;
            chunk = answer.chunk(limit) => Ok(chunk?),
            () = self.events.closed() => Err(End::Closed),
        }
    }

    fn next_event(&self, reader: &mut FrameReader) -> Result<Option<WatchEvent>, Failure> {
        let mut interner = self.interner.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(reader.next_event(self.kind, &mut interner)?)
    }
}
