use api::{Format, decode_object};
use model::Interner;

use super::*;

fn status(code: u16) -> Failure {
    Failure::Status(Status { code, ..Status::default() })
}

fn broken() -> Failure {
    Failure::Broken("gone".to_owned())
}

fn unreachable() -> Failure {
    Failure::Unreachable("connection refused".to_owned())
}

fn parsed(name: &str, version: u64) -> Parsed {
    let json = format!(
        r#"{{"metadata": {{"name": "{name}", "namespace": "shop", "resourceVersion": "{version}"}},
        "spec": {{"clusterIP": "10.96.0.1"}}}}"#
    );
    decode_object(Kind::Service, Format::Json, json.as_bytes(), &mut Interner::default())
}

fn bookmark(version: u64, initial_events_end: bool) -> WatchEvent {
    WatchEvent::Bookmark { resource_version: version.to_string(), initial_events_end }
}

fn deleted(name: &str, version: u64) -> WatchEvent {
    WatchEvent::Deleted { name: ObjectName::new("shop", name), resource_version: version.to_string() }
}

/// A machine with what it has told, in short form.
struct Run {
    machine: Machine,
    out: Vec<SourceEvent>,
}

impl Run {
    fn new(kind: Kind) -> Self {
        Self { machine: Machine::new(kind, true), out: Vec::new() }
    }

    /// A machine that watches from version 10, where `a` and `b` exist.
    fn watching() -> Self {
        let mut run = Self::new(Kind::Service);
        run.machine.watch_begins();
        run.event(WatchEvent::Applied(parsed("a", 3)));
        run.event(WatchEvent::Applied(parsed("b", 2)));
        run.event(bookmark(10, true));
        assert_eq!(run.told(), ["replace a b", "listed"]);
        run
    }

    /// A machine whose streamed list was refused.
    fn paging() -> Self {
        let mut run = Self::new(Kind::Service);
        assert_eq!(run.machine.failed(&status(422)), Next::Now);
        run
    }

    fn event(&mut self, event: WatchEvent) {
        self.machine.event(event, &mut self.out).unwrap();
    }

    fn page(&mut self, items: &[&str], version: &str, token: &str) {
        for item in items {
            self.machine.item(parsed(item, 1), &mut self.out);
        }
        let meta = ListMeta { resource_version: version.into(), continue_token: token.into() };
        self.machine.page_end(meta, &mut self.out);
    }

    fn told(&mut self) -> Vec<String> {
        let name = |name: &ObjectName| name.name.to_string();
        let show = |event: SourceEvent| match event {
            SourceEvent::Change(Change::Apply(object)) => format!("apply {}", name(object.name())),
            SourceEvent::Change(Change::Delete(_, object)) => format!("delete {}", name(&object)),
            SourceEvent::Change(Change::Replace { objects, keep, .. }) => {
                let names = objects.iter().map(|object| name(object.name()));
                let names: Vec<_> =
                    names.chain(keep.iter().map(|kept| format!("({})", name(kept)))).collect();
                format!("replace {}", names.join(" ")).trim_end().to_owned()
            }
            SourceEvent::Listed(_) => "listed".to_owned(),
            SourceEvent::Rejected(_) => "rejected".to_owned(),
            other => format!("{other:?}"),
        };
        self.out.drain(..).map(show).collect()
    }

    #[track_caller]
    fn asks(&self, request: &Request) {
        assert_eq!(self.machine.request(), request);
    }
}

fn watch(version: &str) -> Request {
    Request::Watch { resource_version: version.to_owned() }
}

fn version(known: &str) -> Request {
    Request::Version { known: known.to_owned() }
}

#[test]
fn a_streamed_list_is_delivered_as_one() {
    let mut run = Run::new(Kind::Service);
    run.asks(&Request::StreamedList);
    run.event(WatchEvent::Applied(parsed("a", 3)));
    run.event(WatchEvent::Applied(parsed("b", 2)));
    run.event(deleted("a", 9));
    assert!(run.told().is_empty());
    run.event(bookmark(10, true));
    assert_eq!(run.told(), ["replace b", "listed"]);
    run.asks(&watch("10"));
}

#[test]
fn pages_are_delivered_as_one() {
    let mut run = Run::paging();
    run.asks(&Request::Page(Page::FirstCached));
    run.page(&["a", "b"], "7", "more");
    run.asks(&Request::Page(Page::Next("more".into())));
    assert!(run.told().is_empty());
    run.page(&["c"], "7", "");
    assert_eq!(run.told(), ["replace a b c", "listed"]);
    run.asks(&watch("7"));
}

#[test]
fn every_refusal_of_streams_leads_to_pages() {
    for code in [400, 404, 405, 422, 501] {
        let mut run = Run::new(Kind::Service);
        assert_eq!(run.machine.failed(&status(code)), Next::Now);
        run.asks(&Request::Page(Page::FirstCached));
    }
    let mut run = Run::new(Kind::Service);
    assert_eq!(run.machine.failed(&status(500)), Next::BackOff { at_least: None });
    run.asks(&Request::StreamedList);
    run.machine.failed(&broken());
    run.asks(&Request::Page(Page::FirstCached));
}

#[test]
fn a_stream_that_breaks_begins_anew() {
    let mut run = Run::new(Kind::Service);
    run.event(WatchEvent::Applied(parsed("stale", 3)));
    assert_eq!(run.machine.failed(&broken()), Next::BackOff { at_least: None });
    run.event(WatchEvent::Applied(parsed("a", 3)));
    run.event(bookmark(10, true));
    assert_eq!(run.told(), ["replace a", "listed"]);
}

#[test]
fn refused_protobuf_is_not_asked_for_again() {
    for code in [406, 415] {
        let mut run = Run::new(Kind::Service);
        assert!(run.machine.use_protobuf());
        assert_eq!(run.machine.failed(&status(code)), Next::Now);
        assert!(!run.machine.use_protobuf());
        run.asks(&Request::StreamedList);
        assert_eq!(run.machine.failed(&status(code)), Next::BackOff { at_least: None });
    }
}

#[test]
fn a_watch_tells_each_event_and_goes_on_where_it_ended() {
    let mut run = Run::watching();
    run.event(WatchEvent::Applied(parsed("a", 11)));
    run.event(deleted("b", 12));
    assert_eq!(run.told(), ["apply a", "delete b"]);
    assert_eq!(run.machine.ended(true), Next::Now);
    run.asks(&version("12"));
    run.page(&["c"], "12", "");
    run.asks(&watch("12"));
    run.machine.watch_begins();
    run.event(bookmark(20, false));
    assert_eq!(run.machine.failed(&broken()), Next::Lenient);
    run.asks(&version("20"));
    assert!(run.told().is_empty());
}

#[test]
fn a_watch_that_ends_at_once_is_not_asked_again_at_once() {
    let mut run = Run::watching();
    assert_eq!(run.machine.ended(false), Next::BackOff { at_least: None });
}

#[test]
fn an_expired_watch_lists_again_and_keeps_the_state_until_then() {
    for failure in [
        status(410),
        Failure::Status(Status {
            code: 504,
            message: "Timeout: Too large resource version: 9, current: 2".to_owned(),
            ..Status::default()
        }),
    ] {
        let mut run = Run::watching();
        assert_eq!(run.machine.failed(&failure), Next::Now);
        run.asks(&Request::StreamedList);
        run.event(WatchEvent::Applied(parsed("c", 1)));
        assert!(run.told().is_empty());
        run.event(bookmark(30, true));
        assert_eq!(run.told(), ["replace c"]);
        // The new listing decides about versions, even of objects that were newer before.
        run.event(WatchEvent::Applied(parsed("a", 31)));
        assert_eq!(run.told(), ["apply a"]);
    }
}

#[test]
fn an_error_event_is_a_failure() {
    let mut run = Run::watching();
    let error = WatchEvent::Error(Status { code: 410, ..Status::default() });
    let failure = run.machine.event(error, &mut run.out).unwrap_err();
    assert_eq!(run.machine.failed(&failure), Next::Now);
    run.asks(&Request::StreamedList);
}

#[test]
fn a_relist_in_pages_is_never_answered_from_a_stale_cache() {
    let mut run = Run::paging();
    run.page(&["a"], "7", "");
    run.machine.failed(&status(410));
    run.asks(&Request::Page(Page::First));
}

#[test]
fn an_expired_page_token_begins_the_whole_list_anew() {
    let mut run = Run::paging();
    run.page(&["stale"], "7", "more");
    assert_eq!(run.machine.failed(&status(410)), Next::Lenient);
    run.asks(&Request::Page(Page::Whole));
    run.page(&["a"], "9", "");
    assert_eq!(run.told(), ["replace a", "listed"]);
}

#[test]
fn a_page_that_fails_is_asked_for_again() {
    let mut run = Run::paging();
    run.page(&["a"], "7", "more");
    for _ in 0..4 {
        assert_eq!(run.machine.failed(&status(500)), Next::BackOff { at_least: None });
        run.asks(&Request::Page(Page::Next("more".into())));
    }
    run.machine.failed(&status(500));
    run.asks(&Request::Page(Page::FirstCached));
    run.page(&["b"], "8", "");
    assert_eq!(run.told(), ["replace b", "listed"]);
}

#[test]
fn a_server_that_is_busy_says_how_long_to_wait() {
    let busy =
        Failure::Status(Status { code: 429, retry_after: Some(Duration::from_secs(7)), ..Status::default() });
    let expected = Next::BackOff { at_least: Some(Duration::from_secs(7)) };
    assert_eq!(Run::new(Kind::Service).machine.failed(&busy), expected);
    assert_eq!(Run::paging().machine.failed(&busy), expected);
    let mut run = Run::watching();
    assert_eq!(run.machine.failed(&busy), expected);
    run.asks(&watch("10"));
}

#[test]
fn a_watch_that_can_not_be_read_lists_again() {
    let mut run = Run::watching();
    let next = run.machine.failed(&Failure::Unreadable("garbage".to_owned()));
    assert_eq!(next, Next::BackOff { at_least: None });
    run.asks(&Request::StreamedList);
}

#[test]
fn a_watch_that_keeps_failing_lists_again() {
    let mut run = Run::watching();
    for _ in 0..4 {
        run.machine.failed(&status(500));
        run.page(&[], "10", "");
        run.asks(&watch("10"));
    }
    run.machine.failed(&status(500));
    run.asks(&Request::StreamedList);
}

#[test]
fn no_watch_is_taken_up_again_before_the_version_is_known() {
    let end: fn(&mut Machine) = |machine| _ = machine.ended(true);
    let ways: [fn(&mut Machine); 8] = [
        end,
        |machine| _ = machine.ended(false),
        |machine| _ = machine.failed(&broken()),
        |machine| _ = machine.failed(&Failure::Silent("nothing came".to_owned())),
        |machine| _ = machine.failed(&unreachable()),
        |machine| _ = machine.failed(&status(403)),
        |machine| _ = machine.failed(&status(500)),
        |machine| _ = machine.failed(&status(503)),
    ];
    for way in ways {
        for failure in [status(403), status(500), status(503), status(429), broken(), unreachable()] {
            let mut run = Run::watching();
            way(&mut run.machine);
            run.asks(&version("10"));
            // A failure does not end the asking.
            assert_eq!(run.machine.failed(&failure), Next::BackOff { at_least: None });
            run.asks(&version("10"));
            run.page(&[], "9", "");
            run.asks(&Request::StreamedList);
        }
    }
}

#[test]
fn a_server_that_never_tells_its_version_is_listed_anew() {
    let mut run = Run::watching();
    run.machine.failed(&broken());
    for _ in 0..3 {
        run.machine.failed(&status(403));
        run.asks(&version("10"));
    }
    run.machine.failed(&status(403));
    run.asks(&Request::StreamedList);
}

#[test]
fn an_expired_version_lists_at_once_unless_it_happens_again() {
    let mut run = Run::watching();
    for _ in 0..9 {
        run.machine.failed(&unreachable());
    }
    run.page(&[], "12", "");
    run.asks(&watch("10"));
    assert_eq!(run.machine.failed(&status(410)), Next::Now);
    run.event(bookmark(20, true));
    assert_eq!(run.machine.failed(&status(410)), Next::Lenient);
    run.event(bookmark(30, true));
    // A watch that tells something works.
    run.event(bookmark(31, false));
    assert_eq!(run.machine.failed(&status(410)), Next::Now);
}

#[test]
fn a_server_that_is_away_changes_nothing() {
    let mut fresh = Run::new(Kind::Service);
    let mut run = Run::watching();
    for _ in 0..100 {
        for failure in [unreachable(), status(503), status(429)] {
            assert_eq!(run.machine.failed(&failure), Next::BackOff { at_least: None });
            assert_eq!(fresh.machine.failed(&failure), Next::BackOff { at_least: None });
        }
    }
    fresh.asks(&Request::StreamedList);
    // A look at the version, and the watch goes on.
    run.asks(&Request::Version { known: "10".to_owned() });
    run.page(&["c"], "10", "more");
    run.asks(&watch("10"));
    assert!(run.told().is_empty());
}

#[test]
fn a_server_that_comes_back_with_an_older_backup_is_listed_anew() {
    let mut run = Run::watching();
    run.event(WatchEvent::Applied(parsed("a", 900)));
    run.told();
    run.machine.failed(&unreachable());
    run.asks(&Request::Version { known: "900".to_owned() });
    run.page(&[], "800", "");
    run.asks(&Request::StreamedList);
    run.event(WatchEvent::Applied(parsed("c", 2)));
    run.event(bookmark(800, true));
    let told = run.told();
    let word = "the server's resource versions have gone back from 900 to 800";
    assert!(told.len() == 2 && told[0].contains(word) && told[1] == "replace c", "{told:?}");
    run.asks(&watch("800"));
    run.machine.watch_begins();
    run.event(WatchEvent::Applied(parsed("a", 801)));
    assert_eq!(run.told(), ["apply a"]);
}

#[test]
fn silence_leads_to_a_look_at_the_version() {
    let mut run = Run::watching();
    let silent = || Failure::Silent("nothing came".to_owned());
    assert_eq!(run.machine.failed(&silent()), Next::Lenient);
    run.asks(&version("10"));
    run.page(&[], "10", "");
    run.asks(&watch("10"));
    run.machine.failed(&status(429));
    run.asks(&watch("10"));
}

#[test]
fn a_watch_that_goes_back_lists_anew() {
    for event in [
        WatchEvent::Applied(parsed("a", 9)),
        deleted("a", 9),
        bookmark(9, false),
        WatchEvent::Bookmark { resource_version: "9".into(), initial_events_end: true },
    ] {
        let mut run = Run::watching();
        run.machine.watch_begins();
        let failure = run.machine.event(event, &mut run.out).unwrap_err();
        assert_eq!(run.machine.failed(&failure), Next::Lenient);
        run.asks(&Request::StreamedList);
        assert!(run.told().is_empty());
    }
    // A bookmark promises that all before it has come.
    let mut run = Run::watching();
    run.machine.watch_begins();
    run.event(WatchEvent::Applied(parsed("a", 20)));
    assert!(run.machine.event(bookmark(19, false), &mut run.out).is_err());
}

#[test]
fn strange_versions_make_nobody_deaf() {
    for strange in ["", "18446744073709551615", "9223372036854775808", "-1", "garbage"] {
        let mut run = Run::watching();
        run.machine.watch_begins();
        run.event(WatchEvent::Bookmark { resource_version: strange.into(), initial_events_end: false });
        let parsed = Parsed { resource_version: strange.into(), ..parsed("a", 1) };
        run.event(WatchEvent::Applied(parsed));
        run.event(deleted("a", 13));
        assert_eq!(run.told(), ["apply a", "delete a"], "{strange:?}");
        assert!(!run.machine.is_suspect());
        run.asks(&watch("13"));
    }
    // One that could be true makes what follows suspect, so that the watch ends soon.
    let mut run = Run::watching();
    run.machine.watch_begins();
    run.event(WatchEvent::Applied(parsed("a", 1 << 62)));
    assert!(!run.machine.is_suspect());
    run.event(deleted("a", 13));
    assert!(run.machine.is_suspect());
    assert_eq!(run.machine.failed(&Failure::Silent("doubt".to_owned())), Next::Lenient);
    run.asks(&Request::StreamedList);
}

#[test]
fn streams_that_failed_are_tried_again_with_the_next_listing() {
    let mut run = Run::new(Kind::Service);
    run.machine.failed(&broken());
    run.machine.failed(&broken());
    run.page(&["a"], "7", "");
    run.machine.failed(&status(410));
    run.asks(&Request::StreamedList);
}

#[test]
fn repeated_and_late_events_are_passed_over() {
    let mut run = Run::watching();
    run.event(WatchEvent::Applied(parsed("a", 12)));
    run.event(WatchEvent::Applied(parsed("a", 12)));
    run.event(deleted("b", 14));
    run.event(WatchEvent::Applied(parsed("b", 13)));
    assert_eq!(run.told(), ["apply a", "delete b"]);
    run.event(WatchEvent::Applied(parsed("b", 15)));
    assert_eq!(run.told(), ["apply b"]);
}

#[test]
fn a_watch_out_of_order_is_not_trusted_to_be_complete() {
    let mut run = Run::watching();
    run.event(WatchEvent::Applied(parsed("c", 12)));
    run.event(WatchEvent::Applied(parsed("d", 11)));
    assert_eq!(run.told(), ["apply c", "apply d"]);
    assert_eq!(run.machine.ended(true), Next::Lenient);
    run.asks(&Request::StreamedList);
}

#[test]
fn rejected_and_ignored_objects() {
    let object = |fields: &str| {
        let json = format!(r#"{{"metadata": {{"name": "a", "namespace": "shop"}}, "spec": {{{fields}}}}}"#);
        decode_object(Kind::Service, Format::Json, json.as_bytes(), &mut Interner::default())
    };
    let (rejected, ignored) = (object(r#""ports": 1"#), object(r#""clusterIP": "None""#));
    let mut run = Run::watching();
    run.event(WatchEvent::Applied(rejected.clone()));
    assert_eq!(run.told(), ["rejected"]);
    run.event(WatchEvent::Applied(ignored.clone()));
    assert_eq!(run.told(), ["delete a"]);

    let mut run = Run::new(Kind::Service);
    run.event(WatchEvent::Applied(rejected));
    run.event(WatchEvent::Applied(parsed("b", 1)));
    run.event(bookmark(5, true));
    assert_eq!(run.told(), ["rejected", "replace b (a)", "listed"]);
    let mut run = Run::new(Kind::Service);
    run.event(WatchEvent::Applied(ignored));
    run.event(bookmark(5, true));
    assert_eq!(run.told(), ["replace", "listed"]);
}

#[test]
fn absent_service_cidrs_count_as_listed() {
    let mut run = Run::new(Kind::ServiceCidr);
    assert!(!run.machine.is_absent(&status(404)), "the pages have to be tried first");
    run.machine.failed(&status(404));
    for code in [401, 403, 404] {
        assert!(run.machine.is_absent(&status(code)));
    }
    assert!(!run.machine.is_absent(&status(500)) && !run.machine.is_absent(&broken()));
    run.machine.tell_absent(&mut run.out);
    run.machine.tell_absent(&mut run.out);
    assert_eq!(run.told(), ["replace", "listed"]);
    assert!(!Run::paging().machine.is_absent(&status(404)), "services are never absent");
}

#[test]
fn an_absence_is_settled_only_when_it_lasts() {
    let mut run = Run::new(Kind::ServiceCidr);
    run.event(bookmark(10, true));
    for _ in 0..2 {
        // Refused by a server that has just started: not yet.
        for _ in 1..MAX_ABSENCES {
            assert_ne!(run.machine.failed(&status(403)), Next::Rarely);
        }
        assert_eq!(run.machine.failed(&status(403)), Next::Rarely);
        assert_eq!(run.machine.failed(&status(403)), Next::Rarely);
        // Any other failure means another server, perhaps.
        assert_ne!(run.machine.failed(&unreachable()), Next::Rarely);
    }
    for _ in 0..MAX_ABSENCES {
        run.machine.failed(&status(403));
    }
    run.machine.doubt_absence();
    assert_ne!(run.machine.failed(&status(403)), Next::Rarely);
    for _ in 0..2 * MAX_ABSENCES {
        assert_ne!(run.machine.failed(&status(401)), Next::Rarely, "credentials may be replaced");
    }
    let mut services = Run::watching();
    for _ in 0..2 * MAX_ABSENCES {
        assert_ne!(services.machine.failed(&status(403)), Next::Rarely);
    }
}

#[test]
fn versions_that_are_no_numbers_are_followed_as_they_come() {
    let mut run = Run::new(Kind::Service);
    run.event(WatchEvent::Bookmark { resource_version: "x-1".into(), initial_events_end: true });
    run.event(WatchEvent::Deleted { name: ObjectName::new("shop", "a"), resource_version: "x-2".into() });
    run.event(WatchEvent::Deleted { name: ObjectName::new("shop", "a"), resource_version: "x-2".into() });
    assert_eq!(run.told(), ["replace", "listed", "delete a", "delete a"]);
    run.asks(&watch("x-2"));
}
