//! Misbehaviour on request.
//!
//! Two kinds of fault exist: rules, which change the answers to coming requests, and commands, which act on
//! the watches that are open now.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;

use super::error::ObjectError;
use super::kinds::Kind;
use super::object::Object;
use super::shared::Shared;

/// What a request wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// One object.
    Get,
    /// All objects, once.
    List,
    /// A stream of changes, also when it begins with a streamed list.
    Watch,
    /// A new object.
    Create,
    /// A whole object replaced.
    Update,
    /// A part of an object replaced.
    Patch,
    /// An object removed.
    Delete,
}

impl Verb {
    /// As permission errors name it.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
        }
    }
}

/// What happens to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// A `Status` object with this HTTP code, and with a `Retry-After` header of so many seconds.
    Status {
        /// 401, 403, 404, 429, 500, 503 and so on.
        code: u16,
        /// Seconds that the client is asked to wait.
        retry_after: Option<u32>,
    },
    /// The connection is closed without an answer.
    Disconnect,
    /// The answer begins only after this time; combines with other faults.
    Delay(Duration),
    /// The body ends after so many bytes and the connection breaks, without the end of the chunked encoding.
    Truncate(usize),
    /// These bytes come as the body, with status 200 and the expected content type.
    Garbage(Bytes),
    /// An answer with this status whose body never ends: one byte after each pause.
    Drip {
        /// HTTP status.
        code: u16,
        /// Between two bytes.
        pause: Duration,
    },
    /// The answer has this header.
    Header(&'static str, &'static str),
    /// A list claims this resource version.
    ListVersion(u64),
    /// A watch gets the error event for an expired resource version, whatever version it asked for.
    WatchExpired,
}

/// Which requests get a fault, and how often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// `None` for all kinds, and for requests that name no kind.
    pub kind: Option<Kind>,
    /// `None` for all verbs.
    pub verb: Option<Verb>,
    /// For how many requests; `None` until [`Faults::clear`].
    pub times: Option<u32>,
    /// What happens to them.
    pub fault: Fault,
}

/// How the events of watches are disarranged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Disorder {
    /// Events come as they should.
    #[default]
    None,
    /// Every event comes twice in a row.
    Duplicate,
    /// Every first event of a pair is held back until the second one has been sent.
    Swap,
}

/// The rules in force.
#[derive(Debug, Default)]
pub(super) struct FaultTable {
    rules: Vec<Rule>,
    missing: BTreeSet<Kind>,
    pub(super) disorder: Disorder,
    /// Whether watches send nothing.
    pub(super) is_stalled: bool,
}

impl FaultTable {
    /// The faults for one request; counts down the rules that it uses.
    pub(super) fn take(&mut self, kind: Option<Kind>, verb: Option<Verb>) -> Vec<Fault> {
        let applies = |rule: &Rule| {
            (rule.kind.is_none() || rule.kind == kind) && (rule.verb.is_none() || rule.verb == verb)
        };
        let mut faults: Vec<Fault> = Vec::new();
        for rule in self.rules.iter_mut().filter(|rule| applies(rule)) {
            // Of several rules that replace the whole answer, only the first is used up.
            let is_delay = matches!(rule.fault, Fault::Delay(_));
            if !is_delay && faults.iter().any(|f| !matches!(f, Fault::Delay(_))) {
                continue;
            }
            if let Some(times) = &mut rule.times {
                *times -= 1;
            }
            faults.push(rule.fault.clone());
        }
        self.rules.retain(|rule| rule.times != Some(0));
        faults
    }

    pub(super) fn is_missing(&self, kind: Kind) -> bool {
        self.missing.contains(&kind)
    }
}

/// A message to the open watches.
#[derive(Debug, Clone)]
pub(super) struct WatchCommand {
    /// Changes up to this revision come before it, later ones after it.
    pub(super) revision: u64,
    /// `None` for the watches of all kinds.
    pub(super) kind: Option<Kind>,
    pub(super) action: WatchAction,
}

#[derive(Debug, Clone)]
pub(super) enum WatchAction {
    /// End the stream properly.
    End,
    /// Break the connection.
    Abort,
    /// Send half of the next event and break the connection.
    CutNextEvent,
    /// Send these bytes as they are.
    Raw(Bytes),
    /// Send an event that did not happen.
    Event(&'static str, Arc<Object>),
}

/// Handle for making the server misbehave. Cheap to clone; all handles act on the same server.
#[derive(Debug, Clone)]
pub struct Faults {
    pub(super) shared: Arc<Shared>,
}

impl Faults {
    /// Adds a rule. Rules are looked at in the order in which they were added.
    pub fn add(&self, rule: Rule) {
        if rule.times != Some(0) {
            self.shared.lock().faults.rules.push(rule);
        }
    }

    /// The next `times` requests get `fault`, whatever they ask for.
    pub fn next(&self, times: u32, fault: Fault) {
        self.add(Rule { kind: None, verb: None, times: Some(times), fault });
    }

    /// The next `times` requests with this verb and kind get `fault`.
    pub fn next_of(&self, kind: Kind, verb: Verb, times: u32, fault: Fault) {
        self.add(Rule { kind: Some(kind), verb: Some(verb), times: Some(times), fault });
    }

    /// Every request for this kind gets `fault` until [`Faults::clear`].
    pub fn always(&self, kind: Kind, fault: Fault) {
        self.add(Rule { kind: Some(kind), verb: None, times: None, fault });
    }

    /// Drops all rules, makes missing kinds known again, puts events in order, and resumes stalled watches
    /// and refused connections.
    pub fn clear(&self) {
        self.shared.lock().faults = FaultTable::default();
        self.shared.wake();
        self.refuse_connections(false);
    }

    /// Makes a kind unknown to the server, as on one that is too old for it: 404, and not in discovery.
    pub fn set_missing(&self, kind: Kind, is_missing: bool) {
        let missing = &mut self.shared.lock().faults.missing;
        if is_missing {
            missing.insert(kind);
        } else {
            missing.remove(&kind);
        }
    }

    /// Whether watches keep their connection but send nothing. What they missed comes when they resume.
    pub fn stall_watches(&self, is_stalled: bool) {
        self.shared.lock().faults.is_stalled = is_stalled;
        self.shared.wake();
    }

    /// Disarranges the events of all watches from now on.
    pub fn set_disorder(&self, disorder: Disorder) {
        self.shared.lock().faults.disorder = disorder;
    }

    /// Breaks the connections of all open watches.
    pub fn drop_watches(&self) {
        self.shared.command(None, WatchAction::Abort);
    }

    /// Ends all open watches properly, as a server does at the end of their time.
    pub fn end_watches(&self) {
        self.shared.command(None, WatchAction::End);
    }

    /// Every open watch of `kind` breaks in the middle of its next event.
    pub fn cut_next_event(&self, kind: Kind) {
        self.shared.command(Some(kind), WatchAction::CutNextEvent);
    }

    /// Sends bytes as they are on every open watch of `kind`: garbage, or a frame of one's own.
    pub fn send_raw(&self, kind: Kind, bytes: impl Into<Bytes>) {
        self.shared.command(Some(kind), WatchAction::Raw(bytes.into()));
    }

    /// Sends an event that did not happen on every open watch of `kind`, without regard to selectors: a
    /// repetition, an event out of order, or one with an older resource version. `object` is sent as it is,
    /// and the store does not learn of it.
    ///
    /// # Errors
    ///
    /// When the object does not fit its kind.
    pub fn send_event(
        &self,
        kind: Kind,
        event_type: &'static str,
        object: &Value,
    ) -> Result<(), ObjectError> {
        let object = Object::new(kind, object, 0)?;
        self.shared.command(Some(kind), WatchAction::Event(event_type, Arc::new(object)));
        Ok(())
    }

    /// Closes the listening socket and all connections, or opens the socket again on the same port. Returns
    /// when that is done.
    pub fn refuse_connections(&self, is_refusing: bool) {
        self.shared.refusing.send_replace(is_refusing);
        for _ in 0..2000 {
            if *self.shared.is_listening.borrow() != is_refusing {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        tracing::error!(is_refusing, "the server's socket did not follow");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_used_up() {
        let mut table = FaultTable::default();
        let rule = |kind, verb, times, fault| Rule { kind, verb, times, fault };
        table.rules.push(rule(Some(Kind::Node), None, None, Fault::Delay(Duration::from_secs(1))));
        table.rules.push(rule(Some(Kind::Node), Some(Verb::List), Some(1), Fault::Disconnect));
        table.rules.push(rule(None, None, Some(1), Fault::Truncate(3)));
        let delay = Fault::Delay(Duration::from_secs(1));
        assert_eq!(table.take(Some(Kind::Node), Some(Verb::List)), [delay.clone(), Fault::Disconnect]);
        assert_eq!(table.take(Some(Kind::Service), Some(Verb::List)), [Fault::Truncate(3)]);
        assert_eq!(table.take(Some(Kind::Node), Some(Verb::List)), [delay]);
        assert_eq!(table.take(Some(Kind::Service), Some(Verb::List)), []);
    }
}
