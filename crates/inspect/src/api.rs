//! Requests to responses.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use agent::snapshot::{Overview, Page, Service, Wanted};
use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use http::request::Parts;
use http::{Method, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use metrics::health::{CanaryState, Report, SharedHealth};
use model::{ObjectName, ServiceName};
use serde::Serialize;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::time::Instant;
use walk::{Packet, Paths};

use crate::document::{
    ConflictList, EndpointList, FamilyHealth, Finding, FindingList, FlowList, Health, Limit, Problem,
    Rejection, RejectionList, ServiceList, Status,
};
use crate::query::{Query, QueryError, decoded};
use crate::rows::{endpoint_rows, service_row};
use crate::select::Selector;
use crate::{guard, packet, page, stream, traffic, words};

/// A response's body.
pub type Body = UnsyncBoxBody<Bytes, Infallible>;

/// A question to the agent; the answer never comes if that has ended.
pub type Ask<Q, A> = Arc<dyn Fn(Q) -> oneshot::Receiver<A> + Send + Sync>;

/// Where the answers come from.
#[derive(Clone)]
pub struct Sources {
    /// One Service.
    pub service: Ask<ServiceName, Option<Service>>,
    /// Some Services.
    pub services: Ask<Wanted, Page>,
    /// How everything is.
    pub overview: Ask<(), Overview>,
    /// Rises whenever the overview may have changed.
    pub news: watch::Receiver<u64>,
    /// What went through.
    pub traffic: Arc<dyn Fn() -> agent::Published + Send + Sync>,
    /// Health of the proxy.
    pub health: SharedHealth,
    /// Objects that can't be used at the moment.
    pub rejections: Arc<dyn Fn() -> Vec<Rejection> + Send + Sync>,
    /// The host.
    pub host: Arc<dyn Host>,
    /// What does not change.
    pub about: About,
}

/// What does not change while the program runs.
#[derive(Clone, Debug)]
pub struct About {
    /// The program's version.
    pub version: String,
    /// As `--proxy-mode` spells it.
    pub mode: String,
    /// The name of this node's Node object.
    pub node: String,
    /// When the program started.
    pub started: SystemTime,
}

/// What is read from the host. Each call may take long, and is made on a thread where that does no harm.
pub trait Host: Send + Sync {
    /// What the rules in the kernel do to a packet; at most so many ways.
    ///
    /// # Errors
    /// They can't be read or followed; why.
    fn walk(&self, packet: &Packet, limit: usize) -> Result<Paths, String>;

    /// The host's addresses.
    fn addresses(&self) -> Vec<IpAddr>;

    /// Tracked flows that were directed to an endpoint; at most so many.
    ///
    /// # Errors
    /// They can't be read; why.
    fn flows(&self, limit: usize) -> Result<FlowList, String>;

    /// What the proxy can't do here.
    fn limits(&self) -> Vec<Limit>;

    /// What may break this node, given what should be in force, and what was looked at.
    fn findings(&self, overview: &Overview, services: &[Service]) -> (Vec<Finding>, Vec<String>);
}

/// The event loop is never busy for so long, unless it is stuck.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most flows that are told at once.
const MAX_FLOWS: usize = 10_000;

/// The API and the page.
#[derive(Clone)]
pub struct Api {
    pub(crate) sources: Sources,
    /// Only one question at a time reads from the kernel.
    reading: Arc<Semaphore>,
    streams: Arc<Semaphore>,
}

/// What can't be answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    #[error("there is nothing at this path")]
    NotFound,
    #[error("there is no such Service, or none that is served here")]
    NoService,
    #[error(transparent)]
    Query(#[from] QueryError),
    #[error("the event loop does not answer")]
    Stuck,
    #[error("{0}")]
    Host(String),
    #[error("too many streams are open")]
    Busy,
}

impl ApiError {
    fn status(&self) -> StatusCode {
        match self {
            Self::NotFound | Self::NoService => StatusCode::NOT_FOUND,
            Self::Query(_) => StatusCode::BAD_REQUEST,
            Self::Stuck | Self::Busy => StatusCode::SERVICE_UNAVAILABLE,
            Self::Host(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl Api {
    /// Answers from these.
    pub fn new(sources: Sources) -> Self {
        Self {
            sources,
            reading: Arc::new(Semaphore::new(1)),
            streams: Arc::new(Semaphore::new(stream::MAX_STREAMS)),
        }
    }

    /// The paths that it answers, with `{*rest}` for whatever is below.
    pub const PATHS: [&'static str; 4] = ["/", "/ui/{*rest}", "/api/{*rest}", "/explain/{*rest}"];

    /// The answer to a request, whose body is not looked at.
    pub async fn answer(&self, request: &Parts) -> Response<Body> {
        if let Err(refusal) = guard::check(&request.headers, &self.sources.about.node) {
            return problem(refusal.status, refusal.why);
        }
        if ![Method::GET, Method::HEAD].contains(&request.method) {
            let mut response = problem(StatusCode::METHOD_NOT_ALLOWED, "the API is read-only");
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        let path = request.uri.path();
        if let Some(asset) = page::asset(path) {
            return asset;
        }
        let answer = match (path.strip_prefix("/api/v1/"), path.strip_prefix("/explain/")) {
            (Some(rest), _) => self.resource(rest, request.uri.query().unwrap_or_default()).await,
            (None, Some(name)) => self.explanation(name).await,
            (None, None) => Err(ApiError::NotFound),
        };
        answer.unwrap_or_else(|error| problem(error.status(), &error.to_string()))
    }

    async fn resource(&self, path: &str, query: &str) -> Result<Response<Body>, ApiError> {
        let query = Query::parse(query)?;
        let segments: Vec<String> = path.split('/').map(decoded).collect::<Result<_, _>>()?;
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        Ok(match segments.as_slice() {
            ["status"] => json(&self.status().await?),
            ["services"] => json(&self.services(&Selector::read(query)?).await?),
            ["services", namespace, name] => json(&self.service(namespace, name).await?),
            ["traffic"] => {
                query.end()?;
                json(&traffic::list(&(self.sources.traffic)(), Instant::now(), SystemTime::now()))
            }
            ["endpoints"] => json(&self.endpoints(&Selector::read(query)?).await?),
            ["conflicts"] => json(&ConflictList { items: self.overview().await?.conflicts }),
            ["rejections"] => json(&RejectionList { items: (self.sources.rejections)() }),
            ["flows"] => json(&self.on_host(|host| host.flows(MAX_FLOWS)).await?),
            ["packet"] => json(&packet::answer(self, query).await?),
            ["findings"] => json(&self.findings().await?),
            ["events"] => self.events().await?,
            _ => return Err(ApiError::NotFound),
        })
    }

    pub(crate) async fn overview(&self) -> Result<Overview, ApiError> {
        received((self.sources.overview)(())).await
    }

    pub(crate) async fn service(&self, namespace: &str, name: &str) -> Result<Service, ApiError> {
        let asked = (self.sources.service)(ObjectName::new(namespace, name));
        received(asked).await?.ok_or(ApiError::NoService)
    }

    /// `NAMESPACE/NAME` as text.
    async fn explanation(&self, name: &str) -> Result<Response<Body>, ApiError> {
        let (namespace, name) = name.split_once('/').ok_or(ApiError::NotFound)?;
        let text = words::service(&self.service(namespace, name).await?, None);
        Ok(whole(StatusCode::OK, "text/plain; charset=utf-8", text))
    }

    async fn status(&self) -> Result<Status, ApiError> {
        let overview = self.overview().await?;
        let limits = self.on_host(|host| Ok(host.limits())).await?;
        let About { version, mode, started, .. } = self.sources.about.clone();
        let now = Instant::now();
        let health = health(&self.sources.health.lock().report(now), now);
        let now = unix_seconds(SystemTime::now());
        Ok(Status { version, mode, started_at: unix_seconds(started), now, health, limits, overview })
    }

    async fn services(&self, selector: &Selector) -> Result<ServiceList, ApiError> {
        let mut items = Vec::new();
        self.each_service(selector, |_, row| items.push(row)).await?;
        Ok(ServiceList { now: unix_seconds(SystemTime::now()), items })
    }

    async fn endpoints(&self, selector: &Selector) -> Result<EndpointList, ApiError> {
        let mut items = Vec::new();
        let is_meant = |ip: IpAddr| selector.endpoint.is_none_or(|wanted| wanted == ip);
        self.each_service(selector, |service, _| {
            items.extend(endpoint_rows(&service).filter(|row| is_meant(row.endpoint.address.ip())));
        })
        .await?;
        Ok(EndpointList { now: unix_seconds(SystemTime::now()), items })
    }

    /// Calls `take` with each Service that is selected, and its line.
    pub(crate) async fn each_service(
        &self,
        selector: &Selector,
        mut take: impl FnMut(Service, crate::document::ServiceRow),
    ) -> Result<(), ApiError> {
        if let (Some(namespace), Some(name)) = (&selector.namespace, &selector.name)
            && !name.contains('*')
        {
            let service = received((self.sources.service)(ObjectName::new(namespace, name))).await?;
            let row = service.map(|service| (service_row(&service), service));
            row.into_iter()
                .filter(|(row, service)| selector.selects(service, row))
                .for_each(|(row, service)| take(service, row));
            return Ok(());
        }
        let mut take = |service| {
            let row = service_row(&service);
            if selector.selects(&service, &row) {
                take(service, row);
            }
        };
        self.each_of(selector.wanted(), &mut take).await
    }

    /// Calls `take` with each Service that is wanted.
    pub(crate) async fn each_of(
        &self,
        mut wanted: Wanted,
        take: &mut impl FnMut(Service),
    ) -> Result<(), ApiError> {
        loop {
            let Page { services, next } = received((self.sources.services)(wanted.clone())).await?;
            services.into_iter().for_each(&mut *take);
            if next.is_none() {
                return Ok(());
            }
            wanted.after = next;
        }
    }

    async fn findings(&self) -> Result<FindingList, ApiError> {
        let overview = self.overview().await?;
        let mut services = Vec::new();
        self.each_service(&Selector::default(), |service, _| services.push(service)).await?;
        let found = self.on_host(move |host| Ok(host.findings(&overview, &services))).await?;
        let (mut items, checked) = found;
        items.sort();
        Ok(FindingList { items, checked })
    }

    async fn events(&self) -> Result<Response<Body>, ApiError> {
        let permit = self.streams.clone().try_acquire_owned().map_err(|_none| ApiError::Busy)?;
        self.overview().await?;
        let body = stream::changes(self.sources.overview.clone(), self.sources.news.clone(), permit);
        let mut response = Response::new(body);
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        guarded(headers);
        Ok(response)
    }

    /// Reads from the host on a thread of its own, one question at a time.
    pub(crate) async fn on_host<T: Send + 'static>(
        &self,
        read: impl FnOnce(&dyn Host) -> Result<T, String> + Send + 'static,
    ) -> Result<T, ApiError> {
        // Nobody closes it.
        let _turn = self.reading.acquire().await.map_err(|_closed| ApiError::Stuck)?;
        let host = self.sources.host.clone();
        let read = tokio::task::spawn_blocking(move || read(&*host)).await;
        read.map_err(|ended| ApiError::Host(ended.to_string()))?.map_err(ApiError::Host)
    }
}

/// An answer of the agent.
pub(crate) async fn received<T>(answer: oneshot::Receiver<T>) -> Result<T, ApiError> {
    match tokio::time::timeout(PATIENCE, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(_)) | Err(_) => Err(ApiError::Stuck),
    }
}

fn health(report: &Report, now: Instant) -> Health {
    let family = |state: &metrics::health::FamilyReport| FamilyHealth {
        healthy: state.healthy,
        last_updated: unix_seconds(state.last_updated),
        pending_seconds: state.pending_since.map(|since| now.saturating_duration_since(since).as_secs_f64()),
    };
    let families = report.families.iter().map(|(name, state)| (name.to_string(), family(state))).collect();
    let mut reasons = Vec::new();
    for (name, state) in report.families.iter().filter(|(_, state)| !state.healthy) {
        reasons.push(match state.pending_since {
            Some(_) => format!("{name}: changes have been waiting for the kernel for too long"),
            None => format!("{name}: the event loop does not turn"),
        });
    }
    for (name, _) in report.canary.iter().filter(|(_, state)| **state == CanaryState::Unreachable) {
        reasons.push(format!(
            "{name}: the canary does not answer through its Service, although an endpoint does"
        ));
    }
    if !report.node_eligible {
        reasons.push("the Node is unknown, is being deleted, or is drained by the autoscaler".to_owned());
    }
    if !report.started {
        reasons.push("the rules have not been in place yet".to_owned());
    }
    Health {
        healthy: report.healthy,
        node_eligible: report.node_eligible,
        started: report.started,
        families,
        canary: report
            .canary
            .iter()
            .map(|(name, state)| (name.to_string(), state.as_str().to_owned()))
            .collect(),
        reasons,
    }
}

pub(crate) fn unix_seconds(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn json<T: Serialize>(document: &T) -> Response<Body> {
    match serde_json::to_vec(document) {
        Ok(body) => whole(StatusCode::OK, "application/json", body),
        Err(error) => problem(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

fn problem(status: StatusCode, error: &str) -> Response<Body> {
    let body = serde_json::to_vec(&Problem { error: error.to_owned() }).unwrap_or_default();
    whole(status, "application/json", body)
}

/// A response that browsers must neither guess about nor keep.
pub(crate) fn whole(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(body.into()).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    guarded(response.headers_mut());
    response
}

fn guarded(headers: &mut http::HeaderMap) {
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert("cross-origin-resource-policy", HeaderValue::from_static("same-origin"));
}

#[cfg(test)]
mod tests;
