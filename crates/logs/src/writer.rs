//! The thread that writes lines, so that nobody else waits for whoever reads them.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use crate::layer::Klog;
use crate::queue::Batch;
use crate::record::{Place, Record, Severity, Value};
use crate::sink::Sink;

pub(crate) struct Writer {
    pub(crate) klog: Arc<Klog>,
    pub(crate) sink: Sink,
    pub(crate) flush_every: Duration,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").finish_non_exhaustive()
    }
}

impl Writer {
    /// Writes what comes, for ever.
    pub(crate) fn run(mut self) {
        let mut last_flush = Instant::now();
        loop {
            let batch = self.klog.queue().take(self.flush_every);
            let is_due = last_flush.elapsed() >= self.flush_every;
            if is_due {
                last_flush = Instant::now();
                self.klog.sum_up_ended();
            }
            self.write(&batch, is_due);
        }
    }

    fn write(&mut self, batch: &Batch, is_due: bool) {
        let mut unwritten = 0;
        for line in &batch.lines {
            unwritten += u64::from(self.sink.write(line.severity, &line.text).is_err());
        }
        if batch.lost > 0 {
            let line = self.klog.line(&loss(batch.lost));
            // Nobody can be told if this is lost, too.
            _ = self.sink.write(Severity::Warning, &line);
        }
        if batch.flush.is_some() || is_due {
            unwritten += u64::from(self.sink.flush().is_err());
        }
        self.klog.lose(unwritten);
        if let Some(number) = batch.flush {
            self.klog.queue().note_flushed(number);
        }
    }
}

fn loss(records: u64) -> Record {
    Record {
        time: Timestamp::now(),
        severity: Severity::Warning,
        v: 0,
        place: Place { file: file!(), line: line!(), krate: "logs" },
        message: "Log records were lost, because nobody read them".to_owned(),
        fields: vec![("records", Value::Uint(records))],
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
    use std::sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    };

    use jiff::tz::TimeZone;
    use tracing::{error, info};

    use super::*;
    use crate::Config;

    /// A pipe without room: a line is taken when somebody reads it.
    struct Pipe(SyncSender<String>);

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let text = String::from_utf8_lossy(bytes).into_owned();
            self.0.send(text).map_err(|_unread| std::io::ErrorKind::BrokenPipe)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn start() -> (Arc<Klog>, Receiver<String>, Arc<AtomicU64>) {
        let (pipe, reader) = sync_channel(0);
        let klog = Arc::new(Klog::new(Config { verbosity: 9, ..Config::default() }, TimeZone::UTC));
        let lost = Arc::new(AtomicU64::new(0));
        let counted = lost.clone();
        klog.on_loss(Box::new(move |n| _ = counted.fetch_add(n, Ordering::Relaxed)));
        let sink = Sink::single(Box::new(Pipe(pipe)));
        let writer = Writer { klog: klog.clone(), sink, flush_every: Duration::from_secs(5) };
        std::thread::spawn(|| writer.run());
        (klog, reader, lost)
    }

    /// Nobody reads, and yet who logs gets on. Later the reader learns how many records are missing.
    #[test]
    fn who_logs_does_not_wait_for_readers() {
        const RECORDS: usize = 20_000;
        let (klog, reader, lost) = start();
        tracing::subscriber::with_default(crate::layer::subscriber(&klog), || {
            for i in 0..RECORDS {
                info!(v = 1, i, long = "x".repeat(1000), "flood");
            }
            error!("the last");
        });
        let lost_so_far = lost.load(Ordering::Relaxed);
        assert!(lost_so_far > 0, "it shows at once");
        assert!(
            !klog.queue().flush(Duration::from_millis(1)),
            "and an end of the program does not wait either"
        );
        let lines = Mutex::new(Vec::new());
        let found = || {
            let line = reader.recv().unwrap();
            let is_loss = line.starts_with('W');
            lines.lock().unwrap().push(line);
            is_loss
        };
        while !found() {}
        let lines = lines.into_inner().unwrap();
        let missing: usize = lines.last().unwrap().trim().rsplit_once("records=").unwrap().1.parse().unwrap();
        assert!(missing > RECORDS / 2);
        assert_eq!(lines.len() - 2 + missing, RECORDS, "each is written or counted");
        assert!(lines[lines.len() - 2].contains("\"the last\""), "there is room for errors");
        std::thread::spawn(move || while reader.recv().is_ok() {});
        assert!(klog.queue().flush(Duration::from_mins(1)));
        assert_eq!(lost.load(Ordering::Relaxed), missing as u64);
    }

    #[test]
    fn records_for_a_closed_stream_are_counted() {
        let (klog, reader, lost) = start();
        drop(reader);
        tracing::subscriber::with_default(crate::layer::subscriber(&klog), || info!("unheard"));
        assert!(klog.queue().flush(Duration::from_mins(1)));
        assert_eq!(lost.load(Ordering::Relaxed), 1);
    }
}
