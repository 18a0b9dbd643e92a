//! Flows in zones, which other software sets.

use conntrack::{Conntrack, Family};
use kernel::Flows;

use crate::site::{Site, command, exchange, in_netns, listed, udp};

#[test]
fn flows_in_zones_are_deleted_like_others() {
    in_netns(|| {
        let site = Site::new(Family::Ip);
        let [server, _] = site.servers();
        let services = [53, 54, 55, 56].map(|port| (port, site.endpoints[0]));
        site.balance(&services);
        let zones = "table ip z {
             chain c {
                 type filter hook output priority -300
                 udp dport 53 ct zone set 7
                 udp dport 54 ct original zone set 8
                 udp dport 55 ct reply zone set 9
                 ip saddr 127.0.0.2 ct zone set 7
             }
         }";
        // Answers come back in the zones of their flows only where a rule says so, which is for the first packet of none
        // of these: so only the packets of the clients count here.
        command("nft", &["-f", "-"], zones);
        let clients = services.map(|(port, _)| {
            let client = site.client();
            client.send_to(b"x", site.service(port)).unwrap();
            let mut received = [0; 1];
            server.recv_from(&mut received).unwrap();
            client
        });
        let all: Vec<_> =
            services.iter().zip(&clients).map(|((port, _), client)| udp(client, *port)).collect();
        assert_eq!(listed(Family::Ip), all.iter().cloned().collect());
        let mut flows = Flows::open().unwrap();
        let mut zones = Vec::new();
        flows
            .each(&site.udp(), &mut |flow| zones.push((flow.orig.dst_port, flow.orig_zone, flow.reply_zone)))
            .unwrap();
        zones.sort_unstable();
        assert_eq!(zones, [(53, 7, 7), (54, 8, 0), (55, 0, 9), (56, 0, 0)]);
        for n in 0..4 {
            let filter = site.udp().to(site.service(services[n].0));
            assert_eq!(flows.delete(&filter, &mut |_| true).unwrap(), 1, "{filter}");
            assert_eq!(listed(Family::Ip), all[n + 1..].iter().cloned().collect());
        }
        command("nft", &["delete", "table", "ip", "z"], "");
        exchange(&clients[0], site.service(53), &server);
    });
}
