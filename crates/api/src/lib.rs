//! Wire formats to model objects: Kubernetes protobuf, JSON, and manifests in YAML or JSON.
//!
//! Every format fills the same slim raw form (`raw`), which borrows its text from the input; one conversion
//! (`convert`) turns that into a [`model::Object`] or says why not. What a server would filter by selector is filtered
//! here too, because a folder of manifests has no server.
//!
//! Nothing here does I/O, and no input panics: a bad object is rejected alone, a bad item of an object is left out with
//! a note, and only a body whose framing is broken fails as a whole.
#![forbid(unsafe_code)]

mod convert;
mod decode;
mod frames;
mod list;
mod manifest;
mod proto;
mod protobuf;
mod raw;
mod report;
mod status;

pub use decode::{BodyError, Format, decode_object};
pub use frames::{FrameError, FrameReader, MAX_FRAME_BYTES, WatchEvent};
pub use list::{ListMeta, decode_list};
pub use manifest::{ManifestError, ManifestFormat, Manifests, parse_manifests};
pub use report::{IgnoreReason, Outcome, Parsed, Rejection};
pub use status::{Status, decode_status};
