//! Log records as klog writes them, from `tracing`'s events.
//!
//! What is shown is decided by klog's verbosity, a number from 0 to 9, and not by `tracing`'s levels alone:
//!
//! | event | shown as | from verbosity |
//! |---|---|---|
//! | `error!`, `warn!` | E, W | always |
//! | `info!` | I | 0; with a field `v`: that |
//! | `debug!` | I | 2; with a field `v` of 1 to 3: that |
//! | `trace!` | I | 4; with a field `v` of 4 to 9: that |
//! | a library's `info!` | I | 4 |
//! | a library's `debug!` | I | 8 |
//! | a library's `trace!` | never: it shows what goes over the wire, credentials included | |
//!
//! Spans are not recorded. A record that no verbosity asked for and that comes too often is counted instead of written
//! (`limit`).
#![forbid(unsafe_code)]

mod json;
mod limit;
mod record;
mod sink;
mod subscriber;
mod text;
mod verbosity;

use std::sync::Arc;
use std::time::Duration;

pub use verbosity::{PatternError, Vmodule};

use subscriber::Klog;

/// How records are written.
#[derive(Clone, Debug)]
pub struct Config {
    /// The form of a record.
    pub format: Format,
    /// The least important records that are written have this number.
    pub verbosity: u32,
    /// Other verbosities for parts of the program.
    pub vmodule: Vmodule,
    /// Info records go to standard output, warnings and errors to standard error; otherwise all go to standard error.
    pub split_stream: bool,
    /// With `split_stream`: up to so many bytes of info records are kept back, until an error is written or `flush_every`
    /// has passed. 0: nothing is.
    pub info_buffer_bytes: usize,
    /// How often what is kept back is written.
    pub flush_every: Duration,
}

/// Upstream's defaults (`component-base/logs/api/v1`).
impl Default for Config {
    fn default() -> Self {
        Self {
            format: Format::Text,
            verbosity: 0,
            vmodule: Vmodule::default(),
            split_stream: false,
            info_buffer_bytes: 0,
            flush_every: Duration::from_secs(5),
        }
    }
}

/// The form of a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// `I0102 15:04:05.123456   12345 side.rs:68] "Message" key="value"`.
    #[default]
    Text,
    /// `{"ts":1795219336559.325,"caller":"agent/side.rs:68","msg":"Message","v":0,"key":"value"}`.
    Json,
}

/// Something else receives the program's records already.
#[derive(Debug, thiserror::Error)]
#[error("logging is set up already")]
pub struct InitError(#[from] tracing::subscriber::SetGlobalDefaultError);

/// Makes the program's records go to its standard streams from now on. [`Handle::flush_regularly`] is to follow once the
/// program may have more than one thread.
///
/// # Errors
/// It has been called before.
pub fn init(config: Config) -> Result<Handle, InitError> {
    let flush_every = config.flush_every;
    let klog = Arc::new(Klog::new(config));
    tracing::subscriber::set_global_default(klog.clone())?;
    Ok(Handle { klog, flush_every })
}

/// Changes how records are written while the program runs. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    klog: Arc<Klog>,
    flush_every: Duration,
}

impl Handle {
    /// The verbosity in force.
    pub fn verbosity(&self) -> u32 {
        self.klog.verbosity()
    }

    /// Changes the verbosity, at once and for all threads.
    pub fn set_verbosity(&self, verbosity: u32) {
        self.klog.set_verbosity(verbosity);
    }

    /// Starts the thread that writes what was kept back, and sums up what was left out, every `flush_every`.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn flush_regularly(&self) -> std::io::Result<()> {
        let Self { klog, flush_every } = self.clone();
        let flush = move || loop {
            std::thread::sleep(flush_every);
            klog.flush();
        };
        std::thread::Builder::new().name("log-flush".into()).spawn(flush).map(drop)
    }

    /// Writes what was kept back. To be called before the program ends.
    pub fn flush(&self) {
        self.klog.flush_all();
    }
}
