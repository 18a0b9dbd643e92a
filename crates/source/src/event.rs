//! What a source tells.

use api::Rejection;
use model::{Change, Kind};

/// Something that a source has to say, in the order in which it came to know it (per kind).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceEvent {
    /// The state differs from before, or may do so.
    Change(Change),
    /// The first complete listing of this kind has been delivered (as [`Change::Replace`], just before). Sent once.
    Listed(Kind),
    /// An object, or an item of one, can't be used. It is sent again when the object is read again.
    Rejected(Rejection),
    /// Something does not work; the source tries again on its own.
    Problem {
        /// The kind that is affected; `None` for a whole folder.
        kind: Option<Kind>,
        /// What does not work and why, for the log.
        text: String,
    },
    /// What was reported as a problem of this kind works again.
    Recovered(Kind),
}
