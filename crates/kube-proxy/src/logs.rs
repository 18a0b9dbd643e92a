//! Where log lines go and which ones.

use config::LogFormat;
use tracing_subscriber::EnvFilter;

/// Sends log lines to standard error, where upstream's go.
pub(crate) fn init(format: LogFormat, verbosity: u8) {
    let lines = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_env_filter(EnvFilter::new(filter(verbosity)));
    match format {
        LogFormat::Text => lines.init(),
        LogFormat::Json => lines.json().flatten_event(true).init(),
    }
}

/// klog's levels: 2 is the usual one in production and shows each change of the rules, 4 each API event; libraries
/// speak from 8. `kube` alone would also mean `kube_proxy`, which is this program.
fn filter(verbosity: u8) -> &'static str {
    match verbosity {
        0..=1 => "info,kube=warn,kube_proxy=info,hyper=warn,rustls=warn",
        2..=5 => "debug,kube=warn,kube_proxy=debug,hyper=warn,rustls=warn,h2=warn,tower=warn",
        6..=7 => "trace,kube=info,kube_proxy=trace,hyper=info,rustls=info,h2=info,tower=info",
        _ => "trace",
    }
}
