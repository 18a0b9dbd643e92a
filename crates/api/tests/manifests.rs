//! Manifests as people write them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use api::{ManifestFormat, Manifests, Outcome, parse_manifests};
use model::{Interner, Object};

fn yaml(text: &str) -> Manifests {
    parse_manifests(text, ManifestFormat::Yaml, &mut Interner::default()).unwrap()
}

fn shown(manifests: &Manifests) -> Vec<String> {
    let show = |parsed: &api::Parsed| match &parsed.outcome {
        Outcome::Keep(object) => format!("{} {}", object.kind(), object.name()),
        Outcome::Ignore(name, reason) => format!("ignored {name}: {reason}"),
        Outcome::Reject(rejection) => format!("rejected {rejection}"),
    };
    manifests.objects.iter().map(show).collect()
}

const SERVICE: &str = "
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.96.0.9
  ports: [{port: 80}]
";

#[test]
fn several_documents_lists_and_other_kinds() {
    let text = format!(
        "# nothing here\n---\n{SERVICE}---\nkind: Deployment\nmetadata: {{name: web}}\n---\nkind: List\nitems:\n\
         - kind: Node\n  metadata: {{name: node-1}}\n- kind: EndpointSlice\n  metadata:\n    name: web-1\n    labels: \
         {{kubernetes.io/service-name: web}}\n  addressType: IPv4\n  endpoints: [{{addresses: [10.0.0.1]}}]\n  ports: \
         [{{port: 8080}}]\n---\n"
    );
    let manifests = yaml(&text);
    assert_eq!(shown(&manifests), ["Service shop/web", "Node node-1", "EndpointSlice default/web-1"]);
    assert_eq!(manifests.other_kinds, ["Deployment"]);
    let Outcome::Keep(Object::EndpointSlice(slice)) = &manifests.objects[2].outcome else {
        panic!("not a slice")
    };
    assert_eq!((&*slice.ports[0].name, slice.ports[0].port), ("", 8080));
}

#[test]
fn json_is_the_same() {
    let text = r#"{"kind": "Service", "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"clusterIP": "10.96.0.9", "ports": [{"port": 80}]}}"#;
    let twice = format!("{text}\n{text}");
    let json = parse_manifests(&twice, ManifestFormat::Json, &mut Interner::default()).unwrap();
    assert_eq!(json.objects[0], yaml(SERVICE).objects[0]);
    assert_eq!(json.objects.len(), 2);
}

#[test]
fn cluster_ips_are_completed_as_the_server_does() {
    let ips = |spec: &str| {
        let text = format!("kind: Service\nmetadata: {{name: web}}\nspec: {spec}\n");
        match &yaml(&text).objects[0].outcome {
            Outcome::Keep(Object::Service(service)) => {
                service.cluster_ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
            }
            other => format!("{other:?}"),
        }
    };
    assert_eq!(ips("{clusterIP: 10.96.0.9}"), "10.96.0.9");
    assert_eq!(ips("{clusterIPs: [10.96.0.9, 'fd00::9']}"), "10.96.0.9 fd00::9");
    assert_eq!(ips("{clusterIP: 'fd00::9', clusterIPs: ['fd00::9']}"), "fd00::9");
    assert_eq!(ips("{clusterIP: 10.96.0.9, ipFamilies: [IPv4]}"), "10.96.0.9");
}

#[test]
fn a_bad_document_is_rejected_alone() {
    let text = format!("{SERVICE}---\n{}", SERVICE.replace("80", "'80'"));
    let shown = shown(&yaml(&text));
    assert_eq!(shown[0], "Service shop/web");
    assert_eq!(
        shown[1],
        "rejected Service shop/web: spec.ports[0].port: invalid type: string \"80\", expected i64"
    );
}

#[test]
fn a_broken_file_says_where() {
    let error =
        |text: &str, format| parse_manifests(text, format, &mut Interner::default()).unwrap_err().to_string();
    let yaml = error("kind: Service\nmetadata: [unclosed\n", ManifestFormat::Yaml);
    assert!(yaml.contains("line"), "{yaml}");
    assert!(error("{\"kind\": ", ManifestFormat::Json).contains("line 1"));
    assert_eq!(error("just text", ManifestFormat::Yaml), "a document has no kind");
    assert_eq!(error("metadata: {name: x}", ManifestFormat::Yaml), "a document has no kind");
}

#[test]
fn a_large_file_is_read() {
    let documents: Vec<String> = (0..20_000).map(|i| SERVICE.replace("web", &format!("web-{i}"))).collect();
    let text = documents.join("---\n");
    assert_eq!(yaml(&text).objects.len(), 20_000);
}

/// A few hundred bytes that stand for millions of values, and other texts that would cost more than they are worth.
#[test]
fn texts_that_grow_are_refused() {
    let list = |i: usize| format!("l{i}: &l{i} [{}]\n", vec![format!("*l{}", i - 1); 10].join(", "));
    let lists = "l0: &l0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned() + &(1..7).map(list).collect::<String>();
    let merge = |i: usize| format!("m{i}: &m{i} {{a{i}: *m{0}, b{i}: *m{0}}}\n", i - 1);
    let merges = "m0: &m0 {a: b}\n".to_owned() + &(1..30).map(merge).collect::<String>();
    let scalar = format!("s: &s {}\nall: [{}]\n", "x".repeat(10_000), vec!["*s"; 2_000].join(", "));
    let many_documents = format!("{lists}---\n").repeat(3);
    for text in [&lists, &merges, &scalar, &many_documents] {
        let text = format!("kind: Service\n{text}");
        let error = parse_manifests(&text, ManifestFormat::Yaml, &mut Interner::default()).unwrap_err();
        assert!(error.to_string().contains("repeated by aliases"), "{error}");
    }
    for (deep, format) in [
        (format!("kind: {}x{}", "[".repeat(100_000), "]".repeat(100_000)), ManifestFormat::Yaml),
        ((0..300).map(|depth| " ".repeat(depth) + "a:\n").collect(), ManifestFormat::Yaml),
        ("[".repeat(100_000), ManifestFormat::Json),
        ("{\"a\":".repeat(100_000), ManifestFormat::Json),
    ] {
        assert!(parse_manifests(&deep, format, &mut Interner::default()).is_err());
    }
}

/// Anchors are for people, and stay useful.
#[test]
fn aliases_are_read_where_they_are_meant() {
    let slice = "kind: EndpointSlice\nmetadata: {name: NAME, labels: {kubernetes.io/service-name: web}}\naddressType: IPv4\n\
                 ports: &ports [{port: 80, name: a}, {port: 81, name: b}]\nendpoints: [{addresses: [10.0.0.1]}]\nmore: {ports: *ports}\n---\n";
    let text: String = (0..500).map(|i| slice.replace("NAME", &format!("web-{i}"))).collect();
    assert_eq!(yaml(&text).objects.len(), 500);
    let services: Vec<String> =
        (0..500).map(|i| format!("- {{kind: Service, metadata: {{name: s{i}}}, spec: *spec}}\n")).collect();
    let text = format!(
        "spec: &spec {{clusterIP: 10.96.0.9, ports: [{{port: 80}}]}}\nkind: List\nitems:\n{}",
        services.concat()
    );
    assert_eq!(yaml(&text).objects.len(), 500);
}
