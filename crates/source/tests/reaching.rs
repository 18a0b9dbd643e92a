//! Reaching the API server: what a kubeconfig, a pod and the environment may say, each against a server that wants it so.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use apiserver::middlebox::{Middlebox, Role};
use apiserver::{ApiServer, Auth, Certificates, Config, Fault, Keys, RequestRecord, Verb};
use metrics::{Metrics, Options};
use model::{Kind, ObjectName, Store, Touched};
use serde_json::{Value, json};
use source::{ApiConfig, ConnectError, ContentType, Environment, Source, SourceEvent, Timings, spawn_api_in};
use tokio::sync::mpsc::{Receiver, channel};

type ServerKind = apiserver::Kind;

/// For a machine that is busy.
const LIMIT: Duration = Duration::from_mins(2);

/// A server and a kubeconfig for it, to be changed before use.
struct Site {
    server: ApiServer,
    dir: tempfile::TempDir,
    kubeconfig: Value,
    variables: Vec<(String, String)>,
    timings: Timings,
    /// Flag `--master`.
    master: Option<String>,
}

impl Site {
    fn new(config: Config) -> Self {
        let server = ApiServer::start(config).unwrap();
        server.load([service("web", 1)]).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = server.kubeconfig(dir.path()).unwrap();
        let kubeconfig = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let timings = Timings {
            backoff_min: Duration::from_millis(5),
            backoff_max: Duration::from_millis(50),
            ..Timings::default()
        };
        Self { server, dir, kubeconfig, variables: Vec::new(), timings, master: None }
    }

    fn tls() -> Self {
        Self::new(Config { tls: true, ..Config::default() })
    }

    fn with_token(token: &str) -> Self {
        Self::new(Config { tls: true, auth: Auth::Token(token.to_owned()), ..Config::default() })
    }

    fn cluster(&mut self) -> &mut Value {
        &mut self.kubeconfig["clusters"][0]["cluster"]
    }

    fn user(&mut self) -> &mut Value {
        &mut self.kubeconfig["users"][0]["user"]
    }

    /// Another way of naming the server.
    fn set_server(&mut self, url: &str) -> &mut Self {
        self.cluster()["server"] = json!(url);
        self
    }

    fn set(&mut self, name: &str, value: &str) -> &mut Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn script(&self, name: &str, text: &str) -> PathBuf {
        let path = self.write(name, format!("#!/bin/sh\n{text}\n"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn environment(&self) -> Environment {
        Environment::new(self.variables.clone())
    }

    async fn try_connect(&self) -> Result<Client, ConnectError> {
        let kubeconfig = self.write("kubeconfig", self.kubeconfig.to_string());
        let config = ApiConfig { server: self.master.clone(), ..config(Some(kubeconfig), self.timings) };
        Client::start(self.environment(), config).await
    }

    /// Every kind is watched. Not by blocking: the source needs this thread.
    async fn watched(&self) {
        let kinds =
            [ServerKind::Service, ServerKind::EndpointSlice, ServerKind::Node, ServerKind::ServiceCidr];
        let all_open = async {
            while kinds.into_iter().any(|kind| self.server.open_watches(kind) != 1) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(LIMIT, all_open).await.unwrap();
    }

    async fn connect(&self) -> Client {
        self.try_connect().await.unwrap()
    }

    /// Everything is listed, and nothing was amiss on the way.
    #[track_caller]
    fn works(&self) -> impl Future<Output = Vec<RequestRecord>> {
        let caller = std::panic::Location::caller();
        async move {
            let mut client = self.connect().await;
            client.all_listed().await;
            assert_eq!(client.problems, Vec::<String>::new(), "{caller}");
            self.server.requests()
        }
    }

    /// The first problem that is told.
    async fn problem(&self) -> String {
        let mut client = self.connect().await;
        client.until(|client| !client.problems.is_empty()).await;
        client.problems.remove(0)
    }

    /// Why it can't even begin, with all causes.
    async fn refusal(&self) -> String {
        let error = self.try_connect().await.map(drop).unwrap_err();
        format!("{:#}", anyhow::Error::from(error))
    }
}

fn config(kubeconfig: Option<PathBuf>, timings: Timings) -> ApiConfig {
    ApiConfig {
        kubeconfig,
        server: None,
        node_name: "node-1".to_owned(),
        content_type: ContentType::Protobuf,
        user_agent: "test".to_owned(),
        timings,
    }
}

fn service(name: &str, ip: u8) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"},
        "spec": {
            "type": "ClusterIP", "clusterIP": format!("10.96.0.{ip}"), "clusterIPs": [format!("10.96.0.{ip}")],
            "ipFamilies": ["IPv4"], "ports": [{"name": "http", "protocol": "TCP", "port": 80}],
        },
    })
}

/// A source and what it has told so far.
struct Client {
    metrics: Metrics,
    events: Receiver<SourceEvent>,
    store: Store,
    listed: BTreeSet<Kind>,
    problems: Vec<String>,
    _source: Source,
}

impl Client {
    async fn start(environment: Environment, config: ApiConfig) -> Result<Self, ConnectError> {
        let (tx, events) = channel(64);
        let metrics = Metrics::new(&Options::default());
        let source = spawn_api_in(environment, config, metrics.source.clone(), tx).await?;
        let (store, listed, problems) = (Store::default(), BTreeSet::new(), Vec::new());
        Ok(Self { metrics, events, store, listed, problems, _source: source })
    }

    /// Takes events in until the condition holds.
    #[track_caller]
    fn until(&mut self, done: impl Fn(&Self) -> bool) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        async move {
            while !done(self) {
                let Ok(event) = tokio::time::timeout(LIMIT, self.events.recv()).await else {
                    panic!("timed out at {caller}: problems {:?}", self.problems)
                };
                self.take(event.unwrap());
            }
        }
    }

    #[track_caller]
    fn all_listed(&mut self) -> impl Future<Output = ()> {
        self.until(|client| client.listed.len() == Kind::ALL.len())
    }

    fn take(&mut self, event: SourceEvent) {
        match event {
            SourceEvent::Change(change) => self.store.apply(change, &mut Touched::default()),
            SourceEvent::Listed(kind) => _ = self.listed.insert(kind),
            SourceEvent::Problem { text, .. } => self.problems.push(text),
            SourceEvent::Rejected(_) | SourceEvent::Recovered(_) => {}
        }
    }

    fn has(&self, name: &str) -> bool {
        self.store.entry(&ObjectName::new("shop", name)).is_some_and(|entry| entry.service.is_some())
    }
}

// === proxies ===

#[tokio::test]
async fn no_proxy_means_a_direct_connection() {
    // Nobody listens there. The rules themselves are tested where they are, without connections: 127.0.0.1 is always
    // direct, so this is about what goes into them.
    for name in ["HTTPS_PROXY", "https_proxy"] {
        let mut site = Site::tls();
        site.set(name, "http://127.0.0.1:9").works().await;
    }
    // The name `localhost` as well.
    let mut site = Site::tls();
    let port = site.server.address().port();
    site.set("HTTPS_PROXY", "http://127.0.0.1:9").set("NO_PROXY", "localhost,.svc");
    site.set_server(&format!("https://localhost:{port}")).works().await;
}

#[tokio::test]
async fn proxies_of_a_kubeconfig_are_used() {
    for (scheme, role) in [
        ("http", Role::Http(None)),
        ("http://user:p%40ss", Role::Http(Some("Basic dXNlcjpwQHNz"))),
        ("socks5", Role::Socks5(None)),
        ("socks5h", Role::Socks5(None)),
        ("socks5://user:p%40ss", Role::Socks5(Some(("user", "p@ss")))),
    ] {
        let mut site = Site::tls();
        let proxy = Middlebox::start(role).await.unwrap();
        let separator = if scheme.contains("://") { "@" } else { "://" };
        site.cluster()["proxy-url"] = json!(format!("{scheme}{separator}{}", proxy.address()));
        // Of a kubeconfig it is used for every server.
        let requests = site.set("NO_PROXY", "*").works().await;
        let (targets, expected) = (proxy.targets(), site.server.address().to_string());
        assert!(
            !targets.is_empty() && targets.iter().all(|target| *target == expected),
            "{scheme}: {targets:?}"
        );
        assert!(requests.iter().all(|request| !request.headers.contains_key("proxy-authorization")));
    }
}

#[tokio::test]
async fn a_proxy_over_tls_has_the_kubeconfigs_ca() {
    let mut site = Site::tls();
    let proxy = Middlebox::start(Role::Https(site.server.tls_acceptor().unwrap())).await.unwrap();
    site.cluster()["proxy-url"] = json!(format!("https://{}", proxy.address()));
    site.works().await;
    assert!(!proxy.targets().is_empty());
}

#[tokio::test]
async fn plain_http_is_handed_to_a_proxy_as_whole_requests() {
    let mut site = Site::new(Config::default());
    let proxy = Middlebox::start(Role::Http(Some("Basic YTpi"))).await.unwrap();
    site.cluster()["proxy-url"] = json!(format!("http://a:b@{}", proxy.address()));
    site.works().await;
    let targets = proxy.targets();
    let server = site.server.address().to_string();
    assert!(!targets.is_empty() && targets.iter().all(|target| *target == server), "{targets:?}");
}

#[tokio::test]
async fn a_proxy_of_the_environment_finds_names_that_only_it_knows() {
    let config = Config { tls: true, names: vec!["api.invalid".to_owned()], ..Config::default() };
    let mut site = Site::new(config);
    let port = site.server.address().port();
    let proxy = Middlebox::start(Role::Http(None)).await.unwrap();
    site.set("HTTPS_PROXY", &proxy.address().to_string()).set_server(&format!("https://api.invalid:{port}"));
    let problem = site.problem().await;
    assert_eq!(proxy.targets()[0], format!("api.invalid:{port}"));
    assert!(problem.contains(&format!("by way of the proxy http://{}", proxy.address())), "{problem}");
    // With NO_PROXY the name is looked for here, in vain.
    site.set("NO_PROXY", "10.0.0.0/8, .invalid");
    let n_targets = proxy.targets().len();
    let problem = site.problem().await;
    assert_eq!(proxy.targets().len(), n_targets);
    assert!(problem.starts_with(&format!("https://api.invalid:{port}: ")), "{problem}");
}

#[tokio::test]
async fn a_proxy_that_makes_no_sense_is_an_error() {
    let mut site = Site::tls();
    site.cluster()["proxy-url"] = json!("quic://192.0.2.1");
    let refusal = site.refusal().await;
    let file = site.dir.path().join("kubeconfig");
    let expected = format!(
        "the kubeconfig can't be used: proxy-url in {}: the scheme is \"quic\", not http, https, socks5 or socks5h",
        file.display()
    );
    assert_eq!(refusal, expected);
}

// === credentials ===

#[tokio::test]
async fn white_space_around_a_token_is_cut_off() {
    for text in ["secret\n", " \tsecret \r\n\n", "secret"] {
        let mut site = Site::with_token("secret");
        let path = site.write("token", text);
        *site.user() = json!({"tokenFile": path});
        site.works().await;
        *site.user() = json!({"token": text});
        site.works().await;
    }
}

#[tokio::test]
async fn a_mounted_service_account_is_used_and_read_again() {
    let mut site = Site::with_token("first");
    let folder = site.dir.path().join("serviceaccount");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("token"), "first\n").unwrap();
    std::fs::write(folder.join("ca.crt"), site.server.ca_certificate().unwrap()).unwrap();
    let port = site.server.address().port().to_string();
    site.set("KUBERNETES_SERVICE_HOST", "127.0.0.1").set("KUBERNETES_SERVICE_PORT", &port);
    let environment = site.environment().with_service_account(&folder);
    let mut client = Client::start(environment, config(None, site.timings)).await.unwrap();
    client.all_listed().await;
    site.server.set_token("second");
    site.server.faults().end_watches();
    client.until(|client| client.problems.iter().any(|text| text.contains("401"))).await;
    let token = folder.join("token");
    let named = format!("(asked with the credentials of {})", token.display());
    assert!(client.problems.iter().any(|text| text.ends_with(&named)), "{:?}", client.problems);
    std::fs::write(&token, "second\n").unwrap();
    site.server.apply(service("late", 2)).unwrap();
    client.until(|client| client.has("late")).await;
}

#[tokio::test]
async fn nothing_given_and_no_pod_names_the_flags() {
    let error =
        Client::start(Environment::new([]), config(None, Timings::default())).await.map(drop).unwrap_err();
    let text = error.to_string();
    for flag in ["--kubeconfig", "--master", "--manifests"] {
        assert!(text.contains(flag), "{text}");
    }
}

#[tokio::test]
async fn basic_authentication_and_impersonation() {
    let mut site = Site::tls();
    *site.user() = json!({
        "username": "user", "password": "p:ss", "as": "system:kube-proxy", "as-uid": "7",
        "as-groups": ["a", "b"], "as-user-extra": {"Example.com/Scope": ["x", "y"]},
    });
    let requests = site.works().await;
    let headers = &requests[0].headers;
    let all =
        |name: &str| -> Vec<&str> { headers.get_all(name).iter().map(|v| v.to_str().unwrap()).collect() };
    assert_eq!(all("authorization"), ["Basic dXNlcjpwOnNz"]);
    assert_eq!((all("impersonate-user"), all("impersonate-uid")), (vec!["system:kube-proxy"], vec!["7"]));
    assert_eq!(all("impersonate-group"), ["a", "b"]);
    assert_eq!(all("impersonate-extra-example.com%2fscope"), ["x", "y"]);
}

#[tokio::test]
async fn nothing_secret_goes_over_plain_http() {
    let mut site = Site::new(Config::default());
    *site.user() = json!({"token": "secret"});
    let requests = site.works().await;
    assert!(requests.iter().all(|request| !request.headers.contains_key("authorization")));
}

// === certificates ===

#[tokio::test]
async fn every_curve_works_for_ca_server_and_client() {
    for keys in [Keys::P256, Keys::P384, Keys::P521, Keys::Ed25519] {
        let certificates = Certificates { keys, ..Certificates::default() };
        let site = Site::new(Config { certificates, auth: Auth::ClientCertificate, ..Config::default() });
        site.works().await;
    }
}

#[tokio::test]
async fn a_client_certificate_of_version_1_is_used() {
    let certificates = Certificates { is_client_version_1: true, ..Certificates::default() };
    let mut site = Site::new(Config { certificates, auth: Auth::ClientCertificate, ..Config::default() });
    site.works().await;
    // The key has to be the right one for it as well.
    let other = Site::new(Config { auth: Auth::ClientCertificate, ..Config::default() });
    let key = other.dir.path().join("client.key");
    site.user()["client-key"] = json!(key);
    let expected = format!(
        "the certificates can't be used: {}: this is not the key of the certificate in {}",
        key.display(),
        site.dir.path().join("client.crt").display()
    );
    assert_eq!(site.refusal().await, expected);
}

#[tokio::test]
async fn a_server_may_present_the_certificate_of_its_ca() {
    let certificates = Certificates { is_self_signed: true, ..Certificates::default() };
    let mut site = Site::new(Config { tls: true, certificates, ..Config::default() });
    site.works().await;
    site.cluster()["tls-server-name"] = json!("other.example");
    let problem = site.problem().await;
    assert!(problem.contains("not for other.example"), "{problem}");
}

#[tokio::test]
async fn names_authorities_and_trust_of_a_kubeconfig() {
    let config = Config { names: vec!["api.example".to_owned()], ..Config::default() };
    let mut site = Site::new(Config { tls: true, ..config });
    site.cluster()["tls-server-name"] = json!("api.example");
    site.works().await;

    // Several certificates, text between them, line breaks in base 64.
    let other = Site::tls();
    let both = format!(
        "# some text\n{}\nmore\n{}",
        other.server.ca_certificate().unwrap(),
        site.server.ca_certificate().unwrap()
    );
    let data = data_encoding::BASE64_MIME.encode(both.as_bytes());
    let url = site.server.url();
    *site.cluster() = json!({"server": url, "certificate-authority-data": data});
    site.works().await;

    // Relative to the kubeconfig.
    *site.cluster() = json!({"server": url, "certificate-authority": "ca.crt"});
    site.works().await;
    *site.cluster() = json!({"server": url, "insecure-skip-tls-verify": true});
    site.works().await;

    let ca = other.dir.path().join("ca.crt");
    *site.cluster() = json!({"server": url, "certificate-authority": ca});
    let problem = site.problem().await;
    assert_eq!(problem, format!("{url}: the server's certificate is of no CA in {}", ca.display()));
}

#[tokio::test]
async fn an_expired_certificate_is_told_with_its_date() {
    let certificates = Certificates { is_server_expired: true, ..Certificates::default() };
    let site = Site::new(Config { tls: true, certificates, ..Config::default() });
    let expected = format!("{}: the server's certificate expired at 2021-01-01T00:00:00Z", site.server.url());
    assert_eq!(site.problem().await, expected);
}

#[tokio::test]
async fn a_client_certificate_that_the_server_refuses_is_named() {
    let mut site = Site::new(Config { auth: Auth::ClientCertificate, ..Config::default() });
    let other = Site::new(Config { auth: Auth::ClientCertificate, ..Config::default() });
    let (certificate, key) = (other.dir.path().join("client.crt"), other.dir.path().join("client.key"));
    *site.user() = json!({"client-certificate": certificate, "client-key": key});
    let problem = site.problem().await;
    assert!(problem.starts_with(&site.server.url()), "{problem}");
    let named = format!("; the client certificate in {}, valid until ", certificate.display());
    assert!(problem.contains(&named), "{problem}");
}

#[tokio::test]
async fn files_that_are_no_certificates_are_named() {
    let mut site = Site::tls();
    let ca = site.write("ca.crt", "garbage");
    let expected = format!("the certificates can't be used: {}: there is no certificate in it", ca.display());
    assert_eq!(site.refusal().await, expected);
    site.cluster()["certificate-authority"] = json!("missing.crt");
    let missing = site.dir.path().join("missing.crt");
    let expected = format!(
        "the kubeconfig can't be used: {}: No such file or directory (os error 2)",
        missing.display()
    );
    assert_eq!(site.refusal().await, expected);
}

// === servers ===

#[tokio::test]
async fn a_server_without_scheme_is_http() {
    let mut site = Site::new(Config::default());
    let address = site.server.address().to_string();
    site.set_server(&address).works().await;
    site.set_server("http://192.0.2.1:1");
    site.master = Some(address.clone());
    site.works().await;
    let config = ApiConfig { server: Some(address), ..config(None, site.timings) };
    let mut client = Client::start(site.environment(), config).await.unwrap();
    client.all_listed().await;
}

#[tokio::test]
async fn a_server_without_scheme_is_https_where_there_are_certificates() {
    let mut site = Site::tls();
    let address = site.server.address().to_string();
    site.set_server(&address).works().await;
}

#[tokio::test]
async fn a_server_that_is_no_url_is_an_error() {
    for server in ["ftp://a", "http://", "https://a?b", "a b", "http://a:99999"] {
        let mut site = Site::tls();
        let refusal = site.set_server(server).refusal().await;
        assert!(refusal.contains("server in ") && refusal.contains(server), "{server}: {refusal}");
    }
}

#[tokio::test]
async fn tls_speaks_http_2_unless_it_is_disabled() {
    let mut site = Site::tls();
    assert!(site.works().await.iter().all(|request| request.version == http::Version::HTTP_2));
    site.server.clear_requests();
    site.set("DISABLE_HTTP2", "1");
    assert!(site.works().await.iter().all(|request| request.version == http::Version::HTTP_11));
}

// === plugins ===

fn exec(command: &Path) -> Value {
    json!({"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": command, "interactiveMode": "Never"}})
}

fn credential(status: &Value) -> String {
    json!({"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status})
        .to_string()
}

#[tokio::test]
async fn a_plugin_is_asked_once_while_its_credential_is_valid() {
    let mut site = Site::with_token("secret");
    let log = site.dir.path().join("calls");
    let output = credential(&json!({"token": "secret", "expirationTimestamp": "2999-01-01T00:00:00Z"}));
    site.script(
        "plugin",
        &format!("echo \"$1 $WHO $KUBERNETES_EXEC_INFO\" >> {}\necho '{output}'", log.display()),
    );
    // Relative to the kubeconfig.
    *site.user() = exec(Path::new("./plugin"));
    site.user()["exec"]["args"] = json!(["argument"]);
    site.user()["exec"]["env"] = json!([{"name": "WHO", "value": "me"}]);
    site.user()["exec"]["provideClusterInfo"] = json!(true);
    site.works().await;
    let calls = std::fs::read_to_string(log).unwrap();
    assert_eq!(calls.lines().count(), 1, "{calls}");
    let info = calls.strip_prefix("argument me ").unwrap();
    let info: Value = serde_json::from_str(info).unwrap();
    assert_eq!(info["kind"], "ExecCredential");
    assert_eq!(info["spec"]["interactive"], false);
    let server = info["spec"]["cluster"]["server"].as_str().unwrap();
    assert_eq!(server.trim_end_matches('/'), site.server.url());
    assert!(info["spec"]["cluster"]["certificate-authority-data"].is_string());
}

/// A server with a token, and a source that has it from a plugin with this answer.
async fn with_plugin(status: &Value) -> (Site, Client) {
    let mut site = Site::with_token("first");
    let answer = site.write("answer", credential(status));
    let plugin = site.script("plugin", &format!("cat {}", answer.display()));
    *site.user() = exec(&plugin);
    let mut client = site.connect().await;
    client.all_listed().await;
    site.watched().await;
    (site, client)
}

/// The server takes another token, and the plugin gives it.
async fn replace_token(site: &Site, client: &mut Client) {
    site.write("answer", credential(&json!({"token": "second"})));
    site.server.set_token("second");
    site.server.faults().end_watches();
    site.server.apply(service("late", 2)).unwrap();
    client.until(|client| client.has("late")).await;
}

#[tokio::test]
async fn a_plugin_is_asked_again_when_its_credential_is_refused() {
    let (site, mut client) = with_plugin(&json!({"token": "first"})).await;
    replace_token(&site, &mut client).await;
    assert!(client.problems[0].contains("401"), "{:?}", client.problems);
}

#[tokio::test]
async fn a_plugin_is_asked_again_when_its_credential_has_expired() {
    let expired = json!({"token": "first", "expirationTimestamp": "2001-01-01T00:00:00Z"});
    let (site, mut client) = with_plugin(&expired).await;
    replace_token(&site, &mut client).await;
    assert!(!client.problems.iter().any(|text| text.contains("401")), "{:?}", client.problems);
}

#[tokio::test]
async fn a_plugin_may_give_a_client_certificate() {
    let mut site = Site::new(Config { auth: Auth::ClientCertificate, ..Config::default() });
    let file = |name: &str| std::fs::read_to_string(site.dir.path().join(name)).unwrap();
    let status = json!({"clientCertificateData": file("client.crt"), "clientKeyData": file("client.key")});
    let answer = site.write("answer", credential(&status));
    let plugin = site.script("plugin", &format!("cat {}", answer.display()));
    *site.user() = exec(&plugin);
    site.works().await;
}

#[tokio::test]
async fn a_plugin_that_hangs_is_killed_and_holds_nobody_up() {
    let mut site = Site::with_token("secret");
    let pid = site.dir.path().join("pid");
    let plugin = site.script("plugin", &format!("sleep 1000 & echo $! > {}\nwait", pid.display()));
    *site.user() = exec(&plugin);
    site.timings.plugin = Duration::from_millis(500);
    let problem = site.problem().await;
    let expected = format!(
        "{}: the credential plugin {} has not ended after 500ms",
        site.server.url(),
        plugin.display()
    );
    assert_eq!(problem, expected);
    // What it has started is killed as well.
    let pid = std::fs::read_to_string(pid).unwrap();
    let process = PathBuf::from("/proc").join(pid.trim()).join("comm");
    let is_gone = async {
        while std::fs::read_to_string(&process).is_ok_and(|name| name == "sleep\n" && !is_zombie(&process)) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LIMIT, is_gone).await.unwrap();
}

fn is_zombie(comm: &Path) -> bool {
    let stat = std::fs::read_to_string(comm.with_file_name("stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_none_or(|rest| rest.starts_with('Z'))
}

#[tokio::test]
async fn a_plugin_that_fails_is_told_by_name() {
    let wrong_version = credential(&json!({"token": "a"})).replace("/v1", "/v1beta1");
    for (script, expected) in [
        ("echo no way >&2; exit 3", "fails with exit status: 3: no way"),
        ("echo '{}'", "prints no ExecCredential: missing field `apiVersion` at line 1 column 2"),
        ("yes", "prints more than 1048576 bytes"),
        (&format!("echo '{}'", credential(&json!({}))), "prints neither a token nor a client certificate"),
        (
            &format!("echo '{wrong_version}'"),
            "prints a \"ExecCredential\" of \"client.authentication.k8s.io/v1beta1\", not an ExecCredential of \"client.authentication.k8s.io/v1\"",
        ),
    ] {
        let mut site = Site::with_token("secret");
        let plugin = site.script("plugin", script);
        *site.user() = exec(&plugin);
        let problem = site.problem().await;
        let expected =
            format!("{}: the credential plugin {} {expected}", site.server.url(), plugin.display());
        assert_eq!(problem, expected);
    }
    let mut site = Site::with_token("secret");
    *site.user() = exec(Path::new("/nonexistent/plugin"));
    site.user()["exec"]["installHint"] = json!("install it");
    let problem = site.problem().await;
    let expected = "the credential plugin /nonexistent/plugin can't be started: No such file or directory (os error 2); install it";
    assert_eq!(problem, format!("{}: {expected}", site.server.url()));
}

// === answers ===

#[tokio::test]
async fn lists_are_compressed_unless_the_kubeconfig_says_no() {
    let new = || Site::new(Config { streamed_lists: false, gzip_from: 0, ..Config::default() });
    let is_list = |request: &&RequestRecord| !request.path_and_query.contains("watch=true");
    let wants = |request: &RequestRecord| request.headers.get("accept-encoding").is_some_and(|v| v == "gzip");
    let site = new();
    site.server
        .load((0..2000).map(|i| {
            let mut object = service(&format!("many-{i}"), 7);
            object["spec"]["clusterIP"] = json!(format!("10.97.{}.{}", i / 250, i % 250));
            object["spec"]["clusterIPs"] = json!([object["spec"]["clusterIP"]]);
            object
        }))
        .unwrap();
    let mut client = site.connect().await;
    client.all_listed().await;
    assert!(client.has("many-1999") && client.has("web"));
    let requests = site.server.requests();
    assert!(requests.iter().filter(is_list).all(wants));
    assert!(!requests.iter().filter(|request| !is_list(request)).any(wants), "a watch is never compressed");
    let mut site = new();
    site.cluster()["disable-compression"] = json!(true);
    assert!(!site.works().await.iter().any(wants));
}

#[tokio::test]
async fn an_encoding_that_nobody_asked_for_is_unreadable() {
    for (encoding, expected) in [("br", "the content encoding \"br\""), ("gzip", "can't be decompressed")] {
        let site = Site::new(Config { streamed_lists: false, ..Config::default() });
        let fault = Fault::Header("content-encoding", encoding);
        site.server.faults().next_of(ServerKind::Service, Verb::List, 1, fault);
        let mut client = site.connect().await;
        client.all_listed().await;
        assert!(client.problems.iter().any(|text| text.contains(expected)), "{:?}", client.problems);
    }
}

#[tokio::test]
async fn an_error_body_that_drips_is_given_up() {
    let mut site = Site::new(Config::default());
    site.timings.grace = Duration::from_secs(1);
    let fault = Fault::Drip { code: 500, pause: Duration::from_millis(50) };
    site.server.faults().next_of(ServerKind::Service, Verb::Watch, 1, fault);
    let mut client = site.connect().await;
    client.all_listed().await;
    assert!(client.problems.iter().any(|text| text.contains("status 500")), "{:?}", client.problems);
}

#[tokio::test]
async fn a_list_that_drips_is_given_up() {
    let mut site = Site::new(Config { streamed_lists: false, ..Config::default() });
    site.timings.watch_timeout = Duration::from_secs(1);
    let drip = Fault::Drip { code: 200, pause: Duration::from_millis(50) };
    site.server.faults().next_of(ServerKind::Service, Verb::List, 1, drip);
    let mut client = site.connect().await;
    client.all_listed().await;
}

#[tokio::test]
async fn a_long_retry_after_is_not_waited_for() {
    let site = Site::new(Config::default());
    let fault = Fault::Status { code: 429, retry_after: Some(86_400) };
    site.server.faults().next_of(ServerKind::Service, Verb::Watch, 1, fault);
    let mut client = site.connect().await;
    client.until(|client| !client.problems.is_empty()).await;
    // The wait itself is not: only its length is of interest.
    tokio::time::pause();
    tokio::time::advance(Duration::from_mins(2)).await;
    tokio::time::resume();
    client.all_listed().await;
}

#[tokio::test]
async fn connections_that_fall_silent_are_given_up_within_45_seconds() {
    let mut site = Site::tls();
    let relay = Middlebox::start(Role::Relay(site.server.address())).await.unwrap();
    site.set_server(&format!("https://{}", relay.address()));
    let mut client = site.connect().await;
    client.all_listed().await;
    site.watched().await;
    relay.silence();
    site.server.apply(service("unseen", 9)).unwrap();
    let n_targets = relay.targets().len();
    tokio::time::pause();
    for _ in 0..44 {
        tokio::time::advance(Duration::from_secs(1)).await;
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }
    tokio::time::resume();
    client.until(|client| client.has("unseen")).await;
    assert!(relay.targets().len() > n_targets, "new connections");
}

// === versions ===

#[tokio::test]
async fn an_older_backup_is_noticed_while_the_server_is_away() {
    for streamed_lists in [true, false] {
        let site = Site::new(Config { streamed_lists, ..Config::default() });
        site.server.advance_to(1_000_000);
        site.server.apply(service("new", 2)).unwrap();
        let mut client = site.connect().await;
        client.all_listed().await;
        client.until(|client| client.has("new")).await;
        site.watched().await;
        site.server.faults().refuse_connections(true);
        site.server.restore_backup(500, [service("old", 3)]).unwrap();
        client.until(|client| client.problems.iter().any(|text| text.contains("refused"))).await;
        site.server.faults().refuse_connections(false);
        client.until(|client| client.has("old") && !client.has("new") && !client.has("web")).await;
        let word = "the server's resource versions have gone back from 1000001 to 500";
        assert!(client.problems.iter().any(|text| text.starts_with(word)), "{:?}", client.problems);
        site.server.apply(service("later", 4)).unwrap();
        client.until(|client| client.has("later")).await;
    }
}

/// A site whose server has Service `new` at version 1,000,001, and a client that watches it.
async fn far_ahead(timings: impl FnOnce(&mut Timings)) -> (Site, Client) {
    let mut site = Site::new(Config::default());
    timings(&mut site.timings);
    site.server.advance_to(1_000_000);
    site.server.apply(service("new", 2)).unwrap();
    let mut client = site.connect().await;
    client.all_listed().await;
    client.until(|client| client.has("new")).await;
    site.watched().await;
    (site, client)
}

#[tokio::test]
async fn an_older_backup_is_noticed_when_a_watch_breaks_or_ends() {
    let ways: [fn(&ApiServer); 2] =
        [|server| server.faults().drop_watches(), |server| server.faults().end_watches()];
    for way in ways {
        let (site, mut client) = far_ahead(|_| {}).await;
        site.server.restore_backup(500, [service("old", 3)]).unwrap();
        way(&site.server);
        client.until(|client| client.has("old") && !client.has("new")).await;
        site.server.apply(service("later", 4)).unwrap();
        client.until(|client| client.has("later")).await;
    }
}

#[tokio::test]
async fn an_older_backup_is_noticed_through_refusals() {
    for code in [403, 500, 503] {
        let (site, mut client) = far_ahead(|_| {}).await;
        site.server.restore_backup(500, [service("old", 3)]).unwrap();
        let fault = Fault::Status { code, retry_after: None };
        site.server.faults().next_of(ServerKind::Service, Verb::List, 3, fault);
        site.server.faults().drop_watches();
        client.until(|client| client.has("old") && !client.has("new")).await;
    }
}

#[tokio::test]
async fn an_older_backup_under_an_open_watch_is_noticed() {
    let (site, mut client) = far_ahead(|timings| timings.silence = Duration::from_millis(200)).await;
    site.server.restore_backup(500, [service("old", 3)]).unwrap();
    client.until(|client| client.has("old") && !client.has("new")).await;
}

#[tokio::test]
async fn an_expired_version_after_an_outage_is_listed_at_once() {
    let (site, mut client) = far_ahead(|_| {}).await;
    let refusal = Fault::Status { code: 503, retry_after: None };
    site.server.faults().always(ServerKind::Service, refusal);
    site.server.faults().drop_watches();
    client.until(|client| client.problems.iter().any(|text| text.contains("503"))).await;
    site.server.expire();
    site.server.apply(service("later", 4)).unwrap();
    site.server.faults().clear();
    client.until(|client| client.has("later")).await;
    // What is waited out is told as a problem.
    assert!(!client.problems.iter().any(|text| text.contains("410")), "{:?}", client.problems);
}

#[tokio::test]
async fn service_cidrs_refused_for_a_while_are_asked_for_again_soon() {
    // Much longer than any patience here: `absent_retry` is minutes.
    let site = Site::new(Config::default());
    let fault = || Fault::Status { code: 403, retry_after: None };
    site.server.faults().next_of(ServerKind::ServiceCidr, Verb::Watch, 4, fault());
    let mut client = site.connect().await;
    client.all_listed().await;
    site.watched().await;
    // Also when it has been settled for long, as soon as the server has been away.
    site.server.faults().always(ServerKind::ServiceCidr, fault());
    site.server.faults().drop_watches();
    let n_answers = |status: u16| {
        let is_counted = |request: &&RequestRecord| {
            request.status == status && request.path_and_query.contains("servicecidrs")
        };
        site.server.requests().iter().filter(is_counted).count()
    };
    while n_answers(403) < 4 + 8 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    site.server.faults().clear();
    site.server.clear_requests();
    while n_answers(200) == 0 {
        site.server.faults().drop_watches();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_watch_that_goes_back_means_a_new_list() {
    let site = Site::new(Config::default());
    site.server.advance_to(1_000_000);
    site.server.apply(service("new", 2)).unwrap();
    let mut client = site.connect().await;
    client.until(|client| client.has("new")).await;
    site.watched().await;
    site.server.restore_backup(500, [service("old", 3)]).unwrap();
    let mut event = service("old", 3);
    event["metadata"]["resourceVersion"] = json!("400");
    site.server.faults().send_event(ServerKind::Service, "MODIFIED", &event).unwrap();
    client.until(|client| client.has("old") && !client.has("new")).await;
}

#[tokio::test]
async fn strange_versions_make_nobody_deaf() {
    for strange in ["18446744073709551615", "9223372036854775807", "", "garbage"] {
        let mut site = Site::new(Config::default());
        site.timings.out_of_order = Duration::from_millis(100);
        let mut client = site.connect().await;
        client.all_listed().await;
        site.watched().await;
        let mut event = service("web", 1);
        event["metadata"]["resourceVersion"] = json!(strange);
        let faults = site.server.faults();
        faults.send_event(ServerKind::Service, "MODIFIED", &event).unwrap();
        let bookmark = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"resourceVersion": strange},
        });
        faults.send_event(ServerKind::Service, "BOOKMARK", &bookmark).unwrap();
        site.server.delete(ServerKind::Service, "shop", "web").unwrap();
        client.until(|client| !client.has("web")).await;
        // Also what happens between two watches.
        faults.end_watches();
        site.server.apply(service("after", 4)).unwrap();
        site.server.delete(ServerKind::Service, "shop", "after").unwrap();
        site.server.apply(service("last", 5)).unwrap();
        client.until(|client| client.has("last") && !client.has("after")).await;
    }
}

#[tokio::test]
async fn a_server_that_says_only_errors_is_not_heard_of() {
    let site = Site::new(Config::default());
    let mut client = site.connect().await;
    client.all_listed().await;
    let lag = |client: &Client, resource: &str| -> Option<f64> {
        let page = client.metrics.render(None, tokio::time::Instant::now() + Duration::from_hours(1));
        let series = format!("kubeproxy_watch_lag_seconds{{resource=\"{resource}\"}} ");
        page.lines().find_map(|line| line.strip_prefix(&series)).map(|value| value.parse().unwrap())
    };
    assert!(lag(&client, "services").unwrap() >= 3599.0);
    site.server.faults().always(ServerKind::ServiceCidr, Fault::Status { code: 403, retry_after: None });
    site.server.faults().always(ServerKind::Service, Fault::Status { code: 500, retry_after: None });
    site.server.faults().end_watches();
    client.until(|client| client.problems.iter().any(|text| text.contains("500"))).await;
    client.until(|client| client.problems.iter().any(|text| text.contains("403"))).await;
    assert!(lag(&client, "services").unwrap() >= 3599.0);
    assert_eq!(lag(&client, "servicecidrs"), None, "what is not there is not waited for");
}
