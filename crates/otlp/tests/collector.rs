//! Spans on their way to a collector of OTLP: one that takes them, and ones that don't.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use otlp::{Endpoint, Kind, MAX_WAITING, Outcome, Span, Spans, begin};
use testkit::collector::Collector;
use tokio::net::TcpListener;

/// A limit for what is expected to happen, on a machine that may be busy.
const PATIENCE: Duration = Duration::from_mins(2);

#[derive(Clone, Default)]
struct Counted(Arc<Mutex<BTreeMap<Outcome, u64>>>);

impl Counted {
    fn begin(&self, endpoint: Endpoint) -> Spans {
        let counts = self.0.clone();
        let count = move |outcome, n| *counts.lock().unwrap().entry(outcome).or_default() += n;
        begin(endpoint, vec![("service.name", "test".into())], Arc::new(count)).unwrap()
    }

    async fn begin_with(&self, collector: &Collector) -> Spans {
        self.begin(Endpoint::Tcp(collector.listen().await.to_string()))
    }

    fn of(&self, outcome: Outcome) -> u64 {
        self.0.lock().unwrap().get(&outcome).copied().unwrap_or_default()
    }

    async fn wait_for(&self, outcome: Outcome, n: u64) {
        let is_so = async {
            while self.of(outcome) != n {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, is_so).await;
        assert!(waited.is_ok(), "{outcome:?} {n}: {:?}", self.0.lock().unwrap());
    }
}

fn names(collector: &Collector) -> Vec<String> {
    collector.spans().iter().map(|span| span.text(5)).collect()
}

fn span(name: &str) -> Span {
    Span {
        trace: [0xab; 16],
        span: [0xcd; 8],
        parent: None,
        name: name.to_owned(),
        kind: Kind::Server,
        began_ns: 1_700_000_000_000_000_000,
        ended_ns: 1_700_000_000_000_000_500,
        attributes: Vec::new(),
        is_error: false,
    }
}

#[tokio::test]
async fn spans_arrive_as_they_are() {
    let (collector, counted) = (Collector::answering(&["0"]), Counted::default());
    let spans = counted.begin_with(&collector).await;
    let attributes =
        vec![("http.response.status_code", 503_u16.into()), ("error.type", "503".into()), ("", "".into())];
    let below =
        Span { parent: Some([0xcd; 8]), kind: Kind::Client, attributes, is_error: true, ..span("below") };
    spans.add(span("GET"));
    spans.add(below);
    counted.wait_for(Outcome::Exported, 2).await;
    let [request] = &*collector.requests() else { panic!("they go together") };
    let [resource] = &*request.messages(1) else { panic!() };
    assert_eq!(resource.messages(1)[0].attributes(1), ["service.name=test"]);
    let [scope] = &*resource.messages(2) else { panic!() };
    assert_eq!(scope.messages(1)[0].text(1), "kube-proxy");
    let [first, second] = &*scope.messages(2) else { panic!() };
    assert_eq!((first.bytes(1), first.bytes(2)), (vec![0xab; 16], vec![0xcd; 8]));
    assert!(!first.has(4) && !first.has(15));
    assert_eq!((first.text(5), first.number(6)), ("GET".to_owned(), 2));
    assert_eq!((first.number(7), first.number(8)), (1_700_000_000_000_000_000, 1_700_000_000_000_000_500));
    assert_eq!((second.bytes(4), second.number(6)), (vec![0xcd; 8], 3));
    assert_eq!(second.attributes(9), ["http.response.status_code=503", "error.type=503", "="]);
    assert_eq!(second.messages(15)[0].number(3), 2);
}

#[tokio::test]
async fn a_socket_of_the_file_system_does_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("collector");
    let (collector, counted) = (Collector::answering(&["0"]), Counted::default());
    collector.listen_at(&path);
    counted.begin(Endpoint::Unix(path)).add(span("GET"));
    counted.wait_for(Outcome::Exported, 1).await;
    assert_eq!(names(&collector), ["GET"]);
}

#[tokio::test]
async fn a_collector_that_is_busy_gets_them_later_and_one_that_refuses_never() {
    let (collector, counted) = (Collector::answering(&["14", "8", "0", "3", "0"]), Counted::default());
    let spans = counted.begin_with(&collector).await;
    spans.add(span("busy"));
    counted.wait_for(Outcome::Exported, 1).await;
    assert_eq!(names(&collector), ["busy"; 3]);
    spans.add(span("refused"));
    counted.wait_for(Outcome::Failed, 1).await;
    spans.add(span("taken"));
    counted.wait_for(Outcome::Exported, 2).await;
    assert_eq!(names(&collector)[3..], ["refused", "taken"]);
}

/// Whoever has spans never waits, and what has no room is counted.
#[tokio::test]
async fn without_a_collector_spans_are_dropped() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let counted = Counted::default();
    let spans = counted.begin(Endpoint::Tcp(silent.local_addr().unwrap().to_string()));
    let n = 3 * MAX_WAITING;
    for _ in 0..n {
        spans.add(span("GET"));
    }
    let dropped = counted.of(Outcome::Dropped);
    // Some wait, and some the thread has taken, which tries to send them.
    let least = u64::try_from(n - 2 * MAX_WAITING).unwrap();
    assert!(dropped >= least, "{dropped} of {n} were dropped");
    spans.note_dropped(5);
    assert_eq!(counted.of(Outcome::Dropped), dropped + 5);
}
