//! Which format a client accepts.

/// A format of bodies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `application/json`.
    Json,
    /// `application/vnd.kubernetes.protobuf`.
    Protobuf,
}

/// Media type of protobuf bodies.
pub(super) const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

impl Format {
    /// The `Content-Type` of an object or list.
    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Protobuf => PROTOBUF,
        }
    }

    /// The `Content-Type` of a watch.
    pub(super) fn watch_content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
        }
    }
}

/// What the server does with requests for protobuf.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ProtobufSupport {
    /// It serves protobuf to those who ask for it.
    #[default]
    Serve,
    /// It passes over protobuf in the `Accept` header, and answers 406 when nothing else is acceptable.
    Refuse,
    /// It answers JSON where protobuf was asked for, although the client did not offer to take it.
    AnswerJson,
}

/// The first media type of an `Accept` header that the server can produce. No header means JSON.
///
/// Types with an `as=` parameter ask for a transformation (such as a table) that this server does not do, so
/// they are passed over. Weights are not looked at, as in a real server.
pub(super) fn negotiate(accept: Option<&str>, support: ProtobufSupport) -> Option<Format> {
    let Some(accept) = accept.filter(|a| !a.trim().is_empty()) else { return Some(Format::Json) };
    accept.split(',').find_map(|item| {
        let mut parts = item.split(';').map(str::trim);
        let media_type = parts.next().unwrap_or_default();
        if parts.any(|p| p.starts_with("as=")) {
            return None;
        }
        match (media_type, support) {
            ("application/json" | "*/*" | "application/*", _) | (PROTOBUF, ProtobufSupport::AnswerJson) => {
                Some(Format::Json)
            }
            (PROTOBUF, ProtobufSupport::Serve) => Some(Format::Protobuf),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_acceptable_type_wins() {
        use Format::{Json, Protobuf};
        use ProtobufSupport::{AnswerJson, Refuse, Serve};
        let both = "application/vnd.kubernetes.protobuf,application/json";
        for (accept, support, expected) in [
            (None, Serve, Some(Json)),
            (Some("*/*"), Serve, Some(Json)),
            (Some(both), Serve, Some(Protobuf)),
            (Some("application/json, application/vnd.kubernetes.protobuf"), Serve, Some(Json)),
            (Some("application/vnd.kubernetes.protobuf;stream=watch"), Serve, Some(Protobuf)),
            (Some(both), Refuse, Some(Json)),
            (Some(PROTOBUF), Refuse, None),
            (Some(PROTOBUF), AnswerJson, Some(Json)),
            (Some("application/cbor-nope"), Serve, None),
            (Some("application/json;as=Table;v=v1;g=meta.k8s.io,application/json"), Serve, Some(Json)),
            (Some("application/json;as=Table;v=v1;g=meta.k8s.io"), Serve, None),
        ] {
            assert_eq!(negotiate(accept, support), expected, "{accept:?} {support:?}");
        }
    }
}
