use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use agent::snapshot::{Conflict, RecentChange};
use agent::{Counters, Flow, PortTraffic, Rates, Traffic};
use http::Request;
use serde_json::{Value, json};
use walk::{Outcome, Path, Step};

use super::*;
use crate::document::{FlowRow, PacketReport, Severity};
use crate::fixture;

struct FakeHost;

impl Host for FakeHost {
    fn walk(&self, packet: &Packet, _limit: usize) -> Result<Paths, String> {
        let (outcome, found) = match (packet.destination.ip().to_string().as_str(), packet.destination.port())
        {
            ("10.96.0.10", 80) => {
                let to = "10.244.0.2:8080".parse().unwrap();
                let element = "map service-ips: 10.96.0.10 . tcp . 80 comment \"shop/web:http\" : 0:1";
                (Outcome::Delivered { to, masqueraded: true }, vec![element.to_owned()])
            }
            (_, 9999) => return Err("no permission".into()),
            _ => (Outcome::Delivered { to: packet.destination, masqueraded: false }, Vec::new()),
        };
        let step =
            Step { hook: "prerouting", table: "", chain: "services".into(), rule: "a rule".into(), found };
        let paths = vec![Path { outcome, steps: vec![step], probability: 1.0 }];
        Ok(Paths { paths, complete: true, ..Paths::default() })
    }

    fn addresses(&self) -> Vec<IpAddr> {
        vec!["192.168.0.1".parse().unwrap()]
    }

    fn flows(&self, _limit: usize) -> Result<FlowList, String> {
        let address = |text: &str| text.parse().unwrap();
        let flow = FlowRow {
            protocol: "TCP".into(),
            source: address("10.244.0.9:5"),
            destination: address("10.96.0.10:80"),
            endpoint: address("10.244.0.2:8080"),
            replied: true,
            masqueraded: false,
        };
        Ok(FlowList { items: vec![flow], truncated: false })
    }

    fn limits(&self) -> Vec<Limit> {
        vec![Limit { what: "x".into(), why: "y".into() }]
    }

    fn findings(&self, _: &Overview, services: &[Service]) -> (Vec<Finding>, Vec<String>) {
        let finding = |severity, id: &str| Finding {
            severity,
            id: id.into(),
            what: String::new(),
            why: String::new(),
            mend: String::new(),
        };
        let found = vec![finding(Severity::Info, "a"), finding(Severity::Error, "b")];
        (found, vec![format!("{} Services", services.len())])
    }
}

/// So many Services that they don't fit on a page.
fn services() -> BTreeMap<ServiceName, Service> {
    let many =
        (0..500).map(|n| fixture::service(&format!("svc-{n:03}"), &format!("10.97.{}.{}", n / 250, n % 250)));
    let mut all: Vec<Service> = many.chain([fixture::service("web", "10.96.0.10")]).collect();
    fixture::port(&mut all[7]).endpoints.clear();
    all.into_iter().map(|service| (ObjectName::new(&service.namespace, &service.name), service)).collect()
}

fn rejection() -> Rejection {
    let [kind, namespace, name, field, reason] = ["Service", "shop", "bad", "spec", "x"].map(str::to_owned);
    Rejection { kind, namespace, name, field, reason }
}

/// `shop/web` in both families, refused in one of them.
fn published() -> agent::Published {
    let service = model::ServicePortName {
        service: ObjectName::new("shop", "web"),
        port: "http".into(),
        protocol: model::Protocol::Tcp,
    };
    let flow = |connections, refused| Flow {
        total: Counters { connections, refused, ..Counters::default() },
        per_second: Some(Rates { connections: 1.5, refused: 0.0, dropped: 0.0 }),
    };
    let traffic = |endpoint: &str, connections, refused| {
        let endpoints = [(endpoint.parse().unwrap(), flow(connections, 0))].into();
        let port = PortTraffic {
            flow: flow(connections, refused),
            found: Counters::default(),
            is_by_endpoint: true,
            endpoints,
        };
        let ports = [(service.clone(), port)].into();
        Arc::new(Traffic {
            ports,
            since_start: Counters::default(),
            read_at: Instant::now(),
            has_rates: true,
        })
    };
    let v4 = traffic("10.244.0.2:8080", 30, 0);
    let v6 = traffic("[fd00:10:244::2]:8080", 12, 5);
    [(model::IpFamily::V4, v4), (model::IpFamily::V6, v6)].into()
}

#[tokio::test]
async fn what_went_through_is_told_for_both_families_together() {
    let list = ok("/api/v1/traffic").await;
    let [web] = list["items"].as_array().unwrap().as_slice() else { panic!("{list}") };
    assert_eq!((&web["servicePort"], &web["protocol"]), (&json!("shop/web:http"), &json!("TCP")));
    let counted = (&web["connections"], &web["refused"], &web["connectionsPerSecond"]);
    assert_eq!(counted, (&json!(42), &json!(5), &json!(3.0)));
    let shares: Vec<&Value> =
        web["endpoints"].as_array().unwrap().iter().map(|endpoint| &endpoint["connections"]).collect();
    assert_eq!(shares, [&json!(30), &json!(12)]);
    assert_eq!(ask("/api/v1/traffic?name=web").await.0, 400);
}

fn answered<A>(value: A) -> oneshot::Receiver<A> {
    let (sender, receiver) = oneshot::channel();
    drop(sender.send(value));
    receiver
}

/// What the agent tells of itself.
struct Agent {
    overview: Mutex<Overview>,
    news: watch::Sender<u64>,
    /// Questions for the overview.
    asked: AtomicUsize,
}

impl Agent {
    fn change(&self, change: impl FnOnce(&mut Overview)) {
        change(&mut self.overview.lock().unwrap());
        self.news.send_modify(|generation| *generation += 1);
    }
}

fn api() -> (Api, Arc<Agent>) {
    let overview = Mutex::new(fixture::overview());
    let agent = Agent { overview, news: watch::Sender::default(), asked: AtomicUsize::default() };
    let agent = Arc::new(agent);
    let (all, shared, told) = (Arc::new(services()), Arc::new(services()), agent.clone());
    let about = About {
        version: "v1".into(),
        mode: "nftables".into(),
        node: "node-1".into(),
        started: SystemTime::UNIX_EPOCH,
    };
    let sources = Sources {
        service: Arc::new(move |name| answered(all.get(&name).cloned())),
        // It tells no more than 200 at once, and finds by address only some that have not got it.
        services: Arc::new(move |wanted: Wanted| {
            let behind = |name: &ServiceName| wanted.after.as_ref().is_none_or(|after| name > after);
            let all: Vec<&Service> =
                shared.iter().filter(|(name, _)| behind(name)).map(|(_, service)| service).collect();
            let services: Vec<Service> = all.iter().take(200).copied().cloned().collect();
            let last = services.last().filter(|_| all.len() > 200);
            let next = last.map(|last| ObjectName::new(&last.namespace, &last.name));
            answered(Page { services, next })
        }),
        overview: Arc::new(move |()| {
            told.asked.fetch_add(1, Ordering::Relaxed);
            answered(told.overview.lock().unwrap().clone())
        }),
        news: agent.news.subscribe(),
        traffic: Arc::new(published),
        health: SharedHealth::new(Duration::from_mins(1)),
        rejections: Arc::new(|| vec![rejection()]),
        host: Arc::new(FakeHost),
        about,
    };
    (Api::new(sources), agent)
}

async fn ask_with(api: &Api, request: http::request::Builder) -> (u16, Value) {
    let (parts, ()) = request.header("host", "127.0.0.1:10249").body(()).unwrap().into_parts();
    let response = api.answer(&parts).await;
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

async fn ask(path: &str) -> (u16, Value) {
    ask_with(&api().0, Request::get(path)).await
}

async fn ok(path: &str) -> Value {
    let (status, body) = ask(path).await;
    assert_eq!(status, 200, "{path}: {body}");
    body
}

#[tokio::test]
async fn services_are_listed_over_many_pages() {
    let list = ok("/api/v1/services").await;
    assert_eq!(list["items"].as_array().unwrap().len(), 501);
    let web = &list["items"][500];
    let counts = json!({ "total": 2, "ready": 1, "serving": 1, "local": 1, "terminating": 1 });
    assert_eq!((&web["name"], &web["endpoints"]), (&json!("web"), &counts));
    assert_eq!((&web["ports"], &web["clusterIps"]), (&json!(["80:30080/TCP"]), &json!(["10.96.0.10"])));
    assert_eq!((&web["internalPolicy"], &web["externalPolicy"]), (&json!("Cluster"), &json!("Cluster")));
}

#[tokio::test]
async fn services_are_selected() {
    for (query, count) in [
        ("name=svc-00*", 10),
        ("namespace=none", 0),
        ("address=10.96.0.10", 1),
        ("noEndpoints=true", 1),
        ("nodePort=30080&name=*b", 1),
        ("nodePort=80", 0),
        ("endpoint=10.244.1.2", 500),
    ] {
        let list = ok(&format!("/api/v1/services?{query}")).await;
        assert_eq!(list["items"].as_array().unwrap().len(), count, "{query}");
    }
    assert_eq!(
        ok("/api/v1/endpoints?endpoint=10.244.1.2&name=web").await["items"].as_array().unwrap().len(),
        1
    );
}

#[tokio::test]
async fn mistakes_are_told() {
    for (path, status, error) in [
        ("/api/v1/services?address=x", 400, "parameter address: \"x\" is not an IP address"),
        ("/api/v1/services/shop/none", 404, "there is no such Service, or none that is served here"),
        ("/api/v1/nothing", 404, "there is nothing at this path"),
        ("/api/v2/status", 404, "there is nothing at this path"),
        ("/api/v1/services/shop/%ff", 400, "parameters are not percent-encoded UTF-8"),
        ("/api/v1/packet?source=10.0.0.1", 400, "parameter destination is missing"),
        (
            "/api/v1/packet?source=::1&destination=10.0.0.1:80",
            400,
            "parameter source: \"::1\" is not an address of the destination's family",
        ),
        (
            "/api/v1/packet?source=10.0.0.1&destination=10.0.0.1:80&protocol=ICMP",
            400,
            "parameter protocol: \"ICMP\" is not TCP, UDP or SCTP",
        ),
        ("/api/v1/packet?source=10.0.0.1&destination=10.0.0.1:9999", 500, "no permission"),
    ] {
        assert_eq!(ask(path).await, (status, json!({ "error": error })), "{path}");
    }
}

#[tokio::test]
async fn it_is_only_read() {
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        let (status, _) = ask_with(&api().0, Request::builder().method(method).uri("/api/v1/status")).await;
        assert_eq!(status, 405, "{method}");
    }
    let foreign = Request::get("/api/v1/status").header("origin", "http://evil.example");
    assert_eq!(ask_with(&api().0, foreign).await.0, 403);
}

#[tokio::test]
async fn an_agent_that_has_ended_is_told() {
    let (mut api, _) = api();
    api.sources.overview = Arc::new(|()| oneshot::channel().1);
    let (status, body) = ask_with(&api, Request::get("/api/v1/status")).await;
    assert_eq!((status, body), (503, json!({ "error": "the event loop does not answer" })));
}

#[tokio::test]
async fn findings_come_worst_first() {
    let list = ok("/api/v1/findings").await;
    let ids: Vec<_> = list["items"].as_array().unwrap().iter().map(|item| item["id"].clone()).collect();
    assert_eq!(ids, ["b", "a"]);
    assert_eq!(list["checked"], json!(["501 Services"]));
}

async fn packet(query: &str) -> PacketReport {
    serde_json::from_value(ok(&format!("/api/v1/packet?{query}")).await).unwrap()
}

#[tokio::test]
async fn a_packet_is_explained() {
    let report = packet("source=10.244.0.9&destination=10.96.0.10:80&from=pod").await;
    insta::assert_snapshot!(format!("{:#}", serde_json::to_value(report).unwrap()));
}

#[tokio::test]
async fn a_packet_that_is_not_ours_is_told_why() {
    for (destination, first) in [
        ("10.96.0.10:81", "shop/web has the address 10.96.0.10, but no port 81/TCP; it has 80/TCP."),
        (
            "10.244.1.2:8080",
            "10.244.1.2:8080 is an endpoint of shop/svc-000:http: it is reached directly, without the Service.",
        ),
        ("8.8.8.8:53", "No Service has the address 8.8.8.8, and none has an endpoint of it."),
        (
            "10.97.0.7:80",
            "10.97.0.7:80/TCP is a cluster IP of shop/svc-007:http; the rules should have it: run `kube-proxy check`.",
        ),
    ] {
        let report = packet(&format!("source=192.168.0.1&destination={destination}")).await;
        assert_eq!(report.words[0], first);
        assert_eq!(report.packet.from, crate::document::Place::Node);
    }
}

#[tokio::test(start_paused = true)]
async fn changes_are_streamed() {
    let (api, agent) = api();
    let (parts, ()) =
        Request::get("/api/v1/events").header("host", "localhost").body(()).unwrap().into_parts();
    let response = api.answer(&parts).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut body = response.into_body();
    let mut next = async || {
        let frame = body.frame().await.unwrap().unwrap();
        String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap()
    };
    assert!(next().await.starts_with("event: overview\ndata: {\"node\":\"node-1\""));
    let change = RecentChange {
        family: "IPv4".into(),
        namespace: "shop".into(),
        name: "web\n\nevent: fake".into(),
        known_at: 5.0,
        latency_seconds: None,
    };
    agent.change(|overview| overview.recent_changes.push(change.clone()));
    let told = next().await;
    assert!(told.starts_with("event: changes\ndata: [{"), "{told}");
    assert_eq!(told.matches("\n\n").count(), 1, "names can't end an event: {told}");
    agent.change(|overview| overview.recent_changes[0].latency_seconds = Some(0.1));
    assert!(next().await.contains("\"latencySeconds\":0.1"));
    let asked = agent.asked.load(Ordering::Relaxed);
    for _ in 0..10 {
        assert_eq!(next().await, ": nothing new\n\n");
    }
    assert_eq!(agent.asked.load(Ordering::Relaxed), asked, "nobody is asked while nothing happens");
    let conflict = Conflict {
        family: "IPv4".into(),
        address: None,
        protocol: "TCP".into(),
        port: 1,
        winner: "a".into(),
        loser: "b".into(),
    };
    agent.change(|overview| overview.conflicts.push(conflict));
    assert!(next().await.contains("\"loser\":\"b\""));
}

#[tokio::test]
async fn streams_are_limited() {
    let (api, _) = api();
    let (parts, ()) =
        Request::get("/api/v1/events").header("host", "localhost").body(()).unwrap().into_parts();
    let mut open = Vec::new();
    for _ in 0..stream::MAX_STREAMS {
        open.push(api.answer(&parts).await);
    }
    assert_eq!(api.answer(&parts).await.status(), 503);
    open.pop();
    assert_eq!(api.answer(&parts).await.status(), 200);
}

#[tokio::test]
async fn the_page_runs_nothing_from_elsewhere() {
    let (api, _) = api();
    for path in ["/", "/ui/app.js", "/ui/app.css"] {
        let (parts, ()) = Request::get(path).header("host", "localhost").body(()).unwrap().into_parts();
        let response = api.answer(&parts).await;
        let policy = response.headers()["content-security-policy"].to_str().unwrap().to_owned();
        assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8(body.to_vec()).unwrap();
        for forbidden in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "https://",
            "onclick=",
        ] {
            assert!(!text.contains(forbidden), "{path}: {forbidden}");
        }
    }
}

#[tokio::test]
async fn a_service_is_explained_as_text() {
    let (api, _) = api();
    let (parts, ()) =
        Request::get("/explain/shop/web").header("host", "localhost").body(()).unwrap().into_parts();
    let body = api.answer(&parts).await.into_body().collect().await.unwrap().to_bytes();
    insta::assert_snapshot!(String::from_utf8(body.to_vec()).unwrap());
    for (path, status) in [("/explain/shop/none", 404), ("/explain/shop", 404), ("/explain/", 404)] {
        assert_eq!(ask(path).await.0, status, "{path}");
    }
}

/// `docs/openapi.json` describes exactly the paths that there are, and exactly the fields that are sent.
#[tokio::test]
async fn the_description_is_true() {
    let description: Value = serde_json::from_str(include_str!("../../../../docs/openapi.json")).unwrap();
    let schemas = &description["components"]["schemas"];
    let (api, agent) = api();
    agent.change(|overview| *overview = fixture::eventful_overview());
    let examples = [
        ("/api/v1/status", ""),
        ("/api/v1/services", "?name=web"),
        ("/api/v1/services/{namespace}/{name}", ""),
        ("/api/v1/endpoints", "?name=web"),
        ("/api/v1/traffic", ""),
        ("/api/v1/conflicts", ""),
        ("/api/v1/rejections", ""),
        ("/api/v1/flows", ""),
        ("/api/v1/packet", "?source=10.244.0.9&destination=10.96.0.10:80&from=pod"),
        ("/api/v1/findings", ""),
    ];
    let mut documented: Vec<&String> = description["paths"].as_object().unwrap().keys().collect();
    documented.retain(|path| *path != "/api/v1/events");
    assert_eq!(documented.len(), examples.len());
    for (path, query) in examples {
        let response = &description["paths"][path]["get"]["responses"]["200"]["content"]["application/json"];
        let real = path.replace("{namespace}", "shop").replace("{name}", "web");
        let (status, body) = ask_with(&api, Request::get(format!("{real}{query}"))).await;
        assert_eq!(status, 200, "{path}: {body}");
        conforms(&body, &response["schema"], schemas, path);
    }
    conforms(&ask("/api/v1/none").await.1, &schemas["Problem"], schemas, "an error");
}

/// Fails unless a value is as a schema says, field by field.
#[track_caller]
fn conforms(value: &Value, schema: &Value, schemas: &Value, at: &str) {
    if let Some(name) = schema["$ref"].as_str() {
        let name = name.rsplit('/').next().unwrap();
        assert!(schemas.get(name).is_some(), "{at}: no schema {name}");
        return conforms(value, &schemas[name], schemas, at);
    }
    if let Some(choices) = schema["oneOf"].as_array() {
        let fits = |choice: &&Value| match (choice["$ref"].is_string(), value) {
            (true, Value::Null) => false,
            (true, _) => true,
            (false, Value::Object(fields)) => choice["properties"]["state"]["const"] == fields["state"],
            (false, other) => choice["type"] == "null" && other.is_null(),
        };
        let choice = choices.iter().find(fits).unwrap_or_else(|| panic!("{at}: {value} is none of {schema}"));
        return conforms(value, choice, schemas, at);
    }
    if let Some(constant) = schema.get("const") {
        assert_eq!(value, constant, "{at}");
        return;
    }
    let kinds = schema["type"].as_array().cloned().unwrap_or_else(|| vec![schema["type"].clone()]);
    let is = |kind: &str| kinds.iter().any(|known| known == kind);
    match value {
        Value::Null => assert!(is("null"), "{at} is null"),
        Value::Bool(_) => assert!(is("boolean"), "{at} is a boolean"),
        Value::Number(number) => {
            assert!(is("number") || is("integer") && number.is_u64(), "{at} is {number}");
        }
        Value::String(text) => {
            assert!(is("string"), "{at} is {text:?}");
            let words = schema["enum"].as_array();
            assert!(words.is_none_or(|words| words.iter().any(|word| word == text)), "{at} is {text:?}");
        }
        Value::Array(items) => {
            assert!(is("array"), "{at} is a list");
            for item in items {
                conforms(item, &schema["items"], schemas, &format!("{at}[]"));
            }
        }
        Value::Object(fields) => {
            assert!(is("object"), "{at} is an object");
            let known = schema["properties"].as_object().cloned().unwrap_or_default();
            for name in schema["required"].as_array().into_iter().flatten() {
                assert!(fields.contains_key(name.as_str().unwrap()), "{at} lacks {name}");
            }
            for (name, value) in fields {
                let further = &schema["additionalProperties"];
                let own = known.get(name).unwrap_or_else(|| {
                    assert!(further.is_object(), "{at}.{name} is not described");
                    further
                });
                conforms(value, own, schemas, &format!("{at}.{name}"));
            }
        }
    }
}
