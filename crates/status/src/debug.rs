//! What `enableProfiling` adds to the metrics server. Source: `apiserver/pkg/server/routes/{profiling,flags}.go`.

use std::time::Duration;

use http::header::{HeaderValue, LOCATION};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;

use crate::SetVerbosity;
use crate::answer::{Answer, HTML, TEXT, answer};
use crate::routes::Routes;

/// A number is short.
const MAX_BODY_BYTES: usize = 64;
/// For a client to send it.
const BODY_LIMIT: Duration = Duration::from_secs(10);

/// Adds the paths below `/debug/`.
pub(crate) fn add_routes(routes: Routes, set_verbosity: &SetVerbosity) -> Routes {
    let set_verbosity = set_verbosity.clone();
    routes
        .now("/debug/pprof", |_| to_profiles())
        .now("/debug/pprof/", |_| no_profiles())
        .now("/debug/pprof/{*profile}", |_| no_profiles())
        .now("/debug/flags", |_| flags())
        .now("/debug/flags/", |_| flags())
        .at("/debug/flags/v", move |call| verbosity(call.request, set_verbosity.clone()))
}

fn to_profiles() -> Answer {
    let mut answer = answer(StatusCode::FOUND, TEXT, "");
    answer.headers_mut().insert(LOCATION, HeaderValue::from_static("/debug/pprof/"));
    answer
}

fn no_profiles() -> Answer {
    answer(
        StatusCode::NOT_IMPLEMENTED,
        TEXT,
        "this program writes no Go profiles; use perf on the node: perf record -g -p PID\n",
    )
}

fn flags() -> Answer {
    answer(
        StatusCode::OK,
        HTML,
        "<html><head><title>/debug/flags/</title></head><body>/debug/flags/<br><a href=\"v\">v</a>: PUT a number to \
         set the verbosity of the log</body></html>\n",
    )
}

async fn verbosity(request: Request<Incoming>, set_verbosity: SetVerbosity) -> Answer {
    if request.method() != Method::PUT {
        return answer(StatusCode::NOT_ACCEPTABLE, TEXT, "unsupported http method: use PUT\n");
    }
    let refused = |reason: &dyn std::fmt::Display| {
        answer(StatusCode::BAD_REQUEST, TEXT, format!("failed to set klog.logging.verbosity: {reason}\n"))
    };
    let body = Limited::new(request.into_body(), MAX_BODY_BYTES).collect();
    let bytes = match tokio::time::timeout(BODY_LIMIT, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) => return refused(&error),
        Err(elapsed) => return refused(&elapsed),
    };
    let number = String::from_utf8_lossy(&bytes).trim().parse::<i32>();
    match number.map_err(|error| error.to_string()).and_then(|number| set_verbosity(number).map(|()| number))
    {
        Ok(number) => {
            answer(StatusCode::OK, TEXT, format!("successfully set klog.logging.verbosity to {number}\n"))
        }
        Err(error) => refused(&error),
    }
}
