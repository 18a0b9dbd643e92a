//! Fills the raw forms from protobuf. Field numbers are those of the API's `generated.proto` files:
//! <https://github.com/kubernetes/api/blob/v0.36.0/core/v1/generated.proto>, likewise `discovery/v1` and `networking/v1`;
//! <https://github.com/kubernetes/apimachinery/blob/v0.36.0/pkg/apis/meta/v1/generated.proto>.

use crate::proto::{Fields, Value, WireError};
use crate::raw;

/// A message that can be filled from its wire form. What was filled before an error stays, so that a broken object can
/// still be named.
pub(crate) trait Message<'a>: Default {
    /// Takes one field in; fields that we don't use are skipped.
    fn field(&mut self, number: u64, value: Value<'a>) -> Result<(), WireError>;

    /// Takes all fields of a message in.
    fn merge(&mut self, message: &'a [u8]) -> Result<(), WireError> {
        let mut fields = Fields::new(message);
        while let Some((number, value)) = fields.next_field()? {
            self.field(number, value)?;
        }
        Ok(())
    }

    /// Takes in a field that holds such a message.
    fn merge_value(&mut self, value: Value<'a>) -> Result<(), WireError> {
        self.merge(value.bytes()?)
    }

    /// A message of its own from a field.
    fn read(value: Value<'a>) -> Result<Self, WireError> {
        let mut message = Self::default();
        message.merge_value(value)?;
        Ok(message)
    }
}

/// Implements [`Message`] from a table of field numbers, names as errors show them, and actions.
macro_rules! message {
    ($type:ident, |$this:ident, $value:ident| { $($number:literal $name:literal => $action:expr,)* }) => {
        impl<'a> Message<'a> for raw::$type<'a> {
            fn field(&mut self, number: u64, $value: Value<'a>) -> Result<(), WireError> {
                let $this = self;
                match number {
                    $($number => $action.map_err(|error: WireError| error.within($name)),)*
                    _ => Ok(()),
                }
            }
        }
    };
}

fn text<'a>(value: Value<'a>, to: &mut raw::Text<'a>) -> Result<(), WireError> {
    *to = value.text()?.into();
    Ok(())
}

fn texts<'a>(value: Value<'a>, to: &mut Vec<raw::Text<'a>>) -> Result<(), WireError> {
    to.push(value.text()?.into());
    Ok(())
}

fn int(value: Value<'_>, to: &mut i64) -> Result<(), WireError> {
    *to = value.int()?;
    Ok(())
}

fn push<'a, T: Message<'a>>(value: Value<'a>, to: &mut Vec<T>) -> Result<(), WireError> {
    to.push(T::read(value)?);
    Ok(())
}

/// An entry of a `map<string, string>`: key is field 1, value is field 2, either may be absent.
fn entry(value: Value<'_>) -> Result<(&str, &str), WireError> {
    let (mut key, mut text) = ("", "");
    let mut fields = Fields::new(value.bytes()?);
    while let Some((number, value)) = fields.next_field()? {
        match number {
            1 => key = value.text()?,
            2 => text = value.text()?,
            _ => {}
        }
    }
    Ok((key, text))
}

message!(Head, |head, value| {
    1 "metadata" => head.metadata.merge_value(value),
});

message!(Meta, |meta, value| {
    1 "name" => text(value, &mut meta.name),
    3 "namespace" => text(value, &mut meta.namespace),
    5 "uid" => text(value, &mut meta.uid),
    6 "resourceVersion" => text(value, &mut meta.resource_version),
    9 "deletionTimestamp" => value.bytes().map(|_time| meta.deletion_timestamp.0 = true),
    11 "labels" => entry(value).map(|(key, text)| meta.labels.set(key.into(), text.into())),
    12 "annotations" => entry(value).map(|(key, text)| meta.annotations.set(key, text.into())),
});

message!(Service, |service, value| {
    1 "metadata" => service.metadata.merge_value(value),
    2 "spec" => service.spec.merge_value(value),
    3 "status" => service.status.merge_value(value),
});

message!(ServiceSpec, |spec, value| {
    1 "ports" => push(value, &mut spec.ports),
    3 "clusterIP" => text(value, &mut spec.cluster_ip),
    4 "type" => text(value, &mut spec.r#type),
    5 "externalIPs" => texts(value, &mut spec.external_ips),
    7 "sessionAffinity" => text(value, &mut spec.session_affinity),
    9 "loadBalancerSourceRanges" => texts(value, &mut spec.load_balancer_source_ranges),
    11 "externalTrafficPolicy" => text(value, &mut spec.external_traffic_policy),
    12 "healthCheckNodePort" => int(value, &mut spec.health_check_node_port),
    14 "sessionAffinityConfig" => spec.session_affinity_config.merge_value(value),
    18 "clusterIPs" => texts(value, &mut spec.cluster_ips),
    19 "ipFamilies" => texts(value, &mut spec.ip_families),
    22 "internalTrafficPolicy" => text(value, &mut spec.internal_traffic_policy),
});

message!(ServicePort, |port, value| {
    1 "name" => text(value, &mut port.name),
    2 "protocol" => text(value, &mut port.protocol),
    3 "port" => int(value, &mut port.port),
    5 "nodePort" => int(value, &mut port.node_port),
    6 "appProtocol" => text(value, &mut port.app_protocol),
});

message!(AffinityConfig, |config, value| {
    1 "clientIP" => config.client_ip.merge_value(value),
});

message!(ClientIp, |config, value| {
    1 "timeoutSeconds" => value.int().map(|seconds| config.timeout_seconds = Some(seconds)),
});

message!(ServiceStatus, |status, value| {
    1 "loadBalancer" => status.load_balancer.merge_value(value),
});

message!(LoadBalancer, |status, value| {
    1 "ingress" => push(value, &mut status.ingress),
});

message!(Ingress, |ingress, value| {
    1 "ip" => text(value, &mut ingress.ip),
    3 "ipMode" => value.text().map(|mode| ingress.ip_mode = Some(mode.into())),
});

message!(EndpointSlice, |slice, value| {
    1 "metadata" => slice.metadata.merge_value(value),
    2 "endpoints" => push(value, &mut slice.endpoints),
    3 "ports" => push(value, &mut slice.ports),
    4 "addressType" => text(value, &mut slice.address_type),
});

message!(Endpoint, |endpoint, value| {
    1 "addresses" => value.text().map(|address| _ = endpoint.addresses.0.get_or_insert(address.into())),
    2 "conditions" => conditions(value, &mut endpoint.conditions),
    4 "targetRef" => endpoint.target_ref.merge_value(value),
    6 "nodeName" => text(value, &mut endpoint.node_name),
    7 "zone" => text(value, &mut endpoint.zone),
    8 "hints" => endpoint.hints.merge_value(value),
});

message!(TargetRef, |target, value| {
    1 "kind" => text(value, &mut target.kind),
    3 "name" => text(value, &mut target.name),
});

fn conditions(value: Value<'_>, to: &mut raw::Conditions) -> Result<(), WireError> {
    let mut fields = Fields::new(value.bytes()?);
    while let Some((number, value)) = fields.next_field()? {
        match number {
            1 => to.ready = Some(value.bool()?),
            2 => to.serving = Some(value.bool()?),
            3 => to.terminating = Some(value.bool()?),
            _ => {}
        }
    }
    Ok(())
}

message!(Hints, |hints, value| {
    1 "forZones" => push(value, &mut hints.for_zones),
    2 "forNodes" => push(value, &mut hints.for_nodes),
});

message!(Hint, |hint, value| {
    1 "name" => text(value, &mut hint.name),
});

message!(SlicePort, |port, value| {
    1 "name" => value.text().map(|name| port.name = Some(name.into())),
    2 "protocol" => value.text().map(|protocol| port.protocol = Some(protocol.into())),
    3 "port" => value.int().map(|number| port.port = Some(number)),
});

message!(Node, |node, value| {
    1 "metadata" => node.metadata.merge_value(value),
    2 "spec" => node.spec.merge_value(value),
    3 "status" => node.status.merge_value(value),
});

message!(NodeSpec, |spec, value| {
    1 "podCIDR" => text(value, &mut spec.pod_cidr),
    5 "taints" => push(value, &mut spec.taints),
    7 "podCIDRs" => texts(value, &mut spec.pod_cidrs),
});

message!(Taint, |taint, value| {
    1 "key" => text(value, &mut taint.key),
});

message!(NodeStatus, |status, value| {
    5 "addresses" => push(value, &mut status.addresses),
});

message!(NodeAddress, |address, value| {
    1 "type" => text(value, &mut address.r#type),
    2 "address" => text(value, &mut address.address),
});

message!(ServiceCidr, |cidr, value| {
    1 "metadata" => cidr.metadata.merge_value(value),
    2 "spec" => cidr.spec.merge_value(value),
});

message!(CidrSpec, |spec, value| {
    1 "cidrs" => texts(value, &mut spec.cidrs),
});
