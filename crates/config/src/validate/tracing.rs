//! `tracing`, checked with component-base's rules and reasons (`ValidateTracingConfiguration` in `tracing/api/v1`).

use std::path::PathBuf;

use super::Check;
use crate::field::FieldError;
use crate::settings::{Collector, Tracing};
use crate::v1alpha1::KubeProxyConfiguration;

const ENDPOINT: &str = "tracing.endpoint";
const RATE: &str = "tracing.samplingRatePerMillion";
const MILLION: u32 = 1_000_000;

/// `None`: nothing is recorded.
pub(crate) fn tracing(file: &KubeProxyConfiguration, check: &mut Check<'_>) -> Option<Tracing> {
    let said = file.tracing.as_ref()?;
    let rate = said.sampling_rate_per_million.unwrap_or_default();
    if rate < 0 {
        check.failed(FieldError::invalid(RATE, &rate, "sampling rate must be positive"));
    }
    let per_million = u32::try_from(rate).unwrap_or_default();
    if per_million > MILLION {
        let reason = "sampling rate per million must be less than or equal to one million";
        check.failed(FieldError::invalid(RATE, &rate, reason));
    }
    let endpoint = said.endpoint.as_deref().unwrap_or_default();
    match collector(endpoint) {
        Ok(collector) => Some(Tracing { collector, per_million }),
        Err(reason) => {
            check.failed(FieldError::invalid(ENDPOINT, endpoint, &reason));
            None
        }
    }
}

/// A name of gRPC, as far as it is one of these: `host:port`, `dns:///host:port`, `unix:path`, `unix:///path`.
fn collector(endpoint: &str) -> Result<Collector, String> {
    let (scheme, rest) = match endpoint.split_once("://") {
        Some((scheme, rest)) => (scheme, rest),
        None => endpoint.strip_prefix("unix:").map_or(("dns", endpoint), |path| ("unix", path)),
    };
    match scheme {
        "unix" if rest.is_empty() => Err("must name a socket".to_owned()),
        "unix" => Ok(Collector::Unix(PathBuf::from(rest))),
        // With a name server of its own before the slash, which is left to the system here.
        "dns" => match rest.strip_prefix('/').unwrap_or(rest) {
            address if is_address(address) => Ok(Collector::Tcp(address.to_owned())),
            _ => Err("must be host:port".to_owned()),
        },
        other => Err(format!("unsupported scheme: {other}.  Options are none, dns, or unix")),
    }
}

fn is_address(text: &str) -> bool {
    let is_of_host = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let is_host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(is_of_host),
    };
    is_host && port.parse::<u16>().is_ok_and(|port| port > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_names_of_grpc() {
        let tcp = |text: &str| Ok(Collector::Tcp(text.to_owned()));
        let unix = |text: &str| Ok(Collector::Unix(text.into()));
        for (text, expected) in [
            ("localhost:4317", tcp("localhost:4317")),
            ("dns:///otel.observability:4317", tcp("otel.observability:4317")),
            ("dns://otel:4317", tcp("otel:4317")),
            ("[fd00::1]:4317", tcp("[fd00::1]:4317")),
            ("unix:///run/otel.sock", unix("/run/otel.sock")),
            ("unix:run/otel.sock", unix("run/otel.sock")),
        ] {
            assert_eq!(collector(text), expected, "{text}");
        }
        for text in ["", "otel", "otel:", "otel:0", ":4317", "a b:1", "fd00::1", "unix:", "http://otel:4317"]
        {
            assert!(collector(text).is_err(), "{text}");
        }
    }
}
