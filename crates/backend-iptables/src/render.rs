//! From what one Service port is to be to rules.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use ipnet::IpNet;
use iptables::{AddrField, ChainName, Match, Negatable, Recent, Rule, TableName, Target};
use model::{
    AddressKind, Destination, Family, FrontendAddress, FrontendKey, Masquerade, Pool, Protocol, Verdict,
};

use crate::config::Config;
use crate::fixed::{from_pods, node_addresses, on_node};
use crate::names::{
    EXTERNAL_SERVICES, FixedChain, Kind, MARK_MASQ, NODE_PORTS, PROXY_FIREWALL, SERVICES, ServiceChains,
};
use crate::objects::Objects;
use crate::programmed::{Entrance, External, Internal, Programmed};

/// All that a Service port needs in the tables.
pub(crate) fn objects<F: Family>(programmed: &Programmed<F>, config: &Config) -> Objects {
    let port = Port {
        programmed,
        config,
        name: programmed.name.to_string(),
        chains: ServiceChains::of(&programmed.name),
    };
    let mut objects = Objects::default();
    port.balancing(&mut objects);
    if let Some(internal) = &programmed.internal {
        port.internal(&mut objects, internal);
    }
    if let Some(external) = &programmed.external {
        port.external(&mut objects, external);
    }
    objects
}

struct Port<'a, F: Family> {
    programmed: &'a Programmed<F>,
    config: &'a Config,
    /// As comments show it.
    name: String,
    chains: ServiceChains,
}

impl<F: Family> Port<'_, F> {
    fn protocol(&self) -> Protocol {
        self.programmed.name.protocol
    }

    fn chain(&self, kind: Kind) -> ChainName {
        self.chains.chain(kind)
    }

    fn jump(&self, kind: Kind, comment: &str) -> Rule {
        Rule::jump(self.chain(kind)).comment(&format!("{} {comment}", self.name))
    }

    /// The chains that choose an endpoint, and those of the endpoints that may be on this node.
    fn balancing(&self, objects: &mut Objects) {
        let lists =
            [(Kind::Cluster, self.programmed.cluster_list()), (Kind::Local, self.programmed.local_list())];
        for (kind, endpoints) in lists.into_iter().filter(|(_, endpoints)| !endpoints.is_empty()) {
            let masquerading = self.cluster_ip_masquerade(kind);
            let rules = masquerading.into_iter().chain(self.sticky(endpoints)).chain(self.random(endpoints));
            objects.chain(TableName::Nat, self.chain(kind), rules.collect());
        }
        let all = lists.iter().flat_map(|(_, endpoints)| *endpoints);
        let with_chain: BTreeSet<&Destination<F>> =
            all.filter(|endpoint| endpoint.node.may_be_this()).collect();
        for endpoint in with_chain {
            let socket = socket(endpoint);
            objects.chain(TableName::Nat, self.chains.endpoint(socket), self.endpoint(socket));
        }
    }

    /// The rule that marks flows to the cluster IP, in the chain that balances them.
    fn cluster_ip_masquerade(&self, kind: Kind) -> Option<Rule> {
        let internal = self.programmed.internal.as_ref()?;
        let rule = || self.to_frontend(&internal.key, Rule::jump(MARK_MASQ.name()), "cluster IP");
        if self.programmed.internal_list() == kind {
            self.masquerade(internal.masquerade, rule)
        } else {
            None
        }
    }

    /// A rule for the flows that are to be masqueraded.
    fn masquerade(&self, masquerade: Masquerade, rule: impl FnOnce() -> Rule) -> Option<Rule> {
        match masquerade {
            Masquerade::Never => None,
            Masquerade::Always => Some(rule()),
            Masquerade::UnlessFromPod if self.config.masquerade_all => Some(rule()),
            Masquerade::UnlessFromPod => from_pods::<F>(self.config, true, rule()),
        }
    }

    /// Clients that are remembered go to their endpoint and are remembered anew.
    fn sticky(&self, endpoints: &[Destination<F>]) -> Vec<Rule> {
        let Some(seconds) = self.programmed.affinity else { return Vec::new() };
        let rule = |endpoint: &Destination<F>| {
            let socket = socket(endpoint);
            if endpoint.node.may_be_this() {
                self.to_endpoint(socket).when(self.recent(socket, Recent::Check { seconds }))
            } else {
                let renew = self.recent(socket, Recent::Update { seconds });
                Rule::to(Target::Dnat(socket)).of(self.protocol()).when(renew)
            }
        };
        endpoints.iter().map(rule).collect()
    }

    /// Each endpoint with the same chance: the first of n by one in n, the next one of those left by one in n - 1, and so on.
    ///
    /// An endpoint elsewhere needs no chain: the rule translates the destination itself.
    fn random(&self, endpoints: &[Destination<F>]) -> Vec<Rule> {
        let rule = |(idx, endpoint): (usize, &Destination<F>)| {
            let socket = socket(endpoint);
            let rule = if endpoint.node.may_be_this() {
                self.to_endpoint(socket)
            } else {
                Rule::to(Target::Dnat(socket)).of(self.protocol())
            };
            let left = u32::try_from(endpoints.len() - idx).unwrap_or(u32::MAX);
            let rule = if left > 1 { rule.when(Match::OneIn(left)) } else { rule };
            if endpoint.node.may_be_this() || self.programmed.affinity.is_none() {
                rule
            } else {
                rule.when(self.recent(socket, Recent::Set))
            }
        };
        endpoints.iter().enumerate().map(rule).collect()
    }

    fn to_endpoint(&self, socket: SocketAddr) -> Rule {
        Rule::jump(self.chains.endpoint(socket)).comment(&format!("{} -> {socket}", self.name))
    }

    /// An endpoint's clients, in a list that lives as long as some rule refers to it, through all changes of the chain.
    fn recent(&self, socket: SocketAddr, action: Recent) -> Match {
        Match::Recent { list: self.chains.endpoint(socket), action, family: F::FAMILY }
    }

    /// The chain of an endpoint that may be on this node: what it sends to itself is masqueraded, or it would answer itself directly.
    fn endpoint(&self, socket: SocketAddr) -> Vec<Rule> {
        let hairpin = Rule::jump(MARK_MASQ.name()).from_net(IpNet::from(socket.ip())).comment(&self.name);
        let translate = Rule::to(Target::Dnat(socket)).of(self.protocol()).comment(&self.name);
        let remember = self.programmed.affinity.map(|_| self.recent(socket, Recent::Set));
        let translate = remember.into_iter().fold(translate, Rule::when);
        vec![hairpin, translate.when(Match::Port(self.protocol(), None))]
    }

    /// A rule for the packets to a frontend, with a comment about it.
    fn to_frontend(&self, key: &FrontendKey<F>, rule: Rule, comment: &str) -> Rule {
        let rule = match key.address {
            FrontendAddress::Ip(addr) => rule.to_addr(addr),
            FrontendAddress::Node => rule,
        };
        rule.comment(&format!("{} {comment}", self.name)).to_port(key.protocol, key.port)
    }

    fn internal(&self, objects: &mut Objects, internal: &Internal<F>) {
        match internal.pool {
            Pool::Endpoints(_) => {
                let jump = Rule::jump(self.chain(self.programmed.internal_list()));
                let rule = self.to_frontend(&internal.key, jump, "cluster IP");
                objects.entry(TableName::Nat, SERVICES, &rule);
            }
            Pool::Empty(verdict) => self.refuse(objects, SERVICES, &internal.key, verdict),
        }
    }

    fn external(&self, objects: &mut Objects, external: &External<F>) {
        if external.is_served() {
            objects.chain(TableName::Nat, self.chain(Kind::External), self.external_rules(external));
            let ranges = external.entrances.iter().find_map(|entrance| entrance.allowed_sources.as_deref());
            if let Some(ranges) = ranges {
                objects.chain(TableName::Nat, self.chain(Kind::Firewall), self.firewall(ranges));
            }
        }
        for entrance in &external.entrances {
            self.entrance(objects, external, entrance);
        }
    }

    /// What happens to external traffic before it is balanced.
    fn external_rules(&self, external: &External<F>) -> Vec<Rule> {
        let about = |what: &str| format!("{what} traffic for {} external destinations", self.name);
        let mark = |comment: &str| Rule::jump(MARK_MASQ.name()).comment(comment);
        let balance = |kind| Rule::jump(self.chain(kind));
        let masquerade = self.masquerade(external.masquerade, || mark(&about("masquerade")));
        let rest = if external.short_cut.is_some() { Kind::Local } else { Kind::Cluster };
        let served = !external.pool.endpoints().is_empty();
        let mut rules = Vec::new();
        if external.short_cut.is_some() {
            let from_node = Match::IsLocal(Negatable::is(AddrField::Source));
            rules.extend(from_pods::<F>(self.config, false, balance(Kind::Cluster).comment(&about("pod"))));
            rules.push(mark(&about("masquerade LOCAL")).when(from_node.clone()));
            rules.push(balance(Kind::Cluster).comment(&about("route LOCAL")).when(from_node));
        }
        rules.extend(masquerade.filter(|_| served));
        rules.extend(served.then(|| balance(rest)));
        rules
    }

    /// Lets those pass that may use load-balancer addresses. The others leave the chain untranslated and meet their end in
    /// the table `filter`.
    fn firewall(&self, ranges: &[IpNet]) -> Vec<Rule> {
        let pass = |range: &IpNet| self.jump(Kind::External, "loadbalancer IP").from_net(*range);
        let others = format!("other traffic to {} will be dropped by KUBE-PROXY-FIREWALL", self.name);
        ranges.iter().map(pass).chain([Rule::default().comment(&others)]).collect()
    }

    fn entrance(&self, objects: &mut Objects, external: &External<F>, entrance: &Entrance<F>) {
        let Entrance { key, allowed_sources, .. } = entrance;
        if external.is_served() {
            self.lead_in(objects, entrance);
        }
        match (allowed_sources, &external.pool) {
            (Some(ranges), Pool::Empty(verdict)) if !external.is_served() => {
                self.refuse_within(objects, key, ranges, *verdict);
            }
            (Some(_), _) => {
                self.keep_away(objects, PROXY_FIREWALL, key);
            }
            (None, Pool::Empty(verdict)) => self.refuse(objects, EXTERNAL_SERVICES, key, *verdict),
            (None, Pool::Endpoints(_)) => {}
        }
    }

    /// The rule that leads from an address to the chain for external traffic.
    fn lead_in(&self, objects: &mut Objects, Entrance { key, kind, allowed_sources }: &Entrance<F>) {
        let jump =
            Rule::jump(self.chain(if allowed_sources.is_some() { Kind::Firewall } else { Kind::External }));
        let (chain, rule) = match kind {
            AddressKind::NodePort => (NODE_PORTS, jump.comment(&self.name).to_port(key.protocol, key.port)),
            AddressKind::LoadBalancerIp => (SERVICES, self.to_frontend(key, jump, "loadbalancer IP")),
            AddressKind::ExternalIp | AddressKind::ClusterIp => {
                (SERVICES, self.to_frontend(key, jump, "external IP"))
            }
        };
        objects.entry(TableName::Nat, chain, &rule);
    }

    /// Drops what still has the address: it comes from outside of the source ranges, or it would have been translated.
    fn keep_away(&self, objects: &mut Objects, chain: FixedChain, key: &FrontendKey<F>) {
        let comment = format!("traffic not accepted by {}", self.chain(Kind::Firewall));
        objects.entry(TableName::Filter, chain, &self.to_frontend(key, Rule::to(Target::Drop), &comment));
    }

    /// The same where nobody is served: those who may use the address shall be told so, the others nothing. The chain of the
    /// ones is passed before that of the others.
    fn refuse_within(&self, objects: &mut Objects, key: &FrontendKey<F>, ranges: &[IpNet], verdict: Verdict) {
        let (target, comment) = refusal::<F>(verdict);
        for range in ranges {
            let rule = self.to_frontend(key, Rule::to(target.clone()).from_net(*range), comment);
            objects.entry(TableName::Filter, PROXY_FIREWALL, &rule);
        }
        self.keep_away(objects, EXTERNAL_SERVICES, key);
    }

    /// Refuses what nobody serves. What takes the short cut has another destination by now.
    fn refuse(&self, objects: &mut Objects, chain: FixedChain, key: &FrontendKey<F>, verdict: Verdict) {
        let (target, comment) = refusal::<F>(verdict);
        match key.address {
            FrontendAddress::Ip(_) => {
                objects.entry(TableName::Filter, chain, &self.to_frontend(key, Rule::to(target), comment));
            }
            FrontendAddress::Node => {
                let comment = format!("{} {comment}", self.name);
                for addresses in node_addresses::<F>(self.config) {
                    let rule = on_node(addresses, Rule::to(target.clone()).comment(&comment));
                    objects.entry(TableName::Filter, chain, &rule.to_port(key.protocol, key.port));
                }
            }
        }
    }
}

fn refusal<F: Family>(verdict: Verdict) -> (Target, &'static str) {
    match verdict {
        Verdict::Reject => (Target::Reject(F::FAMILY), "has no endpoints"),
        Verdict::Drop => (Target::Drop, "has no local endpoints"),
    }
}

fn socket<F: Family>(endpoint: &Destination<F>) -> SocketAddr {
    SocketAddr::new(endpoint.address.into(), endpoint.port)
}
