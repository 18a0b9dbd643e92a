//! Manifests: YAML or JSON files with any number of documents, as people write them for `kubectl apply`.
//!
//! What the API server would fill in is filled in here: the namespace `default`, names of unnamed slice ports, and the
//! relation between `clusterIP`, `clusterIPs` and `ipFamilies`.

use model::{Interner, IpFamily, Kind};
use serde_json::Value;

use crate::decode::from_value;
use crate::raw::{self, Text};
use crate::report::{Parsed, bounded};

/// The language of a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ManifestFormat {
    /// Documents separated by `---`.
    Yaml,
    /// Values one after the other.
    Json,
}

/// The objects of one manifest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifests {
    /// Objects of the watched kinds, in order.
    pub objects: Vec<Parsed>,
    /// The kinds of the documents that are no watched kind, in order.
    pub other_kinds: Vec<String>,
}

/// A manifest that can't be read; the text says where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ManifestError(String);

/// The API server's `default` namespace.
const DEFAULT_NAMESPACE: &str = "default";

/// Reads a manifest. A document that is no object, or has no `kind`, makes the whole file unusable: it is not what
/// somebody meant to write.
///
/// # Errors
/// The text is not of this format.
pub fn parse_manifests(
    text: &str,
    format: ManifestFormat,
    interner: &mut Interner,
) -> Result<Manifests, ManifestError> {
    let documents = match format {
        ManifestFormat::Yaml => yaml_documents(text)?,
        ManifestFormat::Json => serde_json::Deserializer::from_str(text)
            .into_iter()
            .collect::<Result<Vec<Value>, _>>()
            .map_err(|error| ManifestError(bounded(error)))?,
    };
    let mut manifests = Manifests::default();
    for document in documents.iter().filter(|document| !document.is_null()) {
        read_document(document, &mut manifests, interner)?;
    }
    Ok(manifests)
}

/// A manifest of more values than this is refused: some 30,000 Services with ten endpoints each.
const MAX_NODES: usize = 5_000_000;
/// Values beyond one for each byte of the text, which only aliases can bring about.
const ALIAS_ROOM: usize = 10_000;

/// The default budget would refuse a folder's worth of Services in one file, and let a few hundred bytes stand for a million
/// values. A text without aliases has fewer values than bytes, and no more characters in them than it has itself.
fn yaml_documents(text: &str) -> Result<Vec<Value>, ManifestError> {
    let allowed = text.len() + ALIAS_ROOM;
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_nodes: allowed.min(MAX_NODES),
            // A collection has an end, too, and so has each document.
            max_events: (3 * allowed).min(3 * MAX_NODES),
            max_documents: MAX_NODES,
            max_total_scalar_bytes: allowed,
            // How often is enough to know; one anchor may serve many.
            enforce_alias_anchor_ratio: false,
        },
    };
    serde_saphyr::from_multiple_with_options(text, options).map_err(|error| yaml_error(&error))
}

/// The first line of the parser's message; in words where it speaks of its own limits.
fn yaml_error(error: &serde_saphyr::Error) -> ManifestError {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    let is_limit = line.contains("budget breached") || line.contains("alias replay limit");
    let place = error.location().map_or(0, |place| place.line());
    if is_limit {
        return ManifestError(format!(
            "line {place}: too much for a text of its size: repeated by aliases, nested too deeply, or more than {MAX_NODES} values"
        ));
    }
    ManifestError(bounded(line))
}

fn read_document(
    document: &Value,
    manifests: &mut Manifests,
    interner: &mut Interner,
) -> Result<(), ManifestError> {
    let Some(kind) = document.get("kind").and_then(Value::as_str) else {
        return Err(ManifestError("a document has no kind".to_owned()));
    };
    match Kind::ALL.into_iter().find(|known| known.as_str() == kind) {
        Some(kind) => manifests.objects.push(read_object(kind, document, interner)),
        None if kind == "List" => {
            for item in document.get("items").and_then(Value::as_array).into_iter().flatten() {
                read_document(item, manifests, interner)?;
            }
        }
        None => manifests.other_kinds.push(bounded(kind)),
    }
    Ok(())
}

fn read_object(kind: Kind, document: &Value, interner: &mut Interner) -> Parsed {
    match kind {
        Kind::Service => from_value(document, complete_service, interner),
        Kind::EndpointSlice => from_value(document, complete_slice, interner),
        Kind::Node => from_value(document, |_: &mut raw::Node<'_>| {}, interner),
        Kind::ServiceCidr => from_value(document, |_: &mut raw::ServiceCidr<'_>| {}, interner),
    }
}

fn complete_meta(meta: &mut raw::Meta<'_>) {
    if meta.namespace.is_empty() {
        meta.namespace = DEFAULT_NAMESPACE.into();
    }
}

fn complete_service(service: &mut raw::Service<'_>) {
    complete_meta(&mut service.metadata);
    let spec = &mut service.spec;
    if spec.cluster_ip.is_empty() {
        spec.cluster_ip = spec.cluster_ips.first().cloned().unwrap_or_default();
    }
    if spec.cluster_ips.is_empty() && !spec.cluster_ip.is_empty() {
        spec.cluster_ips.push(spec.cluster_ip.clone());
    }
    if spec.ip_families.is_empty() {
        // An address that does not parse gets the family that its author seems to have meant; the conversion says what
        // is wrong with it.
        let family = |text: &Text<'_>| match model::parse_addr(text).map(IpFamily::of) {
            Ok(IpFamily::V6) => "IPv6",
            Err(_) if text.contains(':') => "IPv6",
            _ => "IPv4",
        };
        spec.ip_families = spec.cluster_ips.iter().map(|text| family(text).into()).collect();
    }
}

fn complete_slice(slice: &mut raw::EndpointSlice<'_>) {
    complete_meta(&mut slice.metadata);
    for port in &mut slice.ports {
        port.name.get_or_insert_default();
    }
}
