//! One request: from the client to an endpoint, to another one if need be, and the response back.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONNECTION, HOST, HeaderValue, UPGRADE};
use http::{HeaderMap, Method, Request, Response, StatusCode, Version, request};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use tokio::time::{Instant, timeout_at};

use crate::answer::{self, Failed};
use crate::request_body::{Asks, KeptBody, RequestBody};
use crate::requests::UnderWay;
use crate::response_body::{Held, ResponseBody};
use crate::retry::{self, Failure, Next, Tries};
use crate::serve::Visit;
use crate::trace::{Outcome, Recording};
use crate::tunnel::Ends;
use crate::upstream::{ConnectError, Connection, Endpoint, Lent, Room, SendError, Upstream};
use crate::{Answer, Frontend, NoTurn, Pool, Question, Turn, headers};

/// A request that can't be sent twice gets no connection that has been idle for longer: its endpoint may just be closing it, which
/// servers do after two seconds at the earliest.
const FRESH: Duration = Duration::from_secs(1);

/// The answer to a client's request.
pub(crate) async fn answer<F: Frontend>(
    visit: &Visit<F>,
    request: Request<Incoming>,
) -> Response<ResponseBody> {
    let under_way = visit.requests.begin();
    let (version, is_grpc) = (request.version(), answer::is_grpc(request.headers()));
    let recording = visit.frontend.sampling().and_then(|per_million| {
        Recording::begin(&request, per_million, || question(&request), || visit.frontend.recorder())
    });
    let (began, mut sent) = (Instant::now(), Sent { recording, ..Sent::default() });
    let question = visit.frontend.wants_question().then(|| question(&request));
    let forwarded = forward(visit, request, &mut sent).await;
    let status = match &forwarded {
        Ok(forwarded) => forwarded.answered.response.status(),
        // As gRPC has it, whose status is no status of HTTP, it counts too.
        Err(failed) => failed.status(),
    };
    let Sent { endpoint, retries, recording } = sent;
    visit.frontend.answered(&Answer { status, took: began.elapsed(), endpoint, retries, question });
    match forwarded {
        Ok(answered) => answered.into_response(visit, under_way, recording),
        Err(failed) => {
            let mut response = failed.response(is_grpc);
            if failed == Failed::NoEndpoint && version < Version::HTTP_2 {
                // The next connection comes to whoever serves this then.
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            let recording = recording.map(|recording| recording.answered(&response));
            response.map(|body| body.with(Held { recording, ..Held::of(under_way) }))
        }
    }
}

/// What became of a request on its way.
#[derive(Default)]
struct Sent {
    /// Who answered.
    endpoint: Option<SocketAddr>,
    retries: u32,
    recording: Option<Box<Recording>>,
}

fn question(request: &Request<Incoming>) -> Question {
    let uri = request.uri();
    let named = || request.headers().get(HOST).and_then(|host| host.to_str().ok());
    Question {
        method: request.method().clone(),
        path: uri.path().to_owned(),
        host: uri.host().or_else(named).map(str::to_owned),
        version: request.version(),
    }
}

async fn forward<F: Frontend>(
    visit: &Visit<F>,
    mut request: Request<Incoming>,
    sent: &mut Sent,
) -> Result<Forwarded, Failed> {
    let pool = visit.frontend.pool().ok_or(Failed::NoEndpoint)?;
    let Some(room) = pool.upstream().begin() else {
        pool.refused();
        return Err(Failed::Overloaded);
    };
    let client_end = hyper::upgrade::on(&mut request);
    let (mut parts, body) = request.into_parts();
    headers::of_request(&mut parts, visit.client.sent_to)?;
    let tunnel = Tunnel::wanted(&parts);
    let mut outgoing = Outgoing::new(parts, body, pool.upstream());
    let answered = send(&pool, visit, &mut outgoing, sent).await?;
    let is_tunnel = tunnel.is_begun_by(answered.response.status());
    if answered.response.status() == StatusCode::SWITCHING_PROTOCOLS && !is_tunnel {
        return Err(Failed::BadAnswer);
    }
    Ok(Forwarded { answered, room, client_end: is_tunnel.then_some(client_end) })
}

/// What a client wants a tunnel for.
#[derive(Clone, Copy)]
enum Tunnel {
    None,
    Upgrade,
    Connect,
}

impl Tunnel {
    fn wanted(parts: &request::Parts) -> Self {
        if parts.method == Method::CONNECT {
            Self::Connect
        } else if parts.headers.contains_key(UPGRADE) {
            Self::Upgrade
        } else {
            Self::None
        }
    }

    fn is_begun_by(self, status: StatusCode) -> bool {
        match self {
            Self::None => false,
            Self::Upgrade => status == StatusCode::SWITCHING_PROTOCOLS,
            Self::Connect => status.is_success(),
        }
    }
}

/// An endpoint's response, and what goes with it.
struct Answered {
    response: Response<Incoming>,
    endpoint: Arc<Endpoint>,
    lent: Lent,
    turn: Box<dyn Send>,
    asks: Option<Asks>,
}

struct Forwarded {
    answered: Answered,
    room: Room,
    client_end: Option<OnUpgrade>,
}

impl Forwarded {
    fn into_response<F: Frontend>(
        self,
        visit: &Visit<F>,
        under_way: UnderWay,
        recording: Option<Box<Recording>>,
    ) -> Response<ResponseBody> {
        let Self { answered, room, client_end } = self;
        let Answered { mut response, endpoint, lent, turn, asks } = answered;
        let recording = recording.map(|recording| recording.answered(&response));
        let held = Held { turn: Some(turn), room: Some(room), asks, recording, ..Held::of(under_way) };
        if let Some(client) = client_end {
            let ends = Ends { client, endpoint: hyper::upgrade::on(&mut response) };
            let held = Held { lent: Some(lent), ..held };
            visit.tunnels.begin(ends, held, visit.idle_limit, endpoint.drained());
            return for_client(response, |_empty| ResponseBody::default());
        }
        let is_http2 = response.version() == Version::HTTP_2;
        let held = Held { lent: Some(lent), ..held };
        for_client(response, |body| ResponseBody::of_endpoint(body, is_http2).with(held))
    }
}

fn for_client(
    response: Response<Incoming>,
    body: impl FnOnce(Incoming) -> ResponseBody,
) -> Response<ResponseBody> {
    let (mut parts, incoming) = response.into_parts();
    headers::of_response(&mut parts);
    Response::from_parts(parts, body(incoming))
}

/// Sends a request to one endpoint after the other, until there is an answer to be given.
async fn send<F: Frontend>(
    pool: &F::Pool,
    visit: &Visit<F>,
    outgoing: &mut Outgoing,
    sent: &mut Sent,
) -> Result<Answered, Failed> {
    let (client, preface) = (visit.client.address.ip(), pool.preface());
    let (mut avoid, mut tries) = (Vec::new(), Tries::default());
    let mut turn = pool.pick(client, &avoid).map_err(|none| {
        pool.refused();
        Failed::from(none)
    })?;
    // A retry is under way until its answer begins.
    let mut retrying = None;
    loop {
        let address = turn.address();
        let endpoint = visit.endpoint(pool.upstream(), address, preface.as_ref());
        sent.endpoint = Some(address);
        let tried = send_recorded(&endpoint, address, outgoing, sent.recording.as_deref_mut()).await;
        let failed = match tried {
            Ok(answer) => match outgoing.judge(turn, endpoint, answer) {
                Ok(answered) => return Ok(answered),
                Err(unavailable) => unavailable,
            },
            Err(failed) => {
                if failed.is_of_endpoint() {
                    turn.failed();
                }
                drop(turn);
                failed
            }
        };
        tries.n_tries += 1;
        // Unless it has the last word, which is an answer that nobody had a better one for.
        sent.endpoint = sent.endpoint.filter(|_| failed.answered.is_some());
        tries.n_sent += u32::from(failed.failure.is_sent());
        let next = retry::next(failed.failure, outgoing.facts(), tries);
        if matches!(next, Next::Elsewhere | Next::Retry) {
            avoid.push(address);
        }
        let another = match next {
            Next::Again | Next::Elsewhere => pool.pick(client, &avoid),
            Next::Retry => {
                drop(retrying.take());
                retrying = pool.upstream().take_retry();
                let has_one = retrying.as_ref().ok_or(NoTurn::Full);
                has_one.and_then(|_| pool.pick(client, &avoid).or_else(|_none| pool.pick(client, &[])))
            }
            Next::GiveUp => Err(NoTurn::NoEndpoint),
        };
        turn = match another {
            Ok(another) => {
                sent.retries += u32::from(next == Next::Retry);
                another
            }
            Err(_none) => {
                if !failed.is_of_endpoint() {
                    pool.refused();
                }
                return failed.give_up(outgoing);
            }
        };
    }
}

impl From<NoTurn> for Failed {
    fn from(none: NoTurn) -> Self {
        match none {
            NoTurn::NoEndpoint => Self::NoEndpoint,
            NoTurn::Full => Self::Overloaded,
        }
    }
}

/// A try without an answer to be given at once.
struct FailedTry {
    failure: Failure,
    failed: Failed,
    /// The answer, if nobody has a better one.
    answered: Option<Box<Answered>>,
}

impl FailedTry {
    fn new(failure: Failure, failed: Failed) -> Self {
        Self { failure, failed, answered: None }
    }

    /// Whether the endpoint failed, and not its client or a limit of ours.
    fn is_of_endpoint(&self) -> bool {
        !matches!(self.failure, Failure::NoRoom | Failure::NotSent)
    }

    fn give_up(self, outgoing: &Outgoing) -> Result<Answered, Failed> {
        outgoing.forget();
        self.answered.map_or(Err(self.failed), |answered| Ok(*answered))
    }
}

type Tried = (Response<Incoming>, Lent, Option<Asks>);

/// As [`send_once`], and records it, if that is wanted.
async fn send_recorded(
    endpoint: &Arc<Endpoint>,
    address: SocketAddr,
    outgoing: &mut Outgoing,
    recording: Option<&mut Recording>,
) -> Result<Tried, FailedTry> {
    let Some(recording) = recording else { return send_once(endpoint, outgoing).await };
    if let Some(headers) = outgoing.headers_mut() {
        recording.begin_try(address, headers);
    }
    let tried = send_once(endpoint, outgoing).await;
    recording.end_try(match &tried {
        Ok((response, ..)) => Outcome::Status(response.status().as_u16()),
        Err(failed) => Outcome::Failed(failed.failure.word()),
    });
    tried
}

async fn send_once(endpoint: &Arc<Endpoint>, outgoing: &mut Outgoing) -> Result<Tried, FailedTry> {
    let Some(deadline) = outgoing.deadline else { return send_for_long(endpoint, outgoing).await };
    let tried = timeout_at(deadline, send_for_long(endpoint, outgoing)).await;
    tried.unwrap_or_else(|_elapsed| Err(FailedTry::new(Failure::Late, Failed::Late)))
}

async fn send_for_long(endpoint: &Arc<Endpoint>, outgoing: &mut Outgoing) -> Result<Tried, FailedTry> {
    let connection = outgoing.connection(endpoint).await.map_err(|error| match error {
        ConnectError::Refused => FailedTry::new(Failure::NotConnected, Failed::Unreachable),
        ConnectError::TimedOut => FailedTry::new(Failure::NotConnected, Failed::TimedOut),
        ConnectError::Full => FailedTry::new(Failure::NoRoom, Failed::Overloaded),
    })?;
    let (request, asks) = outgoing.request();
    match connection.send(request).await {
        Ok((response, lent)) => Ok((response, lent, asks)),
        Err(SendError::NotSent(request)) => {
            outgoing.take_back(*request, asks);
            Err(FailedTry::new(Failure::NotSent, Failed::BadAnswer))
        }
        Err(SendError::Refused) => Err(FailedTry::new(Failure::Refused, Failed::Overloaded)),
        Err(SendError::Broken) => Err(FailedTry::new(Failure::Broken, Failed::BadAnswer)),
    }
}

/// A request as it goes to endpoints.
struct Outgoing {
    content: Content,
    version: Version,
    is_grpc: bool,
    is_idempotent: bool,
    expects_continue: bool,
    /// When its answer is to have begun.
    deadline: Option<Instant>,
}

enum Content {
    /// It can be sent once; `None`: it was.
    Once(Option<Box<(Request<RequestBody>, Option<Asks>)>>),
    /// It may be sent again.
    Kept(Box<request::Parts>, Option<KeptBody>),
}

impl Outgoing {
    fn new(parts: request::Parts, body: Incoming, upstream: &Upstream) -> Self {
        let version = parts.version;
        let is_grpc = answer::is_grpc(&parts.headers);
        let is_idempotent = headers::is_idempotent(&parts.method);
        let expects_continue = headers::expects_continue(&parts);
        let has_body = !body.is_end_stream();
        let may_be_sent_again = version == Version::HTTP_2 || is_idempotent;
        let content = if may_be_sent_again {
            let kept = has_body.then(|| KeptBody::new(body, &upstream.kept_bytes));
            Content::Kept(Box::new(parts), kept)
        } else {
            let body = if has_body { RequestBody::once(body) } else { RequestBody::default() };
            let (body, asks) = held_back(body, expects_continue);
            Content::Once(Some(Box::new((for_endpoint(parts, body, asks.as_ref()), asks))))
        };
        let deadline = upstream.request_limit().map(|limit| Instant::now() + limit);
        Self { content, version, is_grpc, is_idempotent, expects_continue, deadline }
    }

    async fn connection(&self, endpoint: &Arc<Endpoint>) -> Result<Connection, ConnectError> {
        if self.version == Version::HTTP_2 {
            return endpoint.http2().await;
        }
        let max_idle = if matches!(self.content, Content::Once(_)) { FRESH } else { Duration::MAX };
        endpoint.http1(max_idle).await
    }

    /// What the next try has.
    fn headers_mut(&mut self) -> Option<&mut HeaderMap> {
        match &mut self.content {
            Content::Once(request) => request.as_mut().map(|request| request.0.headers_mut()),
            Content::Kept(parts, _) => Some(&mut parts.headers),
        }
    }

    fn request(&mut self) -> (Request<RequestBody>, Option<Asks>) {
        match &mut self.content {
            // It is asked for only when there is one.
            Content::Once(request) => *request.take().unwrap_or_default(),
            Content::Kept(parts, body) => {
                let body = body.as_ref().map_or_else(RequestBody::default, KeptBody::again);
                let (body, asks) = held_back(body, self.expects_continue);
                (for_endpoint((**parts).clone(), body, asks.as_ref()), asks)
            }
        }
    }

    fn take_back(&mut self, request: Request<RequestBody>, asks: Option<Asks>) {
        if let Content::Once(place) = &mut self.content {
            *place = Some(Box::new((request, asks)));
        }
    }

    fn facts(&self) -> retry::Request {
        let is_replayable = match &self.content {
            Content::Once(_) => false,
            Content::Kept(_, body) => body.as_ref().is_none_or(KeptBody::is_whole),
        };
        retry::Request { is_idempotent: self.is_idempotent, is_replayable }
    }

    /// It goes to nobody else any more.
    fn forget(&self) {
        if let Content::Kept(_, Some(body)) = &self.content {
            body.forget();
        }
    }

    /// Whether an answer is one to be given.
    fn judge(
        &self,
        turn: impl Turn,
        endpoint: Arc<Endpoint>,
        (response, lent, asks): Tried,
    ) -> Result<Answered, FailedTry> {
        let is_unavailable = self.is_grpc
            && response.body().is_end_stream()
            && answer::is_grpc_unavailable(response.headers());
        turn.answered(answer::is_failure(&response, self.is_grpc));
        let answered = Answered { response, endpoint, lent, turn: Box::new(turn), asks };
        if is_unavailable {
            let failed = FailedTry::new(Failure::Unavailable, Failed::Overloaded);
            return Err(FailedTry { answered: Some(Box::new(answered)), ..failed });
        }
        self.forget();
        Ok(answered)
    }
}

fn held_back(body: RequestBody, is_held_back: bool) -> (RequestBody, Option<Asks>) {
    if !is_held_back || body.is_end_stream() {
        return (body, None);
    }
    let (body, asks) = body.held_back();
    (body, Some(asks))
}

fn for_endpoint(parts: request::Parts, body: RequestBody, asks: Option<&Asks>) -> Request<RequestBody> {
    let mut request = Request::from_parts(parts, body);
    if let Some(asks) = asks.cloned() {
        hyper::ext::on_informational(&mut request, move |response| {
            if response.status() == StatusCode::CONTINUE {
                asks.ask();
            }
        });
    }
    request
}

impl Failure {
    /// In a word, for who counts.
    const fn word(self) -> &'static str {
        match self {
            Self::NotConnected => "not_connected",
            Self::NoRoom => "no_room",
            Self::NotSent => "not_sent",
            Self::Refused => "refused",
            Self::Unavailable => "unavailable",
            Self::Broken => "broken",
            Self::Late => "timeout",
        }
    }

    fn is_sent(self) -> bool {
        !matches!(self, Self::NotConnected | Self::NoRoom | Self::NotSent)
    }
}

/// Where a client's connection came from and was made to.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    /// The client.
    pub address: SocketAddr,
    /// What it connected to.
    pub sent_to: SocketAddr,
}
