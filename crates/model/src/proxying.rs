//! Which Services ask proxies of this node to carry their flows, and by whose word.

use std::fmt;

use balance::Policy;

use crate::{Name, Service};

/// By what Services ask for proxies besides their annotation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProxyingRules {
    /// The annotation of a Service counts for nothing.
    pub ignores_annotations: bool,
    /// The first that selects a Service counts, unless the Service has an annotation.
    pub rules: Vec<ProxyingRule>,
    /// How endpoints of all other Services are chosen, where proxies carry the flows of all.
    pub otherwise: Option<Policy>,
}

/// Services that ask for proxies without knowing it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyingRule {
    /// Labels that the Service has to have, all of them.
    pub match_labels: Vec<(String, String)>,
    /// Namespaces of which one has to be the Service's; none means any.
    pub namespaces: Vec<String>,
    /// How their endpoints are chosen.
    pub policy: Policy,
}

/// By whose word a Service goes through proxies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AskedBy {
    /// The Service's own annotation.
    Annotation,
    /// The rule at this position.
    Rule(usize),
    /// The mode, in which all do.
    Mode,
}

impl ProxyingRules {
    /// How a Service's endpoints are to be chosen by proxies, and who says so; `None`: nobody asks for proxies.
    pub fn policy(&self, service: &Service) -> Option<(Policy, AskedBy)> {
        let own = service.proxying.filter(|_| !self.ignores_annotations);
        let by_rule = || {
            let at = self.rules.iter().position(|rule| rule.selects(service))?;
            Some((self.rules[at].policy, AskedBy::Rule(at)))
        };
        let by_mode = || Some((self.otherwise?, AskedBy::Mode));
        own.map(|policy| (policy, AskedBy::Annotation)).or_else(by_rule).or_else(by_mode)
    }
}

impl ProxyingRule {
    fn selects(&self, service: &Service) -> bool {
        let has = |(key, value): &(String, String)| {
            let found = service.labels.binary_search_by(|(known, _)| known.as_str().cmp(key));
            found.is_ok_and(|at| service.labels[at].1.as_str() == value)
        };
        let namespace = service.name.namespace.as_str();
        (self.namespaces.is_empty() || self.namespaces.iter().any(|name| name == namespace))
            && self.match_labels.iter().all(has)
    }
}

impl fmt::Display for AskedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Annotation => f.write_str("annotation kube-proxy/proxying"),
            Self::Rule(at) => write!(f, "serviceProxying.rules[{at}]"),
            Self::Mode => f.write_str("mode userspace"),
        }
    }
}

/// A label's key and value.
pub type Label = (Name, Name);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ServiceName;

    fn service(namespace: &str, labels: &[(&str, &str)], proxying: Option<Policy>) -> Service {
        let mut labels: Vec<Label> =
            labels.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        labels.sort_unstable();
        Service { labels: labels.into(), proxying, ..Service::new(ServiceName::new(namespace, "web")) }
    }

    fn rule(labels: &[(&str, &str)], namespaces: &[&str], policy: Policy) -> ProxyingRule {
        let text = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        ProxyingRule {
            match_labels: labels.iter().map(text).collect(),
            namespaces: namespaces.iter().map(|name| (*name).to_owned()).collect(),
            policy,
        }
    }

    #[test]
    fn the_first_rule_that_selects_a_service_counts_and_its_annotation_before_all() {
        let rules = ProxyingRules {
            ignores_annotations: false,
            rules: vec![
                rule(&[("app", "web"), ("tier", "front")], &["shop"], Policy::Maglev),
                rule(&[("app", "web")], &[], Policy::Random),
                rule(&[], &["rpc", "mail"], Policy::LeastRequest),
            ],
            otherwise: None,
        };
        let both = [("tier", "front"), ("app", "web"), ("zone", "a")];
        for (service, expected) in [
            (service("shop", &both, None), Some((Policy::Maglev, AskedBy::Rule(0)))),
            (service("other", &both, None), Some((Policy::Random, AskedBy::Rule(1)))),
            (service("shop", &[("app", "web")], None), Some((Policy::Random, AskedBy::Rule(1)))),
            (service("shop", &[("app", "webs")], None), None),
            (service("mail", &[], None), Some((Policy::LeastRequest, AskedBy::Rule(2)))),
            (service("shop", &both, Some(Policy::RingHash)), Some((Policy::RingHash, AskedBy::Annotation))),
        ] {
            assert_eq!(rules.policy(&service), expected, "{service:?}");
        }
        let for_all = ProxyingRules { otherwise: Some(Policy::Random), ..rules.clone() };
        let plain = service("shop", &[("app", "webs")], None);
        assert_eq!(for_all.policy(&plain), Some((Policy::Random, AskedBy::Mode)));
        let rules = ProxyingRules { ignores_annotations: true, ..rules };
        let asking = service("shop", &[], Some(Policy::RingHash));
        assert_eq!(rules.policy(&asking), None);
        assert_eq!(ProxyingRules::default().policy(&asking), Some((Policy::RingHash, AskedBy::Annotation)));
    }
}
