//! Time-outs.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::text::{Result, duration, pairs, said_pairs, unknown};

/// For how long what may take, where it is said; `None`: as others say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeouts {
    /// A connection to an endpoint is tried, before another endpoint is.
    pub connect: Option<Duration>,
    /// A connection, or a client of UDP, has its endpoint while nothing is carried; zero: for ever.
    pub idle: Option<Duration>,
    /// A request waits for its answer to begin; zero: for ever.
    pub request: Option<Duration>,
    /// Connections and requests go on at an endpoint that is gone.
    pub drain: Option<Duration>,
}

impl Timeouts {
    /// Reads such as `connect=2s,request=30s`.
    ///
    /// # Errors
    /// A name is unknown or twice there, or a value is no time; 0 is one for `idle` and `request` alone.
    pub fn parse(text: &str) -> Result<Self> {
        let mut timeouts = Self::default();
        for (name, value) in pairs(text)? {
            let (place, may_be_never) = match name {
                "connect" => (&mut timeouts.connect, false),
                "idle" => (&mut timeouts.idle, true),
                "request" => (&mut timeouts.request, true),
                "drain" => (&mut timeouts.drain, false),
                other => return Err(unknown(other, "connect, idle, request and drain")),
            };
            let is_never = may_be_never && value == "0";
            *place = Some(if is_never { Duration::ZERO } else { duration(name, value)? });
        }
        Ok(timeouts)
    }

    /// These, and where they say nothing those.
    #[must_use]
    pub fn or(self, others: Self) -> Self {
        Self {
            connect: self.connect.or(others.connect),
            idle: self.idle.or(others.idle),
            request: self.request.or(others.request),
            drain: self.drain.or(others.drain),
        }
    }

    /// See [`Timeouts::idle`]; `None`: for ever.
    pub fn idle_limit(&self) -> Option<Duration> {
        self.idle.filter(|limit| !limit.is_zero())
    }

    /// See [`Timeouts::request`]; `None`: for ever.
    pub fn request_limit(&self) -> Option<Duration> {
        self.request.filter(|limit| !limit.is_zero())
    }
}

impl fmt::Display for Timeouts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = |timeout: Option<Duration>| {
            timeout.map(|timeout| if timeout.is_zero() { "0".to_owned() } else { format!("{timeout:?}") })
        };
        let Self { connect, idle, request, drain } = *self;
        f.write_str(&said_pairs([
            ("connect", said(connect)),
            ("idle", said(idle)),
            ("request", said(request)),
            ("drain", said(drain)),
        ]))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::text::tests::refused;

    #[test]
    fn they_are_read() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        let timeouts = Timeouts::parse("connect=2s, request=1m,idle=0,drain=10m").unwrap();
        let expected =
            Timeouts { connect: seconds(2), idle: seconds(0), request: seconds(60), drain: seconds(600) };
        assert_eq!(timeouts, expected);
        assert_eq!((timeouts.idle_limit(), timeouts.request_limit()), (None, seconds(60)));
        let some = Timeouts::parse("request=0").unwrap();
        assert_eq!(some.or(expected), Timeouts { request: seconds(0), ..expected });
        refused(
            Timeouts::parse("connect=0"),
            r#"connect is "0", not a time such as 500ms, 10s or 5m, up to 24h"#,
        );
        refused(
            Timeouts::parse("read=1s"),
            r#""read" is unknown; there are connect, idle, request and drain"#,
        );
        refused(Timeouts::parse("idle=1s,idle=2s"), "idle is there twice");
        refused(Timeouts::parse("30s"), r#""30s" is not of the form name=value"#);
    }

    proptest! {
        #[test]
        fn no_text_does_harm(text in ".{0,60}", tail in "((connect|idle|drain)=[0-9a-z]{0,24},?){0,4}") {
            for text in [text, tail] {
                drop(Timeouts::parse(&text));
            }
        }
    }
}
