//! What a Service may ask of proxies besides a policy, as it is written in annotations: lists of `name=value`, with commas between.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What keeps a Service's endpoints from harm, and its clients from endpoints that do harm.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resilience {
    /// How much may go on at a time.
    pub limits: Limits,
    /// Endpoints that fail get nothing for a while.
    pub ejection: Option<Ejection>,
    /// Endpoints are asked whether they serve.
    pub health_check: Option<HealthCheck>,
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

/// Why a text is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidText(String);

impl fmt::Display for InvalidText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for InvalidText {}

type Result<T> = std::result::Result<T, InvalidText>;

impl Resilience {
    /// Whether nothing is asked for.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

const MOST: u32 = 1_000_000;

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
            match (name, &mut check.probe) {
                ("path", Probe::Http(path)) => *path = self::path(value)?,
                ("service", Probe::Grpc(service)) => *service = grpc_service(value)?,
                ("port", _) => check.port = u16::try_from(number(name, value, 1, 65_535)?).ok(),
                ("interval", _) => check.interval = duration(name, value)?,
                ("timeout", _) => check.timeout = duration(name, value)?,
                ("failures", _) => check.failures = number(name, value, 1, MOST)?,
                ("successes", _) => check.successes = number(name, value, 1, MOST)?,
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
        }
        if check.interval < LEAST_INTERVAL {
            return Err(InvalidText("interval is shorter than 100ms".to_owned()));
        }
        Ok(check)
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

/// The pairs of a list, none of them twice.
fn pairs(text: &str) -> Result<Vec<(&str, &str)>> {
    let mut pairs: Vec<(&str, &str)> = Vec::new();
    for item in text.split(',') {
        let pair = item.trim().split_once('=');
        let (name, value) =
            pair.ok_or_else(|| InvalidText(format!("{} is not of the form name=value", quoted(item))))?;
        if pairs.iter().any(|(known, _)| *known == name) {
            return Err(InvalidText(format!("{name} is there twice")));
        }
        pairs.push((name, value));
    }
    Ok(pairs)
}

fn unknown(name: &str, known: &str) -> InvalidText {
    InvalidText(format!("{} is unknown; there are {known}", quoted(name)))
}

fn number(name: &str, text: &str, least: u32, most: u32) -> Result<u32> {
    let is_digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let found = text.parse().ok().filter(|found| is_digits && (least..=most).contains(found));
    found.ok_or_else(|| InvalidText(format!("{name} is {}, not a number of {least} to {most}", quoted(text))))
}

const LONGEST: Duration = Duration::from_hours(24);

/// A whole number with a unit, of one millisecond to a day.
fn duration(name: &str, text: &str) -> Result<Duration> {
    let invalid =
        || InvalidText(format!("{name} is {}, not a time such as 500ms, 10s or 5m, up to 24h", quoted(text)));
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(invalid)?;
    let (number, unit) = text.split_at(digits);
    let millis = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(invalid()),
    };
    let millis = number.parse::<u64>().ok().and_then(|number| number.checked_mul(millis));
    let found = millis.map(Duration::from_millis);
    found.filter(|found| !found.is_zero() && *found <= LONGEST).ok_or_else(invalid)
}

/// As much of a text as people need to find it.
fn quoted(text: &str) -> String {
    format!("{:?}", text.chars().take(64).collect::<String>())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn refused<T: fmt::Debug>(parsed: Result<T>, reason: &str) {
        assert_eq!(parsed.unwrap_err().to_string(), reason);
    }

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

    proptest! {
        #[test]
        fn no_text_does_harm(text in ".{0,60}", tail in "(tcp|http|grpc|)(,(path|service|time|share|pending)=[0-9a-z%/]{0,24}){0,3}") {
            for text in [text, tail] {
                drop((Limits::parse(&text), Ejection::parse(&text), HealthCheck::parse(&text)));
            }
        }
    }
}
