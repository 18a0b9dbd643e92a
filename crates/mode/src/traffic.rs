//! What went through.

use std::collections::BTreeMap;

use model::ServicePortName;

/// Counters of one Service port, since it was first served in its present form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// New flows.
    pub connections: u64,
    /// Packets of them, where the mode sees all.
    pub packets: Option<u64>,
    /// Bytes of these.
    pub bytes: Option<u64>,
}

/// Counters by Service port. Those that are not counted are not in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic(pub BTreeMap<ServicePortName, Counters>);
