use super::*;

struct Dir {
    dir: tempfile::TempDir,
    scanner: Scanner,
}

fn folder() -> Dir {
    let dir = tempfile::tempdir().unwrap();
    let scanner = Scanner::new(dir.path().to_owned());
    Dir { dir, scanner }
}

fn service(name: &str, ip: &str) -> String {
    format!(
        "kind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: {ip}, ports: [{{port: 80}}]}}\n---\n"
    )
}

impl Dir {
    fn write(&self, name: &str, text: &str) {
        fs::write(self.dir.path().join(name), text).unwrap();
    }

    fn scan(&mut self) -> Vec<String> {
        self.scan_busy(&BTreeSet::new())
    }

    fn scan_busy(&mut self, busy: &BTreeSet<String>) -> Vec<String> {
        let dir = self.dir.path().display().to_string();
        self.scanner.scan(busy).iter().map(show).map(|text| text.replace(&dir, "DIR")).collect()
    }
}

fn show(event: &SourceEvent) -> String {
    match event {
        SourceEvent::Change(Change::Replace { kind, objects, keep }) => {
            let objects: Vec<String> = objects.iter().map(show_object).collect();
            format!("{kind} {objects:?} keep {keep:?}")
        }
        SourceEvent::Listed(kind) => format!("listed {kind}"),
        SourceEvent::Rejected(rejection) => format!("rejected {rejection}"),
        SourceEvent::Problem { text, .. } => format!("problem {text}"),
        other => format!("{other:?}"),
    }
}

fn show_object(object: &Object) -> String {
    match object {
        Object::Service(service) => format!("{}={}", service.name.name, service.cluster_ips[0]),
        other => other.name().to_string(),
    }
}

#[test]
fn the_first_scan_lists_every_kind() {
    let mut folder = folder();
    folder.write("a.yaml", &service("web", "10.96.0.1"));
    assert_eq!(
        folder.scan(),
        [
            "Service [\"web=10.96.0.1\"] keep []",
            "listed Service",
            "EndpointSlice [] keep []",
            "listed EndpointSlice",
            "Node [] keep []",
            "listed Node",
            "ServiceCIDR [] keep []",
            "listed ServiceCIDR",
        ]
    );
    assert_eq!(folder.scan(), Vec::<String>::new());
}

#[test]
fn only_kinds_of_changed_files_are_listed_again() {
    let mut folder = folder();
    folder.write("a.yaml", &service("web", "10.96.0.1"));
    folder.write("n.json", "{\"kind\": \"Node\", \"metadata\": {\"name\": \"node-1\"}}");
    folder.write("notes.txt", "kind: Service");
    folder.write(".hidden.yaml", &service("hidden", "10.96.0.9"));
    folder.scan();
    folder.write("a.yaml", &service("web", "10.96.0.2"));
    assert_eq!(folder.scan(), ["Service [\"web=10.96.0.2\"] keep []"]);
    fs::remove_file(folder.dir.path().join("n.json")).unwrap();
    assert_eq!(folder.scan(), ["Node [] keep []"]);
}

#[test]
fn a_broken_file_keeps_its_last_good_content() {
    let mut folder = folder();
    folder.write("a.yaml", &service("web", "10.96.0.1"));
    folder.write("b.yaml", &service("other", "10.96.0.3"));
    folder.scan();
    folder.write("a.yaml", "kind: [");
    let told = folder.scan();
    assert!(told.len() == 1 && told[0].starts_with("problem DIR/a.yaml: "), "{told:?}");
    assert_eq!(folder.scan(), Vec::<String>::new(), "the same problem is said once");
    folder.write("b.yaml", &service("other", "10.96.0.4"));
    assert_eq!(folder.scan(), ["Service [\"other=10.96.0.4\", \"web=10.96.0.1\"] keep []"]);
    folder.write("a.yaml", &service("web", "10.96.0.2"));
    assert_eq!(folder.scan(), ["Service [\"other=10.96.0.4\", \"web=10.96.0.2\"] keep []"]);
}

#[test]
fn a_rejected_object_is_kept_by_name() {
    let mut folder = folder();
    folder.write("a.yaml", &service("web", "10.96.0.1"));
    folder.scan();
    folder.write("a.yaml", &(service("web", "10.96.0.999") + &service("new", "10.96.0.5")));
    assert_eq!(
        folder.scan(),
        [
            "rejected Service default/web: spec.clusterIPs[0]: \"10.96.0.999\" is not an IP address",
            "rejected Service default/web: spec.clusterIPs: \"10.96.0.999\" is not an IP address",
            "Service [\"new=10.96.0.5\"] keep [ObjectName { namespace: \"default\", name: \"web\" }]",
        ]
    );
}

#[test]
fn of_two_files_with_the_same_object_the_first_counts() {
    let mut folder = folder();
    folder.write("b.yaml", &service("web", "10.96.0.2"));
    folder.write("a.yml", &service("web", "10.96.0.1"));
    let told = folder.scan();
    assert_eq!(
        &told[..2],
        [
            "problem Service default/web is in a.yml and again in b.yaml; the first one counts",
            "Service [\"web=10.96.0.1\"] keep []",
        ]
    );
    fs::remove_file(folder.dir.path().join("a.yml")).unwrap();
    assert_eq!(folder.scan(), ["Service [\"web=10.96.0.2\"] keep []"]);
}

#[test]
fn a_file_being_written_is_left_alone() {
    let mut folder = folder();
    folder.write("a.yaml", &service("web", "10.96.0.1"));
    folder.scan();
    folder.write("a.yaml", "");
    assert_eq!(folder.scan_busy(&BTreeSet::from(["a.yaml".to_owned()])), Vec::<String>::new());
    assert_eq!(folder.scan(), ["Service [] keep []"]);
}

/// Whatever stands in the folder under a manifest's name is told once, and passed over; the rest is served.
#[test]
fn what_is_no_manifest_is_told_and_passed_over() {
    let mut folder = folder();
    let at = |name: &str| folder.dir.path().join(name);
    fs::write(at("good.yaml"), service("web", "10.96.0.1")).unwrap();
    nix::unistd::mkfifo(&at("pipe.yaml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(at("socket.yaml")).unwrap();
    std::os::unix::fs::symlink("/dev/zero", at("device.yaml")).unwrap();
    std::os::unix::fs::symlink("loop.yaml", at("loop.yaml")).unwrap();
    std::os::unix::fs::symlink("nowhere", at("dangling.yaml")).unwrap();
    std::os::unix::fs::symlink(folder.dir.path(), at("folder.yaml")).unwrap();
    std::os::unix::fs::symlink("good.yaml", at("twin.yml")).unwrap();
    fs::File::create(at("huge.json")).unwrap().set_len(1 << 40).unwrap();
    fs::write(at("binary.json"), [0xff, 0xfe]).unwrap();
    fs::write(at("bomb.yaml"), bomb()).unwrap();
    let told = folder.scan();
    for (name, reason) in [
        ("pipe.yaml", "it is a named pipe, and not a regular file"),
        ("socket.yaml", "it is a socket, and not a regular file"),
        ("device.yaml", "it is a device, and not a regular file"),
        ("folder.yaml", "it is a folder, and not a regular file"),
        ("loop.yaml", "Too many levels of symbolic links"),
        ("dangling.yaml", "No such file"),
        ("huge.json", "it has more than 134217728 bytes"),
        ("binary.json", "invalid data"),
        ("bomb.yaml", "aliases"),
    ] {
        let text = format!("problem DIR/{name}: ");
        let found = told.iter().find(|told| told.starts_with(&text)).unwrap_or_else(|| panic!("{told:?}"));
        assert!(found.contains(reason) && found.ends_with("; passed over"), "{found}");
    }
    assert!(told.contains(&"Service [\"web=10.96.0.1\"] keep []".to_owned()), "{told:?}");
    assert_eq!(folder.scan(), Vec::<String>::new(), "once");

    // A manifest in whose place something else comes keeps what it said.
    fs::remove_file(folder.dir.path().join("twin.yml")).unwrap();
    let good = folder.dir.path().join("good.yaml");
    fs::remove_file(&good).unwrap();
    nix::unistd::mkfifo(&good, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let told = folder.scan();
    assert!(told.iter().any(|told| told.ends_with("; its last good content stays in force")), "{told:?}");
    assert!(told.contains(&"Service [\"web=10.96.0.1\"] keep []".to_owned()), "{told:?}");
}

/// 10,000 Services in one file are more than that.
#[test]
fn a_file_of_many_megabytes_is_read() {
    let mut folder = folder();
    let comment = "# a line of no meaning, which makes the file large\n".repeat(400_000);
    folder.write("large.yaml", &(comment + &service("web", "10.96.0.1")));
    let told = folder.scan();
    assert!(told.contains(&"Service [\"web=10.96.0.1\"] keep []".to_owned()), "{told:?}");
}

/// Lists of lists by alias: ten million entries.
fn bomb() -> String {
    let list = |i: usize| format!("l{i}: &l{i} [{}]\n", vec![format!("*l{}", i - 1); 10].join(", "));
    "l0: &l0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned() + &(1..7).map(list).collect::<String>()
}

#[test]
fn a_missing_folder_is_a_problem_and_loses_nothing() {
    let mut folder = folder();
    folder.write("a.yaml", &service("web", "10.96.0.1"));
    folder.scan();
    let moved = folder.dir.path().with_extension("moved");
    fs::rename(folder.dir.path(), &moved).unwrap();
    let told = folder.scan();
    assert!(told.len() == 1 && told[0].starts_with("problem the folder DIR can't be read"), "{told:?}");
    fs::rename(&moved, folder.dir.path()).unwrap();
    assert_eq!(folder.scan(), Vec::<String>::new());
}
