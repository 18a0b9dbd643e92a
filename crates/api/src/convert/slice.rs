//! `EndpointSlice`s.

use std::net::IpAddr;
use std::time::SystemTime;

use balance::{Called, Weights};
use model::{
    Conditions, Endpoint, EndpointSlice, Family, Hints, Interner, Name, Object, ObjectName, SliceDetails,
    SliceEndpoints, SlicePort, V4, V6,
};

use super::{Converted, Refusal, annotation, item_name, port_number, protocol, served_address};
use crate::raw;
use crate::report::{IgnoreReason, Notes, quoted};

pub(super) fn convert(
    raw: &raw::EndpointSlice<'_>,
    name: ObjectName,
    interner: &mut Interner,
    notes: &mut Notes,
) -> Converted {
    let service = owner(raw, &name, interner, notes)?;
    let text = raw.metadata.annotations.weights.as_ref();
    let said = annotation(raw::ANNOTATION_WEIGHTS, text, Weights::parse, notes);
    let (endpoints, details) = match &*raw.address_type {
        "IPv4" => {
            let (endpoints, details) = endpoints::<V4>(&raw.endpoints, said.as_ref(), interner, notes);
            (SliceEndpoints::V4(endpoints), details)
        }
        "IPv6" => {
            let (endpoints, details) = endpoints::<V6>(&raw.endpoints, said.as_ref(), interner, notes);
            (SliceEndpoints::V6(endpoints), details)
        }
        "FQDN" => return Err(Refusal::Ignore(IgnoreReason::Fqdn)),
        other => {
            let reason = format!("{} is neither IPv4, IPv6 nor FQDN", quoted(other));
            return Err(Refusal::Reject { path: "addressType", reason });
        }
    };
    let ports = ports(&raw.ports, interner, notes).into();
    let trigger_time = trigger_time(&raw.metadata.annotations.trigger_time, notes);
    Ok(Object::EndpointSlice(EndpointSlice { name, service, ports, endpoints, details, trigger_time }))
}

/// When the change happened that the slice comes from. What can't be read costs a sample of a metric and no more.
fn trigger_time(text: &str, notes: &mut Notes) -> Option<SystemTime> {
    if text.is_empty() {
        return None;
    }
    let time = text.parse::<jiff::Timestamp>();
    if let Err(error) = &time {
        notes.add(format_args!("metadata.annotations[{}]", raw::ANNOTATION_TRIGGER_TIME), error);
    }
    // Go's zero time stands for none.
    time.ok().map(SystemTime::from).filter(|time| *time > SystemTime::UNIX_EPOCH)
}

/// The Service that the slice belongs to. A slice that lost its label is ignored, not rejected: its former Service has
/// to lose these endpoints.
fn owner(
    raw: &raw::EndpointSlice<'_>,
    name: &ObjectName,
    interner: &mut Interner,
    notes: &mut Notes,
) -> Result<ObjectName, Refusal> {
    let labels = &raw.metadata.labels;
    if labels.headless {
        return Err(Refusal::Ignore(IgnoreReason::Headless));
    }
    let path = format_args!("metadata.labels[{}]", raw::LABEL_SERVICE_NAME);
    let owner = item_name(&labels.service_name, path, interner, notes).filter(|owner| !owner.is_empty());
    let Some(owner) = owner else {
        if labels.service_name.is_empty() {
            notes.add(path, "is missing");
        }
        return Err(Refusal::Ignore(IgnoreReason::NoOwner));
    };
    Ok(ObjectName { namespace: name.namespace.clone(), name: owner })
}

/// Ports in the object's order, without exact repeats.
fn ports(raw: &[raw::SlicePort<'_>], interner: &mut Interner, notes: &mut Notes) -> Vec<SlicePort> {
    let mut ports = Vec::with_capacity(raw.len());
    for (i, raw) in raw.iter().enumerate() {
        match slice_port(raw, i, interner, notes) {
            Some(port) if ports.contains(&port) => notes.add(format_args!("ports[{i}]"), "is there twice"),
            Some(port) => ports.push(port),
            None => {}
        }
    }
    ports
}

fn slice_port(
    raw: &raw::SlicePort<'_>,
    i: usize,
    interner: &mut Interner,
    notes: &mut Notes,
) -> Option<SlicePort> {
    let Some(name) = &raw.name else {
        notes.add(format_args!("ports[{i}].name"), "is missing");
        return None;
    };
    let Some(number) = raw.port else {
        notes.add(format_args!("ports[{i}].port"), "is missing");
        return None;
    };
    let name = item_name(name, format_args!("ports[{i}].name"), interner, notes)?;
    let protocol =
        protocol(raw.protocol.as_deref().unwrap_or(""), format_args!("ports[{i}].protocol"), notes)?;
    let port = port_number(number, format_args!("ports[{i}].port"), notes)?;
    Some(SlicePort { name, protocol, port })
}

/// The endpoints, and what weights of theirs depend on.
fn endpoints<F: Family>(
    raw: &[raw::Endpoint<'_>],
    said: Option<&Weights>,
    interner: &mut Interner,
    notes: &mut Notes,
) -> (Box<[Endpoint<F>]>, Option<Box<SliceDetails>>) {
    let (mut endpoints, mut zones) = (Vec::with_capacity(raw.len()), Vec::with_capacity(raw.len()));
    let mut weights = said.map(|_| Vec::with_capacity(raw.len()));
    for (i, raw) in raw.iter().enumerate() {
        let Some(address) = address::<F>(raw, i, notes) else { continue };
        endpoints.push(endpoint(raw, i, address, interner, notes));
        zones.push(zone(raw, i, interner, notes));
        if let (Some(weights), Some(said)) = (&mut weights, said) {
            weights.push(said.of(called(raw, address.into())));
        }
    }
    (endpoints.into(), SliceDetails::new(zones, weights))
}

/// Nothing but a weight depends on it, which an endpoint without a zone may be given as well.
fn zone(raw: &raw::Endpoint<'_>, i: usize, interner: &mut Interner, notes: &mut Notes) -> Option<Name> {
    let is_said = !raw.zone.is_empty();
    is_said.then(|| item_name(&raw.zone, format_args!("endpoints[{i}].zone"), interner, notes)).flatten()
}

fn called<'a>(raw: &'a raw::Endpoint<'_>, address: IpAddr) -> Called<'a> {
    let said = |text: &'a raw::Text<'_>| (!text.is_empty()).then_some(&**text);
    let pod = said(&raw.target_ref.name).filter(|_| &*raw.target_ref.kind == "Pod");
    Called { address, pod, node: said(&raw.node_name), zone: said(&raw.zone) }
}

/// The first address; the others of an endpoint are by definition as good.
fn address<F: Family>(raw: &raw::Endpoint<'_>, i: usize, notes: &mut Notes) -> Option<F::Addr> {
    let Some(text) = &raw.addresses.0 else {
        notes.add(format_args!("endpoints[{i}].addresses"), "is empty");
        return None;
    };
    match served_address(text).map(F::narrow) {
        Ok(Some(address)) => return Some(address),
        Ok(None) => {
            let reason = format_args!("{} is not an {} address", quoted(text), F::FAMILY);
            notes.add(format_args!("endpoints[{i}].addresses[0]"), reason);
        }
        Err(error) => notes.add(format_args!("endpoints[{i}].addresses[0]"), error),
    }
    None
}

fn endpoint<F: Family>(
    raw: &raw::Endpoint<'_>,
    i: usize,
    address: F::Addr,
    interner: &mut Interner,
    notes: &mut Notes,
) -> Endpoint<F> {
    let raw::Conditions { ready, serving, terminating } = raw.conditions;
    // A node name that can't be one makes the endpoint remote, which is what it is for this node.
    let node = (!raw.node_name.is_empty())
        .then(|| item_name(&raw.node_name, format_args!("endpoints[{i}].nodeName"), interner, notes))
        .flatten();
    Endpoint {
        address,
        conditions: Conditions {
            ready: ready.unwrap_or(true),
            serving: serving.unwrap_or(true),
            terminating: terminating.unwrap_or(false),
        },
        node,
        hints: hints(&raw.hints, i, interner, notes),
    }
}

fn hints(raw: &raw::Hints<'_>, i: usize, interner: &mut Interner, notes: &mut Notes) -> Option<Box<Hints>> {
    if raw.for_zones.is_empty() && raw.for_nodes.is_empty() {
        return None;
    }
    let mut names = |hints: &[raw::Hint<'_>], field: &str| -> Box<[Name]> {
        let mut names = Vec::with_capacity(hints.len());
        for (j, hint) in hints.iter().enumerate() {
            let path = format_args!("endpoints[{i}].hints.{field}[{j}].name");
            names.extend(item_name(&hint.name, path, interner, notes));
        }
        names.into()
    };
    let zones = names(&raw.for_zones, "forZones");
    let nodes = names(&raw.for_nodes, "forNodes");
    (!zones.is_empty() || !nodes.is_empty()).then(|| Box::new(Hints { zones, nodes }))
}
