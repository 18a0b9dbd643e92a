//! What is recorded of requests, as the agent is told, which exports it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http_proxy::{Client, Outcome, Question, Recorder, Trace};

use crate::control::Control;
use crate::frame::{RequestTrace, TraceTry};

/// The longest texts that are told, so that all of a trace fits a frame.
const MAX_METHOD_BYTES: usize = 32;
const MAX_PATH_BYTES: usize = 800;
const MAX_HOST_BYTES: usize = 255;

/// Has the agent told of a request of a Service port, once it is over.
pub(crate) fn recorder(control: &Control, pool: &Arc<str>, client: Client) -> Recorder {
    let (traces, pool) = (control.traces(), pool.clone());
    Box::new(move |trace| traces.tell(told(trace, &pool, client)))
}

fn told(trace: Trace, pool: &str, client: Client) -> RequestTrace {
    let Trace { trace: number, span, parent, began, took, question, status, grpc_status, tries } = trace;
    let Question { method, path, host, version } = question;
    let half = |number: u128| u64::try_from(number & u128::from(u64::MAX)).unwrap_or(u64::MAX);
    RequestTrace {
        pool: pool.to_owned(),
        trace: (half(number >> 64), half(number)),
        span,
        parent,
        began_us: micros(began.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()),
        took_us: micros(took),
        client: client.address,
        sent_to: client.sent_to,
        method: cut(method.as_str(), MAX_METHOD_BYTES),
        path: cut(&path, MAX_PATH_BYTES),
        host: host.map(|host| cut(&host, MAX_HOST_BYTES)),
        version: cut(&format!("{version:?}"), MAX_METHOD_BYTES),
        status: status.map(|status| status.as_u16()),
        grpc_status,
        tries: tries.into_iter().map(told_try).collect(),
    }
}

fn told_try(one: http_proxy::Try) -> TraceTry {
    let (status, failure) = match one.outcome {
        Outcome::GivenUp => (None, None),
        Outcome::Status(status) => (Some(status), None),
        Outcome::Failed(failure) => (None, Some(failure.to_owned())),
    };
    TraceTry {
        span: one.span,
        endpoint: one.endpoint,
        after_us: micros(one.after),
        took_us: micros(one.took),
        status,
        failure,
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn cut(text: &str, n_bytes: usize) -> String {
    text[..text.floor_char_boundary(n_bytes)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{MAX_TO_AGENT_BYTES, ToAgent, encode};

    #[test]
    fn the_longest_trace_fits_a_frame() {
        let v6 = "[2001:db8:ffff:ffff:ffff:ffff:ffff:ffff]:65535".parse().unwrap();
        let one = http_proxy::Try {
            span: u64::MAX,
            endpoint: v6,
            after: Duration::MAX,
            took: Duration::MAX,
            outcome: Outcome::Failed("not_connected"),
        };
        let trace = Trace {
            trace: u128::MAX,
            span: u64::MAX,
            parent: Some(u64::MAX),
            began: SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 40),
            took: Duration::MAX,
            question: Question {
                method: "X".repeat(1000).parse().unwrap(),
                // Two bytes each in JSON.
                path: "\"".repeat(100_000),
                host: Some("\\".repeat(100_000)),
                ..Question::default()
            },
            status: Some(200_u16.try_into().unwrap()),
            grpc_status: Some(u32::MAX),
            tries: vec![one; 5],
        };
        let pool = format!("{}/{}:{}/Tcp local", "n".repeat(63), "s".repeat(63), "p".repeat(63));
        let told = told(trace, &pool, Client { address: v6, sent_to: v6 });
        assert_eq!(told.path.len(), MAX_PATH_BYTES);
        assert!(encode(&ToAgent::Traced(Box::new(told)), MAX_TO_AGENT_BYTES).is_ok());
        assert_eq!(cut("aäöü", 2), "a");
    }

    #[test]
    fn both_halves_of_a_number_are_told() {
        let trace = Trace {
            trace: 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c,
            span: 7,
            parent: None,
            began: SystemTime::UNIX_EPOCH + Duration::from_micros(5),
            took: Duration::from_millis(2),
            question: Question::default(),
            status: None,
            grpc_status: None,
            tries: Vec::new(),
        };
        let client =
            Client { address: ([192, 0, 2, 9], 40_000).into(), sent_to: ([10, 96, 0, 10], 80).into() };
        let told = told(trace, "shop/web:http/Tcp", client);
        assert_eq!(told.trace, (0x0af7_6519_16cd_43dd, 0x8448_eb21_1c80_319c));
        assert_eq!((told.began_us, told.took_us, &*told.version), (5, 2000, "HTTP/1.1"));
    }
}
