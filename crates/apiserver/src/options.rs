//! Options of lists and watches, as they come in the query string.

use std::time::Duration;

use super::kinds::Kind;
use super::selector::{Selector, parse_fields, parse_labels};
use super::status::Status;
use super::token::Continuation;

/// Parsed options of a list or watch.
#[derive(Debug)]
pub(super) struct ListOptions {
    pub(super) selector: Selector,
    pub(super) watch: bool,
    /// `None` when the client left it open.
    pub(super) resource_version: Option<u64>,
    pub(super) version_match: VersionMatch,
    /// 0 for no limit.
    pub(super) limit: usize,
    pub(super) continuation: Option<Continuation>,
    pub(super) timeout: Option<Duration>,
    pub(super) bookmarks: bool,
    pub(super) send_initial_events: bool,
}

/// `resourceVersionMatch`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum VersionMatch {
    Unset,
    Exact,
    NotOlderThan,
}

/// The pairs of a query string, decoded.
#[derive(Debug)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn parse(query: &str) -> Self {
        let pair = |part: &str| {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            (decode_percent(name), decode_percent(value))
        };
        Self(query.split('&').filter(|part| !part.is_empty()).map(pair).collect())
    }

    /// The value of a parameter; empty when it is missing.
    pub(super) fn get(&self, name: &str) -> &str {
        self.0.iter().find(|(n, _)| n == name).map_or("", |(_, value)| value)
    }

    /// Whether a boolean parameter is set: present and neither "0" nor "false".
    pub(super) fn is_set(&self, name: &str) -> bool {
        let value = self.0.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str());
        value.is_some_and(|v| v != "0" && v != "false")
    }
}

/// Undoes percent-encoding and `+` for a space. Bad sequences stay as they are.
fn decode_percent(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let hex = tail.get(..2).and_then(|h| std::str::from_utf8(h).ok());
        match (byte, hex.and_then(|h| u8::from_str_radix(h, 16).ok())) {
            (b'%', Some(decoded)) => {
                out.push(decoded);
                rest = &tail[2..];
            }
            (b'+', _) => {
                out.push(b' ');
                rest = tail;
            }
            _ => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

impl ListOptions {
    /// Parses and validates the options for a kind in a namespace (empty for all).
    ///
    /// # Errors
    ///
    /// The answer for the client: 400 for what cannot be read, 422 for what contradicts itself.
    pub(super) fn parse(
        kind: Kind,
        namespace: &str,
        query: &Query,
        streamed_lists: bool,
    ) -> Result<Self, Status> {
        validate(query, streamed_lists)?;
        let token = query.get("continue");
        let continuation = match token {
            "" => None,
            token => Some(
                Continuation::decode(token)
                    .ok_or_else(|| Status::bad_request("continue key is not valid: unrecognized token"))?,
            ),
        };
        let selector = Selector {
            kind,
            namespace: namespace.to_owned(),
            labels: parse_labels(query.get("labelSelector")).map_err(Status::bad_request)?,
            fields: parse_fields(kind, query.get("fieldSelector")).map_err(Status::bad_request)?,
        };
        Ok(Self {
            selector,
            watch: query.is_set("watch"),
            resource_version: number(query, "resourceVersion")?,
            version_match: match query.get("resourceVersionMatch") {
                "Exact" => VersionMatch::Exact,
                "NotOlderThan" => VersionMatch::NotOlderThan,
                _ => VersionMatch::Unset,
            },
            limit: number(query, "limit")?.and_then(|n| usize::try_from(n).ok()).unwrap_or(0),
            continuation,
            timeout: number(query, "timeoutSeconds")?.filter(|s| *s > 0).map(Duration::from_secs),
            bookmarks: query.is_set("allowWatchBookmarks"),
            send_initial_events: query.is_set("sendInitialEvents"),
        })
    }

    /// Whether a list must show one exact revision. A limit with a revision meant that before
    /// `resourceVersionMatch` existed.
    pub(super) fn is_exact(&self) -> bool {
        let legacy = self.version_match == VersionMatch::Unset && self.limit > 0;
        self.resource_version.is_some_and(|rv| rv > 0)
            && (legacy || self.version_match == VersionMatch::Exact)
    }
}

fn number(query: &Query, name: &str) -> Result<Option<u64>, Status> {
    match query.get(name) {
        "" => Ok(None),
        text => {
            text.parse().map(Some).map_err(|e| Status::bad_request(format!("invalid {name} {text:?}: {e}")))
        }
    }
}

/// What contradicts itself; the rules are those of `ValidateListOptions` in apimachinery's
/// `internalversion/validation`.
fn validate(query: &Query, streamed_lists: bool) -> Result<(), Status> {
    const MATCH: &str = "resourceVersionMatch";
    const INITIAL: &str = "sendInitialEvents";
    let mut causes = Vec::new();
    let mut forbid = |field: &'static str, text: &str| {
        causes.push((field, "FieldValueForbidden", format!("Forbidden: {text}")));
    };
    let version_match = query.get(MATCH);
    let has_initial = !query.get(INITIAL).is_empty();
    let is_watch = query.is_set("watch");
    if has_initial && !is_watch {
        forbid(INITIAL, "sendInitialEvents is forbidden for list");
    }
    if has_initial && is_watch && version_match != "NotOlderThan" {
        forbid(MATCH, "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan");
    }
    if has_initial && is_watch && !streamed_lists {
        forbid(
            INITIAL,
            "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled",
        );
    }
    if !version_match.is_empty() {
        if is_watch && !has_initial {
            forbid(MATCH, "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided");
        }
        if !is_watch && query.get("resourceVersion").is_empty() {
            forbid(MATCH, "resourceVersionMatch is forbidden unless resourceVersion is provided");
        }
        if !query.get("continue").is_empty() {
            forbid(MATCH, "resourceVersionMatch is forbidden when continue is provided");
        }
        if version_match == "Exact" && query.get("resourceVersion") == "0" {
            forbid(MATCH, "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"");
        }
        if !is_watch && !["Exact", "NotOlderThan"].contains(&version_match) {
            let text = format!(
                "Unsupported value: \"{version_match}\": supported values: \"Exact\", \"NotOlderThan\""
            );
            causes.push((MATCH, "FieldValueNotSupported", text));
        }
    }
    if causes.is_empty() { Ok(()) } else { Err(Status::invalid_options(&causes)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(query: &str) -> Result<ListOptions, Status> {
        ListOptions::parse(Kind::Service, "", &Query::parse(query), true)
    }

    #[test]
    fn a_query_is_decoded() {
        let query = Query::parse("labelSelector=%21a%2Fb&x=1+2&watch&bad=%zz");
        assert_eq!(query.get("labelSelector"), "!a/b");
        assert_eq!(query.get("x"), "1 2");
        assert_eq!(query.get("bad"), "%zz");
        assert!(query.is_set("watch"));
        assert!(!query.is_set("allowWatchBookmarks"));
    }

    #[test]
    fn contradictions_are_refused() {
        for (query, code) in [
            ("watch=true&sendInitialEvents=true", 422),
            ("sendInitialEvents=true", 422),
            ("watch=1&resourceVersionMatch=Exact&resourceVersion=1", 422),
            ("resourceVersionMatch=Exact", 422),
            ("resourceVersionMatch=Exact&resourceVersion=0", 422),
            ("resourceVersionMatch=Newer&resourceVersion=3", 422),
            ("resourceVersion=x", 400),
            ("limit=-1", 400),
            ("continue=xyz", 400),
            ("labelSelector=a%20b", 400),
        ] {
            assert_eq!(parse(query).map_err(|s| s.code).unwrap_err(), code, "{query}");
        }
    }

    #[test]
    fn a_limit_with_a_version_is_exact() {
        assert!(parse("limit=3&resourceVersion=7").unwrap().is_exact());
        assert!(parse("resourceVersion=7&resourceVersionMatch=Exact").unwrap().is_exact());
        assert!(!parse("limit=3&resourceVersion=0").unwrap().is_exact());
        assert!(!parse("resourceVersion=7").unwrap().is_exact());
        assert!(!parse("limit=3&resourceVersion=7&resourceVersionMatch=NotOlderThan").unwrap().is_exact());
    }
}
