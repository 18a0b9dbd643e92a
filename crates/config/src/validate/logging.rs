//! `logging`, checked with component-base's rules and reasons (`logsapi.Validate`).

use super::Check;
use crate::field::{FieldError, FieldErrors};
use crate::gates::{Gates, LOGGING_ALPHA_OPTIONS, LOGGING_BETA_OPTIONS};
use crate::settings::{LogFormat, Logging};
use crate::v1alpha1::{KubeProxyConfiguration, OutputRouting};

/// This section is checked before everything else. Upstream loses
/// `splitStream` of a file; here it is checked and kept.
pub(crate) fn logging(file: &KubeProxyConfiguration, gates: &Gates) -> Result<Logging, FieldErrors> {
    let logging = &file.logging;
    let mut errors = Vec::new();
    let check = &mut Check { errors: &mut errors };
    let format = match logging.format.as_str() {
        "text" => LogFormat::Text,
        "json" => LogFormat::Json,
        other => {
            check.failed(FieldError::invalid("logging.format", other, "Unsupported log format"));
            LogFormat::Text
        }
    };
    if format == LogFormat::Json && !gates.enabled(LOGGING_BETA_OPTIONS) {
        check.failed(FieldError::forbidden(
            "logging.format",
            &disabled("Log format json is BETA", LOGGING_BETA_OPTIONS),
        ));
    }
    let flush_frequency = check.positive("logging.flushFrequency", logging.flush_frequency.0);
    if i32::try_from(logging.verbosity).is_err() {
        let reason = format!("Must be <= {}", i32::MAX);
        check.failed(FieldError::invalid("logging.verbosity", &logging.verbosity, &reason));
    }
    vmodule(file, format, check);
    let options = &logging.options;
    for (name, routing) in [("text", &options.text), ("json", &options.json)] {
        output_routing(name, routing, gates, check);
    }
    let routing = if format == LogFormat::Json { &options.json } else { &options.text };
    let logging = Logging {
        format,
        verbosity: logging.verbosity,
        vmodule: logging.vmodule.clone(),
        flush_frequency,
        split_stream: routing.split_stream,
        info_buffer_size: routing.info_buffer_size,
        to_file: None,
    };
    FieldErrors::or(errors, logging)
}

fn vmodule(file: &KubeProxyConfiguration, format: LogFormat, check: &mut Check<'_>) {
    let items = &file.logging.vmodule;
    if format != LogFormat::Text && !items.is_empty() {
        check.failed(FieldError::forbidden("logging.vmodule", "Only supported for text log format"));
    }
    for (index, item) in items.iter().enumerate() {
        let path = format!("logging.vmodule[{index}].filePattern");
        if item.file_pattern.is_empty() {
            check.failed(FieldError::required(path, "File pattern must not be empty"));
        } else if item.file_pattern.contains(['=', ',']) {
            let reason = "File pattern must not contain equal sign or comma";
            check.failed(FieldError::invalid(path, item.file_pattern.as_str(), reason));
        }
        if i32::try_from(item.verbosity).is_err() {
            let reason = format!("Must be <= {}", i32::MAX);
            let path = format!("logging.vmodule[{index}].verbosity");
            check.failed(FieldError::invalid(path, &item.verbosity, &reason));
        }
    }
}

fn output_routing(name: &str, routing: &OutputRouting, gates: &Gates, check: &mut Check<'_>) {
    if gates.enabled(LOGGING_ALPHA_OPTIONS) {
        return;
    }
    let path = |key: &str| format!("logging.options.{name}.{key}");
    if routing.split_stream {
        let reason = disabled("Feature splitStream is ALPHA", LOGGING_ALPHA_OPTIONS);
        check.failed(FieldError::forbidden(path("splitStream"), &reason));
    }
    if !routing.info_buffer_size.is_zero() {
        let reason = disabled("Feature infoBufferSize is ALPHA", LOGGING_ALPHA_OPTIONS);
        check.failed(FieldError::forbidden(path("infoBufferSize"), &reason));
    }
}

fn disabled(what: &str, gate: &str) -> String {
    format!("{what} and disabled by the {gate} feature gate")
}
