//! The text of a configuration file to a [`KubeProxyConfiguration`]: strictly first, and if only a strict reading fails,
//! leniently, as upstream does.

use serde_json::Value;
use serde_saphyr::options::DuplicateKeyPolicy;

use crate::decode::{self, Report};
use crate::field::FieldErrors;
use crate::v1alpha1::{API_VERSION, KIND, KubeProxyConfiguration};

/// Values in a file. All fields together are about a hundred.
const MAX_NODES: usize = 10_000;

/// A file that was read.
#[derive(Debug)]
pub(crate) struct Decoded {
    /// What it says, without defaults.
    pub(crate) file: KubeProxyConfiguration,
    /// What a strict reading would have refused: unknown fields, duplicate keys, further documents.
    pub(crate) complaints: Vec<String>,
}

/// A file that can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// It is neither YAML nor JSON.
    #[error("{0}")]
    Syntax(String),
    /// It is something else than a kube-proxy configuration.
    #[error("{0}")]
    Kind(String),
    /// Fields have values of a wrong type.
    #[error("{0}")]
    Fields(FieldErrors),
}

/// Reads YAML 1.1 or JSON, which YAML contains.
pub(crate) fn decode(text: &str) -> Result<Decoded, FileError> {
    let mut report = Report::default();
    let document = first_document(text, &mut report)?;
    check_kind(&document)?;
    let file: KubeProxyConfiguration = decode::read(&document, "", &mut report);
    if !report.errors.is_empty() {
        return Err(FileError::Fields(FieldErrors(report.errors)));
    }
    Ok(Decoded { file, complaints: report.complaints })
}

fn first_document(text: &str, report: &mut Report) -> Result<Value, FileError> {
    let strict = match parse_first(text, DuplicateKeyPolicy::Error) {
        Ok(documents) => Ok(documents),
        Err(strict) => match parse_first(text, DuplicateKeyPolicy::LastWins) {
            Ok(documents) => {
                report.complaints.push(duplicate_key(&strict));
                Ok(documents)
            }
            Err(lenient) => Err(FileError::Syntax(lenient.to_string())),
        },
    };
    let (document, is_alone) = strict?;
    if !is_alone {
        report.complaints.push("only the first document is read".to_owned());
    }
    Ok(document)
}

/// The first document, and whether it is the only one.
fn parse_first(text: &str, duplicate_keys: DuplicateKeyPolicy) -> Result<(Value, bool), serde_saphyr::Error> {
    let options = serde_saphyr::options! {
        // A configuration is small, whatever its aliases stand for.
        budget: serde_saphyr::budget! {
            max_events: 3 * MAX_NODES,
            max_nodes: MAX_NODES,
            max_total_scalar_bytes: 1 << 20,
        },
        duplicate_keys: duplicate_keys,
        legacy_octal_numbers: true,
        with_snippet: false,
    };
    let mut reader = text.as_bytes();
    let mut documents = serde_saphyr::read_with_options(&mut reader, options);
    let first = documents.next().transpose()?.unwrap_or(Value::Null);
    let is_alone = documents.next().is_none();
    Ok((first, is_alone))
}

/// The parser's message without its advice to programmers.
fn duplicate_key(error: &serde_saphyr::Error) -> String {
    let text = error.to_string();
    let key = text.split_once("duplicate mapping key: ").and_then(|(_, rest)| rest.split([',', '\n']).next());
    match (key, error.location()) {
        (Some(key), Some(location)) => {
            format!("duplicate key {key:?} in line {}; the last one counts", location.line())
        }
        _ => text,
    }
}

fn check_kind(document: &Value) -> Result<(), FileError> {
    let text = |key| document.get(key).and_then(Value::as_str).unwrap_or_default();
    match (text("apiVersion"), text("kind")) {
        (API_VERSION, KIND) => Ok(()),
        (_, "") => Err(FileError::Kind("Object 'Kind' is missing".to_owned())),
        ("", _) => Err(FileError::Kind("Object 'apiVersion' is missing".to_owned())),
        (version, kind) => Err(FileError::Kind(format!(
            "no kind {kind:?} is registered for version {version:?}: want {KIND:?} of {API_VERSION:?}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(rest: &str) -> String {
        format!("apiVersion: {API_VERSION}\nkind: {KIND}\n{rest}")
    }

    #[track_caller]
    fn reads(rest: &str) -> KubeProxyConfiguration {
        let decoded = decode(&head(rest)).unwrap();
        assert_eq!(decoded.complaints, [""; 0], "{rest}");
        decoded.file
    }

    #[track_caller]
    fn complains(rest: &str, complaints: &[&str]) -> KubeProxyConfiguration {
        let decoded = decode(&head(rest)).unwrap();
        assert_eq!(decoded.complaints, complaints, "{rest}");
        decoded.file
    }

    #[track_caller]
    fn refuses(rest: &str, error: &str) {
        assert_eq!(decode(&head(rest)).unwrap_err().to_string(), error, "{rest}");
    }

    #[test]
    fn yaml_is_read_as_version_1_1() {
        assert!(reads("enableProfiling: yes").enable_profiling);
        assert!(reads("enableProfiling: on").enable_profiling);
        assert_eq!(reads("oomScoreAdj: 010").oom_score_adj, Some(8));
        assert_eq!(reads("oomScoreAdj: 0x10").oom_score_adj, Some(16));
        assert_eq!(reads("oomScoreAdj: 5.0").oom_score_adj, Some(5));
        let file = reads("iptables: &same {masqueradeAll: true}\nnftables: *same");
        assert!(file.iptables.masquerade_all && file.nftables.masquerade_all);
    }

    #[test]
    fn json_is_read() {
        let text =
            format!("{{\n\t\"apiVersion\": \"{API_VERSION}\",\n\t\"kind\": \"{KIND}\", \"oomScoreAdj\": 5}}");
        assert_eq!(decode(&text).unwrap().file.oom_score_adj, Some(5));
    }

    #[test]
    fn kind_and_version_must_be_right() {
        let error = |text: &str| decode(text).unwrap_err().to_string();
        assert_eq!(error("mode: nftables"), "Object 'Kind' is missing");
        assert_eq!(error(""), "Object 'Kind' is missing");
        assert_eq!(error(&format!("kind: {KIND}")), "Object 'apiVersion' is missing");
        let other = error(&format!("kind: {KIND}\napiVersion: kubeproxy.config.k8s.io/v1"));
        assert!(other.starts_with("no kind \"KubeProxyConfiguration\" is registered for version"), "{other}");
    }

    #[test]
    fn what_only_a_strict_reading_refuses_is_left_out_and_told() {
        complains(
            "Mode: nftables\niptables: {masqueradeBits: 1}",
            &["unknown field \"Mode\"", "unknown field \"iptables.masqueradeBits\""],
        );
        let file = complains("mode: a\nmode: b", &["duplicate key \"mode\" in line 4; the last one counts"]);
        assert_eq!(file.mode, "b");
        let file = complains("mode: a\n---\nmode: [", &["only the first document is read"]);
        assert_eq!(file.mode, "a");
    }

    #[test]
    fn values_of_a_wrong_type_are_refused_all_at_once() {
        refuses(
            "oomScoreAdj: \"5\"",
            "oomScoreAdj: want a whole number of at most 32 bits, found the string \"5\"",
        );
        refuses(
            "oomScoreAdj: 5.5",
            "oomScoreAdj: want a whole number of at most 32 bits, found the number 5.5",
        );
        refuses(
            "enableProfiling: \"true\"",
            "enableProfiling: want true or false, found the string \"true\"",
        );
        refuses(
            "configSyncPeriod: 900\nmode: 5",
            "[configSyncPeriod: want a duration such as \"30s\", found the number 900, \
             mode: want a string, found the number 5]",
        );
        refuses(
            "nodePortAddresses: [10.0.0.0/8, 5]",
            "nodePortAddresses[1]: want a string, found the number 5",
        );
        refuses("iptables: []", "iptables: want an object, found a list");
        refuses(
            "logging: {verbosity: -1}",
            "logging.verbosity: want a whole number of at most 32 bits that is not negative, found the number -1",
        );
    }

    #[test]
    fn null_is_absent_except_for_plain_durations() {
        let file = reads(
            "iptables: null\nmode: null\nenableProfiling: null\noomScoreAdj: null\nnodePortAddresses: ~",
        );
        assert_eq!(file, reads(""));
        assert_eq!(reads("conntrack: {tcpEstablishedTimeout: null}"), reads(""));
        assert_eq!(reads("logging: {flushFrequency: null}"), reads(""));
        refuses("configSyncPeriod: null", "configSyncPeriod: want a duration such as \"30s\", found null");
        refuses(
            "iptables: {syncPeriod: null}",
            "iptables.syncPeriod: want a duration such as \"30s\", found null",
        );
    }

    #[test]
    fn durations_are_text_except_the_flush_frequency() {
        assert_eq!(reads("logging: {flushFrequency: 7000000000}"), reads("logging: {flushFrequency: 7s}"));
        assert!(decode(&head("configSyncPeriod: \"\"")).is_err());
        assert!(decode(&head("configSyncPeriod: 1d")).is_err());
    }

    #[test]
    fn quantities_have_kubernetes_suffixes() {
        let file = reads("logging: {options: {json: {infoBufferSize: 1Ki}, text: {infoBufferSize: 512}}}");
        assert_eq!(file.logging.options.json.info_buffer_size.to_string(), "1Ki");
        assert_eq!(file.logging.options.text.info_buffer_size.to_string(), "512");
        assert!(decode(&head("logging: {options: {json: {infoBufferSize: 1K}}}")).is_err());
    }

    #[test]
    fn texts_that_grow_are_refused() {
        let list = |i: usize| format!("l{i}: &l{i} [{}]\n", vec![format!("*l{}", i - 1); 10].join(", "));
        let bomb =
            "l0: &l0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned() + &(1..7).map(list).collect::<String>();
        let deep = format!("mode: {}{}\n", "[".repeat(100_000), "]".repeat(100_000));
        let long = format!("mode: {}\n", "x".repeat(2 << 20));
        for text in [bomb, deep, long] {
            let error = decode(&head(&text)).unwrap_err();
            assert!(matches!(error, FileError::Syntax(_)), "{error}");
            assert!(error.to_string().len() < 400, "{error}");
        }
    }

    #[test]
    fn broken_yaml_is_refused_with_the_place() {
        assert!(decode("mode: [\n").unwrap_err().to_string().contains("line"));
    }
}
