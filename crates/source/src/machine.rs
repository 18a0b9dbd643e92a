//! List, then watch, then list again when that is the only way: the protocol of one kind, without I/O or clock.
//!
//! ```text
//!   StreamedList ──complete──▶ Watch ◀──last page── Page ──more──▶ Page
//!        │ refused               │ expired, unreadable
//!        └────────▶ Page         └────────▶ StreamedList or Page
//! ```
//!
//! Resource versions are opaque texts by contract, but every server's are numbers that grow. So they are compared where
//! both are numbers, and otherwise followed. A server may come back as an older backup at any time, and a watch from a version
//! that it does not have yet opens and then tells nothing, not even bookmarks. So no watch is taken up again before the server
//! has told its present version ([`Request::Version`]), and one that is lower than ours means a new list, as does anything
//! lower in a watch.
//!
//! Whatever goes wrong, the state delivered last stays in force until a complete new listing replaces it.

use std::time::Duration;

use api::{FrameError, ListMeta, Outcome, Parsed, Status, WatchEvent};
use model::{Change, Kind, ObjectName};

use crate::SourceEvent;
use crate::listing::{Listing, Versions, number};
use crate::request::{Page, Request};

/// So many failures in a row, and the way that failed is given up: a streamed list for pages.
const MAX_STREAM_FAILURES: u32 = 2;
/// So many failures in a row, and a watch, the question for the version, or a list in pages gives way to a new listing.
const MAX_FAILURES: u32 = 5;
/// So many times in a row a kind is absent, and that is taken for settled. With the default pauses it takes more than a
/// minute: a server that has just started refuses everything until it has loaded its roles.
const MAX_ABSENCES: u32 = 8;

/// Why a request came to nothing.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The server says no, or ends a watch with an error.
    Status(Status),
    /// No answer: there is no connection, or no credentials.
    Unreachable(String),
    /// The answer broke off.
    Broken(String),
    /// The answer did not go on in time.
    Silent(String),
    /// A watch has delivered something older than where it began: resource versions have gone back.
    Backwards(String),
    /// The answer can't be read.
    Unreadable(String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Status(status) => write!(f, "the server answers {status}"),
            Self::Unreachable(text)
            | Self::Broken(text)
            | Self::Silent(text)
            | Self::Unreadable(text)
            | Self::Backwards(text) => f.write_str(text),
        }
    }
}

/// When to send the next request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// At once.
    Now,
    /// At once, unless this happens often.
    Lenient,
    /// After the back-off, and no sooner than the server says.
    BackOff {
        /// What the server says.
        at_least: Option<Duration>,
    },
    /// After a long time: the server does not have this.
    Rarely,
}

/// Whether to ask for streamed lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Streams {
    Use,
    /// They have failed more than once, so the present listing comes in pages.
    Skip,
    /// The server does not have them.
    Refused,
}

/// The state of one kind.
#[derive(Debug)]
pub(crate) struct Machine {
    kind: Kind,
    request: Request,
    /// Protobuf has not been refused.
    use_protobuf: bool,
    streams: Streams,
    /// Failures of the present kind of request in a row.
    n_failures: u32,
    listing: Listing,
    versions: Versions,
    /// The version that the present watch began with; 0 if that is no number.
    began: u64,
    /// The highest version that the present watch has delivered.
    newest: u64,
    /// The version of the last listing, or what the watches since have come to.
    known: Option<u64>,
    /// The present watch has delivered events out of order, so nothing says that it has delivered all before its newest.
    is_suspect: bool,
    was_listed: bool,
    /// How often in a row a watch has failed because the server no longer or not yet has its version, without telling anything.
    n_expired: u32,
    /// How often in a row the server has said that it does not have this kind, or not for us.
    n_absences: u32,
}

impl Machine {
    pub(crate) fn new(kind: Kind, use_protobuf: bool) -> Self {
        Self {
            kind,
            request: Request::StreamedList,
            use_protobuf,
            streams: Streams::Use,
            n_failures: 0,
            listing: Listing::default(),
            versions: Versions::default(),
            began: 0,
            newest: 0,
            known: None,
            is_suspect: false,
            was_listed: false,
            n_expired: 0,
            n_absences: 0,
        }
    }

    /// What to ask next.
    pub(crate) fn request(&self) -> &Request {
        &self.request
    }

    /// Whether to ask for protobuf.
    pub(crate) fn use_protobuf(&self) -> bool {
        self.use_protobuf
    }

    /// Whether the present watch has delivered events out of order, so that it has to end soon.
    pub(crate) fn is_suspect(&self) -> bool {
        self.is_watching() && self.is_suspect
    }

    /// An item of a page. It counts once the whole list has come.
    pub(crate) fn item(&mut self, parsed: Parsed, out: &mut Vec<SourceEvent>) {
        if matches!(self.request, Request::Version { .. }) {
            return;
        }
        report(&parsed, out);
        self.listing.put(parsed);
    }

    /// The end of a page whose items have all been given to [`Machine::item`].
    pub(crate) fn page_end(&mut self, meta: ListMeta, out: &mut Vec<SourceEvent>) {
        self.n_absences = 0;
        if let Request::Version { known } = &self.request {
            // Failures go on counting: that the server answers this says nothing about its watches.
            self.request = Request::Watch { resource_version: known.clone() };
            if self.is_behind(&meta.resource_version) {
                self.relist();
            }
            return;
        }
        self.n_failures = 0;
        if meta.continue_token.is_empty() {
            self.complete(meta.resource_version, out);
        } else {
            self.request = Request::Page(Page::Next(meta.continue_token));
        }
    }

    /// An event of a watch or a streamed list.
    ///
    /// # Errors
    /// The server ends the watch; it is for the caller to hand the failure to [`Machine::failed`].
    pub(crate) fn event(&mut self, event: WatchEvent, out: &mut Vec<SourceEvent>) -> Result<(), Failure> {
        let was_watching = self.is_watching();
        match event {
            WatchEvent::Error(status) => return Err(Failure::Status(status)),
            WatchEvent::Bookmark { resource_version, initial_events_end } => match self.request {
                Request::StreamedList if initial_events_end => self.complete(resource_version, out),
                // It promises that all before it has come.
                Request::Watch { .. }
                    if number(&resource_version).is_some_and(|version| version < self.newest) =>
                {
                    return Err(backwards(self.newest, &resource_version));
                }
                Request::Watch { .. } => self.reached(&resource_version)?,
                Request::StreamedList | Request::Page(_) | Request::Version { .. } => {}
            },
            WatchEvent::Applied(parsed) if self.is_watching() => self.applied(parsed, out)?,
            WatchEvent::Applied(parsed) => self.item(parsed, out),
            WatchEvent::Deleted { name, resource_version } if self.is_watching() => {
                self.reached(&resource_version)?;
                self.gone(name, &resource_version, out);
            }
            WatchEvent::Deleted { name, .. } => self.listing.remove(&name),
        }
        if self.is_watching() {
            (self.n_failures, self.n_absences) = (0, 0);
            // The end of a streamed list is no sign that its version can be watched.
            self.n_expired = if was_watching { 0 } else { self.n_expired };
        }
        Ok(())
    }

    /// The server has ended a watch properly (a streamed list not before its end). A watch that ends at once and
    /// without events is not useful.
    pub(crate) fn ended(&mut self, was_useful: bool) -> Next {
        if self.is_watching() && self.is_suspect {
            self.relist();
            return Next::Lenient;
        }
        self.ask_version();
        if was_useful { Next::Now } else { Next::BackOff { at_least: None } }
    }

    /// The request came to nothing.
    pub(crate) fn failed(&mut self, failure: &Failure) -> Next {
        // Credentials that have expired may be replaced at any time.
        let is_absent = self.is_absent(failure) && !is_status(failure, 401);
        self.n_absences = if is_absent { self.n_absences.saturating_add(1) } else { 0 };
        let next = self.next_after(failure);
        if self.n_absences >= MAX_ABSENCES { Next::Rarely } else { next }
    }

    fn next_after(&mut self, failure: &Failure) -> Next {
        let n_expired = std::mem::take(&mut self.n_expired);
        let at_least = match failure {
            Failure::Status(status) => {
                if self.use_protobuf && matches!(status.code, 406 | 415) {
                    self.use_protobuf = false;
                    return Next::Now;
                }
                status.retry_after
            }
            Failure::Unreachable(_)
            | Failure::Broken(_)
            | Failure::Silent(_)
            | Failure::Unreadable(_)
            | Failure::Backwards(_) => None,
        };
        // A server that is away or busy says nothing about the way that we ask. Above all, a whole cluster's nodes must
        // not list everything again because the server was away for a while.
        if is_away(failure) {
            // A busy one has been there all along.
            if !is_status(failure, 429) {
                self.ask_version();
            }
            return Next::BackOff { at_least };
        }
        self.n_failures += 1;
        match &self.request {
            Request::StreamedList => self.stream_failed(failure, at_least),
            Request::Page(_) => self.page_failed(failure, at_least),
            Request::Watch { .. } => self.watch_failed(failure, at_least, n_expired),
            Request::Version { .. } => {
                if self.n_failures >= MAX_FAILURES {
                    self.relist();
                }
                Next::BackOff { at_least }
            }
        }
    }

    /// Before a watch is taken up again: does the server still know what we know?
    fn ask_version(&mut self) {
        if let Request::Watch { resource_version } = &self.request
            && number(resource_version).is_some()
        {
            self.request = Request::Version { known: resource_version.clone() };
        }
    }

    /// Others have lost the server, so that the one that comes back may be another: what it does not have is no longer settled.
    pub(crate) fn doubt_absence(&mut self) {
        self.n_absences = 0;
    }

    /// Whether a version of the server's is lower than ours.
    fn is_behind(&self, resource_version: &str) -> bool {
        number(resource_version).zip(self.known).is_some_and(|(version, known)| version < known)
    }

    /// Whether the server says that it has no such kind, or not for us, and we can do without: the kind then counts as
    /// listed, with nothing in it, so that nobody waits for it. Only `ServiceCIDR`s are like that.
    pub(crate) fn is_absent(&self, failure: &Failure) -> bool {
        let Failure::Status(status) = failure else { return false };
        let is_final = matches!(self.request, Request::Page(_)) || matches!(status.code, 401 | 403);
        self.kind == Kind::ServiceCidr && is_final && matches!(status.code, 401 | 403 | 404)
    }

    /// Tells that there is nothing of this kind, if nothing else has ever been told.
    pub(crate) fn tell_absent(&mut self, out: &mut Vec<SourceEvent>) {
        if !self.was_listed {
            self.listing = Listing::default();
            self.deliver_listing(out);
        }
    }

    fn stream_failed(&mut self, failure: &Failure, at_least: Option<Duration>) -> Next {
        self.listing = Listing::default();
        let is_refused =
            matches!(failure, Failure::Status(s) if matches!(s.code, 400 | 404 | 405 | 422 | 501));
        if is_refused || self.n_failures >= MAX_STREAM_FAILURES {
            self.streams = if is_refused { Streams::Refused } else { Streams::Skip };
            self.relist();
        }
        if is_refused { Next::Now } else { Next::BackOff { at_least } }
    }

    fn page_failed(&mut self, failure: &Failure, at_least: Option<Duration>) -> Next {
        let is_expired = is_status(failure, 410);
        match self.request {
            // The list took longer than the server remembers its version: what has come is of no use.
            Request::Page(Page::Next(_)) if is_expired => {
                self.listing = Listing::default();
                self.request = Request::Page(Page::Whole);
                return Next::Lenient;
            }
            _ if is_expired || self.n_failures >= MAX_FAILURES => self.relist(),
            // The same page again; those before it stay.
            _ => {}
        }
        Next::BackOff { at_least }
    }

    fn watch_failed(&mut self, failure: &Failure, at_least: Option<Duration>, n_expired: u32) -> Next {
        match failure {
            // The version is too old, as mostly after a restart of the server, or newer than all that it has (after a
            // restored backup). The server is well, so what went wrong before is no reason to wait.
            Failure::Status(s) if s.code == 410 || is_too_large(s) => {
                self.relist();
                self.n_expired = n_expired.saturating_add(1);
                return if n_expired > 0 { Next::Lenient } else { Next::Now };
            }
            // The same watch again, but not for ever: nobody knows what is wrong with it.
            Failure::Status(Status { code: 401 | 403 | 500.., .. })
            | Failure::Broken(_)
            | Failure::Silent(_)
                if self.n_failures < MAX_FAILURES && !self.is_suspect =>
            {
                self.ask_version();
            }
            Failure::Status(_)
            | Failure::Unreachable(_)
            | Failure::Broken(_)
            | Failure::Silent(_)
            | Failure::Unreadable(_)
            | Failure::Backwards(_) => self.relist(),
        }
        match failure {
            Failure::Broken(_) | Failure::Silent(_) | Failure::Backwards(_) => Next::Lenient,
            Failure::Status(_) | Failure::Unreachable(_) | Failure::Unreadable(_) => {
                Next::BackOff { at_least }
            }
        }
    }

    /// Begins a new listing; once something was delivered, it must not be older than that.
    fn relist(&mut self) {
        self.n_failures = 0;
        self.listing = Listing::default();
        self.request = match (self.streams == Streams::Use, self.was_listed) {
            (true, _) => Request::StreamedList,
            (false, false) => Request::Page(Page::FirstCached),
            (false, true) => Request::Page(Page::First),
        };
    }

    fn complete(&mut self, resource_version: String, out: &mut Vec<SourceEvent>) {
        if self.is_behind(&resource_version) {
            let known = self.known.unwrap_or_default();
            let text = format!(
                "the server's resource versions have gone back from {known} to {resource_version}, as after a restored backup; what it has now is in force"
            );
            out.push(SourceEvent::Problem { kind: Some(self.kind), text });
        }
        self.known = number(&resource_version);
        // A streamed list goes on as a watch.
        self.began = self.known.unwrap_or(0);
        self.newest = self.began;
        self.is_suspect = false;
        if self.streams == Streams::Skip {
            self.streams = Streams::Use;
        }
        self.request = Request::Watch { resource_version };
        self.deliver_listing(out);
    }

    fn deliver_listing(&mut self, out: &mut Vec<SourceEvent>) {
        let (change, versions) = std::mem::take(&mut self.listing).finish(self.kind);
        self.versions = versions;
        out.push(SourceEvent::Change(change));
        if !self.was_listed {
            self.was_listed = true;
            out.push(SourceEvent::Listed(self.kind));
        }
    }

    fn is_watching(&self) -> bool {
        matches!(self.request, Request::Watch { .. })
    }

    fn applied(&mut self, parsed: Parsed, out: &mut Vec<SourceEvent>) -> Result<(), Failure> {
        self.reached(&parsed.resource_version)?;
        let is_news = |versions: &mut Versions, name| versions.advance(name, &parsed.resource_version, false);
        if parsed.name().is_some_and(|name| !is_news(&mut self.versions, name)) {
            return Ok(());
        }
        report(&parsed, out);
        match parsed.outcome {
            Outcome::Keep(object) => out.push(SourceEvent::Change(Change::Apply(object))),
            Outcome::Ignore(name, _) => out.push(SourceEvent::Change(Change::Delete(self.kind, name))),
            Outcome::Reject(_) => {}
        }
        Ok(())
    }

    fn gone(&mut self, name: ObjectName, resource_version: &str, out: &mut Vec<SourceEvent>) {
        if self.versions.advance(&name, resource_version, true) {
            out.push(SourceEvent::Change(Change::Delete(self.kind, name)));
        }
    }

    /// The present watch has come as far as this version; the next one goes on from there.
    ///
    /// What says nothing that can be compared with where the watch is, such as an empty version, moves nothing: the next
    /// watch then tells a little again.
    fn reached(&mut self, resource_version: &str) -> Result<(), Failure> {
        let Request::Watch { resource_version: present } = &mut self.request else { return Ok(()) };
        match (number(resource_version), number(present)) {
            (Some(version), _) if version < self.began => {
                return Err(backwards(self.began, resource_version));
            }
            (Some(version), _) if version < self.newest => self.is_suspect = true,
            (Some(version), _) => {
                (self.newest, self.known) = (version, Some(version));
                resource_version.clone_into(present);
            }
            (None, None) if !resource_version.is_empty() => resource_version.clone_into(present),
            (None, _) => {}
        }
        Ok(())
    }

    /// A new watch has begun.
    pub(crate) fn watch_begins(&mut self) {
        if let Request::Watch { resource_version } = &self.request {
            self.began = number(resource_version).unwrap_or(0);
        }
        self.newest = self.began;
    }
}

fn backwards(known: u64, resource_version: &str) -> Failure {
    Failure::Backwards(format!("the watch goes back from resource version {known} to {resource_version}"))
}

fn report(parsed: &Parsed, out: &mut Vec<SourceEvent>) {
    out.extend(parsed.notes.iter().cloned().map(SourceEvent::Rejected));
    if let Outcome::Reject(rejection) = &parsed.outcome {
        out.push(SourceEvent::Rejected(rejection.clone()));
    }
}

fn is_away(failure: &Failure) -> bool {
    matches!(failure, Failure::Unreachable(_) | Failure::Status(Status { code: 429 | 503, .. }))
}

fn is_status(failure: &Failure, code: u16) -> bool {
    matches!(failure, Failure::Status(status) if status.code == code)
}

fn is_too_large(status: &Status) -> bool {
    status.code == 504 && status.message.contains("Too large resource version")
}

impl From<FrameError> for Failure {
    fn from(error: FrameError) -> Self {
        let cause = std::error::Error::source(&error).map(|source| format!(": {source}"));
        Self::Unreadable(format!("{error}{}", cause.unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests;
