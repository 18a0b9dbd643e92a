//! Sends the spans of a request to a collector, for tests with ones that are not ours: `export HOST:PORT`. It ends when the collector
//! has them.
#![allow(clippy::print_stderr, reason = "a program for tests")]

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::channel;

use otlp::{Endpoint, Outcome};
use proxy::frame::{RequestTrace, TraceTry};

fn request() -> RequestTrace {
    let one = |n: u8, status, failure: Option<&str>| TraceTry {
        span: u64::from(n),
        endpoint: ([10, 244, 0, n], 8080).into(),
        after_us: 100 * u64::from(n),
        took_us: 50,
        status,
        failure: failure.map(str::to_owned),
    };
    RequestTrace {
        pool: "shop/web:http/Tcp".to_owned(),
        trace: (0x0af7_6519_16cd_43dd, 0x8448_eb21_1c80_319c),
        span: 0xb7ad_6b71_6920_3331,
        parent: Some(0x00f0_67aa_0ba9_02b7),
        began_us: 1_700_000_000_000_000,
        took_us: 400,
        client: ([192, 0, 2, 9], 40_000).into(),
        sent_to: ([10, 96, 0, 10], 80).into(),
        method: "POST".to_owned(),
        path: "/cart.Cart/Add".to_owned(),
        host: Some("cart:8000".to_owned()),
        version: "HTTP/2.0".to_owned(),
        status: Some(200),
        grpc_status: Some(14),
        tries: vec![one(1, None, Some("not_connected")), one(2, Some(200), None)],
    }
}

fn main() -> ExitCode {
    let Some(collector) = std::env::args().nth(1) else {
        eprintln!("no HOST:PORT of a collector");
        return ExitCode::FAILURE;
    };
    let (sender, outcomes) = channel();
    let count = move |outcome, n| match sender.send((outcome, n)) {
        // Nobody may listen any more.
        Ok(()) | Err(_) => {}
    };
    let resource = vec![("service.name", "kube-proxy".into())];
    let spans = match otlp::begin(Endpoint::Tcp(collector), resource, Arc::new(count)) {
        Ok(spans) => spans,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let recorded = backend_userspace::spans(&request());
    let n = u64::try_from(recorded.len()).unwrap_or_default();
    for span in recorded {
        spans.add(span);
    }
    let outcome = outcomes.recv();
    if outcome == Ok((Outcome::Exported, n)) {
        return ExitCode::SUCCESS;
    }
    eprintln!("{outcome:?}");
    ExitCode::FAILURE
}
