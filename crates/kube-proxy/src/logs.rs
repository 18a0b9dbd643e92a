//! Where log lines go and which ones.

use std::sync::Arc;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::reload::Handle;

use crate::flags::LogFormat;

/// Changes the verbosity of the running program.
pub(crate) type SetVerbosity = Arc<dyn Fn(i32) -> Result<(), String> + Send + Sync>;

/// Sends log lines to standard error, where upstream's go.
pub(crate) fn init(format: LogFormat, verbosity: u8) -> SetVerbosity {
    let lines = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_env_filter(EnvFilter::new(filter(verbosity)));
    match format {
        LogFormat::Text => {
            let lines = lines.with_filter_reloading();
            let set_verbosity = set_verbosity(lines.reload_handle());
            lines.init();
            set_verbosity
        }
        LogFormat::Json => {
            let lines = lines.json().flatten_event(true).with_filter_reloading();
            let set_verbosity = set_verbosity(lines.reload_handle());
            lines.init();
            set_verbosity
        }
    }
}

fn set_verbosity<S: 'static>(handle: Handle<EnvFilter, S>) -> SetVerbosity {
    Arc::new(move |verbosity| {
        // klog takes any number; below 0 is as quiet as 0.
        let verbosity = u8::try_from(verbosity.max(0)).unwrap_or(u8::MAX);
        handle.reload(EnvFilter::new(filter(verbosity))).map_err(|error| error.to_string())
    })
}

/// klog's levels: 2 is the usual one in production and shows each change of the rules, 4 each API event; libraries
/// speak from 8.
fn filter(verbosity: u8) -> &'static str {
    match verbosity {
        0..=1 => "info,kube=warn,hyper=warn,rustls=warn",
        2..=5 => "debug,kube=warn,hyper=warn,rustls=warn,h2=warn,tower=warn",
        6..=7 => "trace,kube=info,hyper=info,rustls=info,h2=info,tower=info",
        _ => "trace",
    }
}
