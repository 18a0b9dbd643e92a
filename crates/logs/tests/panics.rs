//! Panics are records, and come in order among the others.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::process::Command;

const CHILD: &str = "LOGS_TEST_CHILD";

/// What a program says whose thread panics; it is this test, started again.
#[test]
fn a_panic_is_a_record() {
    if std::env::var_os(CHILD).is_some() {
        return speak();
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output =
        command.args(["--exact", "a_panic_is_a_record", "--nocapture"]).env(CHILD, "1").output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    let records: Vec<&str> = text.lines().filter(|line| line.contains("] \"")).collect();
    let [before, panic, after] = records[..] else { panic!("{text}") };
    assert!(before.ends_with("\"before\""), "{before}");
    assert!(
        panic.starts_with('E') && panic.contains("\"panic\" err=\"broken\" thread=\"worker\""),
        "{panic}"
    );
    assert!(panic.contains("place=\"crates/logs/tests/panics.rs:"), "{panic}");
    assert!(after.ends_with("\"after\""), "{after}");
    assert!(!text.contains("panicked at"), "{text}");
}

fn speak() {
    let log = logs::init(logs::Config::default()).unwrap();
    tracing::info!("before");
    let worker = std::thread::Builder::new().name("worker".into()).spawn(|| panic!("broken")).unwrap();
    assert!(worker.join().is_err());
    tracing::info!("after");
    log.flush();
}
