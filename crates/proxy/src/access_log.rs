//! A line for some of what goes through: JSON on standard output.

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, SystemTime};

use http_proxy::{Answer, Client};
use serde::Serialize;

/// The log, if there is one.
#[derive(Clone, Debug, Default)]
pub(crate) struct AccessLog {
    /// Of a million, so many have a line.
    per_million: u32,
    lines: Option<SyncSender<String>>,
}

/// Lines that may wait for whoever reads; more are dropped, so that nobody waits for a reader.
const WAITING: usize = 1024;
const MILLION: u32 = 1_000_000;

/// A line. Times are in milliseconds, as elsewhere in Kubernetes' logs in JSON.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    ts: f64,
    msg: &'static str,
    service: &'a str,
    client: SocketAddr,
    sent_to: SocketAddr,
    /// `None`: there was none.
    endpoint: Option<SocketAddr>,
    duration_ms: f64,
    #[serde(flatten)]
    what: What<'a>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase", untagged)]
enum What<'a> {
    #[serde(rename_all = "camelCase")]
    Request {
        method: &'a str,
        host: Option<&'a str>,
        path: &'a str,
        protocol: String,
        status: u16,
        retries: u32,
    },
    Connection {
        bytes: u64,
    },
}

impl AccessLog {
    /// Begins it, with a thread that writes; none for 0 of a million.
    pub(crate) fn begin(per_million: u32) -> Self {
        if per_million == 0 {
            return Self::default();
        }
        let (lines, written) = sync_channel(WAITING);
        let started = std::thread::Builder::new().name("access-log".into()).spawn(move || write(&written));
        Self { per_million, lines: started.is_ok().then_some(lines) }
    }

    /// Whether the next one has a line.
    pub(crate) fn draws(&self) -> bool {
        self.lines.is_some() && (self.per_million >= MILLION || fastrand::u32(..MILLION) < self.per_million)
    }

    /// A request that was answered, if it is told what was asked.
    pub(crate) fn request(&self, service: &str, client: Client, answer: &Answer) {
        let Some(question) = &answer.question else { return };
        let what = What::Request {
            method: question.method.as_str(),
            host: question.host.as_deref(),
            path: &question.path,
            protocol: format!("{:?}", question.version),
            status: answer.status.as_u16(),
            retries: answer.retries,
        };
        self.say("request", service, client, answer.endpoint, answer.took, what);
    }

    /// A connection that has ended.
    pub(crate) fn connection(
        &self,
        service: &str,
        client: Client,
        endpoint: Option<SocketAddr>,
        took: Duration,
        bytes: u64,
    ) {
        self.say("connection", service, client, endpoint, took, What::Connection { bytes });
    }

    fn say(
        &self,
        msg: &'static str,
        service: &str,
        client: Client,
        endpoint: Option<SocketAddr>,
        took: Duration,
        what: What<'_>,
    ) {
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let line = Line {
            ts: millis(since_epoch),
            msg,
            service,
            client: client.address,
            sent_to: client.sent_to,
            endpoint,
            duration_ms: millis(took),
            what,
        };
        if let (Some(lines), Ok(line)) = (&self.lines, serde_json::to_string(&line)) {
            // There may be no room.
            drop(lines.try_send(line));
        }
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// Writes lines, for as long as somebody reads.
fn write(lines: &Receiver<String>) {
    let mut output = std::io::stdout();
    for mut line in lines {
        line.push('\n');
        if output.write_all(line.as_bytes()).and_then(|()| output.flush()).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use http_proxy::Question;

    use super::*;

    fn client() -> Client {
        Client { address: ([192, 0, 2, 9], 40_000).into(), sent_to: ([10, 96, 0, 10], 80).into() }
    }

    /// What is written of this.
    fn written(say: impl FnOnce(&AccessLog)) -> serde_json::Value {
        let (lines, written) = sync_channel(WAITING);
        say(&AccessLog { per_million: MILLION, lines: Some(lines) });
        let mut line: serde_json::Value = serde_json::from_str(&written.recv().unwrap()).unwrap();
        assert!(line["ts"].take().as_f64().unwrap() > 1e12);
        line
    }

    #[test]
    fn a_request_and_a_connection_are_a_line_each() {
        let question = Question {
            method: "GET".parse().unwrap(),
            path: "/cart".to_owned(),
            host: Some("web".to_owned()),
            ..Question::default()
        };
        let answer = Answer {
            status: 503_u16.try_into().unwrap(),
            took: Duration::from_micros(1500),
            endpoint: None,
            retries: 1,
            question: Some(question),
        };
        let request = written(|log| log.request("shop/web:http", client(), &answer));
        let expected = serde_json::json!({
            "ts": null, "msg": "request", "service": "shop/web:http", "client": "192.0.2.9:40000",
            "sentTo": "10.96.0.10:80", "endpoint": null, "durationMs": 1.5, "method": "GET", "host": "web",
            "path": "/cart", "protocol": "HTTP/1.1", "status": 503, "retries": 1,
        });
        assert_eq!(request, expected);
        let endpoint = Some(([10, 244, 0, 1], 8080).into());
        let took = Duration::from_millis(20);
        let connection = written(|log| log.connection("shop/web:http", client(), endpoint, took, 12));
        let expected = serde_json::json!({
            "ts": null, "msg": "connection", "service": "shop/web:http", "client": "192.0.2.9:40000",
            "sentTo": "10.96.0.10:80", "endpoint": "10.244.0.1:8080", "durationMs": 20.0, "bytes": 12,
        });
        assert_eq!(connection, expected);
    }

    #[test]
    fn as_many_are_drawn_as_are_wanted() {
        let (lines, _written) = sync_channel(1);
        let drawn = |per_million| {
            let log = AccessLog { per_million, lines: Some(lines.clone()) };
            (0..10_000).filter(|_| log.draws()).count()
        };
        assert_eq!(drawn(MILLION), 10_000);
        assert!((700..1300).contains(&drawn(MILLION / 10)));
        assert!(!AccessLog::begin(0).draws());
        // One that nobody reads holds nobody up.
        let log = AccessLog { per_million: MILLION, lines: Some(lines) };
        for _ in 0..10 {
            log.connection("shop/web:http", client(), None, Duration::ZERO, 0);
        }
    }
}
