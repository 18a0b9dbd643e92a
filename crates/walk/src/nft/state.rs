//! The packet under way, and the registers of one rule.

use std::net::{IpAddr, SocketAddr};

use nft::{CtKey, Element, Expr, Family, Hook, MetaKey, Name, PayloadBase, Register, Set, rule_text};

use crate::{Origin, Packet, Step};

/// `IP_CT_NEW` as a state bit, and `IPS_DST_NAT`.
const STATE_NEW: u32 = 8;
const STATUS_DNAT: u32 = 32;

/// The packet under way and what the kernel knows of it.
pub(super) struct State {
    pub(super) packet: Packet,
    pub(super) hook: Hook,
    pub(super) mark: u32,
    pub(super) priority: u32,
    pub(super) translated: bool,
    pub(super) masqueraded: bool,
    /// The rules that matched, if somebody wants to know.
    pub(super) steps: Option<Vec<Step>>,
    /// What the present rule found.
    pub(super) found: Vec<String>,
}

impl State {
    /// A rule has matched.
    pub(super) fn note(&mut self, chain: &Name, rule: &[Expr], family: Family) {
        let (hook, found) = (self.hook.as_str(), std::mem::take(&mut self.found));
        if let Some(steps) = &mut self.steps {
            let (chain, rule) = (chain.to_string(), rule_text(rule, family));
            steps.push(Step { hook, table: "", chain, rule, found });
        }
    }

    pub(super) fn note_element(&mut self, set: &Set, element: &Element, family: Family) {
        if self.steps.is_some() {
            self.found.push(format!("{} {}: {}", set.keyword(), set.name, set.element_text(element, family)));
        }
    }

    pub(super) fn new(packet: &Packet) -> Self {
        Self {
            packet: packet.clone(),
            hook: Hook::Prerouting,
            mark: 0,
            priority: 0,
            translated: false,
            masqueraded: false,
            steps: None,
            found: Vec::new(),
        }
    }

    pub(super) fn translate(&mut self, to: SocketAddr) {
        self.packet.destination = to;
        self.translated = true;
    }

    /// The header with those fields that rules look at; all others are zero.
    pub(super) fn header(&self, base: PayloadBase) -> Vec<u8> {
        let Packet { source, destination, .. } = &self.packet;
        match (base, source.ip(), destination.ip()) {
            (PayloadBase::Transport, ..) => {
                [source.port().to_be_bytes(), destination.port().to_be_bytes()].concat()
            }
            (PayloadBase::Network, IpAddr::V4(from), IpAddr::V4(to)) => {
                [vec![0; 12], from.octets().to_vec(), to.octets().to_vec()].concat()
            }
            (PayloadBase::Network, IpAddr::V6(from), IpAddr::V6(to)) => {
                [vec![0; 8], from.octets().to_vec(), to.octets().to_vec()].concat()
            }
            (PayloadBase::Network, ..) => Vec::new(),
        }
    }

    pub(super) fn meta(&self, key: MetaKey) -> Vec<u8> {
        match key {
            MetaKey::Priority => self.priority.to_ne_bytes().to_vec(),
            MetaKey::Mark => self.mark.to_ne_bytes().to_vec(),
            MetaKey::L4Proto => vec![self.packet.protocol],
            MetaKey::InputIfname => {
                let name = match (&self.packet.origin, self.hook) {
                    (Origin::Host, Hook::Input) => "lo",
                    (Origin::Interface(name), Hook::Prerouting | Hook::Input | Hook::Forward) => name,
                    _ => "",
                };
                let mut bytes = name.as_bytes().to_vec();
                bytes.resize(16, 0);
                bytes
            }
        }
    }

    pub(super) fn ct(&self, key: CtKey) -> u32 {
        match key {
            CtKey::State => STATE_NEW,
            CtKey::Status if self.translated => STATUS_DNAT,
            CtKey::Status => 0,
        }
    }
}

/// Sixteen words of four bytes.
#[derive(Default)]
pub(super) struct Registers {
    bytes: [[u8; 32]; 2],
}

impl Registers {
    /// Fills the last word with zeros, as the kernel does.
    pub(super) fn load(&mut self, Register(first): Register, value: &[u8]) {
        let bytes = self.bytes.as_flattened_mut();
        let start = usize::from(first) * 4;
        let padded = value.len().next_multiple_of(4);
        if let Some(place) = bytes.get_mut(start..start + padded) {
            place.fill(0);
            place[..value.len()].copy_from_slice(value);
        }
    }

    pub(super) fn bytes(&self, Register(first): Register, len: usize) -> Vec<u8> {
        let start = usize::from(first) * 4;
        self.bytes.as_flattened().iter().skip(start).take(len).copied().collect()
    }

    fn array<const N: usize>(&self, register: Register) -> [u8; N] {
        self.bytes(register, N).try_into().unwrap_or([0; N])
    }

    /// A number in host byte order.
    pub(super) fn number(&self, register: Register) -> u32 {
        u32::from_ne_bytes(self.array(register))
    }

    pub(super) fn port(&self, register: Register) -> u16 {
        u16::from_be_bytes(self.array(register))
    }

    pub(super) fn addr(&self, register: Register, family: Family) -> IpAddr {
        match family {
            Family::Ip => self.array::<4>(register).into(),
            Family::Ip6 => self.array::<16>(register).into(),
        }
    }
}
