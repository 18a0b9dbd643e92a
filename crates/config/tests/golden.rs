//! Whole configurations: each file of `cases` has arguments, perhaps a configuration file, and what comes of them, as
//! differences from a start without arguments.
//!
//! `UPDATE_CASES=1 cargo test -p config --test golden` writes the results anew; read the difference before keeping it.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, reason = "tests")]

use std::fmt::Write as _;
use std::path::Path;

use config::{CommandLine, Config, Level, Loaded, Mode, ModeSupport, Parsed, load};

/// The parts of a case. The head is for the reader, except for a line `modes: ...`.
struct Case {
    head: String,
    arguments: String,
    file: Option<String>,
    result: String,
}

impl Case {
    fn read(text: &str) -> Self {
        let (input, result) = text.split_once("--- result\n").unwrap_or((text, ""));
        let (top, file) = match input.split_once("--- config.yaml\n") {
            Some((top, file)) => (top, Some(file.to_owned())),
            None => (input, None),
        };
        let (head, arguments) = top.split_once("$ kube-proxy").unwrap();
        Self {
            head: head.to_owned(),
            arguments: arguments.trim().to_owned(),
            file,
            result: result.to_owned(),
        }
    }

    fn write(&self, result: &str) -> String {
        let command = format!("{}$ kube-proxy {}", self.head, self.arguments);
        let mut text = format!("{}\n", command.trim_end());
        if let Some(file) = &self.file {
            write!(text, "--- config.yaml\n{file}").unwrap();
        }
        format!("{text}--- result\n{result}")
    }

    fn modes(&self) -> Vec<ModeSupport> {
        let given = self.head.lines().find_map(|line| line.strip_prefix("# modes: ")).unwrap_or("nftables");
        given.split(", ").map(|name| ModeSupport::usable(Mode::named(name).unwrap())).collect()
    }

    fn run(&self) -> String {
        match CommandLine::parse(words(&self.arguments)) {
            Ok(Parsed::Run(command_line)) => {
                let mut result = String::new();
                for line in command_line.deprecations() {
                    writeln!(result, "stderr: {line}").unwrap();
                }
                result + &described(&self.load(&command_line), &self.default())
            }
            Ok(Parsed::Print(text)) => format!("prints: {text}"),
            Err(usage) => usage.to_string().rsplit("\n\n").next().unwrap().to_owned(),
        }
    }

    fn load(&self, command_line: &CommandLine) -> Loaded {
        let text = command_line.config().map(|_| Ok(self.file.clone().unwrap()));
        load(command_line, text, &self.modes())
    }

    fn default(&self) -> Config {
        let Ok(Parsed::Run(command_line)) = CommandLine::parse([]) else { panic!("nothing can't be run") };
        load(&command_line, None, &self.modes()).config.unwrap()
    }
}

/// Splits as a shell does, with single quotes only.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut is_quoted = false;
    for char in line.chars() {
        match char {
            '\'' => {
                is_quoted = !is_quoted;
                word.get_or_insert_default();
            }
            ' ' if !is_quoted => words.extend(word.take()),
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    words
}

fn described(loaded: &Loaded, default: &Config) -> String {
    let mut result = String::new();
    for note in &loaded.notes {
        let level = match note.level() {
            Level::Warning => "warning",
            Level::Info => "info",
        };
        writeln!(result, "{level}: {note}").unwrap();
    }
    match &loaded.config {
        Err(error) => writeln!(result, "error: {error}").unwrap(),
        Ok(config) => {
            for (value, default) in values(config).iter().zip(values(default)) {
                if *value != default {
                    writeln!(result, "{value}").unwrap();
                }
            }
            let (written, default) = (config.to_yaml(), default.to_yaml());
            let mut section = "";
            for line in written.lines() {
                if line.ends_with(':') && !line.starts_with(' ') {
                    section = line;
                }
                if !default.lines().any(|known| known == line) || is_moved(&written, &default, section, line)
                {
                    let section = if line.starts_with([' ', '-']) { section } else { "" };
                    writeln!(result, "writes: {section}{}", line.trim_start()).unwrap();
                }
            }
        }
    }
    result
}

/// Whether a line that occurs in both texts is new in its section.
fn is_moved(written: &str, default: &str, section: &str, line: &str) -> bool {
    let has = |text: &str| {
        let lines = text.lines().skip_while(|known| *known != section).skip(1);
        lines.take_while(|known| known.starts_with([' ', '-'])).any(|known| known == line)
    };
    line.starts_with([' ', '-']) && has(written) && !has(default)
}

/// A line for every value, except those that only repeat the file.
fn values(config: &Config) -> Vec<String> {
    let debug = format!("{config:?}");
    let inside = debug.strip_prefix("Config { ").unwrap().strip_suffix(" }").unwrap();
    let (inside, _file) = inside.split_once(", file: ").unwrap();
    let mut values = Vec::new();
    let (mut start, mut depth) = (0, 0);
    for (index, char) in inside.char_indices() {
        match char {
            '{' | '(' | '[' => depth += 1,
            '}' | ')' | ']' => depth -= 1,
            ',' if depth == 0 => {
                values.push(inside[start..index].trim().to_owned());
                start = index + 1;
            }
            _ => {}
        }
    }
    values.push(inside[start..].trim().to_owned());
    values
}

#[test]
fn every_case_has_its_result() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let mut wrong = Vec::new();
    let mut count = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let case = Case::read(&text);
        let result = case.run();
        count += 1;
        if result != case.result {
            if std::env::var_os("UPDATE_CASES").is_some() {
                std::fs::write(&path, case.write(&result)).unwrap();
            }
            wrong.push(format!("{}\n--- expected\n{}--- got\n{result}", path.display(), case.result));
        }
    }
    assert!(count >= 60, "only {count} cases were found");
    assert!(wrong.is_empty(), "{} of {count} cases:\n\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn what_is_written_means_the_same_when_it_is_read() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let case = Case::read(&std::fs::read_to_string(&path).unwrap());
        // Zeros that only flags can say have no form in a file: `minSyncPeriod: 0s` means the default there.
        if case.head.contains("# only flags can say this") {
            continue;
        }
        let Ok(Parsed::Run(command_line)) = CommandLine::parse(words(&case.arguments)) else { continue };
        let Ok(config) = case.load(&command_line).config else { continue };
        // What a file has no field for is given again.
        let own = command_line
            .values()
            .into_iter()
            .filter(|(name, _)| ["master", "manifests", "userspace-policy"].contains(name));
        let arguments =
            own.map(|(name, value)| format!("--{name}={value}")).chain(["--config=written".to_owned()]);
        let Ok(Parsed::Run(again)) = CommandLine::parse(arguments) else { panic!("{}", path.display()) };
        let read = load(&again, Some(Ok(config.to_yaml())), &case.modes()).config;
        assert_eq!(read.unwrap(), config, "{}", path.display());
        let json = load(&again, Some(Ok(config.to_json().to_string())), &case.modes()).config;
        assert_eq!(json.unwrap(), config, "{}", path.display());
    }
}

/// What upstream writes for a start without other flags, on Linux.
const REFERENCE: &str = "\
apiVersion: kubeproxy.config.k8s.io/v1alpha1
bindAddress: 0.0.0.0
bindAddressHardFail: false
clientConnection:
  acceptContentTypes: \"\"
  burst: 10
  contentType: application/vnd.kubernetes.protobuf
  kubeconfig: \"\"
  qps: 5
clusterCIDR: \"\"
configSyncPeriod: 15m0s
conntrack:
  maxPerCore: 32768
  min: 131072
  tcpBeLiberal: false
  tcpCloseWaitTimeout: 1h0m0s
  tcpEstablishedTimeout: 24h0m0s
  udpStreamTimeout: 0s
  udpTimeout: 0s
detectLocal:
  bridgeInterface: \"\"
  interfaceNamePrefix: \"\"
detectLocalMode: ClusterCIDR
enableProfiling: false
healthzBindAddress: 0.0.0.0:10256
hostnameOverride: \"\"
iptables:
  localhostNodePorts: true
  masqueradeAll: false
  masqueradeBit: 14
  minSyncPeriod: 1s
  syncPeriod: 30s
ipvs:
  excludeCIDRs: null
  minSyncPeriod: 0s
  scheduler: \"\"
  strictARP: false
  syncPeriod: 0s
  tcpFinTimeout: 0s
  tcpTimeout: 0s
  udpTimeout: 0s
kind: KubeProxyConfiguration
logging:
  flushFrequency: 5s
  format: text
  options:
    json:
      infoBufferSize: \"0\"
    text:
      infoBufferSize: \"0\"
  verbosity: 0
metricsBindAddress: 127.0.0.1:10249
mode: iptables
nftables:
  masqueradeAll: false
  masqueradeBit: 14
  minSyncPeriod: 0s
  syncPeriod: 0s
nodePortAddresses: null
oomScoreAdj: -999
portRange: \"\"
showHiddenMetricsForVersion: \"\"
winkernel:
  enableDSR: false
  forwardHealthCheckVip: false
  networkName: \"\"
  rootHnsEndpointName: \"\"
  sourceVip: \"\"
";

#[test]
fn what_is_written_without_flags_is_upstreams() {
    let Ok(Parsed::Run(command_line)) = CommandLine::parse([]) else { panic!("nothing can't be run") };
    let config = load(&command_line, None, &[ModeSupport::usable(Mode::IpTables)]).config.unwrap();
    // But for a wish that nobody had: upstream takes zero for its default.
    assert_eq!(config.to_yaml(), REFERENCE.replace("minSyncPeriod: 1s", "minSyncPeriod: 0s"));
}
