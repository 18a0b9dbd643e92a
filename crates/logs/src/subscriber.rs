//! From `tracing`'s events to lines.

use std::hash::{Hash as _, Hasher as _};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use tokio::time::Instant;
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record as SpanRecord};
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};

use crate::limit::{LeftOut, Limiter, WINDOW};
use crate::queue::{Line, Queue};
use crate::record::{Content, Number, Place, Record, Severity, Value};
use crate::verbosity::{ALWAYS, default_of, lowest_of};
use crate::{Config, Format, OnLoss, Vmodule, json, text};

/// The receiver of all events.
#[derive(Debug)]
pub(crate) struct Klog {
    verbosity: AtomicU32,
    vmodule: Vmodule,
    format: Format,
    pid: u32,
    zone: TimeZone,
    started: Instant,
    limiter: Mutex<Limiter<Kind, Record>>,
    queue: Queue,
    on_loss: LossListener,
}

/// Who is told of losses.
#[derive(Default)]
struct LossListener(OnceLock<OnLoss>);

impl std::fmt::Debug for LossListener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("LossListener").field(&self.0.get().is_some()).finish()
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
    pub(crate) fn new(config: Config, zone: TimeZone) -> Self {
        Self {
            verbosity: AtomicU32::new(config.verbosity),
            vmodule: config.vmodule,
            format: config.format,
            pid: std::process::id(),
            zone,
            started: Instant::now(),
            limiter: Mutex::default(),
            queue: Queue::default(),
            on_loss: LossListener::default(),
        }
    }

    /// The lines that wait to be written.
    pub(crate) fn queue(&self) -> &Queue {
        &self.queue
    }

    /// Has this told of losses from now on. Only the first call counts.
    pub(crate) fn on_loss(&self, on_loss: OnLoss) {
        drop(self.on_loss.0.set(on_loss));
    }

    /// Tells that so many records are lost.
    pub(crate) fn lose(&self, records: u64) {
        if let Some(on_loss) = self.on_loss.0.get()
            && records > 0
        {
            on_loss(records);
        }
    }

    /// Has a line written soon, or loses it.
    pub(crate) fn push(&self, severity: Severity, text: String) {
        if !self.queue.push(Line { severity, text }) {
            self.lose(1);
        }
    }

    pub(crate) fn verbosity(&self) -> u32 {
        self.verbosity.load(Ordering::Relaxed)
    }

    pub(crate) fn set_verbosity(&self, verbosity: u32) {
        self.verbosity.store(verbosity, Ordering::Relaxed);
        tracing::callsite::rebuild_interest_cache();
    }

    /// Sums up what was left out in windows that have ended.
    pub(crate) fn sum_up_ended(&self) {
        let ended = self.limiter().ended(self.now());
        self.sum_up(ended);
    }

    /// The same for all that was left out, since there will be no other occasion.
    pub(crate) fn sum_up_all(&self) {
        let rest = self.limiter().finish();
        self.sum_up(rest);
    }

    fn sum_up(&self, left_out: Vec<LeftOut<Record>>) {
        for LeftOut { count, sample } in left_out {
            let fields = vec![
                ("leftOut", Value::Uint(count)),
                ("within", Value::Text(format!("{WINDOW:?}"))),
                ("oneOfThem", Value::Text(self.line(&sample).trim_end().to_owned())),
            ];
            self.write(&Record { time: Timestamp::now(), fields, ..sample });
        }
    }

    /// A record as it is written.
    pub(crate) fn line(&self, record: &Record) -> String {
        match self.format {
            Format::Text => text::line(record, self.pid, &self.zone),
            Format::Json => json::line(record),
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// A panic of another thread leaves it usable.
    fn limiter(&self) -> MutexGuard<'_, Limiter<Kind, Record>> {
        self.limiter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The verbosity for a callsite.
    fn verbosity_for(&self, metadata: &Metadata<'_>) -> u32 {
        self.vmodule.verbosity(metadata).unwrap_or_else(|| self.verbosity())
    }

    fn take(&self, record: &Record) {
        // Who asks for more gets all of it.
        let is_limited = record.v == ALWAYS;
        if is_limited && !self.limiter().admit(Kind::of(record), self.now(), || record.clone()) {
            return;
        }
        self.write(record);
    }

    fn write(&self, record: &Record) {
        self.push(record.severity, self.line(record));
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
        self.take(&Record { time: Timestamp::now(), severity, v, place, message, fields });
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
    use std::sync::Arc;

    use tracing::{debug, error, info, trace, warn};

    use super::*;
    use crate::limit::SHOWN;

    fn klog(config: Config) -> Arc<Klog> {
        Arc::new(Klog::new(config, TimeZone::UTC))
    }

    fn text(klog: &Klog) -> String {
        klog.queue.take(Duration::ZERO).lines.into_iter().map(|line| line.text).collect()
    }

    /// The messages so far, without what comes before and after.
    fn messages(klog: &Klog) -> Vec<String> {
        text(klog).lines().map(|line| line.split('"').nth(1).unwrap_or_default().to_owned()).collect()
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
        let klog = klog(Config::default());
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
                let mut lines = messages(&klog);
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
            let klog = klog(config);
            tracing::subscriber::with_default(klog.clone(), speak);
            assert_eq!(messages(&klog).len(), n_lines, "{patterns}");
        }
    }

    #[test]
    fn floods_are_summed_up_and_new_errors_shown() {
        let klog = klog(Config { verbosity: 2, ..Config::default() });
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
        let shown = messages(&klog);
        assert_eq!(count("flood", &shown), SHOWN);
        assert_eq!(count("repeated", &shown), SHOWN);
        assert_eq!(count("asked for", &shown), 2 * SHOWN);
        assert_eq!(count("new", &shown), 2 * SHOWN);
        klog.sum_up_all();
        let text = text(&klog);
        assert!(text.contains("\"flood\" leftOut=5 within=\"60s\" oneOfThem=\"W"), "{text}");
        assert!(text.contains("\"repeated\" leftOut=1 "), "{text}");
        assert_eq!(text.lines().count(), 2, "{text}");
    }

    #[test]
    fn the_form_can_be_json() {
        let klog = klog(Config { format: Format::Json, ..Config::default() });
        tracing::subscriber::with_default(klog.clone(), || {
            error!(error = %"broke", family = ?1, "what");
        });
        let text = text(&klog);
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
