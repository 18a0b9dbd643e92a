//! Where lines go.

use std::io::{self, Write};
use std::time::Duration;

use crate::record::Severity;

/// A stream for lines.
pub(crate) type Stream = Box<dyn Write + Send>;

/// Before a stream that was made not to block is tried again.
const FULL_PAUSE: Duration = Duration::from_millis(10);

/// The program's streams.
pub(crate) struct Sink {
    errors: Stream,
    /// For info records, if they go somewhere else.
    infos: Option<Buffered>,
}

struct Buffered {
    stream: Stream,
    kept: Vec<u8>,
    limit: usize,
}

impl Sink {
    /// Everything to `errors`.
    pub(crate) fn single(errors: Stream) -> Self {
        Self { errors, infos: None }
    }

    /// Info records to `infos`, of which up to so many bytes are kept back.
    pub(crate) fn split(errors: Stream, infos: Stream, limit: usize) -> Self {
        Self { errors, infos: Some(Buffered { stream: infos, kept: Vec::new(), limit }) }
    }

    /// Writes a record's line, for as long as the stream takes.
    pub(crate) fn write(&mut self, severity: Severity, line: &str) -> io::Result<()> {
        match &mut self.infos {
            Some(infos) if severity == Severity::Info => infos.write(line),
            infos => {
                // What led to the error comes before it.
                let led_to_it = infos.as_mut().map_or(Ok(()), Buffered::flush);
                write_whole(&mut self.errors, line.as_bytes()).and(led_to_it)
            }
        }
    }

    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.infos.as_mut().map_or(Ok(()), Buffered::flush)
    }
}

impl Buffered {
    fn write(&mut self, line: &str) -> io::Result<()> {
        let flushed = if self.kept.len() + line.len() > self.limit { self.flush() } else { Ok(()) };
        if line.len() > self.limit {
            return write_whole(&mut self.stream, line.as_bytes()).and(flushed);
        }
        self.kept.extend_from_slice(line.as_bytes());
        flushed
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.kept.is_empty() {
            return Ok(());
        }
        let written = write_whole(&mut self.stream, &self.kept);
        self.kept.clear();
        written
    }
}

/// Writes everything, also to a stream that somebody who shares it has made not to block.
fn write_whole(stream: &mut Stream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => bytes = &bytes[n..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(FULL_PAUSE),
            Err(error) => return Err(error),
        }
    }
    stream.flush()
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Takes up to seven bytes at a time, and nothing every other time.
    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<(Vec<u8>, bool)>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let (taken, is_full) = &mut *self.0.lock().unwrap();
            *is_full = !*is_full;
            if *is_full {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let bytes = &bytes[..bytes.len().min(7)];
            taken.extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Shared {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().0.clone()).unwrap()
        }
    }

    #[test]
    fn info_records_are_kept_back_up_to_the_limit_and_until_an_error() {
        let (errors, infos) = (Shared::default(), Shared::default());
        let mut sink = Sink::split(Box::new(errors.clone()), Box::new(infos.clone()), 8);
        sink.write(Severity::Info, "one\n").unwrap();
        sink.write(Severity::Info, "two\n").unwrap();
        assert_eq!(infos.text(), "");
        sink.write(Severity::Info, "3\n").unwrap();
        assert_eq!(infos.text(), "one\ntwo\n");
        sink.write(Severity::Warning, "bad\n").unwrap();
        assert_eq!((infos.text().as_str(), errors.text().as_str()), ("one\ntwo\n3\n", "bad\n"));
        sink.write(Severity::Info, "longer than that\n").unwrap();
        assert_eq!(infos.text(), "one\ntwo\n3\nlonger than that\n");
        sink.write(Severity::Info, "x\n").unwrap();
        sink.flush().unwrap();
        assert!(infos.text().ends_with("x\n"));
    }

    #[test]
    fn a_single_stream_gets_everything_at_once() {
        let errors = Shared::default();
        let mut sink = Sink::single(Box::new(errors.clone()));
        sink.write(Severity::Info, "one\n").unwrap();
        sink.write(Severity::Error, "two\n").unwrap();
        assert_eq!(errors.text(), "one\ntwo\n");
    }
}
