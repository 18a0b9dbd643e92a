//! Flows of real packets through real rules.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};

use conntrack::{Conntrack, Family, Flow};
use kernel::Flows;

use crate::site::{FAMILIES, PATIENCE, Site, command, count, exchange, in_netns, listed, port, udp};

/// The endpoint of a Service is replaced while clients of it and of others go on sending.
#[test]
fn flows_to_an_endpoint_that_is_gone_go_and_no_others() {
    for family in FAMILIES {
        in_netns(|| {
            let other_family = if family == Family::Ip { Family::Ip6 } else { Family::Ip };
            let (site, other) = (Site::new(family), Site::new(other_family));
            let ([old, new], [other_server, _]) = (site.servers(), other.servers());
            let [old_endpoint, new_endpoint] = site.endpoints;
            site.balance(&[(53, old_endpoint), (54, old_endpoint)]);
            other.balance(&[(53, other.endpoints[0])]);
            let tcp = TcpListener::bind(old_endpoint).unwrap();
            let mut connection = TcpStream::connect(site.service(53)).unwrap();
            let (mut accepted, _) = tcp.accept().unwrap();
            accepted.set_read_timeout(Some(PATIENCE)).unwrap();
            let [stale, stale_too, other_port, direct, fresh] = [(); 5].map(|()| site.client());
            for client in [&stale, &stale_too] {
                exchange(client, site.service(53), &old);
            }
            exchange(&other_port, site.service(54), &old);
            exchange(&direct, old_endpoint, &old);
            let other_client = other.client();
            exchange(&other_client, other.service(53), &other_server);
            site.balance(&[(53, new_endpoint), (54, old_endpoint)]);
            exchange(&fresh, site.service(53), &new);
            let before = (listed(family), listed(other_family));
            assert!(before.0.len() >= 6, "{before:?}");

            let mut asked = Vec::new();
            let deleted = Flows::open().unwrap().delete(&site.udp().to(site.service(53)), &mut |flow| {
                asked.push(*flow);
                flow.answered_by() == old_endpoint
            });

            assert_eq!(deleted.unwrap(), 2);
            asked.sort_unstable_by_key(|flow| flow.orig.src_port);
            let mut wanted = [&stale, &stale_too, &fresh].map(port);
            wanted.sort_unstable();
            assert_eq!(asked.iter().map(|flow| flow.orig.src_port).collect::<Vec<_>>(), wanted);
            assert!(asked.iter().all(|flow| flow.is_dnat() && flow.is_replied()));
            let mut left = before.0;
            assert!(left.remove(&udp(&stale, 53)) && left.remove(&udp(&stale_too, 53)));
            assert_eq!((listed(family), listed(other_family)), (left, before.1));
            // The next packet of the same client is decided anew, and what was not stale goes on.
            exchange(&stale, site.service(53), &new);
            exchange(&fresh, site.service(53), &new);
            exchange(&other_port, site.service(54), &old);
            exchange(&direct, old_endpoint, &old);
            exchange(&other_client, other.service(53), &other_server);
            connection.write_all(b"hello").unwrap();
            accepted.read_exact(&mut [0; 5]).unwrap();
        });
    }
}

/// Clients that were sending before the Service existed: nobody translates their packets until the flow is gone.
#[test]
fn flows_that_were_never_translated_are_found() {
    for family in FAMILIES {
        in_netns(|| {
            let site = Site::new(family);
            let [server, _] = site.servers();
            let early = site.client();
            early.send_to(b"lost", site.service(53)).unwrap();
            early.send_to(b"lost", site.service(99)).unwrap();
            site.balance(&[(53, site.endpoints[0])]);
            let late = site.client();
            exchange(&late, site.service(53), &server);
            let mut flows = Flows::open().unwrap();
            let untranslated = site.udp().to(site.service(53)).answered_by(site.service(53));
            let mut found = Vec::new();
            flows.each(&untranslated, &mut |flow| found.push(*flow)).unwrap();
            let [flow] = found[..] else { unreachable!("{found:?}") };
            assert!(!flow.is_dnat() && !flow.is_replied() && flow.orig.src_port == port(&early), "{flow:?}");

            assert_eq!(flows.delete(&untranslated, &mut |_| true).unwrap(), 1);

            assert_eq!(listed(family), [udp(&late, 53), udp(&early, 99)].into());
            exchange(&early, site.service(53), &server);
        });
    }
}

#[test]
fn flows_are_found_by_each_field() {
    for family in FAMILIES {
        in_netns(|| {
            let site = Site::new(family);
            let [first, second] = site.servers();
            site.balance(&[(53, site.endpoints[0]), (54, site.endpoints[1])]);
            let [a, b, c] = [(); 3].map(|()| site.client());
            exchange(&a, site.service(53), &first);
            exchange(&b, site.service(54), &second);
            exchange(&c, site.endpoints[1], &second);
            let mut flows = Flows::open().unwrap();
            let udp = site.udp();
            let to_address = conntrack::Filter { orig_dst: Some(site.virtual_ip), ..udp };
            let from_address = conntrack::Filter { reply_src: Some(site.endpoints[1].ip()), ..udp };
            let from_port = conntrack::Filter { reply_src_port: Some(5353), ..udp };
            for kernel_filter in [true, false] {
                flows.set_kernel_filter(kernel_filter);
                for (filter, wanted) in [
                    (udp, 3),
                    (to_address, 2),
                    (udp.to_port(53), 1),
                    (udp.to_port(5353), 1),
                    (udp.to(site.service(54)), 1),
                    (from_address, 2),
                    (from_port, 3),
                    (udp.answered_by(site.endpoints[1]), 2),
                    (udp.to(site.service(54)).answered_by(site.endpoints[1]), 1),
                    (udp.to(site.service(53)).answered_by(site.endpoints[1]), 0),
                    (conntrack::Filter { protocol: 132, ..udp }, 0),
                    (conntrack::Filter { protocol: 6, ..udp }, 0),
                ] {
                    assert_eq!(
                        count(&mut flows, &filter),
                        wanted,
                        "{filter}, by the kernel: {kernel_filter}"
                    );
                }
            }
            assert_eq!(flows.delete(&udp.answered_by(site.endpoints[1]), &mut |_| true).unwrap(), 2);
            assert_eq!(listed(family), [("udp".to_owned(), port(&a), 53)].into());
        });
    }
}

/// Between reading and deletion the client's flow ends, and its next packet makes another: one to the same Service
/// that goes to another endpoint, or one to another Service that goes to the same endpoint. Each has one tuple in common
/// with the flow that was read.
#[test]
fn what_took_the_place_of_a_flow_is_not_hit() {
    for family in FAMILIES {
        for (service, endpoint) in [(53, 1), (54, 0)] {
            in_netns(|| {
                let site = Site::new(family);
                let servers = site.servers();
                let [client, ended] = [(); 2].map(|()| site.client());
                site.balance(&[(53, site.endpoints[0])]);
                for client in [&client, &ended] {
                    exchange(client, site.service(53), &servers[0]);
                }
                let mut asked = 0;
                let deleted = Flows::open().unwrap().delete(&site.udp().to_port(53), &mut |_| {
                    asked += 1;
                    if asked == 1 {
                        let protocol = if family == Family::Ip { "ipv4" } else { "ipv6" };
                        command("conntrack", &["-D", "-f", protocol, "-p", "udp"], "");
                        site.balance(&[(service, site.endpoints[endpoint])]);
                        exchange(&client, site.service(service), &servers[endpoint]);
                    }
                    true
                });
                assert_eq!((deleted.unwrap(), asked), (0, 2));
                assert_eq!(listed(family), [udp(&client, service)].into());
                exchange(&client, site.service(service), &servers[endpoint]);
            });
        }
    }
}

#[test]
fn a_panic_of_the_caller_is_survived() {
    in_netns(|| {
        let site = Site::new(Family::Ip);
        let [server, _] = site.servers();
        site.balance(&[(53, site.endpoints[0])]);
        let clients = [(); 3].map(|()| site.client());
        for client in &clients {
            exchange(client, site.service(53), &server);
        }
        let mut flows = Flows::open().unwrap();
        let filter = site.udp().to_port(53);
        let mut n_asked = 0;
        let mut panicky = |_: &Flow| {
            n_asked += 1;
            assert!(n_asked < 3, "staged");
            true
        };
        let result = catch_unwind(AssertUnwindSafe(|| flows.delete(&filter, &mut panicky)));
        assert!(result.is_err());
        assert_eq!(count(&mut flows, &filter), 3);
        // What the earlier call wanted to delete is forgotten.
        let one = |flow: &Flow| flow.orig.src_port == port(&clients[1]);
        assert_eq!(flows.delete(&filter, &mut { one }).unwrap(), 1);
        assert_eq!(count(&mut flows, &filter), 2);
    });
}
