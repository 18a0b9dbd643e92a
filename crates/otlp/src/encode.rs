//! Spans as a collector wants them: `opentelemetry.proto.collector.trace.v1.ExportTraceServiceRequest`. Numbers of fields are those of
//! OTLP 1.x, which don't change.

use bytes::Bytes;

use crate::protobuf::Message;
use crate::{Kind, Span, Value};

/// What spans are recorded by.
const SCOPE: &str = "kube-proxy";
const STATUS_CODE_ERROR: i64 = 2;

/// Spans of what these attributes describe.
pub fn encode(resource: &[(&'static str, Value)], spans: &[Span]) -> Bytes {
    let mut described = Message::default();
    put_attributes(&mut described, 1, resource);
    let mut scope = Message::default();
    scope.text(1, SCOPE);
    let mut of_scope = Message::default();
    of_scope.message(1, &scope);
    for span in spans {
        of_scope.message(2, &of_span(span));
    }
    let mut of_resource = Message::default();
    of_resource.message(1, &described);
    of_resource.message(2, &of_scope);
    let mut request = Message::default();
    request.message(1, &of_resource);
    request.bytes().freeze()
}

fn of_span(span: &Span) -> Message {
    let mut message = Message::default();
    message.raw(1, &span.trace);
    message.raw(2, &span.span);
    if let Some(parent) = &span.parent {
        message.raw(4, parent);
    }
    message.text(5, &span.name);
    message.number(6, kind(span.kind));
    message.fixed64(7, span.began_ns);
    message.fixed64(8, span.ended_ns);
    put_attributes(&mut message, 9, &span.attributes);
    if span.is_error {
        let mut status = Message::default();
        status.number(3, STATUS_CODE_ERROR);
        message.message(15, &status);
    }
    message
}

const fn kind(kind: Kind) -> i64 {
    match kind {
        Kind::Internal => 1,
        Kind::Server => 2,
        Kind::Client => 3,
    }
}

fn put_attributes(into: &mut Message, field: u32, attributes: &[(&'static str, Value)]) {
    for (name, value) in attributes {
        let mut any = Message::default();
        match value {
            // Also if it is empty, since it is the one that is there.
            Value::Text(text) => any.delimited(1, text.as_bytes()),
            Value::Int(number) => any.number(3, *number),
        }
        let mut attribute = Message::default();
        attribute.text(1, name);
        attribute.message(2, &any);
        into.message(field, &attribute);
    }
}
