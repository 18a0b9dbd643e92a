//! Events over real HTTP, against a server that may misbehave.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    unreachable_pub,
    reason = "a test fails by panicking and says on the way what it tries"
)]

use std::time::Duration;

use apiserver::{ApiServer, Auth, Config, Fault, Kind, Verb};
use events::{Event, QUEUE, Reason, Recorder, Regarding, Timings};
use model::{ObjectName, Uid};
use serde_json::{Value, json};
use source::{ApiConfig, ContentType, Source};
use tokio::task::JoinHandle;

const UID: &str = "0a1b2c3d-4e5f-4789-abcd-ef0123456789";

/// Short pauses; an answer may take long on a busy machine.
fn timings() -> Timings {
    Timings { attempts: 4, pause: Duration::from_millis(20), ..Timings::default() }
}

struct Bench {
    server: ApiServer,
    recorder: Recorder,
    dir: tempfile::TempDir,
    source: Source,
    _worker: JoinHandle<()>,
}

impl Bench {
    async fn start(config: Config, timings: Timings) -> Self {
        let server = ApiServer::start(config).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let config = ApiConfig {
            kubeconfig: Some(server.kubeconfig(dir.path()).unwrap()),
            server: None,
            node_name: "node-1".to_owned(),
            content_type: ContentType::Protobuf,
            user_agent: "test".to_owned(),
            timings: source::Timings::default(),
        };
        // Nobody reads what the source finds, so that only events make requests.
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        let metrics = metrics::Metrics::new(&metrics::Options::default()).source;
        let source = source::spawn_api(config, metrics, sender).await.unwrap();
        drop(receiver);
        let (recorder, worker) = events::queue("kube-proxy-host");
        let client = source.client().unwrap();
        let worker = tokio::spawn(worker.with_timings(timings).run(client));
        Self { server, recorder, dir, source, _worker: worker }
    }

    async fn default() -> Self {
        Self::start(Config::default(), timings()).await
    }

    /// The events that the server has, after all that was sent has been dealt with.
    async fn events(&self) -> Vec<Value> {
        self.recorder.flush(Duration::from_secs(30)).await;
        self.server.list(Kind::Event)
    }

    fn count(&self, method: &str) -> usize {
        let requests = self.server.requests();
        requests.iter().filter(|request| request.method == method).count()
    }
}

fn starting() -> Event {
    Event::new(Reason::Starting, Regarding::Node("node-1".to_owned()))
}

fn listen(name: &str) -> Event {
    Event::service_healthcheck("node-1", &ObjectName::new("shop", name), Uid::parse(UID), 30000, &"in use")
}

fn conflict() -> Event {
    let service = Regarding::Service(ObjectName::new("shop", "web"), Uid::parse(UID));
    Event::new(Reason::FrontendConflict, service).note("10.96.0.1:80 is another's")
}

#[tokio::test]
async fn the_server_takes_them_and_counts_repeats() {
    let bench = Bench::default().await;
    bench.recorder.send(starting());
    for _ in 0..5 {
        bench.recorder.send(listen("web"));
    }
    let mut events = bench.events().await;
    events.sort_by_key(|event| event["reason"].to_string());
    assert_eq!(events.len(), 2, "{events:?}");
    let [listen, start] = &events[..] else { panic!("two events") };
    assert_eq!(start["regarding"], json!({"kind": "Node", "name": "node-1", "apiVersion": "v1"}));
    assert_eq!(start["metadata"]["namespace"], "default");
    assert_eq!(start["reportingController"], "kube-proxy");
    assert_eq!(start["reportingInstance"], "kube-proxy-host");
    assert_eq!((&start["type"], &start["action"]), (&json!("Normal"), &json!("StartKubeProxy")));
    assert_eq!(listen["metadata"]["namespace"], "shop");
    assert_eq!((&listen["regarding"]["uid"], &listen["series"]["count"]), (&json!(UID), &json!(2)));
    assert_eq!((bench.count("POST"), bench.count("PATCH")), (2, 1), "further repeats are only counted");
    assert_eq!(bench.recorder.dropped(), 0);
}

#[tokio::test]
async fn a_refusal_is_final_and_costs_only_that_event() {
    for code in [400, 403, 500] {
        let bench = Bench::default().await;
        let refuse = Fault::Status { code, retry_after: None };
        bench.server.faults().next_of(Kind::Event, Verb::Create, 1, refuse);
        bench.recorder.send(starting());
        bench.recorder.send(listen("web"));
        let events = bench.events().await;
        assert_eq!((events.len(), bench.count("POST"), bench.recorder.dropped()), (1, 2, 1), "{code}");
        assert_eq!(events[0]["regarding"]["name"], "web");
    }
}

#[tokio::test]
async fn a_server_that_asks_to_come_back_is_obeyed() {
    let bench = Bench::default().await;
    for code in [429, 503] {
        let later = Fault::Status { code, retry_after: Some(0) };
        bench.server.faults().next_of(Kind::Event, Verb::Create, 1, later);
    }
    bench.recorder.send(starting());
    assert_eq!(bench.events().await.len(), 1);
    assert_eq!((bench.count("POST"), bench.recorder.dropped()), (3, 0));
}

#[tokio::test]
async fn what_gets_no_answer_is_sent_again() {
    let bench = Bench::default().await;
    bench.server.faults().next_of(Kind::Event, Verb::Create, 3, Fault::Disconnect);
    bench.recorder.send(starting());
    assert_eq!(bench.events().await.len(), 1);
    assert_eq!((bench.count("POST"), bench.recorder.dropped()), (4, 0));
    // Not for ever.
    bench.server.faults().next_of(Kind::Event, Verb::Create, 4, Fault::Disconnect);
    bench.recorder.send(listen("a"));
    bench.recorder.send(listen("b"));
    assert_eq!(bench.events().await.len(), 2);
    assert_eq!(bench.recorder.dropped(), 1);
}

#[tokio::test]
async fn an_answer_that_comes_too_late_leaves_one_event() {
    let answer = Duration::from_millis(500);
    let bench = Bench::start(Config::default(), Timings { answer, ..timings() }).await;
    bench.server.faults().next_of(Kind::Event, Verb::Create, 1, Fault::Delay(answer * 3));
    bench.recorder.send(starting());
    assert_eq!(bench.events().await.len(), 1);
    tokio::time::sleep(answer * 3).await;
    assert_eq!((bench.server.count(Kind::Event), bench.recorder.dropped()), (1, 0));
}

#[tokio::test]
async fn a_series_of_what_the_server_forgot_is_made_anew() {
    let bench = Bench::default().await;
    bench.recorder.send(listen("web"));
    let events = bench.events().await;
    let name = events[0]["metadata"]["name"].as_str().unwrap();
    bench.server.delete(Kind::Event, "shop", name).unwrap();
    bench.recorder.send(listen("web"));
    let events = bench.events().await;
    assert_eq!(events[0]["metadata"]["name"], name);
    assert_eq!(events[0]["series"]["count"], 2);
    assert_eq!(bench.recorder.dropped(), 0);
}

/// As many nodes see the same conflict, and each of them starts again and again.
#[tokio::test]
async fn what_all_nodes_see_is_one_event() {
    let bench = Bench::default().await;
    for _ in 0..3 {
        let (recorder, worker) = events::queue("kube-proxy-other");
        let worker = tokio::spawn(worker.run(bench.source.client().unwrap()));
        recorder.send(conflict());
        recorder.flush(Duration::from_secs(30)).await;
        assert_eq!(recorder.dropped(), 0);
        drop(recorder);
        worker.await.unwrap();
    }
    bench.recorder.send(conflict());
    bench.recorder.send(conflict());
    assert_eq!(bench.events().await.len(), 1);
    assert_eq!((bench.count("POST"), bench.count("PATCH"), bench.recorder.dropped()), (4, 0, 0));
}

#[tokio::test]
async fn a_new_token_is_taken_up() {
    let auth = Auth::Token("first".to_owned());
    let patient = Timings { attempts: 1000, ..timings() };
    let bench = Bench::start(Config { auth, tls: true, ..Config::default() }, patient).await;
    bench.recorder.send(starting());
    assert_eq!(bench.events().await.len(), 1);
    bench.server.set_token("second");
    bench.recorder.send(listen("web"));
    // The server knows it before we do.
    let refused = async {
        while bench.server.requests().iter().all(|request| request.status != 401) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), refused).await.expect("a refusal");
    bench.server.kubeconfig(bench.dir.path()).unwrap();
    assert_eq!(bench.events().await.len(), 2);
    assert_eq!(bench.recorder.dropped(), 0);
}

/// Nobody waits for a server that is away, and the queue does not grow.
#[tokio::test]
async fn a_server_that_is_away_holds_up_nobody() {
    let bench = Bench::default().await;
    bench.server.faults().refuse_connections(true);
    let n_more = 50;
    for i in 0..QUEUE + n_more {
        bench.recorder.send(listen(&format!("s{i}")));
    }
    // The worker may have taken one.
    let n_more = u64::try_from(n_more).unwrap();
    assert!((n_more - 1..=n_more).contains(&bench.recorder.dropped()), "{}", bench.recorder.dropped());
    let flushed = bench.recorder.flush(Duration::from_millis(50));
    tokio::time::timeout(Duration::from_mins(1), flushed).await.expect("it gives up by itself");
}

#[tokio::test]
async fn without_an_api_they_go_nowhere() {
    let (recorder, worker) = events::queue("kube-proxy-host");
    drop(worker);
    recorder.send(starting());
    recorder.flush(Duration::from_secs(30)).await;
    assert_eq!(recorder.dropped(), 1);
}
