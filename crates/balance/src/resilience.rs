//! What a Service may ask of proxies besides a policy, as it is written in annotations: lists of `name=value`, with commas between.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::text::{InvalidText, MOST, Result, duration, number, pairs, quoted, said_pairs, unknown};
use crate::{ProxyProtocol, SlowStart, Timeouts};

/// What a Service asks for besides a policy: what keeps its endpoints from harm, and its clients from endpoints that do harm, and how
/// its connections are carried.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resilience {
    /// How much may go on at a time.
    pub limits: Limits,
    /// Endpoints that fail get nothing for a while.
    pub ejection: Option<Ejection>,
    /// Endpoints are asked whether they serve.
    pub health_check: Option<HealthCheck>,
    /// For how long what may take.
    #[serde(default)]
    pub timeouts: Timeouts,
    /// Endpoints that begin to serve get little at first.
    #[serde(default)]
    pub slow_start: Option<SlowStart>,
    /// Endpoints are told whose each connection is.
    #[serde(default)]
    pub proxy_protocol: Option<ProxyProtocol>,
}

/// How much may go on at a time, of one worker; `None`: as much as there is room for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Connections to endpoints.
    pub connections: Option<u32>,
    /// Connections to endpoints that are being made, with what waits for them.
    pub pending: Option<u32>,
    /// Requests of HTTP.
    pub requests: Option<u32>,
    /// Requests that are sent a second time.
    pub retries: Option<u32>,
    /// Connections to one endpoint.
    pub endpoint_connections: Option<u32>,
    /// Requests at one endpoint.
    pub endpoint_requests: Option<u32>,
}

/// When endpoints get nothing, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ejection {
    /// After so many failures in a row; 0: not for that.
    pub failures: u32,
    /// Or after so many failures of a hundred attempts [`within`](Self::within) a time; 0: not for that.
    pub share: u32,
    /// If there were so many attempts in that time.
    pub requests: u32,
    /// See [`share`](Self::share).
    pub within: Duration,
    /// For how long the first time; the second time twice as long, the third three times, and so on.
    pub time: Duration,
    /// But never longer.
    pub longest: Duration,
}

impl Default for Ejection {
    fn default() -> Self {
        Self {
            failures: 5,
            share: 50,
            requests: 20,
            within: Duration::from_secs(10),
            time: Duration::from_secs(30),
            longest: Duration::from_mins(5),
        }
    }
}

/// How endpoints are asked whether they serve.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// What is asked.
    pub probe: Probe,
    /// Where, if not at the endpoint's port.
    pub port: Option<u16>,
    /// How often.
    pub interval: Duration,
    /// For how long an answer is waited for.
    pub timeout: Duration,
    /// After so many failures in a row an endpoint gets nothing.
    pub failures: u32,
    /// After so many answers in a row it does again.
    pub successes: u32,
}

/// What an endpoint is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Probe {
    /// To take a connection.
    Tcp,
    /// A `GET` of this path, which is to be answered with a status of 200 to 399.
    Http(String),
    /// Whether it serves this service, by `grpc.health.v1`; empty: whether it serves at all.
    Grpc(String),
}

impl Resilience {
    /// Whether nothing is asked for.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// What is asked for, in the words in which it is, but whole.
impl fmt::Display for Resilience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { limits, ejection, health_check, timeouts, slow_start, proxy_protocol } = self;
        let mut words = Vec::new();
        if *limits != Limits::default() {
            words.push(format!("limits {limits}"));
        }
        words.extend(ejection.map(|ejection| format!("ejection {ejection}")));
        words.extend(health_check.as_ref().map(|check| format!("health check {check}")));
        if *timeouts != Timeouts::default() {
            words.push(format!("time-outs {timeouts}"));
        }
        words.extend(slow_start.map(|start| format!("slow start {start}")));
        words.extend(proxy_protocol.map(|version| format!("PROXY protocol {}", version.as_str())));
        f.write_str(&words.join("; "))
    }
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = [
            ("connections", self.connections),
            ("pending", self.pending),
            ("requests", self.requests),
            ("retries", self.retries),
            ("endpoint-connections", self.endpoint_connections),
            ("endpoint-requests", self.endpoint_requests),
        ];
        f.write_str(&said_pairs(said))
    }
}

impl fmt::Display for Ejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { failures, share, requests, within, time, longest } = self;
        write!(
            f,
            "failures={failures},share={share},requests={requests},within={within:?},time={time:?},longest={longest:?}"
        )
    }
}

impl fmt::Display for HealthCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { probe, port, interval, timeout, failures, successes } = self;
        match probe {
            Probe::Tcp => f.write_str("tcp")?,
            Probe::Http(path) => write!(f, "http,path={path}")?,
            Probe::Grpc(service) if service.is_empty() => f.write_str("grpc")?,
            Probe::Grpc(service) => write!(f, "grpc,service={service}")?,
        }
        if let Some(port) = port {
            write!(f, ",port={port}")?;
        }
        write!(f, ",interval={interval:?},timeout={timeout:?},failures={failures},successes={successes}")
    }
}

impl Limits {
    const NAMES: &str = "connections, pending, requests, retries, endpoint-connections and endpoint-requests";

    /// Reads such as `connections=100,pending=10`.
    ///
    /// # Errors
    /// A name is unknown or twice there, or a value is no number of 1 to 1,000,000; 0 is one for `retries` alone.
    pub fn parse(text: &str) -> Result<Self> {
        let mut limits = Self::default();
        for (name, value) in pairs(text)? {
            let (place, least) = match name {
                "connections" => (&mut limits.connections, 1),
                "pending" => (&mut limits.pending, 1),
                "requests" => (&mut limits.requests, 1),
                "retries" => (&mut limits.retries, 0),
                "endpoint-connections" => (&mut limits.endpoint_connections, 1),
                "endpoint-requests" => (&mut limits.endpoint_requests, 1),
                other => return Err(unknown(other, Self::NAMES)),
            };
            *place = Some(number(name, value, least, MOST)?);
        }
        Ok(limits)
    }
}

impl Ejection {
    /// Reads `on`, or such as `failures=3,time=10s`: what is not said is as ever.
    ///
    /// # Errors
    /// A name is unknown or twice there, a value makes no sense, or endpoints would never be ejected.
    pub fn parse(text: &str) -> Result<Self> {
        let mut ejection = Self::default();
        if text == "on" {
            return Ok(ejection);
        }
        for (name, value) in pairs(text)? {
            match name {
                "failures" => ejection.failures = number(name, value, 0, MOST)?,
                "share" => ejection.share = number(name, value.strip_suffix('%').unwrap_or(value), 0, 100)?,
                "requests" => ejection.requests = number(name, value, 1, MOST)?,
                "within" => ejection.within = duration(name, value)?,
                "time" => ejection.time = duration(name, value)?,
                "longest" => ejection.longest = duration(name, value)?,
                other => return Err(unknown(other, "failures, share, requests, within, time and longest")),
            }
        }
        if ejection.failures == 0 && ejection.share == 0 {
            return Err(InvalidText("with failures=0 and share=0 nothing is ever ejected".to_owned()));
        }
        if ejection.longest < ejection.time {
            return Err(InvalidText("longest is shorter than time".to_owned()));
        }
        Ok(ejection)
    }
}

impl HealthCheck {
    /// Reads `tcp`, `http` or `grpc`, and what follows it, such as `http,path=/healthz,interval=5s`.
    ///
    /// # Errors
    /// There is no such kind, a name is unknown, twice there or of another kind, or a value makes no sense.
    pub fn parse(text: &str) -> Result<Self> {
        let (kind, rest) = text.split_once(',').unwrap_or((text, ""));
        let probe = match kind {
            "tcp" => Probe::Tcp,
            "http" => Probe::Http("/".to_owned()),
            "grpc" => Probe::Grpc(String::new()),
            other => {
                return Err(InvalidText(format!(
                    "{} is no check; there are tcp, http and grpc",
                    quoted(other)
                )));
            }
        };
        let seconds = Duration::from_secs;
        let mut check =
            Self { probe, port: None, interval: seconds(10), timeout: seconds(2), failures: 3, successes: 2 };
        let said = if text.contains(',') { pairs(rest)? } else { Vec::new() };
        for (name, value) in said {
            check.set(name, value)?;
        }
        if check.interval < LEAST_INTERVAL {
            return Err(InvalidText("interval is shorter than 100ms".to_owned()));
        }
        Ok(check)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<()> {
        match (name, &mut self.probe) {
            ("path", Probe::Http(path)) => *path = self::path(value)?,
            ("service", Probe::Grpc(service)) => *service = grpc_service(value)?,
            ("port", _) => self.port = u16::try_from(number(name, value, 1, 65_535)?).ok(),
            ("interval", _) => self.interval = duration(name, value)?,
            ("timeout", _) => self.timeout = duration(name, value)?,
            ("failures", _) => self.failures = number(name, value, 1, MOST)?,
            ("successes", _) => self.successes = number(name, value, 1, MOST)?,
            (other, probe) => {
                let own = match probe {
                    Probe::Tcp => "",
                    Probe::Http(_) => "path, ",
                    Probe::Grpc(_) => "service, ",
                };
                let known = format!("{own}port, interval, timeout, failures and successes");
                return Err(unknown(other, &known));
            }
        }
        Ok(())
    }
}

/// Each node asks each endpoint so often at most.
const LEAST_INTERVAL: Duration = Duration::from_millis(100);
/// Of a path or a service's name.
const MOST_BYTES: usize = 1024;

fn path(text: &str) -> Result<String> {
    sound(text, "path", text.starts_with('/'))
}

fn grpc_service(text: &str) -> Result<String> {
    sound(text, "service of gRPC", true)
}

/// A short text that goes into a request as it is.
fn sound(text: &str, what: &str, begins_well: bool) -> Result<String> {
    let is_sound =
        begins_well && text.len() <= MOST_BYTES && text.bytes().all(|byte| byte.is_ascii_graphic());
    is_sound.then(|| text.to_owned()).ok_or_else(|| InvalidText(format!("{} is no {what}", quoted(text))))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::text::tests::refused;

    #[test]
    fn limits_are_read() {
        let limits = Limits::parse("connections=100, pending=7,retries=0,endpoint-requests=1000000").unwrap();
        let expected = Limits {
            connections: Some(100),
            pending: Some(7),
            retries: Some(0),
            endpoint_requests: Some(1_000_000),
            ..Limits::default()
        };
        assert_eq!(limits, expected);
        refused(Limits::parse(""), r#""" is not of the form name=value"#);
        refused(Limits::parse("pending=0"), r#"pending is "0", not a number of 1 to 1000000"#);
        refused(Limits::parse("pending=+1"), r#"pending is "+1", not a number of 1 to 1000000"#);
        refused(Limits::parse("pending=1,pending=2"), "pending is there twice");
        refused(
            Limits::parse("conections=1"),
            r#""conections" is unknown; there are connections, pending, requests, retries, endpoint-connections and endpoint-requests"#,
        );
    }

    #[test]
    fn ejection_is_read() {
        assert_eq!(Ejection::parse("on"), Ok(Ejection::default()));
        let expected = Ejection {
            failures: 0,
            share: 25,
            time: Duration::from_millis(500),
            longest: Duration::from_secs(90),
            ..Ejection::default()
        };
        assert_eq!(Ejection::parse("failures=0,share=25%,time=500ms,longest=90s"), Ok(expected));
        refused(Ejection::parse("failures=0,share=0"), "with failures=0 and share=0 nothing is ever ejected");
        refused(Ejection::parse("time=10m"), "longest is shorter than time");
        refused(
            Ejection::parse("time=10"),
            r#"time is "10", not a time such as 500ms, 10s or 5m, up to 24h"#,
        );
        refused(
            Ejection::parse("within=25h"),
            r#"within is "25h", not a time such as 500ms, 10s or 5m, up to 24h"#,
        );
        refused(Ejection::parse("share=101"), r#"share is "101", not a number of 0 to 100"#);
    }

    #[test]
    fn health_checks_are_read() {
        let check = HealthCheck::parse("http,path=/healthz?full=1,port=9090,interval=5s").unwrap();
        assert_eq!(check.probe, Probe::Http("/healthz?full=1".to_owned()));
        assert_eq!((check.port, check.interval, check.failures), (Some(9090), Duration::from_secs(5), 3));
        assert_eq!(HealthCheck::parse("tcp").unwrap().probe, Probe::Tcp);
        let check = HealthCheck::parse("grpc,service=shop.Cart,timeout=1s,successes=1").unwrap();
        assert_eq!((check.probe, check.successes), (Probe::Grpc("shop.Cart".to_owned()), 1));
        refused(HealthCheck::parse("icmp"), r#""icmp" is no check; there are tcp, http and grpc"#);
        refused(HealthCheck::parse("http,path=healthz"), r#""healthz" is no path"#);
        refused(HealthCheck::parse("tcp,interval=10ms"), "interval is shorter than 100ms");
        refused(
            HealthCheck::parse("tcp,path=/"),
            r#""path" is unknown; there are port, interval, timeout, failures and successes"#,
        );
        refused(HealthCheck::parse("tcp,"), r#""" is not of the form name=value"#);
    }

    #[test]
    fn what_is_asked_for_is_told_as_it_is_asked_for() {
        let asked = Resilience {
            limits: Limits::parse("connections=10,retries=0").unwrap(),
            ejection: Ejection::parse("time=500ms").ok(),
            health_check: HealthCheck::parse("http,path=/healthz,port=9090").ok(),
            timeouts: Timeouts::parse("connect=2s,idle=0").unwrap(),
            slow_start: SlowStart::parse("window=1m").ok(),
            proxy_protocol: Some(ProxyProtocol::V2),
        };
        let words = [
            "limits connections=10,retries=0",
            "ejection failures=5,share=50,requests=20,within=10s,time=500ms,longest=300s",
            "health check http,path=/healthz,port=9090,interval=10s,timeout=2s,failures=3,successes=2",
            "time-outs connect=2s,idle=0",
            "slow start window=60s,first=10",
            "PROXY protocol v2",
        ];
        assert_eq!(asked.to_string(), words.join("; "));
        assert_eq!(Resilience::default().to_string(), "");
    }

    proptest! {
        #[test]
        fn no_text_does_harm(text in ".{0,60}", tail in "(tcp|http|grpc|)(,(path|service|time|share|pending)=[0-9a-z%/]{0,24}){0,3}") {
            for text in [text, tail] {
                drop((Limits::parse(&text), Ejection::parse(&text), HealthCheck::parse(&text)));
            }
        }
    }
}
