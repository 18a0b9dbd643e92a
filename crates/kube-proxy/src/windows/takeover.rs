//! Leaving nothing behind, on Windows.

use config::{Config, Mode};

/// `--cleanup`: removes what is ours.
pub(crate) fn clean_up(_config: &Config) -> anyhow::Result<()> {
    anyhow::bail!("--cleanup is not implemented on Windows")
}

/// Windows has no capabilities to give up.
pub(crate) fn give_up_privileges(_mode: Mode) {}
