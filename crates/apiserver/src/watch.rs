//! Watches: streams of changes, with bookmarks, streamed initial lists and all their ways to end.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::Response;
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, sleep_until};

use super::body::{Body, CHUNK_BYTES, broken, flushed, response, streamed};
use super::faults::{Disorder, Fault, WatchAction};
use super::negotiate::Format;
use super::object::Object;
use super::options::ListOptions;
use super::proto;
use super::selector::Selector;
use super::shared::{Shared, WatchGuard};
use super::status::{Status, bookmark_metadata};
use super::store::{Change, Compacted};

/// How many changes one pass hands over at most, so that the lock is not held for long.
const BATCH: usize = 512;

/// How long before its end a watch gets a last bookmark; a shorter watch gets none
/// (`cacheWatcher.nextBookmarkTime`).
const LAST_BOOKMARK: Duration = Duration::from_secs(2);

/// How long a watch lasts when the client does not say.
const DEFAULT_TIMEOUT: Duration = Duration::from_mins(30);

type Sender = mpsc::Sender<io::Result<Bytes>>;

/// The end of a watch: whether its body ends properly, or the client has gone.
#[derive(Debug, Clone, Copy)]
struct Ended;

/// Answers a watch.
pub(super) fn serve(
    shared: &Arc<Shared>,
    options: ListOptions,
    format: Format,
    faults: &[Fault],
) -> Response<Body> {
    let (sender, receiver) = mpsc::channel(8);
    let is_expired = faults.contains(&Fault::WatchExpired);
    let watch = Watch::new(shared, options, format, sender);
    tokio::spawn(async move {
        // However it ended, the sender is dropped now, which ends the body.
        let Ended = watch.run(is_expired).await;
    });
    let chunks = stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|chunk| (chunk, receiver))
    });
    response(200, format.watch_content_type(), streamed(chunks))
}

struct Watch {
    shared: Arc<Shared>,
    options: ListOptions,
    format: Format,
    sender: Sender,
    /// Changes whenever there may be something to do.
    wake: watch::Receiver<u64>,
    /// Whether the initial events have been sent.
    is_started: bool,
    /// Changes up to this revision have been sent.
    cursor: u64,
    /// Commands before this position have been obeyed.
    next_command: usize,
    /// An event that [`Disorder::Swap`] holds back.
    held: Option<Vec<u8>>,
    is_cut_next: bool,
    _guard: WatchGuard,
}

/// What a watch has to do next.
enum Step {
    /// Send the present state.
    Start(Vec<Arc<Object>>),
    Send(Vec<Change>, Disorder),
    Obey(WatchAction),
    /// Wait; the second form sends nothing whatever happens.
    Idle,
    Stalled,
}

impl Watch {
    fn new(shared: &Arc<Shared>, options: ListOptions, format: Format, sender: Sender) -> Self {
        let from = options.resource_version.filter(|rv| *rv > 0 && !options.send_initial_events);
        let next_command = shared.lock().commands.len();
        Self {
            wake: shared.revision.subscribe(),
            is_started: from.is_some(),
            cursor: from.unwrap_or(0),
            next_command,
            held: None,
            is_cut_next: false,
            _guard: WatchGuard::new(shared.clone(), options.selector.kind),
            shared: shared.clone(),
            options,
            format,
            sender,
        }
    }

    async fn run(mut self, is_expired: bool) -> Ended {
        if is_expired {
            return self.send_expired().await;
        }
        match self.follow().await {
            Err(ended) => ended,
            Ok(never) => match never {},
        }
    }

    async fn follow(&mut self) -> Result<Infallible, Ended> {
        let timeout = self.options.timeout.unwrap_or(DEFAULT_TIMEOUT);
        let deadline = Instant::now() + timeout;
        let mut ticks = bookmark_ticks(&self.shared);
        let mut awaits_last_bookmark = self.options.bookmarks && timeout > LAST_BOOKMARK;
        loop {
            self.wake.mark_unchanged();
            let is_stalled = match self.next_step() {
                Err(Compacted) => return Err(self.send_expired().await),
                Ok(Step::Start(objects)) => {
                    self.send_initial(&objects).await?;
                    continue;
                }
                Ok(Step::Send(changes, disorder)) => {
                    self.send_batch(&changes, disorder).await?;
                    continue;
                }
                Ok(Step::Obey(action)) => {
                    self.obey(action).await?;
                    continue;
                }
                Ok(Step::Idle) => false,
                Ok(Step::Stalled) => true,
            };
            tokio::select! {
                () = self.sender.closed() => return Err(Ended),
                _ = self.wake.changed() => {}
                _ = ticks.tick(), if self.options.bookmarks && !is_stalled => self.send_bookmark(false).await?,
                () = sleep_until(deadline - LAST_BOOKMARK), if awaits_last_bookmark && !is_stalled => {
                    awaits_last_bookmark = false;
                    self.send_bookmark(false).await?;
                }
                () = sleep_until(deadline), if !is_stalled => return Err(Ended),
            }
        }
    }

    /// Decides under one lock, so that commands and changes come in the order in which they were made.
    fn next_step(&mut self) -> Result<Step, Compacted> {
        let state = self.shared.lock();
        let kind = self.options.selector.kind;
        let command = loop {
            match state.commands.get(self.next_command) {
                Some(command) if command.kind.is_some_and(|k| k != kind) => self.next_command += 1,
                command => break command,
            }
        };
        if !state.faults.is_stalled {
            if !self.is_started {
                // A streamed list must not be older than the client asks for.
                let wanted = self.options.resource_version.unwrap_or(0);
                if state.store.revision() < wanted && command.is_none() {
                    return Ok(Step::Idle);
                }
                let matching =
                    state.store.objects(kind).values().filter(|o| self.options.selector.matches(o));
                self.is_started = true;
                self.cursor = state.store.revision();
                return Ok(Step::Start(matching.cloned().collect()));
            }
            let limit = command.map_or(u64::MAX, |command| command.revision);
            let changes =
                state.store.changes_after(self.cursor)?.take_while(|change| change.revision <= limit);
            let changes: Vec<Change> = changes.take(BATCH).cloned().collect();
            if let Some(last) = changes.last() {
                self.cursor = last.revision;
                return Ok(Step::Send(changes, state.faults.disorder));
            }
        }
        if let Some(command) = command {
            self.next_command += 1;
            return Ok(Step::Obey(command.action.clone()));
        }
        if state.faults.is_stalled {
            return Ok(Step::Stalled);
        }
        self.cursor = self.cursor.max(state.store.revision());
        Ok(Step::Idle)
    }

    async fn send_initial(&mut self, objects: &[Arc<Object>]) -> Result<(), Ended> {
        let mut chunk = Vec::new();
        for object in objects {
            put_event(self.format, "ADDED", object, &mut chunk);
            if chunk.len() >= CHUNK_BYTES {
                self.send(std::mem::take(&mut chunk)).await?;
            }
        }
        self.send(chunk).await?;
        if self.options.send_initial_events { self.send_bookmark(true).await } else { Ok(()) }
    }

    async fn send_batch(&mut self, batch: &[Change], disorder: Disorder) -> Result<(), Ended> {
        let mut chunk = Vec::new();
        for change in batch {
            let Some((event_type, object)) = event_of(&self.options.selector, change) else { continue };
            let mut event = Vec::new();
            put_event(self.format, event_type, &object, &mut event);
            if self.is_cut_next {
                event.truncate(event.len() / 2);
                chunk.extend(event);
                self.send(chunk).await?;
                return Err(self.abort().await);
            }
            match (disorder, self.held.take()) {
                (Disorder::None, None) => chunk.extend(event),
                (Disorder::Duplicate, None) => chunk.extend(event.repeat(2)),
                (Disorder::Swap, None) => self.held = Some(event),
                (_, Some(held)) => {
                    chunk.extend(event);
                    chunk.extend(held);
                }
            }
            if chunk.len() >= CHUNK_BYTES {
                self.send(std::mem::take(&mut chunk)).await?;
            }
        }
        self.send(chunk).await
    }

    async fn obey(&mut self, action: WatchAction) -> Result<(), Ended> {
        match action {
            WatchAction::End => Err(Ended),
            WatchAction::Abort => Err(self.abort().await),
            WatchAction::CutNextEvent => {
                self.is_cut_next = true;
                Ok(())
            }
            WatchAction::Raw(bytes) => self.send(bytes.to_vec()).await,
            WatchAction::Event(event_type, object) => {
                let mut event = Vec::new();
                put_event(self.format, event_type, &object, &mut event);
                self.send(event).await
            }
        }
    }

    async fn send_bookmark(&mut self, ends_initial_events: bool) -> Result<(), Ended> {
        let value = json!({"metadata": bookmark_metadata(self.cursor, ends_initial_events)});
        let Ok(object) = Object::new(self.options.selector.kind, &value, self.cursor) else {
            return Err(Ended);
        };
        let mut event = Vec::new();
        put_event(self.format, "BOOKMARK", &object, &mut event);
        self.send(event).await
    }

    /// Sends the one error event of a watch that starts too far back.
    async fn send_expired(&mut self) -> Ended {
        let oldest = self.shared.lock().store.compacted();
        let asked = self.options.resource_version.unwrap_or(self.cursor);
        let status = Status::expired(format!("too old resource version: {asked} ({oldest})"));
        let mut event = Vec::new();
        match self.format {
            Format::Json => {
                event = format!("{{\"type\":\"ERROR\",\"object\":{}}}\n", status.to_json()).into_bytes();
            }
            Format::Protobuf => proto::put_watch_frame("ERROR", &status.to_proto(), &mut event),
        }
        self.send(event).await.err().unwrap_or(Ended)
    }

    async fn abort(&mut self) -> Ended {
        flushed().await;
        // When the client has gone already there is nothing to break.
        drop(self.sender.send(Err(broken())).await);
        Ended
    }

    async fn send(&mut self, bytes: Vec<u8>) -> Result<(), Ended> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.sender.send(Ok(bytes.into())).await.map_err(|_gone| Ended)
    }
}

fn bookmark_ticks(shared: &Shared) -> Interval {
    let period = shared.config.bookmark_interval;
    let mut ticks = interval_at(Instant::now() + period, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// What a change looks like through a selector. An object that stops matching is deleted in its last matching
/// state, with the revision of the change.
fn event_of(selector: &Selector, change: &Change) -> Option<(&'static str, Arc<Object>)> {
    if change.kind != selector.kind {
        return None;
    }
    let before = change.before.as_ref().filter(|o| selector.matches(o));
    let after = change.after.as_ref().filter(|o| selector.matches(o));
    match (before, after) {
        (None, None) => None,
        (None, Some(after)) => Some(("ADDED", after.clone())),
        (Some(_), Some(after)) => Some(("MODIFIED", after.clone())),
        (Some(before), None) => Some(("DELETED", Arc::new(before.with_resource_version(change.revision)))),
    }
}

/// Appends one event in a format.
fn put_event(format: Format, event_type: &str, object: &Object, out: &mut Vec<u8>) {
    match format {
        Format::Json => {
            out.extend_from_slice(b"{\"type\":\"");
            out.extend_from_slice(event_type.as_bytes());
            out.extend_from_slice(b"\",\"object\":");
            object.put_json(out);
            out.extend_from_slice(b"}\n");
        }
        Format::Protobuf => proto::put_watch_frame(event_type, &object.enveloped(), out),
    }
}
