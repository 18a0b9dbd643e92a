//! What commands do on the node itself, beside asking the proxy.

use std::time::Duration;

use nft::Name;
use nft::trace::{Traced, Traces};

/// The node that the command runs on.
pub(crate) struct ThisNode;

impl cli::Local for ThisNode {
    fn trace(
        &self,
        table: &Name,
        traced: &[Traced],
        per_second: u32,
    ) -> Result<Box<dyn cli::Packets>, String> {
        let tracing = kernel::Tracing::begin(table, traced, per_second);
        Ok(Box::new(Tracing(tracing.map_err(|error| agent::with_causes(&error))?)))
    }
}

struct Tracing(kernel::Tracing);

impl cli::Packets for Tracing {
    fn wait(&mut self, limit: Duration) -> Result<Traces, String> {
        self.0.wait(limit).map_err(|error| agent::with_causes(&error))
    }
}
