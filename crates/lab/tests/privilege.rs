//! What happens without privileges: a clear failure, or a laboratory in a user namespace.
//!
//! Has its own `main` instead of the test harness, because only a process with one thread may enter a user namespace.
//! It starts itself again as an unprivileged user, once for each case.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test that is its own harness")]

use std::process::{Command, ExitCode};
use std::time::Duration;

use lab::client::tcp_once;
use lab::echo::{EchoServer, Mode};
use lab::{Config, IpFamily, Lab, LabError, enter_user_namespace, require_privilege};

type Case = (&'static str, fn());

const CASES: [Case; 3] = [
    ("without_privilege_building_fails_and_says_what_to_do", fails_clearly),
    ("a_process_with_threads_cannot_enter_a_user_namespace", fails_with_threads),
    ("an_unprivileged_user_gets_a_laboratory_in_a_user_namespace", works_in_a_user_namespace),
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let Some((_, case)) = CASES.iter().find(|(name, _)| args.as_slice() == ["--case", name]) {
        case();
        return ExitCode::SUCCESS;
    }
    // The arguments that cargo and its users give to a harness: a list is asked for, or a filter given.
    if args.iter().any(|arg| arg == "--list") {
        for (name, _) in &CASES {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    let filters: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let chosen =
        CASES.iter().filter(|(name, _)| filters.is_empty() || filters.iter().any(|f| name.contains(*f)));
    let mut code = ExitCode::SUCCESS;
    for (name, _) in chosen {
        let passed = run_unprivileged(name);
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
        if !passed {
            code = ExitCode::FAILURE;
        }
    }
    code
}

/// Runs one case in a child process as the user "nobody"; root drops its privileges for that.
fn run_unprivileged(name: &str) -> bool {
    let own = std::env::current_exe().unwrap();
    let mut command = if require_privilege().is_ok() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"]).arg(own);
        command
    } else {
        Command::new(own)
    };
    command.args(["--case", name]).status().unwrap().success()
}

fn fails_clearly() {
    let error = Lab::new(&Config::default()).unwrap_err();
    assert!(matches!(error, LabError::MissingPrivilege { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("CAP_SYS_ADMIN and CAP_NET_ADMIN"), "{text}");
    assert!(text.contains("unshare -Urn"), "{text}");
}

fn fails_with_threads() {
    std::thread::scope(|scope| {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        scope.spawn(move || stopped.recv());
        let error = enter_user_namespace().unwrap_err();
        assert!(error.to_string().contains("several threads"), "{error}");
        drop(stop);
    });
}

fn works_in_a_user_namespace() {
    enter_user_namespace().unwrap();
    // Entering twice is harmless.
    enter_user_namespace().unwrap();
    let lab = Lab::new(&Config::default()).unwrap();
    let _server = EchoServer::start(lab.node2_pod(0), "far", &[(80, Mode::Line)]).unwrap();
    for family in IpFamily::ALL {
        let addr = lab.node2_pod(0).socket(family, 80);
        let reply = lab.pod(0).run(|| tcp_once(addr, Duration::from_secs(5))).unwrap();
        assert_eq!((reply.name.as_str(), reply.client.ip()), ("far", lab.pod(0).ip(family)));
    }
    lab.node().nft("table inet t { chain c { type nat hook prerouting priority 0; }; }").unwrap();
    assert!(lab.check_listable().unwrap().text.contains("table inet t"));
}
