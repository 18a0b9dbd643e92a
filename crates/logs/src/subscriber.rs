//! From `tracing`'s events to lines.

use std::hash::{Hash as _, Hasher as _};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use tokio::time::Instant;
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record as SpanRecord};
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};

use crate::limit::{LeftOut, Limiter, WINDOW};
use crate::record::{Content, Number, Place, Record, Severity, Value};
use crate::sink::Sink;
use crate::verbosity::{ALWAYS, default_of, lowest_of};
use crate::{Config, Format, Vmodule, json, text};

/// The receiver of all events.
#[derive(Debug)]
pub(crate) struct Klog {
    verbosity: AtomicU32,
    vmodule: Vmodule,
    format: Format,
    pid: u32,
    zone: TimeZone,
    started: Instant,
    state: Mutex<State>,
}

struct State {
    sink: Sink,
    limiter: Limiter<Kind, Record>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("limiter", &self.limiter).finish_non_exhaustive()
    }
}

/// What counts as the like of a record: the same place, and for errors also the same text, so that an error that was not
/// seen before is shown however many others there are.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    file: &'static str,
    line: u32,
    text: Option<u64>,
}

impl Klog {
    /// One that writes to the program's standard streams.
    pub(crate) fn new(config: Config) -> Self {
        let errors = Box::new(std::io::stderr());
        let sink = if config.split_stream {
            Sink::split(errors, Box::new(std::io::stdout()), config.info_buffer_bytes)
        } else {
            Sink::single(errors)
        };
        Self::with_sink(config, sink, TimeZone::system())
    }

    pub(crate) fn with_sink(config: Config, sink: Sink, zone: TimeZone) -> Self {
        Self {
            verbosity: AtomicU32::new(config.verbosity),
            vmodule: config.vmodule,
            format: config.format,
            pid: std::process::id(),
            zone,
            started: Instant::now(),
            state: Mutex::new(State { sink, limiter: Limiter::default() }),
        }
    }

    pub(crate) fn verbosity(&self) -> u32 {
        self.verbosity.load(Ordering::Relaxed)
    }

    pub(crate) fn set_verbosity(&self, verbosity: u32) {
        self.verbosity.store(verbosity, Ordering::Relaxed);
        tracing::callsite::rebuild_interest_cache();
    }

    /// Writes what was kept back, and sums up what was left out in windows that have ended.
    pub(crate) fn flush(&self) {
        let mut state = self.lock();
        let ended = state.limiter.ended(self.now());
        self.sum_up(&mut state, ended);
        state.sink.flush();
    }

    /// The same for all that was left out, since there will be no other occasion.
    pub(crate) fn flush_all(&self) {
        let mut state = self.lock();
        let rest = state.limiter.finish();
        self.sum_up(&mut state, rest);
        state.sink.flush();
    }

    fn sum_up(&self, state: &mut State, left_out: Vec<LeftOut<Record>>) {
        for LeftOut { count, sample } in left_out {
            let fields = vec![
                ("leftOut", Value::Uint(count)),
                ("within", Value::Text(format!("{WINDOW:?}"))),
                ("oneOfThem", Value::Text(self.line(&sample).trim_end().to_owned())),
            ];
            let record = Record { time: Timestamp::now(), fields, ..sample };
            state.sink.write(record.severity, &self.line(&record));
        }
    }

    fn line(&self, record: &Record) -> String {
        match self.format {
            Format::Text => text::line(record, self.pid, &self.zone),
            Format::Json => json::line(record),
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// A panic of another thread leaves the state usable: lines are written as a whole.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The verbosity for a callsite.
    fn verbosity_for(&self, metadata: &Metadata<'_>) -> u32 {
        self.vmodule.verbosity(metadata).unwrap_or_else(|| self.verbosity())
    }

    fn write(&self, record: &Record) {
        let mut state = self.lock();
        // Who asks for more gets all of it.
        let is_limited = record.v == ALWAYS;
        if is_limited && !state.limiter.admit(Kind::of(record), self.now(), || record.clone()) {
            return;
        }
        state.sink.write(record.severity, &self.line(record));
    }
}

impl Kind {
    fn of(record: &Record) -> Self {
        let text = (record.severity == Severity::Error).then(|| {
            let mut hasher = rustc_hash::FxHasher::default();
            record.message.hash(&mut hasher);
            for field in &record.fields {
                if let (name, Value::Text(text)) = field {
                    (name, text).hash(&mut hasher);
                }
            }
            hasher.finish()
        });
        Self { file: record.place.file, line: record.place.line, text }
    }
}

impl Subscriber for Klog {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.enabled(metadata) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event()
            && lowest_of(metadata).is_some_and(|lowest| lowest <= self.verbosity_for(metadata))
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        let highest = self.verbosity().max(self.vmodule.highest());
        Some(match highest {
            0 => LevelFilter::INFO,
            1..=3 => LevelFilter::DEBUG,
            _ => LevelFilter::TRACE,
        })
    }

    fn event(&self, event: &Event<'_>) {
        let metadata = event.metadata();
        let Some(default) = default_of(metadata) else { return };
        let severity = Severity::of(*metadata.level());
        // Alone at first: the other fields may be long.
        let mut number = Number::default();
        event.record(&mut number);
        let v = number.v.filter(|_| severity == Severity::Info).unwrap_or(default);
        if v > self.verbosity_for(metadata) {
            return;
        }
        let mut content = Content::default();
        event.record(&mut content);
        let Content { message, fields } = content;
        let place = Place::of(metadata);
        self.write(&Record { time: Timestamp::now(), severity, v, place, message, fields });
    }

    // Spans are not enabled, so nothing of them is ever kept.
    fn new_span(&self, _span: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _span: &Id, _values: &SpanRecord<'_>) {}
    fn record_follows_from(&self, _span: &Id, _follows: &Id) {}
    fn enter(&self, _span: &Id) {}
    fn exit(&self, _span: &Id) {}
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use tracing::{debug, error, info, trace, warn};

    use super::*;
    use crate::limit::SHOWN;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn klog(config: Config) -> (Lines, Arc<Klog>) {
        let lines = Lines::default();
        let klog = Klog::with_sink(config, Sink::single(Box::new(lines.clone())), TimeZone::UTC);
        (lines, Arc::new(klog))
    }

    impl Lines {
        /// The messages so far, without what comes before and after.
        fn take(&self) -> Vec<String> {
            let text = String::from_utf8(std::mem::take(&mut self.0.lock().unwrap())).unwrap();
            text.lines().map(|line| line.split('"').nth(1).unwrap_or_default().to_owned()).collect()
        }
    }

    fn speak() {
        error!("error");
        warn!(v = 7, "warn");
        info!("info");
        info!(v = 1, "info 1");
        debug!("debug");
        debug!(v = 1, "debug 1");
        debug!(v = 3, "debug 3");
        trace!("trace");
        trace!(v = 9, "trace 9");
    }

    #[test]
    fn verbosity_decides_and_changes_at_run_time() {
        let (lines, klog) = klog(Config::default());
        tracing::subscriber::with_default(klog.clone(), || {
            let mut shown = vec!["error", "warn", "info"];
            for (verbosity, more) in [
                (0, &[][..]),
                (1, &["info 1", "debug 1"]),
                (2, &["debug"]),
                (3, &["debug 3"]),
                (4, &["trace"]),
                (8, &[]),
                (9, &["trace 9"]),
            ] {
                klog.set_verbosity(verbosity);
                assert_eq!(klog.verbosity(), verbosity);
                speak();
                shown.extend(more);
                let mut lines = lines.take();
                lines.sort();
                shown.sort_unstable();
                assert_eq!(lines, shown, "at {verbosity}");
            }
        });
    }

    #[test]
    fn patterns_raise_and_lower_it_for_some() {
        for (verbosity, patterns, n_lines) in
            [(0, "subscriber=4", 8), (4, "subscriber=0", 3), (0, "other=9", 3)]
        {
            let config = Config { verbosity, vmodule: patterns.parse().unwrap(), ..Config::default() };
            let (lines, klog) = klog(config);
            tracing::subscriber::with_default(klog, speak);
            assert_eq!(lines.take().len(), n_lines, "{patterns}");
        }
    }

    #[test]
    fn floods_are_summed_up_and_new_errors_shown() {
        let (lines, klog) = klog(Config { verbosity: 2, ..Config::default() });
        tracing::subscriber::with_default(klog.clone(), || {
            for i in 0..SHOWN + 5 {
                warn!(i, "flood");
            }
            for i in 0..=SHOWN {
                error!(error = "the same", i, "repeated");
            }
            for _ in 0..2 * SHOWN {
                debug!("asked for");
            }
            // From one place, so that they would count together.
            for what in ["a", "b"] {
                for _ in 0..SHOWN {
                    error!(error = what, "new");
                }
            }
        });
        let count =
            |message: &str, lines: &[String]| lines.iter().filter(|line| *line == message).count() as u64;
        let shown = lines.take();
        assert_eq!(count("flood", &shown), SHOWN);
        assert_eq!(count("repeated", &shown), SHOWN);
        assert_eq!(count("asked for", &shown), 2 * SHOWN);
        assert_eq!(count("new", &shown), 2 * SHOWN);
        klog.flush_all();
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert!(text.contains("\"flood\" leftOut=5 within=\"60s\" oneOfThem=\"W"), "{text}");
        assert!(text.contains("\"repeated\" leftOut=1 "), "{text}");
        assert_eq!(text.lines().count(), 2, "{text}");
    }

    #[test]
    fn the_form_can_be_json() {
        let (lines, klog) = klog(Config { format: Format::Json, ..Config::default() });
        tracing::subscriber::with_default(klog, || {
            error!(error = %"broke", family = ?1, "what");
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (&json["msg"], &json["err"], &json["family"]),
            (&"what".into(), &"broke".into(), &"1".into())
        );
        assert!(json["caller"].as_str().unwrap().starts_with("logs/subscriber.rs:"), "{text}");
        assert!(json["ts"].as_f64().unwrap() > 1.7e12);
        assert!(json.get("v").is_none());
    }
}
