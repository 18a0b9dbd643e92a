//! Rules as `iptables-save` prints them, without the leading `-A CHAIN`.

use std::fmt;

use model::{IpFamily, Protocol};

use crate::rule::{AddrField, Comment, Interface, Match, Negatable, Recent, Rule, Target};

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = Words { f, first: true };
        for (option, net) in [("-s", &self.source), ("-d", &self.dest)] {
            // A network of all addresses is not printed.
            if let Some(net) = net.as_ref().filter(|net| net.negate || net.value.prefix_len() > 0) {
                words.option(option, net.negate, &net.value)?;
            }
        }
        if let Some(Negatable { value, negate }) = &self.in_interface {
            words.option("-i", *negate, value)?;
        }
        if let Some(protocol) = self.protocol {
            words.option("-p", false, &keyword(protocol))?;
        }
        for matches in &self.matches {
            words.next(matches)?;
        }
        match &self.target {
            Some(target) => words.next(&format_args!("-j {target}")),
            None => Ok(()),
        }
    }
}

/// Words with single blanks between them.
struct Words<'a, 'b> {
    f: &'a mut fmt::Formatter<'b>,
    first: bool,
}

impl Words<'_, '_> {
    fn next(&mut self, words: &dyn fmt::Display) -> fmt::Result {
        if !std::mem::take(&mut self.first) {
            self.f.write_str(" ")?;
        }
        write!(self.f, "{words}")
    }

    fn option(&mut self, name: &str, negate: bool, value: &dyn fmt::Display) -> fmt::Result {
        self.next(&format_args!("{}{name} {value}", not(negate)))
    }
}

fn not(negate: bool) -> &'static str {
    if negate { "! " } else { "" }
}

fn keyword(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) => write!(f, "{name}"),
            Self::Prefix(prefix) => write!(f, "{prefix}+"),
        }
    }
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Comment(comment) => write!(f, "-m comment --comment {comment}"),
            Self::Port(protocol, None) => write!(f, "-m {}", keyword(*protocol)),
            Self::Port(protocol, Some(port)) => write!(f, "-m {} --dport {port}", keyword(*protocol)),
            Self::IsLocal(Negatable { value: AddrField::Source, negate }) => {
                write!(f, "-m addrtype {}--src-type LOCAL", not(*negate))
            }
            Self::IsLocal(Negatable { value: AddrField::Dest, negate }) => {
                write!(f, "-m addrtype {}--dst-type LOCAL", not(*negate))
            }
            Self::CtState(Negatable { value, negate }) => {
                write!(f, "-m conntrack {}--ctstate {}", not(*negate), value.join(","))
            }
            Self::MarkBit(Negatable { value, negate }) => {
                write!(f, "-m mark {}--mark {value:#x}/{value:#x}", not(*negate))
            }
            Self::OneIn(n) => write!(f, "-m statistic --mode random --probability {}", Probability::of(*n)),
            Self::Recent { list, action, family } => {
                write!(f, "-m recent {action} --name {list} --mask {} --rsource", full_mask(*family))
            }
        }
    }
}

/// The kernel's form of a probability, in units of 2^-31 (`xt_statistic`).
struct Probability(u32);

const CERTAIN: u64 = 1 << 31;

impl Probability {
    /// One in so many, rounded as `iptables` rounds.
    fn of(n: u32) -> Self {
        let n = u64::from(n.max(1));
        Self(u32::try_from((2 * CERTAIN + n) / (2 * n)).unwrap_or(u32::MAX))
    }
}

impl fmt::Display for Probability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.11}", f64::from(self.0) / 2_147_483_648.0)
    }
}

impl fmt::Display for Recent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Set => f.write_str("--set"),
            Self::Check { seconds } => write!(f, "--rcheck --seconds {seconds} --reap"),
            Self::Update { seconds } => write!(f, "--update --seconds {seconds} --reap"),
        }
    }
}

fn full_mask(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "255.255.255.255",
        IpFamily::V6 => "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Jump(chain) => write!(f, "{chain}"),
            Self::Accept => f.write_str("ACCEPT"),
            Self::Drop => f.write_str("DROP"),
            Self::Return => f.write_str("RETURN"),
            Self::Reject(IpFamily::V4) => f.write_str("REJECT --reject-with icmp-port-unreachable"),
            Self::Reject(IpFamily::V6) => f.write_str("REJECT --reject-with icmp6-port-unreachable"),
            Self::Mark { xor, mask } => write!(f, "MARK --set-xmark {xor:#x}/{mask:#x}"),
            Self::Masquerade => f.write_str("MASQUERADE --random-fully"),
            Self::Dnat(to) => write!(f, "DNAT --to-destination {to}"),
        }
    }
}

/// In quotes, unless it is one plain word (`xtables_save_string`).
impl fmt::Display for Comment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.as_str();
        if !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)) {
            return f.write_str(text);
        }
        f.write_str("\"")?;
        for c in text.chars() {
            if matches!(c, '"' | '\\' | '\'') {
                f.write_str("\\")?;
            }
            write!(f, "{c}")?;
        }
        f.write_str("\"")
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::ChainName;

    #[track_caller]
    fn check(rule: &Rule, expected: &str) {
        assert_eq!(rule.to_string(), expected);
    }

    /// The texts were printed by `iptables-save` 1.8.9 in both flavours; `kernel/tests/iptables` holds them to the tools.
    #[test]
    fn rules_are_printed_as_iptables_save_prints_them() {
        let to: SocketAddr = "10.0.0.1:80".parse().unwrap();
        let net = |text: &str| text.parse().unwrap();
        let jump = || Rule::jump(ChainName::from_static("KUBE-SEP-AAAA"));
        check(
            &Rule { source: Some(Negatable::is_not(net("10.244.0.0/16"))), ..jump() }
                .to_addr([10, 96, 0, 1])
                .of(Protocol::Udp)
                .comment("ns/svc:dns cluster IP")
                .when(Match::Port(Protocol::Udp, Some(53))),
            "! -s 10.244.0.0/16 -d 10.96.0.1/32 -p udp -m comment --comment \"ns/svc:dns cluster IP\" -m udp --dport 53 -j KUBE-SEP-AAAA",
        );
        check(&jump().from_net(net("0.0.0.0/0")).comment("a"), "-m comment --comment a -j KUBE-SEP-AAAA");
        check(&Rule::default().comment("a b'c\"d\\e"), r#"-m comment --comment "a b\'c\"d\\e""#);
        let interface = |negate, value| Rule { in_interface: Some(Negatable { value, negate }), ..jump() };
        check(&interface(true, Interface::Prefix("cali".into())), "! -i cali+ -j KUBE-SEP-AAAA");
        check(&interface(false, Interface::Named("cni0".into())), "-i cni0 -j KUBE-SEP-AAAA");
        let probability = |n| jump().when(Match::OneIn(n)).to_string();
        assert_eq!(probability(3), "-m statistic --mode random --probability 0.33333333349 -j KUBE-SEP-AAAA");
        assert_eq!(probability(2), "-m statistic --mode random --probability 0.50000000000 -j KUBE-SEP-AAAA");
        let list = ChainName::from_static("KUBE-SEP-BBBB");
        let recent = |action, family| {
            Rule::to(Target::Dnat(to)).of(Protocol::Tcp).when(Match::Recent {
                list: list.clone(),
                action,
                family,
            })
        };
        check(
            &recent(Recent::Update { seconds: 10_800 }, IpFamily::V4),
            "-p tcp -m recent --update --seconds 10800 --reap --name KUBE-SEP-BBBB --mask 255.255.255.255 --rsource -j DNAT --to-destination 10.0.0.1:80",
        );
        check(
            &recent(Recent::Set, IpFamily::V6),
            "-p tcp -m recent --set --name KUBE-SEP-BBBB --mask ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff --rsource -j DNAT --to-destination 10.0.0.1:80",
        );
        check(
            &Rule::to(Target::Dnat("[fd00::1]:80".parse().unwrap())),
            "-j DNAT --to-destination [fd00::1]:80",
        );
        check(
            &Rule::to(Target::Return).when(Match::MarkBit(Negatable::is_not(0x4000))),
            "-m mark ! --mark 0x4000/0x4000 -j RETURN",
        );
        check(&Rule::to(Target::Mark { xor: 0x4000, mask: 0 }), "-j MARK --set-xmark 0x4000/0x0");
    }

    #[test]
    fn comments_are_cut_and_keep_to_their_line() {
        assert_eq!(Comment::new("a\nCOMMIT\u{e4}").as_str(), "a?COMMIT?");
        assert_eq!(Comment::new(&"x".repeat(300)).as_str().len(), 255);
    }
}
