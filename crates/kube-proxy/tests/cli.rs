//! The program from outside: what it prints where, and its exit codes. Needs no privilege.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::path::Path;
use std::process::{Command, Output};

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kube-proxy")).args(arguments).output().unwrap()
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

#[track_caller]
fn fails(arguments: &[&str], with: &str) {
    let output = run(arguments);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(stdout(&output), "");
    let line = stderr(&output).lines().find(|line| line.contains("command failed")).unwrap();
    assert!(line.contains(with), "{line}");
}

#[test]
fn help_and_version_go_to_standard_output() {
    let help = run(&["--help"]);
    assert_eq!((help.status.code(), stderr(&help)), (Some(0), ""));
    assert!(stdout(&help).contains("--proxy-mode <MODE>"));
    let version = run(&["--version"]);
    assert_eq!((version.status.code(), stderr(&version)), (Some(0), ""));
    assert!(stdout(&version).starts_with("Kubernetes v1.36."));
    // The command is the flag's twin.
    let command = run(&["version"]);
    assert_eq!((command.status.code(), stdout(&command)), (Some(0), stdout(&version)));
    assert_eq!(stdout(&version).lines().count(), 1);
}

#[test]
fn a_mistaken_flag_shows_the_usage() {
    let output = run(&["--bogus"]);
    assert_eq!((output.status.code(), stdout(&output)), (Some(1), ""));
    assert!(stderr(&output).contains("Usage: kube-proxy [flags]"));
    assert!(stderr(&output).ends_with("\n\nError: unknown flag: --bogus\n"));
}

#[test]
fn a_mistaken_argument_does_not() {
    let output = run(&["start"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stderr(&output), "Error: \"kube-proxy\" does not take any arguments, got [\"start\"]\n");
}

#[test]
fn later_errors_are_logged_with_their_phase() {
    fails(&["--config=/nonexistent"], "failed complete: read /nonexistent");
    fails(&["--logging-format=xml"], "initialize logging: logging.format");
    fails(&["--oom-score-adj=2000", "--conntrack-min=-1"], "failed validate: [conntrack.min: ");
}

#[test]
fn the_configuration_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("written");
    std::fs::write(&path, "what was there before, longer than anything\n".repeat(1000)).unwrap();
    let flag = format!("--write-config-to={}", path.display());
    // It counts more than the other ways to end.
    let output = run(&[&flag, "--cleanup", "--init-only", "--proxy-mode=nftables", "--healthz-port=1"]);
    assert_eq!((output.status.code(), stdout(&output)), (Some(0), ""), "{output:?}");
    assert!(stderr(&output).contains("Wrote configuration"));
    assert!(stderr(&output).starts_with("Flag --healthz-port has been deprecated"));
    let written = std::fs::read_to_string(&path).unwrap();
    assert!(written.starts_with("apiVersion: kubeproxy.config.k8s.io/v1alpha1\nbindAddress: 0.0.0.0\n"));
    again_is_the_same(&path, &written);
}

/// Reads the file as a configuration and writes it once more.
fn again_is_the_same(path: &Path, written: &str) {
    let again = path.with_extension("again");
    let flags = [format!("--config={}", path.display()), format!("--write-config-to={}", again.display())];
    let output = run(&flags.each_ref().map(String::as_str));
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(std::fs::read_to_string(again).unwrap(), written);
    assert!(!stderr(&output).contains("no effect"), "{output:?}");
}

#[test]
fn a_path_that_cant_be_written_is_an_error() {
    fails(&["--write-config-to=/nonexistent/file"], "write /nonexistent/file");
}

#[test]
fn flags_are_logged_at_level_1() {
    let dir = tempfile::tempdir().unwrap();
    let flag = format!("--write-config-to={}", dir.path().join("f").display());
    let output = run(&[&flag, "-v=1", "--conntrack-udp-timeout=90s"]);
    assert!(stderr(&output).contains(r#"FLAG: --conntrack-udp-timeout=\"1m30s\""#), "{output:?}");
    assert!(stderr(&output).contains(r#"FLAG: --bind-address=\"0.0.0.0\""#));
    assert!(!stderr(&run(&[&flag])).contains("FLAG"));
}

/// By a real process of another user: one message, and the end. (As root it gives up its privileges for that.)
#[test]
fn without_permission_it_says_so_once_and_ends() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("kube-proxy");
    std::fs::copy(env!("CARGO_BIN_EXE_kube-proxy"), &program).unwrap();
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"])
        .arg(&program)
        .args(["--manifests", "/", "--hostname-override", "node"])
        .output()
        .expect("run setpriv");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let errors: Vec<&str> = stderr(&output).lines().filter(|line| !line.starts_with('I')).collect();
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].contains("user 65534 without the capability CAP_NET_ADMIN"), "{errors:?}");
}
