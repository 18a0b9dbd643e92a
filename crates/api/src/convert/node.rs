//! The cluster-scoped kinds: Nodes and `ServiceCIDR`s.

use std::net::IpAddr;

use model::{Interner, Node, Object, ObjectName, ServiceCidr};

use super::{Converted, cidrs, item_name};
use crate::raw;
use crate::report::Notes;

#[expect(clippy::unnecessary_wraps, reason = "the signature that all kinds share")]
pub(super) fn convert_node(
    raw: &raw::Node<'_>,
    name: ObjectName,
    interner: &mut Interner,
    notes: &mut Notes,
) -> Converted {
    let path = format_args!("metadata.labels[{}]", raw::LABEL_ZONE);
    let zone = item_name(&raw.metadata.labels.zone, path, interner, notes).filter(|zone| !zone.is_empty());
    let addresses = addresses(&raw.status.addresses, notes).into();
    let pod_cidrs = pod_cidrs(&raw.spec, notes).into();
    let is_deleting = raw.metadata.deletion_timestamp.0;
    let is_scaled_down = raw.spec.taints.iter().any(|taint| &*taint.key == raw::TAINT_SCALED_DOWN);
    let taints = raw.spec.taints.iter().map(|taint| interner.intern(&taint.key)).collect();
    Ok(Object::Node(Node { name, zone, addresses, pod_cidrs, is_deleting, is_scaled_down, taints }))
}

/// Internal addresses in order, then external ones. Host names are not resolved.
fn addresses(raw: &[raw::NodeAddress<'_>], notes: &mut Notes) -> Vec<IpAddr> {
    let mut addrs = Vec::with_capacity(raw.len());
    for wanted in ["InternalIP", "ExternalIP"] {
        for (i, raw) in raw.iter().enumerate().filter(|(_, raw)| &*raw.r#type == wanted) {
            match model::parse_addr(&raw.address) {
                Ok(addr) => addrs.push(addr),
                Err(error) => notes.add(format_args!("status.addresses[{i}].address"), error),
            }
        }
    }
    addrs
}

/// `podCIDRs`; a hand-written Node may have only the older `podCIDR`.
fn pod_cidrs(spec: &raw::NodeSpec<'_>, notes: &mut Notes) -> Vec<ipnet::IpNet> {
    if spec.pod_cidrs.is_empty() && !spec.pod_cidr.is_empty() {
        return cidrs(std::slice::from_ref(&spec.pod_cidr), "spec.podCIDR", notes);
    }
    cidrs(&spec.pod_cidrs, "spec.podCIDRs", notes)
}

#[expect(clippy::unnecessary_wraps, reason = "the signature that all kinds share")]
pub(super) fn convert_cidr(
    raw: &raw::ServiceCidr<'_>,
    name: ObjectName,
    _interner: &mut Interner,
    notes: &mut Notes,
) -> Converted {
    let cidrs = cidrs(&raw.spec.cidrs, "spec.cidrs", notes).into();
    Ok(Object::ServiceCidr(ServiceCidr { name, cidrs }))
}
