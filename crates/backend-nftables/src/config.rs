//! What the fixed part of the ruleset depends on.

/// Settings of one family's ruleset. A change of it changes chains, never elements.
pub use model::RuleSettings as Config;
