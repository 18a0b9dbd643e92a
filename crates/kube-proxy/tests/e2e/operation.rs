//! What operators may ask for besides upstream's options, each as they would see it.

mod canary;
mod external_ips;
mod reset;
mod startup_taint;

use std::process::Command;

use lab::proxy::{Proxy, wait_until};
use testkit::cluster::Cluster;

use crate::support::{PATIENCE, program};

/// Starts the proxy with these arguments besides, and waits until its rules are in place.
#[track_caller]
fn start_with(cluster: &Cluster, arguments: &[&str]) -> Proxy {
    let own = cluster.arguments();
    let all: Vec<&str> = own.iter().map(String::as_str).chain(arguments.iter().copied()).collect();
    let proxy = Proxy::start(cluster.lab.node(), program(), &all).unwrap();
    let has_synced = |family: &str| {
        proxy.log().iter().any(|line| line.contains("the kernel's rules") && line.contains(family))
    };
    let is_ready = wait_until(PATIENCE, || ["IPv4", "IPv6"].into_iter().all(has_synced));
    assert!(is_ready, "{}", proxy.log().join("\n"));
    proxy
}

/// What a command prints that asks the proxy.
#[track_caller]
fn told(cluster: &Cluster, arguments: &[&str]) -> String {
    let output = cluster.lab.node().run(|| Command::new(program()).args(arguments).output().unwrap());
    String::from_utf8(output.stdout).unwrap()
}
