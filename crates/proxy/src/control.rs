//! The conversation with the agent.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};

use crate::frame::{
    self, FrameError, FrameReader, MAX_TO_AGENT_BYTES, MAX_TO_WORKER_BYTES, RequestTrace, ToAgent, ToWorker,
};

/// Questions that may wait for an agent that is busy. There is one for each new client of UDP.
const MAX_QUESTIONS: usize = 1024;
/// What is recorded of requests, and may wait likewise. All else comes first.
const MAX_TRACES: usize = 1024;
/// An answer that comes later is of no use to a client.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
const RECEIVE_BYTES: usize = 64 * 1024;

/// What the worker has to say to its agent.
#[derive(Debug)]
pub(crate) struct Control {
    /// Bounded by the number of questions; all else is little.
    outgoing: mpsc::UnboundedSender<ToAgent>,
    questions: Mutex<HashMap<u64, oneshot::Sender<Option<SocketAddr>>>>,
    next_id: AtomicU64,
    traces: Traces,
}

/// What is to be sent.
#[derive(Debug)]
pub(crate) struct Says {
    frames: mpsc::UnboundedReceiver<ToAgent>,
    traces: mpsc::Receiver<RequestTrace>,
}

/// Tells what is recorded of requests, as far as there is room.
#[derive(Clone, Debug)]
pub(crate) struct Traces {
    outgoing: mpsc::Sender<RequestTrace>,
    n_lost: Arc<AtomicU64>,
}

impl Traces {
    pub(crate) fn tell(&self, trace: RequestTrace) {
        if self.outgoing.try_send(trace).is_err() {
            self.n_lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many were lost since this was last asked.
    pub(crate) fn take_lost(&self) -> u64 {
        self.n_lost.swap(0, Ordering::Relaxed)
    }
}

impl Control {
    /// With what it says, to be sent.
    pub(crate) fn new() -> (Self, Says) {
        let (outgoing, frames) = mpsc::unbounded_channel();
        let (told, traces) = mpsc::channel(MAX_TRACES);
        let recorded = Traces { outgoing: told, n_lost: Arc::default() };
        let (questions, next_id) = (Mutex::default(), AtomicU64::new(0));
        (Self { outgoing, questions, next_id, traces: recorded }, Says { frames, traces })
    }

    /// Where to tell what is recorded of requests.
    pub(crate) fn traces(&self) -> Traces {
        self.traces.clone()
    }

    /// Tells something. It is lost when the agent is gone.
    pub(crate) fn tell(&self, what: ToAgent) {
        drop(self.outgoing.send(what));
    }

    /// Where a UDP flow was sent to; `None` if the agent does not know, or is gone.
    pub(crate) async fn where_to(&self, client: SocketAddr, listener: SocketAddr) -> Option<SocketAddr> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        {
            let mut questions = self.questions();
            if questions.len() >= MAX_QUESTIONS {
                return None;
            }
            questions.insert(id, sender);
        }
        self.tell(ToAgent::WhereTo { id, client, listener });
        let answer = tokio::time::timeout(ANSWER_LIMIT, answer).await;
        self.questions().remove(&id);
        answer.ok()?.ok()?
    }

    /// Passes an answer on.
    pub(crate) fn answered(&self, id: u64, destination: Option<SocketAddr>) {
        if let Some(question) = self.questions().remove(&id) {
            match question.send(destination) {
                // Nobody may wait for it any more.
                Ok(()) | Err(_) => {}
            }
        }
    }

    fn questions(&self) -> std::sync::MutexGuard<'_, HashMap<u64, oneshot::Sender<Option<SocketAddr>>>> {
        self.questions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Says {
    async fn next(&mut self) -> Option<ToAgent> {
        tokio::select! {
            biased;
            frame = self.frames.recv() => frame,
            Some(trace) = self.traces.recv() => Some(ToAgent::Traced(Box::new(trace))),
        }
    }
}

/// Sends what the worker says, for as long as the agent is there.
pub(crate) async fn send(mut says: Says, mut agent: OwnedWriteHalf) {
    while let Some(frame) = says.next().await {
        let Ok(bytes) = frame::encode(&frame, MAX_TO_AGENT_BYTES) else { continue };
        if agent.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

/// What the agent says.
#[derive(Debug)]
pub(crate) struct Incoming {
    agent: OwnedReadHalf,
    frames: FrameReader,
    buffer: Vec<u8>,
}

impl Incoming {
    pub(crate) fn new(agent: OwnedReadHalf) -> Self {
        Self { agent, frames: FrameReader::new(MAX_TO_WORKER_BYTES), buffer: vec![0; RECEIVE_BYTES] }
    }

    /// The next frame; `None` when the agent is gone.
    pub(crate) async fn next(&mut self) -> Result<Option<ToWorker>, FrameError> {
        loop {
            if let Some(frame) = self.frames.next_frame()? {
                return Ok(Some(frame));
            }
            match self.agent.read(&mut self.buffer).await {
                Ok(0) | Err(_) => return Ok(None),
                Ok(n) => self.frames.extend(&self.buffer[..n]),
            }
        }
    }
}
