//! What enumerations and queries are asked with.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::SchemaVersion;
use crate::guid::Guid;

/// The document that `HcnEnumerate…` and `HcnQuery…Properties` take.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Query {
    /// The form of the answer.
    pub schema_version: SchemaVersion,
    /// 0: what was configured; 1: more.
    pub flags: u32,
    /// A JSON object as text; empty: no filter.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub filter: String,
}

impl Query {
    /// Everything.
    pub fn all() -> Self {
        Self::default()
    }

    /// The object of this id.
    pub fn of_id(id: Guid) -> Self {
        Self::filtered(&json!({ "ID": id }))
    }

    /// Objects of this name.
    pub fn of_name(name: &str) -> Self {
        Self::filtered(&json!({ "Name": name }))
    }

    /// Endpoints of a network (a key of the older form of documents, which HNS goes on taking).
    pub fn of_network(network: Guid) -> Self {
        Self::filtered(&json!({ "VirtualNetwork": network }))
    }

    fn filtered(filter: &Value) -> Self {
        Self { filter: filter.to_string(), ..Self::default() }
    }
}
