//! The conversation with the agent.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};

use crate::frame::{
    self, FrameError, FrameReader, MAX_TO_AGENT_BYTES, MAX_TO_WORKER_BYTES, ToAgent, ToWorker,
};

/// Questions that may wait for an agent that is busy. There is one for each new client of UDP.
const MAX_QUESTIONS: usize = 1024;
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
}

impl Control {
    /// With what it says, to be sent.
    pub(crate) fn new() -> (Self, mpsc::UnboundedReceiver<ToAgent>) {
        let (outgoing, says) = mpsc::unbounded_channel();
        (Self { outgoing, questions: Mutex::default(), next_id: AtomicU64::new(0) }, says)
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

/// Sends what the worker says, for as long as the agent is there.
pub(crate) async fn send(mut says: mpsc::UnboundedReceiver<ToAgent>, mut agent: OwnedWriteHalf) {
    while let Some(frame) = says.recv().await {
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
