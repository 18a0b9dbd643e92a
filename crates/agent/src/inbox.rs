//! Where a family hears from its threads. Whatever arrives wakes the event loop.

use std::sync::Arc;

use mode::{Target, Touch, Touches};
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::counting::Counted;
use crate::flows::Swept;
use crate::worker::Report;

/// Something that happened to a family.
#[derive(Debug)]
pub(crate) enum Event<T: Target> {
    /// The worker has done a job.
    Report(Report<T>),
    /// Stale flows were looked for.
    Swept(Swept),
    /// Counters were read.
    Counted(Counted<T>),
    /// Others have been at what is ours, or at what it depends on.
    Touched(Touch),
    /// Rules that others had left are gone. Until then they may have directed flows to endpoints of long ago.
    OldRulesGone,
}

/// The receiving end.
pub(crate) struct Inbox<T: Target> {
    events: UnboundedReceiver<Event<T>>,
    sender: Sender<T>,
}

/// The sending end.
pub(crate) struct Sender<T: Target> {
    events: UnboundedSender<Event<T>>,
    wake: Arc<Notify>,
}

impl<T: Target> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self { events: self.events.clone(), wake: self.wake.clone() }
    }
}

impl<T: Target> Sender<T> {
    /// False: nobody listens any more.
    pub(crate) fn send(&self, event: Event<T>) -> bool {
        let is_heard = self.events.send(event).is_ok();
        self.wake.notify_one();
        is_heard
    }

    /// Where a watch tells of others' changes.
    pub(crate) fn touches(self) -> Touches {
        Touches::new(move |touch| self.send(Event::Touched(touch)))
    }
}

impl<T: Target> Inbox<T> {
    pub(crate) fn new(wake: Arc<Notify>) -> Self {
        let (events, receiver) = unbounded_channel();
        Self { events: receiver, sender: Sender { events, wake } }
    }

    pub(crate) fn sender(&self) -> Sender<T> {
        self.sender.clone()
    }

    /// Has the event loop look here again.
    pub(crate) fn wake(&self) {
        self.sender.wake.notify_one();
    }

    /// The next one that is here already.
    pub(crate) fn try_recv(&mut self) -> Option<Event<T>> {
        self.events.try_recv().ok()
    }
}
