//! Nothing is left behind, neither in this process nor on the host. One test in a process of its own, because it
//! counts the threads and descriptors of the whole process.
#![expect(clippy::unwrap_used, reason = "in a test, a failure is a panic; its helpers are no exception")]

use std::fs;
use std::process::Command;
use std::time::Duration;

use lab::client::{Load, LoadGenerator, Transport, tcp_once};
use lab::echo::{EchoServer, Mode};
use lab::proxy::wait_until;
use lab::{Config, Lab};

/// What a laboratory could leave on the host.
#[derive(Debug, PartialEq)]
struct Host {
    links: String,
    rules: String,
    names: Vec<String>,
    mounts: String,
    forwarding: String,
}

fn host() -> Host {
    let run = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).output().unwrap();
        assert!(output.status.success(), "{program}");
        String::from_utf8(output.stdout).unwrap()
    };
    let mut names: Vec<String> = fs::read_dir("/run/netns")
        .map(|entries| entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect())
        .unwrap_or_default();
    names.sort();
    Host {
        links: run("ip", &["-o", "link"]),
        rules: run("nft", &["list", "ruleset"]),
        names,
        mounts: fs::read_to_string("/proc/self/mounts").unwrap(),
        forwarding: fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap(),
    }
}

fn count(folder: &str) -> usize {
    fs::read_dir(folder).unwrap().count()
}

fn use_a_lab() {
    let lab = Lab::new(&Config::default()).unwrap();
    let pod = lab.pod(0);
    let server = EchoServer::start(pod, "pod0", &[(80, Mode::Line), (80, Mode::Udp)]).unwrap();
    lab.node().nft("table ip leak { chain c { type filter hook input priority 0; }; }").unwrap();
    let target = (pod.ip4(), server.port(0)).into();
    lab.node().run(|| tcp_once(target, Duration::from_secs(5))).unwrap();
    let load = Load { target, transport: Transport::Tcp, rate: 1000, timeout: Duration::from_secs(5) };
    let generator = LoadGenerator::start(lab.node(), load).unwrap();
    assert!(wait_until(Duration::from_secs(30), || generator.snapshot().succeeded > 0), "nobody answers");
    drop(generator);
}

#[test]
fn forty_labs_leave_nothing_behind() {
    use_a_lab();
    let before = (host(), count("/proc/self/fd"), count("/proc/self/task"));
    for _ in 0..40 {
        use_a_lab();
    }
    // A joined thread may still be listed for a moment while it exits.
    wait_until(Duration::from_secs(30), || count("/proc/self/task") == before.2);
    assert_eq!((host(), count("/proc/self/fd"), count("/proc/self/task")), before);
}
