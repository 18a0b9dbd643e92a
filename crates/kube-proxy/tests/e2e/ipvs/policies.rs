//! Beside others' firewalls.

use lab::client::Transport;

use super::{cluster, state, wait_until_served};
use crate::support::{NODE_PORT, WEB_V4, WEB_V6, apply_web, ask, ip, start};

const PROGRAMS: [&str; 2] = ["iptables", "ip6tables"];

/// What clients send is never forwarded: IPVS takes it from input to output. Answers are, as packets of established flows.
#[test]
#[ignore = "needs a kernel with IPVS"]
fn where_nothing_is_forwarded_but_established_flows_services_are_served() {
    let cluster = cluster(2, 1);
    let node = cluster.lab.node();
    let established = "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT";
    for program in PROGRAMS {
        node.exec(program, &["-P", "FORWARD", "DROP"]).unwrap();
        node.exec(program, &established.split(' ').collect::<Vec<_>>()).unwrap();
    }
    apply_web(&cluster);
    let _proxy = start(&cluster);
    wait_until_served(&cluster, &[WEB_V4, WEB_V6]);
    let lab = &cluster.lab;
    let addresses =
        [(ip(WEB_V4), 80), (ip(WEB_V6), 80), (node.ip4().into(), NODE_PORT), (node.ip6().into(), NODE_PORT)];
    for client in [lab.outside(), lab.pod(0), lab.pod(1), node] {
        for (address, port) in addresses {
            for transport in [Transport::Tcp, Transport::Udp] {
                // In turn: each endpoint is met.
                for _ in 0..3 {
                    let answer = ask(client, transport, (address, port).into());
                    assert!(
                        answer.is_ok(),
                        "{} to {address} {transport:?}: {answer:?}\n{}",
                        client.name(),
                        state(&cluster)
                    );
                }
            }
        }
    }
    for program in PROGRAMS {
        node.exec(program, &["-D", "FORWARD", "1"]).unwrap();
    }
    let answer = ask(lab.outside(), Transport::Tcp, (ip(WEB_V4), 80).into());
    assert!(answer.is_err(), "the policy is at work: {answer:?}");
}
