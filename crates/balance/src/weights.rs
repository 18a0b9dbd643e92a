//! Weights of endpoints.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::text::{InvalidText, Result, number, pairs, quoted};

/// What is said about weights, by what endpoints are called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Weights {
    by_address: BTreeMap<IpAddr, u32>,
    by_pod: ByName,
    by_node: ByName,
    by_zone: ByName,
    other: Option<u32>,
}

type ByName = BTreeMap<Box<str>, u32>;

/// What an endpoint is called.
#[derive(Clone, Copy, Debug)]
pub struct Called<'a> {
    /// Its address.
    pub address: IpAddr,
    /// The pod that it is.
    pub pod: Option<&'a str>,
    /// The node that it is on.
    pub node: Option<&'a str>,
    /// The zone that it is in.
    pub zone: Option<&'a str>,
}

/// The largest weight.
const HEAVIEST: u32 = 1000;

impl Weights {
    /// Reads such as `zone:a=3,zone:b=1` or `10.0.0.7=5,pod:web-0=2,node:large=4,other=1`.
    ///
    /// # Errors
    /// A name is neither an address nor that of something, or is there twice, or a value is no number of 0 to 1000.
    pub fn parse(text: &str) -> Result<Self> {
        let mut weights = Self::default();
        for (name, value) in pairs(text)? {
            let weight = number(name, value, 0, HEAVIEST)?;
            let known = if let Some((named, place)) = weights.named(name) {
                place.insert(named.into(), weight)
            } else if name == "other" {
                weights.other.replace(weight)
            } else if let Ok(address) = name.parse() {
                weights.by_address.insert(address, weight)
            } else {
                return Err(InvalidText(format!(
                    "{} is no endpoint; there are addresses, pod:NAME, node:NAME, zone:NAME and other",
                    quoted(name)
                )));
            };
            if known.is_some() {
                return Err(InvalidText(format!("{name} is there twice")));
            }
        }
        Ok(weights)
    }

    /// The weight of an endpoint, by what says most about it; `None` if nothing does.
    pub fn of(&self, called: Called<'_>) -> Option<u32> {
        let names = [(&self.by_pod, called.pod), (&self.by_node, called.node), (&self.by_zone, called.zone)];
        let named = names.into_iter().find_map(|(by_name, name)| by_name.get(name?));
        self.by_address.get(&called.address).or(named).copied().or(self.other)
    }

    /// A name of a kind, and where those of that kind are.
    fn named<'a>(&mut self, text: &'a str) -> Option<(&'a str, &mut ByName)> {
        let (kind, name) = text.split_once(':').filter(|(_, name)| !name.is_empty())?;
        match kind {
            "pod" => Some((name, &mut self.by_pod)),
            "node" => Some((name, &mut self.by_node)),
            "zone" => Some((name, &mut self.by_zone)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::text::tests::refused;

    fn called<'a>(address: &str, pod: &'a str, node: &'a str, zone: &'a str) -> Called<'a> {
        let address = address.parse().unwrap();
        Called { address, pod: Some(pod), node: Some(node), zone: Some(zone) }
    }

    #[test]
    fn what_says_most_about_an_endpoint_counts() {
        let weights = Weights::parse("10.0.0.7=5, pod:web-0=2,node:large=4,zone:a=3,fd00::7=0").unwrap();
        for (endpoint, expected) in [
            (called("10.0.0.7", "web-0", "large", "a"), Some(5)),
            (called("10.0.0.8", "web-0", "large", "a"), Some(2)),
            (called("10.0.0.8", "web-1", "large", "a"), Some(4)),
            (called("10.0.0.8", "web-1", "small", "a"), Some(3)),
            (called("fd00:0::7", "web-1", "small", "b"), Some(0)),
            (called("10.0.0.8", "web-1", "small", "b"), None),
        ] {
            assert_eq!(weights.of(endpoint), expected, "{endpoint:?}");
        }
        let other = Weights::parse("zone:a=3,other=0").unwrap();
        assert_eq!(other.of(called("10.0.0.8", "web-1", "small", "b")), Some(0));
    }

    #[test]
    fn nonsense_is_refused() {
        refused(
            Weights::parse("web-0=1"),
            r#""web-0" is no endpoint; there are addresses, pod:NAME, node:NAME, zone:NAME and other"#,
        );
        refused(Weights::parse("zone:a=1001"), r#"zone:a is "1001", not a number of 0 to 1000"#);
        refused(Weights::parse("zone:a=1,zone:a=2"), "zone:a is there twice");
        refused(Weights::parse("fd00::1=1,fd00:0::1=2"), "fd00:0::1 is there twice");
        refused(
            Weights::parse("zone:=1"),
            r#""zone:" is no endpoint; there are addresses, pod:NAME, node:NAME, zone:NAME and other"#,
        );
    }

    proptest! {
        #[test]
        fn no_text_does_harm(text in ".{0,60}", list in "((pod|zone|node|10.0.0):?[a-z0-9.]{0,9}=[0-9]{0,5},?){0,5}") {
            for text in [text, list] {
                drop(Weights::parse(&text));
            }
        }
    }
}
