//! From `tracing`'s events and spans to lines.

use std::hash::{Hash as _, Hasher as _};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use tokio::time::Instant;
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record as SpanRecord};
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::registry;
use tracing_subscriber::registry::{LookupSpan, Scope};

use crate::limit::{LeftOut, Limiter, WINDOW};
use crate::queue::{Line, Queue};
use crate::record::{Content, Fields, Number, Place, Record, Severity, Value};
use crate::verbosity::{ALWAYS, default_of, lowest_of, lowest_of_span};
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

impl Klog {
    /// Whether a callsite can have a record, or a span gives fields to records.
    fn is_enabled(&self, metadata: &Metadata<'_>) -> bool {
        let lowest = if metadata.is_span() { lowest_of_span(metadata) } else { lowest_of(metadata) };
        lowest.is_some_and(|lowest| lowest <= self.verbosity_for(metadata))
    }

    fn max_level(&self) -> LevelFilter {
        match self.verbosity().max(self.vmodule.highest()) {
            0 => LevelFilter::INFO,
            1..=3 => LevelFilter::DEBUG,
            _ => LevelFilter::TRACE,
        }
    }

    /// Has an event written. `of_spans` gives the fields of the spans that it is in.
    fn event(&self, event: &Event<'_>, of_spans: impl FnOnce() -> Fields) {
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
        let mut content = Content { fields: of_spans(), ..Content::default() };
        event.record(&mut content);
        let Content { message, fields } = content;
        let place = Place::of(metadata);
        self.take(&Record { time: Timestamp::now(), severity, v, place, message, fields });
    }
}

/// What takes in `tracing`'s events and spans for a [`Klog`].
pub(crate) fn subscriber(klog: &Arc<Klog>) -> impl Subscriber + Send + Sync + use<> {
    registry().with(KlogLayer(klog.clone()))
}

/// Has `tracing`'s events written, with the fields of their spans before their own: what klog calls a logger's values.
#[derive(Clone, Debug)]
struct KlogLayer(Arc<Klog>);

/// The fields of a span, kept with it.
struct SpanFields(Fields);

impl<S: Subscriber + for<'span> LookupSpan<'span>> Layer<S> for KlogLayer {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.0.is_enabled(metadata) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>, _context: Context<'_, S>) -> bool {
        self.0.is_enabled(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.0.max_level())
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut content = Content::default();
        attributes.record(&mut content);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(SpanFields(content.fields));
        }
    }

    fn on_record(&self, id: &Id, values: &SpanRecord<'_>, context: Context<'_, S>) {
        let mut content = Content::default();
        values.record(&mut content);
        if let Some(span) = context.span(id)
            && let Some(SpanFields(fields)) = span.extensions_mut().get_mut()
        {
            fields.extend(content.fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        self.0.event(event, || {
            let mut fields = Fields::new();
            for span in context.event_scope(event).into_iter().flat_map(Scope::from_root) {
                if let Some(SpanFields(of_span)) = span.extensions().get() {
                    fields.extend(of_span.iter().cloned());
                }
            }
            fields
        });
    }
}

#[cfg(test)]
mod tests {
    use tracing::{debug, debug_span, error, error_span, info, trace, trace_span, warn};

    use super::*;
    use crate::limit::SHOWN;

    fn klog(config: Config) -> Arc<Klog> {
        Arc::new(Klog::new(config, TimeZone::UTC))
    }

    fn with_klog(klog: &Arc<Klog>, log: impl FnOnce()) {
        tracing::subscriber::with_default(subscriber(klog), log);
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
        with_klog(&klog, || {
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
        for (verbosity, patterns, n_lines) in [(0, "layer=4", 8), (4, "layer=0", 3), (0, "other=9", 3)] {
            let config = Config { verbosity, vmodule: patterns.parse().unwrap(), ..Config::default() };
            let klog = klog(config);
            with_klog(&klog, speak);
            assert_eq!(messages(&klog).len(), n_lines, "{patterns}");
        }
    }

    #[test]
    fn floods_are_summed_up_and_new_errors_shown() {
        let klog = klog(Config { verbosity: 2, ..Config::default() });
        with_klog(&klog, || {
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
        with_klog(&klog, || {
            error!(error = %"broke", family = ?1, "what");
        });
        let text = text(&klog);
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (&json["msg"], &json["err"], &json["family"]),
            (&"what".into(), &"broke".into(), &"1".into())
        );
        assert!(json["caller"].as_str().unwrap().starts_with("logs/layer.rs:"), "{text}");
        assert!(json["ts"].as_f64().unwrap() > 1.7e12);
        assert!(json.get("v").is_none());
    }

    #[test]
    fn records_have_the_fields_of_their_spans() {
        let klog = klog(Config::default());
        with_klog(&klog, || {
            let outer = error_span!("sync", ipFamily = "IPv4", generation = tracing::field::Empty);
            outer.in_scope(|| {
                outer.record("generation", 7);
                info!(a = 1, "inside");
                error_span!("step", step = 2).in_scope(|| info!("further in"));
                debug_span!("not asked for", hidden = true).in_scope(|| info!("as if it were not there"));
                trace_span!("neither", hidden = true).in_scope(|| warn!("nor there"));
            });
            info!("outside");
        });
        let text = text(&klog);
        let lines: Vec<&str> =
            text.lines().filter_map(|line| line.split_once("] ")).map(|(_, rest)| rest).collect();
        assert_eq!(
            lines,
            [
                r#""inside" ipFamily="IPv4" generation=7 a=1"#,
                r#""further in" ipFamily="IPv4" generation=7 step=2"#,
                r#""as if it were not there" ipFamily="IPv4" generation=7"#,
                r#""nor there" ipFamily="IPv4" generation=7"#,
                r#""outside""#,
            ]
        );
    }
}
