//! Lists: which state they show, page by page, and how they are written.

use std::iter::once;
use std::sync::Arc;

use bytes::Bytes;
use http::Response;
use serde_json::json;

use super::body::{Body, gathered, response};
use super::faults::Fault;
use super::kinds::Kind;
use super::negotiate::Format;
use super::object::Object;
use super::options::ListOptions;
use super::shared::Shared;
use super::status::Status;
use super::store::{Objects, Store};
use super::token::Continuation;
use super::{json as canonical_json, proto, tables};

/// One page of a list.
struct Page {
    kind: Kind,
    revision: u64,
    objects: Vec<Arc<Object>>,
    continuation: Option<String>,
    /// Only known without selectors, as in a real server.
    remaining: Option<usize>,
}

/// Answers a list.
///
/// # Errors
///
/// The answer for the client when the revision that it wants is gone or does not come in time.
pub(super) async fn serve(
    shared: &Shared,
    options: &ListOptions,
    format: Format,
    faults: &[Fault],
) -> Result<Response<Body>, Status> {
    wait_for_version(shared, options).await?;
    let mut page = page(&shared.lock().store, options)?;
    for fault in faults {
        if let Fault::ListVersion(version) = fault {
            page.revision = *version;
        }
    }
    let body = match format {
        Format::Json => json_body(page),
        Format::Protobuf => proto_body(page),
    };
    Ok(response(200, format.content_type(), body))
}

/// Waits for a revision from the future, as long as the configuration and the client allow.
async fn wait_for_version(shared: &Shared, options: &ListOptions) -> Result<(), Status> {
    let Some(wanted) = options.resource_version else { return Ok(()) };
    let limit = shared.config.future_wait;
    let wait = options.timeout.map_or(limit, |timeout| timeout.min(limit));
    let mut revisions = shared.revision.subscribe();
    let reached = tokio::time::timeout(wait, revisions.wait_for(|revision| *revision >= wanted));
    let is_reached = reached.await.is_ok();
    if is_reached { Ok(()) } else { Err(Status::too_large(wanted, shared.lock().store.revision())) }
}

fn page(store: &Store, options: &ListOptions) -> Result<Page, Status> {
    let kind = options.selector.kind;
    let snapshot: Objects;
    let (objects, revision, start) = if let Some(token) = &options.continuation {
        let start = token.start_key();
        match u64::try_from(token.rv) {
            Err(_present) => (store.objects(kind), store.revision(), start),
            Ok(revision) => {
                snapshot = store
                    .at(kind, revision)
                    .map_err(|_compacted| Status::expired_continue(&token.clone().at_present().encode()))?;
                (&snapshot, revision, start)
            }
        }
    } else if let (true, Some(revision)) = (options.is_exact(), options.resource_version) {
        snapshot = store
            .at(kind, revision)
            .map_err(|_compacted| Status::expired("The resourceVersion for the provided list is too old."))?;
        (&snapshot, revision, "")
    } else {
        (store.objects(kind), store.revision(), "")
    };
    Ok(cut_page(options, objects, revision, start))
}

fn cut_page(options: &ListOptions, objects: &Objects, revision: u64, start: &str) -> Page {
    let selector = &options.selector;
    let mut matching = objects.range(start.to_owned()..).map(|(_, o)| o).filter(|o| selector.matches(o));
    // The cache of a real server answers a list of any version as a whole.
    let is_any_version = options.resource_version == Some(0) && options.continuation.is_none();
    let limit = if options.limit == 0 || is_any_version { usize::MAX } else { options.limit };
    let objects: Vec<Arc<Object>> = matching.by_ref().take(limit).cloned().collect();
    let remaining = matching.count();
    let last = objects.last().filter(|_| remaining > 0);
    Page {
        kind: selector.kind,
        revision,
        continuation: last.map(|object| Continuation::after(&object.key(), revision).encode()),
        remaining: (remaining > 0 && selector.is_empty()).then_some(remaining),
        objects,
    }
}

impl Page {
    fn metadata(&self) -> serde_json::Value {
        json!({
            "resourceVersion": self.revision.to_string(),
            "continue": self.continuation,
            "remainingItemCount": self.remaining,
        })
    }

    fn list_kind(&self) -> String {
        format!("{}List", self.kind.info().kind)
    }
}

fn json_body(page: Page) -> Body {
    // List metadata made above fits its table.
    let metadata = canonical_json::canonical(&tables::LIST_META, &page.metadata()).unwrap_or_default();
    let api_version = page.kind.info().api_version();
    let kind = page.list_kind();
    let head = format!(r#"{{"kind":"{kind}","apiVersion":"{api_version}","metadata":{metadata},"items":["#);
    let items = page.objects.into_iter().enumerate().flat_map(|(i, object)| {
        let separator = (i > 0).then(|| Bytes::from_static(b","));
        separator.into_iter().chain(once(object.json.clone()))
    });
    gathered(once(Bytes::from(head)).chain(items).chain(once(Bytes::from_static(b"]}\n"))))
}

fn proto_body(page: Page) -> Body {
    let metadata = proto::encode(&tables::LIST_META, &page.metadata()).unwrap_or_default();
    let items_len: usize = page.objects.iter().map(|o| proto::field_len(o.proto.len())).sum();
    let raw_len = proto::field_len(metadata.len()) + items_len;
    let mut head = proto::envelope_head(&page.kind.info().api_version(), &page.list_kind(), raw_len);
    proto::put_bytes(1, &metadata, &mut head);
    let items = page.objects.into_iter().flat_map(|object| {
        let mut item_head = Vec::with_capacity(8);
        proto::put_length(2, object.proto.len(), &mut item_head);
        [Bytes::from(item_head), object.proto.clone()]
    });
    let tail = Bytes::from_static(&proto::ENVELOPE_TAIL);
    gathered(once(Bytes::from(head)).chain(items).chain(once(tail)))
}
