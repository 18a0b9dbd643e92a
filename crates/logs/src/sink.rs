//! Where lines go.

use std::io::{self, Write};

use crate::record::Severity;

/// A stream for lines.
pub(crate) type Stream = Box<dyn Write + Send>;

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

    /// Writes a record's line. A stream that takes nothing loses it: there is nobody to tell.
    pub(crate) fn write(&mut self, severity: Severity, line: &str) {
        match &mut self.infos {
            Some(infos) if severity == Severity::Info => infos.write(line),
            infos => {
                // What led to the error comes before it.
                if let Some(infos) = infos {
                    infos.flush();
                }
                drop(self.errors.write_all(line.as_bytes()));
            }
        }
    }

    pub(crate) fn flush(&mut self) {
        if let Some(infos) = &mut self.infos {
            infos.flush();
        }
    }
}

impl Buffered {
    fn write(&mut self, line: &str) {
        if self.kept.len() + line.len() > self.limit {
            self.flush();
        }
        if line.len() > self.limit {
            drop(self.stream.write_all(line.as_bytes()).and_then(|()| self.stream.flush()));
        } else {
            self.kept.extend_from_slice(line.as_bytes());
        }
    }

    fn flush(&mut self) {
        if !self.kept.is_empty() {
            let written: io::Result<()> =
                self.stream.write_all(&self.kept).and_then(|()| self.stream.flush());
            drop(written);
            self.kept.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Shared {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    #[test]
    fn info_records_are_kept_back_up_to_the_limit_and_until_an_error() {
        let (errors, infos) = (Shared::default(), Shared::default());
        let mut sink = Sink::split(Box::new(errors.clone()), Box::new(infos.clone()), 8);
        sink.write(Severity::Info, "one\n");
        sink.write(Severity::Info, "two\n");
        assert_eq!(infos.text(), "");
        sink.write(Severity::Info, "3\n");
        assert_eq!(infos.text(), "one\ntwo\n");
        sink.write(Severity::Warning, "bad\n");
        assert_eq!((infos.text().as_str(), errors.text().as_str()), ("one\ntwo\n3\n", "bad\n"));
        sink.write(Severity::Info, "longer than that\n");
        assert_eq!(infos.text(), "one\ntwo\n3\nlonger than that\n");
        sink.write(Severity::Info, "x\n");
        sink.flush();
        assert!(infos.text().ends_with("x\n"));
    }

    #[test]
    fn a_single_stream_gets_everything_at_once() {
        let errors = Shared::default();
        let mut sink = Sink::single(Box::new(errors.clone()));
        sink.write(Severity::Info, "one\n");
        sink.write(Severity::Error, "two\n");
        assert_eq!(errors.text(), "one\ntwo\n");
    }
}
