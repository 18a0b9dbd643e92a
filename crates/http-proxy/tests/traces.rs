//! What is recorded of requests, and what endpoints are told of it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::sync::{Arc, Mutex};

use balance::Policy;
use common::{BOTH, Body, OneConnection, PATIENCE, Proxy, Server, Version, full, grpc_call, nobody, request};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, StreamBody};
use http_proxy::{Outcome, Trace};
use hyper::body::{Frame, Incoming};
use tokio::sync::mpsc::UnboundedReceiver;

const ALL: u32 = 1_000_000;
const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// What an endpoint was told of traces.
type Told = Arc<Mutex<Vec<Option<String>>>>;

async fn server() -> (Server, Told) {
    let told = Told::default();
    let noted = told.clone();
    let server = Server::start(move |request: Request<Incoming>| {
        let said = request.headers().get("traceparent").map(|said| said.to_str().unwrap().to_owned());
        noted.lock().unwrap().push(said);
        async { Response::new(full("well")) }
    })
    .await;
    (server, told)
}

fn with_parent(parent: &str) -> Request<Body> {
    let mut request = request("GET", "");
    request.headers_mut().insert("traceparent", parent.parse().unwrap());
    request
}

async fn next(traces: &mut UnboundedReceiver<Trace>) -> Trace {
    tokio::time::timeout(PATIENCE, traces.recv()).await.expect("a trace in time").unwrap()
}

/// What an endpoint hears of a trace that has such a number and such a span.
fn header(trace: &Trace, n: usize) -> String {
    format!("00-{:032x}-{:016x}-01", trace.trace, trace.tries[n].span)
}

#[tokio::test]
async fn an_endpoint_hears_of_the_span_of_its_own_try() {
    let (server, told) = server().await;
    let gone = nobody();
    for version in BOTH {
        told.lock().unwrap().clear();
        // The first is the one that nobody serves.
        let proxy = Proxy::start(Policy::RoundRobin, &[gone.address, server.address]).await;
        let mut traces = proxy.trace(0);
        let mut client = OneConnection::to(proxy.address, version).await;
        assert_eq!(client.text(with_parent(PARENT)).await.unwrap().0, 200);
        let trace = next(&mut traces).await;
        assert_eq!(trace.trace, 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c);
        assert_eq!(trace.parent, Some(0xb7ad_6b71_6920_3331));
        assert_eq!((trace.status.unwrap().as_u16(), trace.grpc_status), (200, None));
        assert_eq!((trace.question.method.as_str(), &*trace.question.path), ("GET", "/"));
        let went: Vec<_> = trace.tries.iter().map(|one| (one.endpoint, one.outcome)).collect();
        let refused = (gone.address, Outcome::Failed("not_connected"));
        assert_eq!(went, [refused, (server.address, Outcome::Status(200))]);
        assert!(trace.tries.iter().all(|one| one.after + one.took <= trace.took));
        assert_eq!(*told.lock().unwrap(), [Some(header(&trace, 1))]);
    }
}

#[tokio::test]
async fn what_is_not_recorded_goes_on_as_it_is() {
    let (server, told) = server().await;
    let proxy = Proxy::start(Policy::RoundRobin, &[server.address]).await;
    let mut client = OneConnection::to(proxy.address, Version::Http1).await;
    let not_sampled = PARENT.replace("-01", "-00");
    client.text(with_parent(PARENT)).await.unwrap();
    let mut traces = proxy.trace(0);
    client.text(with_parent(&not_sampled)).await.unwrap();
    client.get().await.unwrap();
    let as_sent = [Some(PARENT.to_owned()), Some(not_sampled), None];
    assert_eq!(*told.lock().unwrap(), as_sent);
    assert!(traces.try_recv().is_err());
    // A trace that begins here.
    let mut traces = proxy.trace(ALL);
    client.get().await.unwrap();
    let trace = next(&mut traces).await;
    assert_eq!(trace.parent, None);
    assert_eq!(told.lock().unwrap()[3], Some(header(&trace, 0)));
}

#[tokio::test]
async fn a_call_of_grpc_is_recorded_to_its_trailers() {
    let server = Server::start(|request: Request<Incoming>| async {
        drop(request.into_body().collect().await);
        let trailers =
            HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static("5"))]);
        let data = bytes::Bytes::from_static(b"\0\0\0\0\x02hi");
        let frames = [Frame::data(data), Frame::trailers(trailers)].map(Ok::<_, hyper::Error>);
        Response::new(StreamBody::new(futures_util::stream::iter(frames)).boxed())
    })
    .await;
    let proxy = Proxy::start(Policy::RoundRobin, &[server.address]).await;
    let mut traces = proxy.trace(ALL);
    let mut client = OneConnection::to(proxy.address, Version::Http2).await;
    let response = client.send(grpc_call()).await.unwrap();
    response.into_body().collect().await.unwrap();
    let trace = next(&mut traces).await;
    assert_eq!((trace.status.unwrap().as_u16(), trace.grpc_status), (200, Some(5)));
    // Without an endpoint.
    proxy.set(&[]);
    client.text(grpc_call()).await.unwrap();
    let trace = next(&mut traces).await;
    assert_eq!((trace.grpc_status, trace.tries.len()), (Some(14), 0));
}

#[tokio::test]
async fn a_request_that_its_client_gives_up_is_recorded_as_such() {
    let server = Server::start(|_| async { std::future::pending::<Response<Body>>().await }).await;
    for version in BOTH {
        let proxy = Proxy::start(Policy::RoundRobin, &[server.address]).await;
        let mut traces = proxy.trace(ALL);
        let before = server.n_requests();
        {
            let mut client = OneConnection::to(proxy.address, version).await;
            tokio::select! {
                answered = client.get() => panic!("{answered:?}"),
                () = async { while server.n_requests() == before { tokio::task::yield_now().await } } => {}
            }
        }
        let trace = next(&mut traces).await;
        assert_eq!(trace.status, None);
        assert_eq!(trace.tries[0].outcome, Outcome::GivenUp);
    }
}
