//! What is set before anything is served, on Windows.

use agent::with_causes;
use config::Config;
use tracing::{info, warn};

use crate::limits::Limits;
use crate::platform;

/// `--init-only`: nothing of the host's is set, so upstream refuses it, too.
///
/// # Errors
/// Always.
pub(crate) fn set_host(_config: &Config, _limits: &Limits) -> anyhow::Result<()> {
    anyhow::bail!("--init-only is not implemented on Windows")
}

/// Sets what is this process's.
#[expect(clippy::unnecessary_wraps, reason = "other systems may lack privileges")]
pub(crate) fn before_serving(config: &Config, limits: &Limits) -> anyhow::Result<()> {
    let Some(class) = &config.windows.priority_class else { return Ok(()) };
    match platform::set_priority_class(class) {
        Ok(()) => info!(class, "Set the priority class"),
        Err(error) => {
            let error = with_causes(&error);
            warn!(class, err = error, "the priority class stays as it is");
            limits.note("the priority class", Some(error));
        }
    }
    Ok(())
}
