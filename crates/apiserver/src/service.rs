//! From a request to its answer: credentials, faults, routing.

use std::io;
use std::sync::Arc;

use http::{Method, Request, Response, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::body::{Body, broken, compressed, dripping, response, status_response, truncated, whole};
use super::config::Auth;
use super::faults::{Fault, Verb};
use super::kinds::Kind;
use super::negotiate::{Format, negotiate};
use super::objects::{self, Content, Target};
use super::options::{ListOptions, Query};
use super::shared::{RequestRecord, Shared};
use super::status::Status;
use super::{list, watch};

/// What a path and method ask for.
#[derive(Debug)]
enum Route {
    /// Whether the server is well.
    Health,
    /// All objects of a kind, or a new one.
    Collection(Target, Verb),
    /// One object.
    Single(Target, Verb),
}

/// Answers one request and logs it.
///
/// # Errors
///
/// When the connection shall break without an answer.
pub(super) async fn handle(
    shared: Arc<Shared>,
    has_certificate: bool,
    request: Request<Incoming>,
) -> io::Result<Response<Body>> {
    let header = |name| request.headers().get(name).and_then(|v: &http::HeaderValue| v.to_str().ok());
    let mut record = RequestRecord {
        method: request.method().to_string(),
        path_and_query: request.uri().path_and_query().map(ToString::to_string).unwrap_or_default(),
        accept: header(header::ACCEPT).map(str::to_owned),
        headers: request.headers().clone(),
        version: request.version(),
        status: 0,
    };
    let result = answer(&shared, has_certificate, request).await;
    record.status = result.as_ref().map_or(0, |response| response.status().as_u16());
    tracing::debug!(method = record.method, path = record.path_and_query, status = record.status, "answered");
    shared.lock().requests.push(record);
    result
}

async fn answer(
    shared: &Arc<Shared>,
    has_certificate: bool,
    request: Request<Incoming>,
) -> io::Result<Response<Body>> {
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let route = route(request.method(), request.uri().path(), &query);
    let (kind, verb) = match &route {
        Ok(Route::Collection(target, verb) | Route::Single(target, verb)) => (Some(target.kind), Some(*verb)),
        Ok(Route::Health) | Err(_) => (None, None),
    };
    let faults = shared.lock().faults.take(kind, verb);
    for fault in &faults {
        if let Fault::Delay(time) = fault {
            tokio::time::sleep(*time).await;
        }
    }
    if faults.contains(&Fault::Disconnect) {
        return Err(broken());
    }
    let accept = request.headers().get(header::ACCEPT).and_then(|v| v.to_str().ok());
    let Some(format) = negotiate(accept, shared.config.protobuf) else {
        return Ok(status_response(&Status::not_acceptable(), Format::Json));
    };
    let result = match faults.iter().find(|f| matches!(f, Fault::Status { .. })) {
        Some(Fault::Status { code, retry_after }) => Err(Status::fault(*code, *retry_after)),
        _ => match (route, authorize(shared, has_certificate, &request, kind.zip(verb))) {
            (Err(status), _) | (Ok(_), Err(status)) => Err(status),
            (Ok(route), Ok(())) => dispatch(shared, route, request, &query, format, &faults).await,
        },
    };
    let response = result.unwrap_or_else(|status| status_response(&status, format));
    Ok(faults.into_iter().fold(response, spoil))
}

/// Applies the faults that touch a finished answer.
fn spoil(answer: Response<Body>, fault: Fault) -> Response<Body> {
    match fault {
        Fault::Truncate(limit) => answer.map(|body| truncated(body, limit)),
        Fault::Garbage(bytes) => answer.map(|_| whole(bytes)),
        Fault::Drip { code, pause } => response(code, "text/html", dripping(pause)),
        Fault::Header(name, value) => {
            let mut answer = answer;
            answer.headers_mut().insert(name, http::HeaderValue::from_static(value));
            answer
        }
        Fault::Status { .. }
        | Fault::Disconnect
        | Fault::Delay(_)
        | Fault::ListVersion(_)
        | Fault::WatchExpired => answer,
    }
}

/// Splits `/api/v1/...` and `/apis/group/version/...`; other paths are about the server, or nothing.
fn route(method: &Method, path: &str, query: &Query) -> Result<Route, Status> {
    let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
    let (group, version, rest) = match segments.as_slice() {
        ["api", version, rest @ ..] if !rest.is_empty() => ("", *version, rest),
        ["apis", group, version, rest @ ..] if !rest.is_empty() => (*group, *version, rest),
        _ => return Ok(Route::Health),
    };
    let kind = |plural: &str| Kind::from_path(group, version, plural).ok_or_else(Status::no_such_path);
    let (namespace, rest) = match rest {
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
        rest => ("", rest),
    };
    let (plural, name, is_status) = match rest {
        [plural] => (*plural, "", false),
        [plural, name] => (*plural, *name, false),
        [plural, name, "status"] => (*plural, *name, true),
        _ => return Err(Status::no_such_path()),
    };
    let kind = kind(plural)?;
    let target = Target { kind, namespace: namespace.to_owned(), name: name.to_owned(), is_status };
    let needs_namespace = kind.info().namespaced && namespace.is_empty();
    if needs_namespace && (!name.is_empty() || method == Method::POST) {
        return Err(Status::no_such_path());
    }
    match (method.as_str(), name.is_empty()) {
        ("GET", true) if query.is_set("watch") => Ok(Route::Collection(target, Verb::Watch)),
        ("GET", true) => Ok(Route::Collection(target, Verb::List)),
        ("POST", true) => Ok(Route::Collection(target, Verb::Create)),
        ("GET", false) => Ok(Route::Single(target, Verb::Get)),
        ("PUT", false) => Ok(Route::Single(target, Verb::Update)),
        ("PATCH", false) => Ok(Route::Single(target, Verb::Patch)),
        ("DELETE", false) => Ok(Route::Single(target, Verb::Delete)),
        _ => Err(Status::method_not_allowed()),
    }
}

/// Checks credentials. What is about the server itself is open to all.
fn authorize(
    shared: &Shared,
    has_certificate: bool,
    request: &Request<Incoming>,
    wanted: Option<(Kind, Verb)>,
) -> Result<(), Status> {
    let Some((kind, verb)) = wanted else { return Ok(()) };
    let anonymous = || Status::forbidden(verb.as_str(), kind);
    match &shared.config.auth {
        Auth::None => Ok(()),
        Auth::ClientCertificate if has_certificate => Ok(()),
        Auth::ClientCertificate => Err(anonymous()),
        Auth::Token(_) => {
            let header = request.headers().get(header::AUTHORIZATION).ok_or_else(anonymous)?;
            let token = header.to_str().ok().and_then(|text| text.strip_prefix("Bearer "));
            let is_valid = token.is_some() && token == shared.lock().token.as_deref();
            if is_valid { Ok(()) } else { Err(Status::unauthorized()) }
        }
    }
}

async fn dispatch(
    shared: &Arc<Shared>,
    route: Route,
    request: Request<Incoming>,
    query: &Query,
    format: Format,
    faults: &[Fault],
) -> Result<Response<Body>, Status> {
    let (target, verb) = match route {
        Route::Health => return health(request.uri().path()),
        Route::Collection(target, verb) | Route::Single(target, verb) => (target, verb),
    };
    if shared.lock().faults.is_missing(target.kind) {
        return Err(Status::no_such_path());
    }
    match verb {
        Verb::List | Verb::Watch => {
            let streamed_lists = shared.config.streamed_lists;
            let options = ListOptions::parse(target.kind, &target.namespace, query, streamed_lists)?;
            if options.watch {
                return Ok(watch::serve(shared, options, format, faults));
            }
            let answer = list::serve(shared, &options, format, faults).await?;
            let accepted = request.headers().get(header::ACCEPT_ENCODING);
            let wants_gzip = accepted.is_some_and(|accepted| accepted.as_bytes() == b"gzip");
            Ok(if wants_gzip { compressed(answer, shared.config.gzip_from).await } else { answer })
        }
        Verb::Get => objects::get(shared, &target, format),
        Verb::Create => objects::create(shared, &target, &content(request).await?, format),
        Verb::Update => objects::update(shared, &target, &content(request).await?, format),
        Verb::Patch => objects::patch(shared, &target, &content(request).await?, format),
        Verb::Delete => objects::delete(shared, &target, format),
    }
}

fn health(path: &str) -> Result<Response<Body>, Status> {
    let is_known = ["/healthz", "/livez", "/readyz"].contains(&path);
    is_known.then(|| response(200, "text/plain; charset=utf-8", whole("ok"))).ok_or_else(Status::no_such_path)
}

async fn content(request: Request<Incoming>) -> Result<Content, Status> {
    let media_type =
        request.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let media_type = media_type.split(';').next().unwrap_or_default().trim().to_owned();
    let body = request.into_body().collect().await;
    let bytes = body.map_err(|e| Status::bad_request(format!("the body cannot be read: {e}")))?.to_bytes();
    Ok(Content { media_type, bytes })
}
