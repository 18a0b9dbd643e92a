//! What else packets need.

use mode::{Planner, Target};
use model::Family;

/// Makes the rules that go with virtual servers.
pub trait Rules<F: Family>: Planner<F> {
    /// Whether the rules that were found choose endpoints themselves, as those of another mode do: then virtual servers have to
    /// be there before these rules go. Otherwise rules come first, since without them packets are not masqueraded.
    fn choose_endpoints(found: &<Self::Target as Target>::Found) -> bool;
}
