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
//! A record has the fields of the spans that it is in, which are shown as events of their level would be; libraries' spans are not
//! recorded. A record that no verbosity asked for and that comes too often is counted instead of written
//! (`limit`). A thread of its own writes, so that nobody waits for whoever reads the streams; if they don't, records are lost
//! and counted (`queue`).
#![forbid(unsafe_code)]

mod file;
mod json;
mod layer;
mod limit;
mod queue;
mod record;
mod sink;
mod text;
mod verbosity;
mod writer;

use std::backtrace::BacktraceStatus;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::tz::TimeZone;
use tracing::error;

pub use verbosity::{PatternError, Vmodule};

use file::LogFile;
use layer::Klog;
use record::Severity;
use sink::Sink;
use writer::Writer;

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
    /// Everything goes to this file instead of the streams. It is added to; what is over 100 MB begins anew, and one such file
    /// before it is kept, with `.old` at the end of its name.
    pub file: Option<PathBuf>,
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
            file: None,
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

/// Why the program's records can't be received.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// Something else receives them already.
    #[error("logging is set up already")]
    Twice(#[from] tracing::subscriber::SetGlobalDefaultError),
    /// The file can't be written to.
    #[error("open the log {}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

/// Is told how many records are lost.
pub type OnLoss = Box<dyn Fn(u64) + Send + Sync>;

/// A log file has no more than this and a record.
const MAX_FILE_BYTES: u64 = 100 << 20;

/// How long the end of the program, or of a thread that panics, waits for whoever reads the streams.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Makes the program's records, and its panics, go to its standard streams. They are kept until
/// [`Handle::start_writing`], which is to follow once the program may have more than one thread.
///
/// # Errors
/// It has been called before, or the file can't be written to.
pub fn init(config: Config) -> Result<Handle, InitError> {
    let (flush_every, errors) = (config.flush_every, Box::new(std::io::stderr()));
    let sink = if let Some(path) = config.file.clone() {
        let file = LogFile::open(path.clone(), MAX_FILE_BYTES);
        Sink::single(Box::new(file.map_err(|source| InitError::File { path, source })?))
    } else if config.split_stream {
        Sink::split(errors, Box::new(std::io::stdout()), config.info_buffer_bytes)
    } else {
        Sink::single(errors)
    };
    let klog = Arc::new(Klog::new(config, TimeZone::system()));
    tracing::subscriber::set_global_default(layer::subscriber(&klog))?;
    let writer = Writer { klog: klog.clone(), sink, flush_every };
    let handle = Handle { klog, writer: Arc::new(Mutex::new(Some(writer))) };
    log_panics(handle.clone());
    Ok(handle)
}

/// The default hook writes to standard error itself, and would wait for a reader.
fn log_panics(handle: Handle) {
    std::panic::set_hook(Box::new(move |panic| {
        let payload = panic.payload_as_str().unwrap_or("(no text)");
        let backtrace = std::backtrace::Backtrace::capture();
        let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
        let (thread, place) = (std::thread::current(), panic.location().map(ToString::to_string));
        error!(err = payload, thread = thread.name(), place, backtrace, "panic");
        handle.flush();
    }));
}

/// Changes how records are written while the program runs. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    klog: Arc<Klog>,
    /// Until its thread is started.
    writer: Arc<Mutex<Option<Writer>>>,
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

    /// Has this told how many records are lost from now on. Only the first call counts. It is called by whoever logs, so it must
    /// neither wait nor log.
    pub fn on_loss(&self, on_loss: OnLoss) {
        self.klog.on_loss(on_loss);
    }

    /// Writes a line that is no record to standard error, in its order among them.
    pub fn write_line(&self, line: &str) {
        self.klog.push(Severity::Error, format!("{line}\n"));
    }

    /// Starts the thread that writes, once.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn start_writing(&self) -> std::io::Result<()> {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        let start = |writer: Writer| std::thread::Builder::new().name("log".into()).spawn(|| writer.run());
        writer.map_or(Ok(()), |writer| start(writer).map(drop))
    }

    /// Writes everything; what was left out is summed up. To be called before the program ends. Does not wait for long if
    /// nobody reads.
    pub fn flush(&self) {
        self.klog.sum_up_all();
        if self.start_writing().is_ok() {
            _ = self.klog.queue().flush(LAST_WORDS);
        }
    }
}
