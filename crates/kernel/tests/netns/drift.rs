//! Changes that others make to our table are seen.

use kernel::Nftables;
use nft::{Data, Expr, Family, Kernel, Op, Ruleset};

use crate::common::{
    FAMILIES, Sets, TABLE, apply, assert_is_fixture, chains, fixture, in_netns, nft, pair, read, tx,
};

const FAMILY: Family = Family::Ip;

/// The names of the chains that differ from the fixture after the command.
fn chains_changed_by(commands: &str) -> Vec<String> {
    changed_chains(&after(commands))
}

fn changed_chains(ruleset: &Ruleset) -> Vec<String> {
    let differs = |chain: &nft::Chain| {
        let state = &ruleset.chains[&chain.name];
        !state.matches(chain.base.as_ref(), &chain.rules, FAMILY)
    };
    chains(FAMILY).iter().filter(|chain| differs(chain)).map(|chain| chain.name.to_string()).collect()
}

fn after(commands: &str) -> Ruleset {
    in_netns(|| {
        apply(&fixture(FAMILY));
        nft(&["-f", "-"], commands);
        nft(&["list", "ruleset"], "");
        read(FAMILY)
    })
}

#[test]
fn a_rule_that_is_added_inserted_or_gone_is_seen() {
    assert!(chains_changed_by("").is_empty());
    assert_eq!(chains_changed_by("flush chain ip kube-proxy services"), ["services"]);
    assert_eq!(chains_changed_by("insert rule ip kube-proxy services accept"), ["services"]);
    assert_eq!(chains_changed_by("add rule ip kube-proxy filter-forward counter drop"), ["filter-forward"]);
}

/// `nft` 1.0.6 can't parse a destination map that is in the kernel already, so the whole table comes from text.
#[test]
fn a_rule_that_is_altered_is_seen() {
    let ours = "dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 3 map @endpoints";
    let fixture = fixture(FAMILY).to_string();
    assert!(fixture.contains(ours));
    for rule in [
        "dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 2 map @endpoints",
        "dnat ip to ip daddr . meta l4proto . th dport . numgen inc mod 3 map @endpoints",
        "dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 3 offset 1 map @endpoints",
        "meta l4proto { tcp, udp } dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 3 map @endpoints",
        "dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 3 map @endpoints persistent",
    ] {
        let ruleset = in_netns(|| {
            nft(&["-f", "-"], &fixture.replace(ours, rule));
            read(FAMILY)
        });
        assert_eq!(changed_chains(&ruleset), ["service-3-endpoints"], "{rule}");
    }
}

/// `nft` words many statements as we do not; none may be taken for ours, and none may fail.
#[test]
fn strange_expressions_read_as_unknown() {
    for rule in [
        "limit rate 1/second accept",
        "log prefix \"x\" counter",
        "ip saddr 1.2.3.4 snat to 5.6.7.8",
        "tcp dport { 80, 443 } redirect to :8080",
        "meta mark set ct mark",
        "tcp option maxseg size set 1000",
        "meta mark set jhash ip saddr mod 7",
        "fib saddr . iif oif eq 0 drop",
        "meta mark set numgen inc mod 3",
        "ip ttl set 3",
        "ip daddr 1.2.3.4 meta mark set meta mark << 3",
    ] {
        let rules = rules_with(rule);
        assert!(rules.iter().flatten().any(|e| matches!(e, Expr::Unknown { .. })), "{rule}: {rules:?}");
    }
}

#[test]
fn known_expressions_of_others_are_understood_but_not_taken_for_ours() {
    for rule in [
        "ct state established,related accept",
        "ip saddr vmap { 1.2.3.4 : drop, 2.3.4.5 : goto set-mark }",
        "meta l4proto tcp reject with tcp reset",
        "tcp dport 80 dnat to 1.2.3.4:80",
        "masquerade random,persistent",
        "masquerade",
        "reject with icmp host-unreachable",
    ] {
        let rules = rules_with(rule);
        assert!(!rules.iter().flatten().any(|e| matches!(e, Expr::Unknown { .. })), "{rule}: {rules:?}");
    }
}

/// The rules of the chain that suits the rule, with the rule added; the chain must not look like the fixture's.
fn rules_with(rule: &str) -> Vec<Vec<Expr>> {
    let name = match rule {
        rule if rule.contains("snat") || rule.contains("masq") => "nat-postrouting",
        rule if rule.contains("reject") => "filter-input",
        _ => "nat-prerouting",
    };
    let ruleset = after(&format!("add rule ip kube-proxy {name} {rule}"));
    assert_eq!(changed_chains(&ruleset), [name], "{rule}");
    ruleset.chains[name].rules.clone()
}

#[test]
fn a_changed_policy_or_hook_is_seen_and_the_policy_put_right() {
    let ruleset = after("add chain ip kube-proxy filter-forward { policy drop; }");
    let state = &ruleset.chains["filter-forward"];
    assert!(state.foreign && state.base.is_some());
    assert_eq!(
        chains_changed_by("add chain ip kube-proxy filter-forward { policy drop; }"),
        ["filter-forward"]
    );
    in_netns(|| {
        apply(&fixture(FAMILY));
        nft(&["add chain ip kube-proxy filter-forward { policy drop; }"], "");
        let forward = chains(FAMILY).into_iter().find(|c| &*c.name == "filter-forward").unwrap();
        apply(&tx(FAMILY, vec![Op::AddChain { name: forward.name, base: forward.base }]));
        assert_is_fixture(&read(FAMILY), FAMILY);
    });
    let moved = "delete chain ip kube-proxy filter-output\n\
                 add chain ip kube-proxy filter-output { type route hook output priority mangle; }";
    assert_eq!(chains_changed_by(moved), ["filter-output"]);
}

#[test]
fn a_dormant_table_is_seen_and_woken() {
    in_netns(|| {
        apply(&fixture(FAMILY));
        nft(&["add table ip kube-proxy { flags dormant; }"], "");
        assert!(read(FAMILY).dormant);
        apply(&tx(FAMILY, vec![Op::AddTable]));
        assert_is_fixture(&read(FAMILY), FAMILY);
    });
}

#[test]
fn a_set_of_our_name_but_not_our_kind_is_foreign() {
    let sets = Sets::new();
    for declaration in [
        "{ type ipv4_addr; }",
        "{ type inet_service . ipv4_addr; }",
        "{ typeof ip saddr . ip daddr; flags timeout; }",
        "{ typeof ip saddr . ip daddr; size 10; }",
        "{ typeof ip saddr . ip daddr; flags interval; }",
        "{ typeof ip daddr . ip saddr; }",
    ] {
        let ruleset = in_netns(|| {
            nft(&["-f", "-"], &format!("add table ip {TABLE}\nadd set ip {TABLE} hairpin {declaration}"));
            read(FAMILY)
        });
        assert!(!ruleset.sets["hairpin"].matches(&sets.hairpin), "{declaration}: {ruleset:?}");
    }
}

#[test]
fn foreign_elements_are_seen_and_can_be_deleted() {
    in_netns(|| {
        apply(&fixture(FAMILY));
        nft(&["add element ip kube-proxy service-ips { * : drop, 1.2.3.4 . tcp . 1 : continue }"], "");
        let ruleset = read(FAMILY);
        let services = &ruleset.sets["service-ips"].elements;
        assert_eq!(services.len(), 4);
        assert!(services[0].key.is_empty(), "the catch-all element");
        assert!(services.iter().any(|element| element.data == Data::None), "a verdict that is not ours");
        let foreign =
            services.iter().filter(|e| e.key.is_empty() || e.data == Data::None).map(|e| e.key).collect();
        apply(&tx(FAMILY, vec![Op::DeleteElements { set: Sets::new().services, elements: foreign }]));
        assert_is_fixture(&read(FAMILY), FAMILY);
    });
}

/// Two sets change together in every commit; a reading that saw them differ would have mixed two states.
///
/// For each reading the writer commits so many times and then rests, so that an attempt that was disturbed is followed by one
/// that is not, however slow either is.
#[test]
fn a_reading_is_of_one_state() {
    const READINGS: u32 = 20;
    const COMMITS: u32 = 50;
    in_netns(|| {
        for family in FAMILIES {
            apply(&fixture(family));
        }
        let mut writer = Nftables::open().unwrap();
        let mut reader = Nftables::open().unwrap();
        let (begin, beginnings) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for first in beginnings {
                    for n in first..first + COMMITS {
                        writer.apply(&pair(n)).unwrap();
                        std::thread::sleep(std::time::Duration::from_micros(u64::from(n % 32) * 100));
                    }
                }
            });
            // Dropped in here even by a panic, which ends the writer.
            let begin = begin;
            for n in 0..READINGS {
                begin.send(1000 + n * COMMITS).unwrap();
                // Each attempt in vain takes a commit at least.
                let ruleset =
                    (0..=COMMITS).find_map(|_| reader.read(FAMILY, &TABLE.into()).unwrap().whole().ok());
                let sets = ruleset.flatten().expect("a reading that is not disturbed").sets;
                assert_eq!(sets["hairpin"].elements.len(), sets["nodeport-ips"].elements.len());
            }
        });
    });
}
