//! The stream of changes, as server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use agent::snapshot::{Overview, RecentChange};
use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt as _, StreamBody};
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, watch};

use crate::api::{Ask, Body, received};

/// Streams at a time: each has a connection.
pub(crate) const MAX_STREAMS: usize = 32;
/// Between two looks at most so often, however much happens.
const PAUSE: Duration = Duration::from_secs(1);
/// Without news for so long a sign of life is sent.
const SILENCE: Duration = Duration::from_secs(15);

/// What the streams tell.
///
/// `event: overview` with the overview but its changes, at first and whenever that differs; `event: changes` with those
/// changes that are new, or in force since the last time.
///
/// The agent is asked only when something has happened.
pub(crate) fn changes(
    overview: Ask<(), Overview>,
    news: watch::Receiver<u64>,
    permit: OwnedSemaphorePermit,
) -> Body {
    let watch = Watch { overview, news, seen: None, waiting: VecDeque::new(), _permit: permit };
    let frames = stream::unfold(watch, |mut watch| async move {
        let text = watch.next().await?;
        Some((Ok::<_, Infallible>(hyper::body::Frame::data(Bytes::from(text))), watch))
    });
    StreamBody::new(frames).boxed_unsync()
}

/// What one client has been told.
struct Watch {
    overview: Ask<(), Overview>,
    news: watch::Receiver<u64>,
    seen: Option<Overview>,
    waiting: VecDeque<String>,
    _permit: OwnedSemaphorePermit,
}

impl Watch {
    /// The next event; `None`: the agent has ended.
    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                return Some(event);
            }
            if self.seen.is_some() {
                tokio::time::sleep(PAUSE).await;
                match tokio::time::timeout(SILENCE, self.news.changed()).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_ended)) => return None,
                    Err(_silence) => return Some(": nothing new\n\n".to_owned()),
                }
            }
            self.news.mark_unchanged();
            let now = received((self.overview)(())).await.ok()?;
            self.waiting.extend(events(self.seen.as_ref(), &now));
            self.seen = Some(now);
        }
    }
}

/// What is new since the last look.
fn events(seen: Option<&Overview>, now: &Overview) -> Vec<String> {
    let state = |overview: &Overview| Overview { recent_changes: Vec::new(), ..steady(overview) };
    let mut events = Vec::new();
    if seen.is_none_or(|seen| state(seen) != state(now)) {
        events.push(event("overview", &Overview { recent_changes: Vec::new(), ..now.clone() }));
    }
    let known = seen.map_or(&[][..], |seen| &seen.recent_changes);
    let new: Vec<&RecentChange> =
        now.recent_changes.iter().filter(|change| !known.contains(change)).collect();
    if !new.is_empty() {
        events.push(event("changes", &new));
    }
    events
}

/// Without what differs each time.
fn steady(overview: &Overview) -> Overview {
    let mut overview = Overview { generation: 0, ..overview.clone() };
    for family in &mut overview.families {
        family.last_synced_at = None;
        family.waiting_seconds = family.waiting_seconds.map(|_| 0.0);
        if let Some(failure) = &mut family.failure {
            failure.retry_in_seconds = 0.0;
        }
    }
    overview
}

fn event<T: Serialize>(name: &str, data: &T) -> String {
    // JSON has no line breaks, so one line of data is enough.
    let data = serde_json::to_string(data).unwrap_or_default();
    format!("event: {name}\ndata: {data}\n\n")
}
