//! The border to a kernel, real or fake.

use netlink::NetlinkError;

use crate::{Filter, Flow};

/// A table of tracked flows. One instance is used by one thread.
pub trait Conntrack: Send {
    /// Calls `visit` for each flow that the filter selects, in no order. A flow may come twice.
    ///
    /// # Errors
    /// After [`NetlinkError::Interrupted`] what was visited is right, but flows may be missing.
    fn each(&mut self, filter: &Filter, visit: &mut dyn FnMut(&Flow)) -> Result<(), NetlinkError>;

    /// Deletes the flows that the filter selects and for which `stale` says true; returns how many. `stale` may be
    /// asked more than once about a flow.
    ///
    /// Each is deleted by its exact tuples and id, so that a flow that took its place is not hit; one that is gone
    /// already is no error and does not count. A flow that the kernel refuses to delete keeps none of the others.
    ///
    /// A disturbed reading of the table is repeated a few times. What all of them missed is left, and the call ends
    /// with [`NetlinkError::Interrupted`]: a table that never stands still must not keep the caller for good. Calling
    /// again later does no harm.
    ///
    /// # Errors
    /// If flows were deleted before or besides the failure, [`NetlinkError::Partial`] says how many.
    fn delete(&mut self, filter: &Filter, stale: &mut dyn FnMut(&Flow) -> bool) -> Result<u64, NetlinkError>;
}
