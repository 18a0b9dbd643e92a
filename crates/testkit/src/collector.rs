//! A collector of OpenTelemetry's spans, by OTLP over gRPC, and what it got. It reads protobuf by itself, so that what is written can be
//! checked.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};

/// A message of protobuf: the values of each field.
#[derive(Clone, Debug, Default)]
pub struct Message(BTreeMap<u64, Vec<Field>>);

#[derive(Clone, Debug)]
enum Field {
    Number(u64),
    Bytes(Vec<u8>),
}

impl Message {
    fn read(mut bytes: &[u8]) -> Self {
        let mut message = Self::default();
        while !bytes.is_empty() {
            let tag = varint(&mut bytes);
            let field = match tag & 7 {
                0 => Field::Number(varint(&mut bytes)),
                1 => Field::Number(u64::from_le_bytes(taken(&mut bytes, 8).try_into().unwrap())),
                2 => {
                    let len = usize::try_from(varint(&mut bytes)).unwrap();
                    Field::Bytes(taken(&mut bytes, len).to_vec())
                }
                other => panic!("wire type {other}"),
            };
            message.0.entry(tag >> 3).or_default().push(field);
        }
        message
    }

    /// Whether a field is there.
    pub fn has(&self, field: u64) -> bool {
        self.0.contains_key(&field)
    }

    /// The bytes of a field; none if it is not there.
    pub fn bytes(&self, field: u64) -> Vec<u8> {
        match self.0.get(&field).map(Vec::as_slice) {
            None => Vec::new(),
            Some([Field::Bytes(bytes)]) => bytes.clone(),
            other => panic!("field {field}: {other:?}"),
        }
    }

    /// The same as text.
    pub fn text(&self, field: u64) -> String {
        String::from_utf8(self.bytes(field)).unwrap()
    }

    /// The messages of a field.
    pub fn messages(&self, field: u64) -> Vec<Self> {
        let message = |value: &Field| match value {
            Field::Bytes(bytes) => Self::read(bytes),
            Field::Number(_) => panic!("field {field} has no message"),
        };
        self.0.get(&field).into_iter().flatten().map(message).collect()
    }

    /// The number of a field; 0 if it is not there.
    pub fn number(&self, field: u64) -> u64 {
        match self.0.get(&field).map(Vec::as_slice) {
            None => 0,
            Some([Field::Number(number)]) => *number,
            other => panic!("field {field}: {other:?}"),
        }
    }

    /// Attributes of OpenTelemetry in a field, as `name=value`.
    pub fn attributes(&self, field: u64) -> Vec<String> {
        let shown = |attribute: &Self| {
            let [value] = &*attribute.messages(2) else { panic!("{attribute:?}") };
            let value = if value.has(1) { value.text(1) } else { value.number(3).to_string() };
            format!("{}={value}", attribute.text(1))
        };
        self.messages(field).iter().map(shown).collect()
    }
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let [byte] = taken(bytes, 1) else { panic!() };
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return number;
        }
    }
    panic!("a number without an end");
}

fn taken<'b>(bytes: &mut &'b [u8], n: usize) -> &'b [u8] {
    let (taken, rest) = bytes.split_at(n);
    *bytes = rest;
    taken
}

/// A collector. Clones are of the same one.
#[derive(Clone, Debug)]
pub struct Collector {
    got: Arc<Mutex<Vec<Message>>>,
    statuses: Arc<Mutex<Vec<&'static str>>>,
}

type Body = BoxBody<Bytes, Infallible>;

impl Collector {
    /// One that answers with these statuses of gRPC, one after the other; with the last from then on.
    pub fn answering(statuses: &[&'static str]) -> Self {
        Self { got: Arc::default(), statuses: Arc::new(Mutex::new(statuses.to_vec())) }
    }

    /// Listens at a port of the loopback interface, for as long as the runtime is there.
    pub async fn listen(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let this = self.clone();
        tokio::spawn(async move {
            loop {
                this.serve(listener.accept().await.unwrap().0);
            }
        });
        address
    }

    /// The same at a socket of the file system.
    pub fn listen_at(&self, path: &Path) {
        let listener = UnixListener::bind(path).unwrap();
        let this = self.clone();
        tokio::spawn(async move {
            loop {
                this.serve(listener.accept().await.unwrap().0);
            }
        });
    }

    fn serve(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let this = self.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| this.clone().take(request));
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            drop(builder.serve_connection(TokioIo::new(stream), service).await);
        });
    }

    async fn take(self, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        assert_eq!(request.uri().path(), "/opentelemetry.proto.collector.trace.v1.TraceService/Export");
        assert_eq!(request.headers()["content-type"], "application/grpc");
        let framed = request.into_body().collect().await.unwrap().to_bytes();
        let ([0, len @ ..], message) = framed.split_first_chunk::<5>().unwrap() else {
            panic!("it is compressed")
        };
        assert_eq!(usize::try_from(u32::from_be_bytes(*len)).unwrap(), message.len());
        self.got.lock().unwrap().push(Message::read(message));
        let status = {
            let mut statuses = self.statuses.lock().unwrap();
            if statuses.len() > 1 { statuses.remove(0) } else { statuses[0] }
        };
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static(status));
        let message = Bytes::from_static(b"\0\0\0\0\0");
        let frames = [Frame::data(message), Frame::trailers(trailers)].map(Ok::<_, Infallible>);
        Ok(Response::new(StreamBody::new(stream::iter(frames)).boxed()))
    }

    /// All requests, `ExportTraceServiceRequest` each, whatever was answered.
    pub fn requests(&self) -> Vec<Message> {
        self.got.lock().unwrap().clone()
    }

    /// The spans of all requests.
    pub fn spans(&self) -> Vec<Message> {
        let of_resources = self.requests().into_iter().flat_map(|request| request.messages(1));
        let of_scopes = of_resources.flat_map(|resource| resource.messages(2));
        of_scopes.flat_map(|scope| scope.messages(2)).collect()
    }
}
