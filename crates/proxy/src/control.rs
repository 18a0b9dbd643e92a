//! The conversation with the agent.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};

use crate::frame::{self, FrameError, FrameReader, MAX_TO_AGENT_BYTES, MAX_TO_WORKER_BYTES, ToAgent, ToWorker};

/// Frames that may wait for an agent that is busy. There is a question for each new client of UDP.
const WAITING: usize = 1024;
/// An answer that comes later is of no use to a client.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
const RECEIVE_BYTES: usize = 64 * 1024;

/// What the worker has to say to its agent.
#[derive(Debug)]
pub(crate) struct Control {
    outgoing: mpsc::Sender<ToAgent>,
    questions: Mutex<HashMap<u64, oneshot::Sender<Option<SocketAddr>>>>,
    next_id: AtomicU64,
}

impl Control {
    /// With what it says, to be sent.
    pub(crate) fn new() -> (Self, mpsc::Receiver<ToAgent>) {
        let (outgoing, says) = mpsc::channel(WAITING);
        (Self { outgoing, questions: Mutex::default(), next_id: AtomicU64::new(0) }, says)
    }

    /// Tells something. It is lost when the agent is gone.
    pub(crate) async fn tell(&self, what: ToAgent) {
        drop(self.outgoing.send(what).await);
    }

    /// Where a UDP flow was sent to; `None` if the agent does not know, or is gone.
    pub(crate) async fn where_to(&self, client: SocketAddr, listener: SocketAddr) -> Option<SocketAddr> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        self.questions().insert(id, sender);
        let asked = self.outgoing.try_send(ToAgent::WhereTo { id, client, listener });
        let answer = match asked {
            Ok(()) => tokio::time::timeout(ANSWER_LIMIT, answer).await.ok()?.ok()?,
            Err(_too_many) => None,
        };
        self.questions().remove(&id);
        answer
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
pub(crate) async fn send(mut says: mpsc::Receiver<ToAgent>, mut agent: OwnedWriteHalf) {
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
