//! Against an API server that behaves, and one that does not: what the changes add up to is always what the server has.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use api::Format;
use apiserver::{ApiServer, Auth, Config, Disorder, Fault, ProtobufSupport, Verb};
use metrics::{Metrics, Options};
use model::{Change, Interner, Kind, Object, ObjectName, Store, Touched};
use serde_json::{Value, json};
use source::{ApiConfig, ContentType, Source, SourceEvent, Timings, spawn_api};
use tokio::sync::mpsc::{Receiver, channel};
use tokio::time::timeout_at;

type ServerKind = apiserver::Kind;

/// Nothing here takes long; this is for a machine that is busy. Less than a watch lasts, so that nothing passes only
/// because a watch has ended by itself.
const LIMIT: Duration = Duration::from_secs(15);

const KINDS: [(Kind, ServerKind); 4] = [
    (Kind::Service, ServerKind::Service),
    (Kind::EndpointSlice, ServerKind::EndpointSlice),
    (Kind::Node, ServerKind::Node),
    (Kind::ServiceCidr, ServerKind::ServiceCidr),
];

fn service(name: &str, ip: u8) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"},
        "spec": {
            "type": "ClusterIP", "clusterIP": format!("10.96.0.{ip}"), "clusterIPs": [format!("10.96.0.{ip}")],
            "ipFamilies": ["IPv4"], "ports": [{"name": "http", "protocol": "TCP", "port": 80}],
        },
    })
}

fn slice(name: &str, owner: &str, last_octet: u8) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": "shop", "labels": {"kubernetes.io/service-name": owner}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [format!("10.244.0.{last_octet}")], "conditions": {"ready": true}}],
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
    })
}

fn with_label(mut object: Value, key: &str) -> Value {
    object["metadata"]["labels"][key] = json!("x");
    object
}

/// A few objects of each kind, among them some that selectors keep away.
fn populate(server: &ApiServer) {
    let proxy_name = "service.kubernetes.io/service-proxy-name";
    server
        .load([
            service("web", 1),
            service("db", 2),
            with_label(service("other", 3), proxy_name),
            slice("web-1", "web", 1),
            with_label(slice("headless-1", "headless", 2), "service.kubernetes.io/headless"),
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}, "spec": {"podCIDRs": ["10.244.0.0/24"]}}),
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"},
                "spec": {"cidrs": ["10.96.0.0/16"]}}),
        ])
        .unwrap();
}

/// The state that a server holds, by way of its JSON.
fn truth(server: &ApiServer) -> Store {
    let mut store = Store::default();
    let mut interner = Interner::default();
    for (kind, server_kind) in KINDS {
        let objects = server.list(server_kind).into_iter().filter_map(|object| {
            let parsed = api::decode_object(kind, Format::Json, object.to_string().as_bytes(), &mut interner);
            match parsed.outcome {
                api::Outcome::Keep(object) => Some(object),
                api::Outcome::Ignore(..) | api::Outcome::Reject(_) => None,
            }
        });
        let change = Change::Replace { kind, objects: objects.collect(), keep: Vec::new() };
        store.apply(change, &mut Touched::default());
    }
    store
}

fn fast() -> Timings {
    Timings {
        backoff_min: Duration::from_millis(5),
        backoff_max: Duration::from_millis(50),
        watch_timeout: Duration::from_secs(20),
        grace: Duration::from_secs(2),
        event: Duration::from_millis(300),
        absent_retry: Duration::from_millis(100),
        ..Timings::default()
    }
}

/// A source and what it has told so far.
struct Client {
    metrics: Metrics,
    events: Receiver<SourceEvent>,
    store: Store,
    listed: BTreeSet<Kind>,
    n_replaced: usize,
    problems: Vec<String>,
    recovered: BTreeSet<Kind>,
    rejected: Vec<String>,
    _source: Source,
    _dir: tempfile::TempDir,
}

impl Client {
    async fn start(server: &ApiServer) -> Self {
        Self::start_with(server, |_| {}).await
    }

    async fn start_with(server: &ApiServer, adjust: impl FnOnce(&mut ApiConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let kubeconfig = server.kubeconfig(dir.path()).unwrap();
        let mut config = config(kubeconfig);
        adjust(&mut config);
        let (tx, events) = channel(64);
        let metrics = Metrics::new(&Options::default());
        let source = spawn_api(config, metrics.source.clone(), tx).await.unwrap();
        Self {
            metrics,
            events,
            store: Store::default(),
            listed: BTreeSet::new(),
            n_replaced: 0,
            problems: Vec::new(),
            recovered: BTreeSet::new(),
            rejected: Vec::new(),
            _source: source,
            _dir: dir,
        }
    }

    /// Takes events in until the condition holds.
    #[track_caller]
    fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) -> impl Future<Output = ()> {
        let what = format!("{what} ({})", std::panic::Location::caller());
        let deadline = tokio::time::Instant::now() + 4 * LIMIT;
        async move {
            while !done(self) {
                let Ok(event) = timeout_at(deadline, self.events.recv()).await else {
                    panic!("timed out: {what}; problems {:?}; store {:#?}", self.problems, self.store)
                };
                self.take(event.unwrap());
            }
        }
    }

    fn take(&mut self, event: SourceEvent) {
        match event {
            SourceEvent::Change(change) => {
                self.n_replaced += usize::from(matches!(change, Change::Replace { .. }));
                self.store.apply(change, &mut Touched::default());
            }
            SourceEvent::Listed(kind) => assert!(self.listed.insert(kind), "{kind} is listed twice"),
            SourceEvent::Rejected(rejection) => self.rejected.push(rejection.to_string()),
            SourceEvent::Problem { text, .. } => self.problems.push(text),
            SourceEvent::Recovered(kind) => _ = self.recovered.insert(kind),
        }
    }

    #[track_caller]
    fn all_listed(&mut self) -> impl Future<Output = ()> {
        self.until("every kind is listed", |client| client.listed.len() == Kind::ALL.len())
    }

    #[track_caller]
    fn same_as(&mut self, server: &ApiServer) -> impl Future<Output = ()> {
        let truth = truth(server);
        self.until("the state is that of the server", move |client| client.store == truth)
    }

    fn service(&self, name: &str) -> Option<&model::Service> {
        self.store.entry(&ObjectName::new("shop", name))?.service.as_deref()
    }
}

fn config(kubeconfig: PathBuf) -> ApiConfig {
    ApiConfig {
        kubeconfig: Some(kubeconfig),
        server: None,
        node_name: "node-1".to_owned(),
        content_type: ContentType::Protobuf,
        user_agent: source::user_agent("v1.36.0"),
        timings: fast(),
    }
}

fn start(config: Config) -> ApiServer {
    let server = ApiServer::start(config).unwrap();
    populate(&server);
    server
}

/// A server and a client that has caught up with it, with all watches open.
async fn caught_up(config: Config) -> (ApiServer, Client) {
    let server = start(config);
    let mut client = Client::start(&server).await;
    client.all_listed().await;
    client.same_as(&server).await;
    watches_open(&server);
    (server, client)
}

#[track_caller]
fn watches_open(server: &ApiServer) {
    for (_, kind) in KINDS {
        assert!(server.wait_for_watches(kind, 1, LIMIT), "{kind:?}");
    }
}

#[tokio::test]
async fn every_format_and_every_way_to_list() {
    for content_type in [ContentType::Protobuf, ContentType::Json] {
        for (streamed_lists, tls) in [(true, false), (false, false), (true, true), (false, true)] {
            let server = start(Config { streamed_lists, tls, ..Config::default() });
            let mut client = Client::start_with(&server, |config| config.content_type = content_type).await;
            client.all_listed().await;
            client.same_as(&server).await;
            assert_eq!((client.n_replaced, client.problems.len()), (4, 0), "{:?}", client.problems);
            assert!(client.service("other").is_none());
            server.apply(service("late", 9)).unwrap();
            client.same_as(&server).await;
            let expected = match content_type {
                ContentType::Protobuf => "application/vnd.kubernetes.protobuf",
                ContentType::Json => "application/json",
            };
            let requests = server.requests();
            assert!(requests.iter().all(|request| request.accept.as_ref().unwrap().starts_with(expected)));
            let is_streamed = |path: &str| path.contains("sendInitialEvents");
            let served = |request: &&apiserver::RequestRecord| request.status == 200;
            let n_streamed =
                requests.iter().filter(served).filter(|request| is_streamed(&request.path_and_query)).count();
            assert_eq!(n_streamed, if streamed_lists { 4 } else { 0 });
        }
    }
}

#[tokio::test]
async fn watches_tell_of_every_change() {
    let (server, mut client) = caught_up(Config::default()).await;
    let n_replaced = client.n_replaced;
    server.apply(service("new", 7)).unwrap();
    client.until("it is there", |client| client.service("new").is_some()).await;
    server.apply(service("new", 8)).unwrap();
    client
        .until("it has changed", |client| {
            client.service("new").is_some_and(|service| service.cluster_ips[0].to_string() == "10.96.0.8")
        })
        .await;
    server.delete(ServerKind::Service, "shop", "new").unwrap();
    client.until("it is gone", |client| client.service("new").is_none()).await;
    server.apply(slice("web-2", "web", 77)).unwrap();
    server.delete(ServerKind::EndpointSlice, "shop", "web-1").unwrap();
    client.same_as(&server).await;
    assert_eq!(client.n_replaced, n_replaced, "nothing was listed again");
    assert_eq!(client.problems, Vec::<String>::new());
}

#[tokio::test]
async fn labels_come_and_go() {
    let (server, mut client) = caught_up(Config::default()).await;
    server.apply(with_label(service("web", 1), "service.kubernetes.io/service-proxy-name")).unwrap();
    client.until("another proxy has it", |client| client.service("web").is_none()).await;
    server.apply(service("web", 1)).unwrap();
    client.until("it is back", |client| client.service("web").is_some()).await;
    server.apply(with_label(slice("web-1", "web", 1), "service.kubernetes.io/headless")).unwrap();
    client.same_as(&server).await;
    server.apply(slice("web-1", "db", 1)).unwrap();
    client.same_as(&server).await;
    assert_eq!(client.store.entry(&ObjectName::new("shop", "db")).unwrap().slices.len(), 1);
}

#[tokio::test]
async fn a_service_that_loses_its_cluster_ip_is_gone() {
    let (server, mut client) = caught_up(Config::default()).await;
    let mut external = service("web", 1);
    external["spec"]["type"] = json!("ExternalName");
    server.apply(external).unwrap();
    client.until("it is gone", |client| client.service("web").is_none()).await;
}

#[tokio::test]
async fn broken_and_ended_watches_are_resumed() {
    let (server, mut client) = caught_up(Config::default()).await;
    let n_replaced = client.n_replaced;
    for (round, breaking) in [
        (0, &(|server: &ApiServer| server.faults().drop_watches()) as &dyn Fn(&ApiServer)),
        (1, &|server| server.faults().end_watches()),
        (2, &|server| server.faults().cut_next_event(ServerKind::Service)),
    ] {
        breaking(&server);
        server.apply(service(&format!("round-{round}"), 10 + round)).unwrap();
        client.same_as(&server).await;
    }
    assert_eq!(client.n_replaced, n_replaced, "nothing was listed again");
}

#[tokio::test]
async fn a_silent_watch_is_given_up() {
    let config = Config { bookmark_interval: Duration::from_millis(200), ..Config::default() };
    let server = start(config);
    let silence = Duration::from_secs(1);
    let mut client = Client::start_with(&server, |config| config.timings.silence = silence).await;
    client.all_listed().await;
    watches_open(&server);
    server.faults().stall_watches(true);
    server.apply(service("unseen", 20)).unwrap();
    server.clear_requests();
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(server.requests().iter().any(|request| request.path_and_query.contains("watch=true")));
    server.faults().stall_watches(false);
    client.same_as(&server).await;
}

#[tokio::test]
async fn an_expired_version_means_a_new_list() {
    for streamed_lists in [true, false] {
        let (server, mut client) = caught_up(Config { streamed_lists, ..Config::default() }).await;
        let n_replaced = client.n_replaced;
        server.faults().refuse_connections(true);
        server.apply(service("meanwhile", 30)).unwrap();
        server.delete(ServerKind::Service, "shop", "db").unwrap();
        server.expire();
        server.faults().refuse_connections(false);
        client.same_as(&server).await;
        assert!(client.n_replaced > n_replaced);
        server.faults().next_of(ServerKind::Service, Verb::Watch, 1, Fault::WatchExpired);
        server.faults().end_watches();
        server.apply(service("later", 31)).unwrap();
        client.same_as(&server).await;
    }
}

#[tokio::test]
async fn repeated_and_swapped_events_end_in_the_same_state() {
    for disorder in [Disorder::Duplicate, Disorder::Swap] {
        let (server, mut client) = caught_up(Config::default()).await;
        server.faults().set_disorder(disorder);
        for round in 0..4 {
            server.apply(service("web", 40 + round)).unwrap();
            server.apply(service("extra", 50 + round)).unwrap();
        }
        server.apply(service("extra", 60)).unwrap();
        server.delete(ServerKind::Service, "shop", "extra").unwrap();
        client.same_as(&server).await;
        // What came out of order makes the next watch begin with a list.
        server.faults().clear();
        server.faults().end_watches();
        server.apply(service("last", 70)).unwrap();
        client.same_as(&server).await;
    }
}

#[tokio::test]
async fn an_event_from_the_past_changes_nothing() {
    let (server, mut client) = caught_up(Config::default()).await;
    let old = server.get(ServerKind::Service, "shop", "web").unwrap();
    server.apply(service("web", 80)).unwrap();
    client.same_as(&server).await;
    server.faults().send_event(ServerKind::Service, "MODIFIED", &old).unwrap();
    server.faults().send_event(ServerKind::Service, "DELETED", &old).unwrap();
    server.apply(service("after", 81)).unwrap();
    client.same_as(&server).await;
    assert_eq!(client.service("web").unwrap().cluster_ips[0].to_string(), "10.96.0.80");
}

#[tokio::test]
async fn garbage_in_a_watch_is_reported_and_survived() {
    for content_type in [ContentType::Protobuf, ContentType::Json] {
        for garbage in [
            &b"\x00\x00\x00\x03abc"[..],
            b"\xff\xff\xff\xff",
            b"garbage",
            b"{\"type\": 3}\n",
            b"[]",
            b"{{",
            b"{\"",
            b"\x00\x10\x00\x00",
        ] {
            let server = start(Config::default());
            let mut client = Client::start_with(&server, |config| config.content_type = content_type).await;
            client.all_listed().await;
            watches_open(&server);
            server.faults().send_raw(ServerKind::Service, garbage);
            server.apply(service("after", 90)).unwrap();
            client.same_as(&server).await;
        }
    }
}

#[tokio::test]
async fn errors_are_reported_and_tried_again() {
    for (code, retry_after) in [(500, None), (503, Some(0)), (429, Some(0)), (403, None)] {
        let server = start(Config::default());
        for (_, kind) in KINDS {
            let fault = Fault::Status { code, retry_after };
            for verb in [Verb::List, Verb::Watch] {
                server.faults().next_of(kind, verb, 2, fault.clone());
            }
        }
        let mut client = Client::start(&server).await;
        client.all_listed().await;
        client.same_as(&server).await;
        let text = format!("status {code}");
        assert!(client.problems.iter().all(|problem| problem.contains(&text)), "{:?}", client.problems);
        client.until("all is well again", |client| client.recovered.contains(&Kind::Service)).await;
    }
}

#[tokio::test]
async fn the_server_decides_how_long_to_wait() {
    let server = start(Config { streamed_lists: false, ..Config::default() });
    let fault = Fault::Status { code: 429, retry_after: Some(1) };
    server.faults().next_of(ServerKind::Service, Verb::List, 1, fault);
    let begin = tokio::time::Instant::now();
    let mut client = Client::start(&server).await;
    client.all_listed().await;
    assert!(begin.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn broken_answers_are_never_half_taken() {
    for fault in [Fault::Truncate(500), Fault::Garbage("nonsense".into()), Fault::Disconnect] {
        for streamed_lists in [true, false] {
            let server = start(Config { streamed_lists, ..Config::default() });
            server.faults().next(8, fault.clone());
            let mut client = Client::start(&server).await;
            client.all_listed().await;
            client.same_as(&server).await;
            assert_eq!(client.n_replaced, 4, "{fault:?}");
        }
    }
}

#[tokio::test]
async fn long_lists_come_in_pages() {
    let server = start(Config { streamed_lists: false, ..Config::default() });
    server.load((0..1700).map(|i| slice(&format!("many-{i}"), "web", 1))).unwrap();
    let mut client = Client::start(&server).await;
    client.all_listed().await;
    client.same_as(&server).await;
    assert_eq!(client.n_replaced, 4);

    // A relist asks for the newest version, in pages; the token of one of them has expired.
    server.faults().refuse_connections(true);
    server.apply(slice("more", "web", 2)).unwrap();
    server.expire();
    server.clear_requests();
    server.faults().refuse_connections(false);
    client.same_as(&server).await;
    let paths: Vec<String> = server.requests().into_iter().map(|request| request.path_and_query).collect();
    assert!(paths.iter().any(|path| path.contains("continue=")), "{paths:#?}");
}

#[tokio::test]
async fn an_expired_page_token_does_not_lose_the_list() {
    let server = start(Config { streamed_lists: false, ..Config::default() });
    server.load((0..1200).map(|i| slice(&format!("many-{i}"), "web", 1))).unwrap();
    let mut client = Client::start(&server).await;
    client.all_listed().await;
    watches_open(&server);
    // The first page of the relist is answered, the second one is not.
    server.faults().refuse_connections(true);
    server.expire();
    server.delete(ServerKind::EndpointSlice, "shop", "many-7").unwrap();
    server.faults().next_of(ServerKind::EndpointSlice, Verb::List, 1, Fault::Delay(Duration::from_millis(1)));
    server.faults().next_of(
        ServerKind::EndpointSlice,
        Verb::List,
        1,
        Fault::Status { code: 410, retry_after: None },
    );
    server.faults().refuse_connections(false);
    client.same_as(&server).await;
}

#[tokio::test]
async fn refused_protobuf_falls_back_to_json() {
    for protobuf in [ProtobufSupport::Refuse, ProtobufSupport::AnswerJson] {
        let (server, mut client) = caught_up(Config { protobuf, ..Config::default() }).await;
        server.apply(service("new", 100)).unwrap();
        client.same_as(&server).await;
        assert_eq!(client.problems, Vec::<String>::new());
    }
    let server = start(Config::default());
    server.faults().next(8, Fault::Status { code: 415, retry_after: None });
    let mut client = Client::start(&server).await;
    client.all_listed().await;
    client.same_as(&server).await;
}

#[tokio::test]
async fn absent_service_cidrs_hold_nobody_up() {
    let server = start(Config::default());
    server.faults().set_missing(ServerKind::ServiceCidr, true);
    let mut client = Client::start(&server).await;
    client.all_listed().await;
    assert!(client.store.service_cidrs().is_empty());
    server.faults().clear();
    client.same_as(&server).await;
    client.until("that is told", |client| client.recovered.contains(&Kind::ServiceCidr)).await;

    let server = start(Config::default());
    server.faults().always(ServerKind::ServiceCidr, Fault::Status { code: 403, retry_after: None });
    let mut client = Client::start(&server).await;
    client.all_listed().await;
    assert!(client.problems.iter().any(|problem| problem.contains("403")), "{:?}", client.problems);
}

#[tokio::test]
async fn a_malformed_object_is_left_out_alone() {
    let (server, mut client) = caught_up(Config::default()).await;
    let json = r#"{"metadata": {"name": "web", "namespace": "shop"}, "spec": {"ports": 1}}"#;
    let proto = [&b"\x0a\x0b\x0a\x03web\x1a\x04shop"[..], b"\x12\x02\xff\xff"].concat();
    server.inject_raw(ServerKind::Service, "shop", "web", json, proto.clone());
    client.until("it is rejected", |client| !client.rejected.is_empty()).await;
    assert!(client.rejected[0].starts_with("Service shop/web: spec"), "{:?}", client.rejected);
    let rejected = |kind| client.metrics.source.resource(kind).rejected.get();
    assert_eq!((rejected(Kind::Service), rejected(Kind::EndpointSlice)), (1, 0));
    server.apply(service("after", 110)).unwrap();
    client.until("the next one is taken", |client| client.service("after").is_some()).await;
    assert!(client.service("web").is_some(), "its earlier form stays in force");

    // Also when everything is listed anew.
    server.expire();
    server.faults().drop_watches();
    server.apply(service("later", 111)).unwrap();
    client.until("all are listed again", |client| client.service("later").is_some()).await;
    assert!(client.service("web").is_some());
}

#[tokio::test]
async fn replaced_tokens_and_certificates_are_read_again() {
    let auth = Auth::Token("first".to_owned());
    let server = start(Config { auth, tls: true, ..Config::default() });
    let dir = tempfile::tempdir().unwrap();
    let token_file = dir.path().join("token");
    std::fs::write(&token_file, "first").unwrap();
    let kubeconfig = server.kubeconfig(dir.path()).unwrap();
    use_token_file(&kubeconfig, &token_file);
    let mut client = Client::start_with(&server, |config| config.kubeconfig = Some(kubeconfig)).await;
    client.all_listed().await;
    server.set_token("second");
    server.faults().drop_watches();
    client.until("it is refused", |client| client.problems.iter().any(|text| text.contains("401"))).await;
    std::fs::write(&token_file, "second").unwrap();
    server.apply(service("new", 120)).unwrap();
    client.same_as(&server).await;

    let (server, mut client) = caught_up(Config { auth: Auth::ClientCertificate, ..Config::default() }).await;
    server.apply(service("new", 121)).unwrap();
    client.same_as(&server).await;
}

fn use_token_file(kubeconfig: &Path, token_file: &Path) {
    let mut config: Value = serde_json::from_slice(&std::fs::read(kubeconfig).unwrap()).unwrap();
    config["users"][0]["user"] = json!({"tokenFile": token_file});
    std::fs::write(kubeconfig, config.to_string()).unwrap();
}

#[tokio::test]
async fn a_server_that_is_not_there_yet_is_waited_for() {
    let server = start(Config::default());
    server.faults().refuse_connections(true);
    let mut client = Client::start(&server).await;
    client.until("it is missed", |client| !client.problems.is_empty()).await;
    server.faults().refuse_connections(false);
    client.all_listed().await;
    client.same_as(&server).await;
}

#[tokio::test]
async fn a_kubeconfig_that_makes_no_sense_is_an_error() {
    let (tx, _events) = channel(1);
    let metrics = Metrics::new(&Options::default()).source;
    let missing =
        spawn_api(config("/nonexistent/kubeconfig".into()), metrics.clone(), tx.clone()).await.unwrap_err();
    assert_eq!(missing.to_string(), "the kubeconfig can't be used");
    let mut no_url = config("/nonexistent".into());
    (no_url.kubeconfig, no_url.server) = (None, Some("not a url".to_owned()));
    let error = spawn_api(no_url, metrics, tx).await.unwrap_err();
    assert_eq!(error.to_string(), "the server's url can't be used");
}

#[tokio::test]
async fn a_plain_url_is_enough() {
    let server = start(Config::default());
    let url = server.url();
    let mut client = Client::start_with(&server, |config| {
        (config.kubeconfig, config.server) = (None, Some(url));
    })
    .await;
    client.all_listed().await;
    client.same_as(&server).await;
}

/// One random thing that happens to the server.
fn mishap(server: &ApiServer, random: &mut fastrand::Rng) {
    let faults = server.faults();
    let (_, kind) = KINDS[random.usize(..KINDS.len())];
    let status = |code| Fault::Status { code, retry_after: None };
    match random.u8(..14) {
        0 => faults.drop_watches(),
        1 => faults.end_watches(),
        2 => faults.cut_next_event(kind),
        3 => server.expire(),
        4 => faults.send_raw(kind, random.u64(..).to_be_bytes().to_vec()),
        5 => faults.next(random.u32(1..4), status(500)),
        6 => faults.next(random.u32(1..4), status(429)),
        7 => faults.next_of(kind, Verb::Watch, 1, Fault::WatchExpired),
        8 => faults.next(1, Fault::Truncate(random.usize(..3000))),
        9 => faults.next(1, Fault::Garbage(vec![random.u8(..); 40].into())),
        10 => faults.next(random.u32(1..3), Fault::Disconnect),
        11 => faults.set_disorder(Disorder::Duplicate),
        12 => faults.next_of(kind, Verb::List, 1, status(410)),
        _ => faults.next(2, Fault::Delay(Duration::from_millis(20))),
    }
}

fn write(server: &ApiServer, random: &mut fastrand::Rng) {
    let name = format!("random-{}", random.u8(..12));
    match random.u8(..6) {
        0 | 1 => _ = server.apply(service(&name, random.u8(1..))).unwrap(),
        2 | 3 => _ = server.apply(slice(&name, "web", random.u8(1..))).unwrap(),
        4 => _ = server.delete(ServerKind::Service, "shop", &name),
        _ => _ = server.delete(ServerKind::EndpointSlice, "shop", &name),
    }
}

#[tokio::test]
async fn random_writes_and_mishaps_end_in_the_state_of_the_server() {
    for seed in 0..12 {
        let mut random = fastrand::Rng::with_seed(seed);
        let config = Config { streamed_lists: random.bool(), history_limit: 40, ..Config::default() };
        let server = start(config);
        let content_type = if random.bool() { ContentType::Protobuf } else { ContentType::Json };
        let mut client = Client::start_with(&server, |config| config.content_type = content_type).await;
        for _ in 0..60 {
            if random.u8(..4) == 0 {
                mishap(&server, &mut random);
            }
            write(&server, &mut random);
            while let Ok(event) = client.events.try_recv() {
                client.take(event);
            }
            tokio::time::sleep(Duration::from_millis(random.u64(..8))).await;
        }
        server.faults().clear();
        client.all_listed().await;
        client.same_as(&server).await;
    }
}

#[test]
fn the_user_agent_is_that_of_kube_proxy() {
    let agent = source::user_agent("v1.36.0");
    assert!(agent.starts_with("kube-proxy/v1.36.0 (linux/"), "{agent}");
}

#[tokio::test]
async fn objects_of_all_kinds_arrive_whole() {
    let (_server, client) = caught_up(Config::default()).await;
    let node = client.store.node("node-1").unwrap();
    assert_eq!(node.pod_cidrs[0].to_string(), "10.244.0.0/24");
    assert_eq!(client.store.service_cidrs().len(), 1);
    let web = client.store.entry(&ObjectName::new("shop", "web")).unwrap();
    assert_eq!((web.slices.len(), web.service.as_ref().map(|service| service.ports.len())), (1, Some(1)));
    assert_eq!(Object::Service(*web.service.clone().unwrap()).kind(), Kind::Service);
}

#[tokio::test]
async fn what_is_heard_is_measured() {
    let server = start(Config::default());
    populate(&server);
    let mut client = Client::start(&server).await;
    client.all_listed().await;
    let now = tokio::time::Instant::now() + Duration::from_hours(1);
    let page = client.metrics.render(None, now);
    let value = |series: &str| -> f64 {
        let line = page.lines().find_map(|line| line.strip_prefix(series));
        line.unwrap_or_else(|| panic!("no {series} in\n{page}")).trim().parse().unwrap()
    };
    for resource in ["services", "endpointslices", "nodes", "servicecidrs"] {
        let of = |name: &str| value(&format!("{name}{{resource=\"{resource}\"}}"));
        assert!(of("kubeproxy_watch_bytes_total") > 0.0, "{resource}");
        let lag = of("kubeproxy_watch_lag_seconds");
        assert!((3599.0..3660.0).contains(&lag), "{resource}: {lag}");
    }
    let host = server.url().trim_start_matches("https://").trim_start_matches("http://").to_owned();
    let host = host.trim_end_matches('/');
    let answers =
        value(&format!("rest_client_requests_total{{code=\"200\",host=\"{host}\",method=\"GET\"}}"));
    assert!(answers >= 4.0, "{answers}");
    server.faults().refuse_connections(true);
    server.faults().drop_watches();
    client.until("it is missed", |client| !client.problems.is_empty()).await;
    let page = client.metrics.render(None, now);
    assert!(page.contains("rest_client_requests_total{code=\"<error>\""), "{page}");
}
