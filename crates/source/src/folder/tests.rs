use std::fs;

use model::{Change, Kind};
use tokio::sync::mpsc::{Receiver, channel};

use super::*;

struct Watched {
    dir: tempfile::TempDir,
    rx: Receiver<SourceEvent>,
    _source: crate::Source,
}

fn metrics() -> metrics::SourceMetrics {
    metrics::Metrics::new(&metrics::Options::default()).source
}

const LIMIT: Duration = Duration::from_secs(20);

async fn watched() -> Watched {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.yaml"), service("web")).unwrap();
    let (tx, rx) = channel(100);
    let source = crate::spawn_folder(dir.path().to_owned(), metrics(), tx).unwrap();
    let mut watched = Watched { dir, rx, _source: source };
    for kind in Kind::ALL {
        assert_eq!(watched.listed(kind).await, if kind == Kind::Service { vec!["web"] } else { vec![] });
        assert_eq!(watched.rx.recv().await, Some(SourceEvent::Listed(kind)));
    }
    watched
}

fn service(name: &str) -> String {
    format!("kind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: 10.96.0.1}}\n---\n")
}

impl Watched {
    /// The names in the next listing, which must be of this kind.
    async fn listed(&mut self, expected: Kind) -> Vec<String> {
        match tokio::time::timeout(LIMIT, self.rx.recv()).await.unwrap() {
            Some(SourceEvent::Change(Change::Replace { kind, objects, .. })) => {
                assert_eq!(kind, expected);
                objects.iter().map(|object| object.name().name.to_string()).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

#[tokio::test]
async fn files_are_written_renamed_and_removed() {
    let mut watched = watched().await;
    fs::write(watched.path("b.yaml"), service("b")).unwrap();
    // Between creation and closing the file is there, but empty; that says nothing new.
    assert_eq!(watched.listed(Kind::Service).await, ["b", "web"]);

    fs::write(watched.path("b.yaml~"), service("c")).unwrap();
    fs::rename(watched.path("b.yaml~"), watched.path("b.yaml")).unwrap();
    assert_eq!(watched.listed(Kind::Service).await, ["c", "web"]);

    fs::rename(watched.path("b.yaml"), watched.path("b.txt")).unwrap();
    assert_eq!(watched.listed(Kind::Service).await, ["web"]);

    fs::remove_file(watched.path("a.yaml")).unwrap();
    assert_eq!(watched.listed(Kind::Service).await, Vec::<String>::new());
}

#[tokio::test]
async fn a_config_map_swaps_its_link() {
    let mut watched = watched().await;
    let version = |name: &str, text: &str| {
        fs::create_dir(watched.path(name)).unwrap();
        fs::write(watched.path(name).join("m.yaml"), service(text)).unwrap();
    };
    version("..1", "one");
    version("..2", "two");
    std::os::unix::fs::symlink("..1", watched.path("..data")).unwrap();
    std::os::unix::fs::symlink("..data/m.yaml", watched.path("m.yaml")).unwrap();
    assert_eq!(watched.listed(Kind::Service).await, ["one", "web"]);
    std::os::unix::fs::symlink("..2", watched.path("..data_tmp")).unwrap();
    fs::rename(watched.path("..data_tmp"), watched.path("..data")).unwrap();
    assert_eq!(watched.listed(Kind::Service).await, ["two", "web"]);
}

#[tokio::test]
async fn a_half_written_file_changes_nothing() {
    use std::io::Write as _;
    let mut watched = watched().await;
    let mut file = fs::File::create(watched.path("a.yaml")).unwrap();
    file.write_all(service("web").as_bytes()).unwrap();
    // Another file's event makes the folder be read while this one is open.
    fs::write(watched.path("b.yaml"), service("b")).unwrap();
    assert_eq!(watched.listed(Kind::Service).await, ["b", "web"]);
    file.write_all(service("more").as_bytes()).unwrap();
    drop(file);
    assert_eq!(watched.listed(Kind::Service).await, ["b", "more", "web"]);
}

#[tokio::test]
async fn a_folder_that_comes_back_is_read_again() {
    let mut watched = watched().await;
    let away = watched.dir.path().with_extension("away");
    fs::rename(watched.dir.path(), &away).unwrap();
    let problem = tokio::time::timeout(LIMIT, watched.rx.recv()).await.unwrap();
    assert!(
        matches!(&problem, Some(SourceEvent::Problem { text, .. }) if text.contains("is gone")),
        "{problem:?}"
    );
    fs::write(away.join("a.yaml"), service("changed")).unwrap();
    fs::rename(&away, watched.dir.path()).unwrap();
    assert_eq!(watched.listed(Kind::Service).await, ["changed"]);
}

#[tokio::test]
async fn a_folder_that_does_not_exist_is_an_error() {
    let (tx, _rx) = channel(1);
    let error = crate::spawn_folder("/nonexistent/manifests".into(), metrics(), tx).unwrap_err();
    assert_eq!(error.to_string(), "the manifest folder /nonexistent/manifests can't be watched");
}
