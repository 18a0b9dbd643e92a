//! From arguments and the text of a file to the configuration in force: the order of things, and who wins.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::command_line::CommandLine;
use crate::duration::GoDuration;
use crate::effects;
use crate::field::{FieldError, FieldErrors};
use crate::file::{self, Decoded, FileError};
use crate::flag::{Given, OwnFlags, WithConfig};
use crate::gates::{GateError, Gates};
use crate::mode::{self, Mode, ModeSupport};
use crate::note::Note;
use crate::settings::{Config, Logging};
use crate::v1alpha1::{KubeProxyConfiguration, append_port_if_needed};
use crate::validate;

/// What became of a configuration. Logging is known even if the rest can't be used, so that the reason can be logged.
#[derive(Debug)]
pub struct Loaded {
    /// How to log; the default if this is what is wrong.
    pub logging: Logging,
    /// What the operator should know.
    pub notes: Vec<Note>,
    /// The configuration.
    pub config: Result<Config, ConfigError>,
}

/// A configuration that can't be used, by the phase in which this was found. The texts begin as upstream's do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It could not be put together.
    #[error("failed complete: {0}")]
    Complete(CompleteError),
    /// `logging` is wrong.
    #[error("initialize logging: {0}")]
    Logging(FieldErrors),
    /// Fields have values that can't be used.
    #[error("failed validate: {0}")]
    Validate(FieldErrors),
}

/// Why a configuration can't be put together.
#[derive(Debug, thiserror::Error)]
pub enum CompleteError {
    /// The file can't be read.
    #[error("read {path}: {error}")]
    Read {
        /// Its path.
        path: String,
        /// The reason.
        error: io::Error,
    },
    /// The file can't be understood.
    #[error("decode {path}: {error}")]
    Decode {
        /// Its path.
        path: String,
        /// The reason.
        error: FileError,
    },
    /// `--hostname-override` has no name.
    #[error("empty hostname-override is invalid")]
    Hostname,
    /// `--manifests` and an API server were asked for.
    #[error("--manifests can't be used with {0}: the objects come from the folder alone")]
    TwoSources(&'static str),
    /// A feature gate can't be set.
    #[error("{0}")]
    Gate(#[from] GateError),
}

/// Puts a configuration together and checks it. `text` is what reading the file of `--config` gave, if that flag was given;
/// `modes` are the built-in modes, best first.
pub fn load(command_line: &CommandLine, text: Option<io::Result<String>>, modes: &[ModeSupport]) -> Loaded {
    let mut notes = Vec::new();
    let draft = match complete(command_line, text, modes, &mut notes) {
        Ok(draft) => draft,
        Err(error) => {
            let config = Err(ConfigError::Complete(error));
            return Loaded { logging: Logging::default(), notes, config };
        }
    };
    let logging = match validate::logging(&draft.given.file, &draft.gates) {
        Ok(logging) => Logging { to_file: log_file(&draft.given.own), ..logging },
        Err(errors) => {
            let config = Err(ConfigError::Logging(errors));
            return Loaded { logging: Logging::default(), notes, config };
        }
    };
    let Draft { given: Given { file, own }, mode, gates, errors } = draft;
    let config = validate::config(file, &own, mode, gates, logging.clone(), errors);
    Loaded { logging, notes, config: config.map_err(ConfigError::Validate) }
}

fn log_file(own: &OwnFlags) -> Option<PathBuf> {
    (!own.log_file.is_empty()).then(|| own.log_file.clone().into())
}

/// A configuration with all defaults, not checked.
struct Draft {
    given: Given,
    mode: Mode,
    gates: Gates,
    /// What is already known to be wrong.
    errors: Vec<FieldError>,
}

fn complete(
    command_line: &CommandLine,
    text: Option<io::Result<String>>,
    modes: &[ModeSupport],
    notes: &mut Vec<Note>,
) -> Result<Draft, CompleteError> {
    let mut given = match text {
        Some(text) => from_file(command_line, text, notes)?,
        None => from_flags(command_line),
    };
    override_hostname(command_line, &mut given.file)?;
    check_source(&given)?;
    let gates = Gates::new(given.file.feature_gates.clone())?;
    let mut errors = Vec::new();
    if given.file.cluster_cidr.is_empty()
        && command_line.config().is_none()
        && command_line.is_given_empty("cluster-cidr")
    {
        errors.push(FieldError::invalid(
            "clusterCIDR",
            "",
            "must be a valid CIDR block if the flag is given",
        ));
    }
    let mode = mode::choose(&given.file.mode, modes).unwrap_or_else(|error| {
        errors.push(error);
        // So that the rest can be checked: what upstream reads.
        Mode::named(&given.file.mode).unwrap_or(Mode::IpTables)
    });
    remark(command_line, &given.file, mode, &gates, notes);
    set_platform_defaults(&mut given.file, mode);
    Ok(Draft { given, mode, gates, errors })
}

/// The flags alone. What they say is kept even if it is zero; in a file that would stand for the default.
fn from_flags(command_line: &CommandLine) -> Given {
    let mut given = Given { file: KubeProxyConfiguration::defaults(), own: OwnFlags::default() };
    // These two first: the mode says where others go, and the address what others default to.
    command_line.apply(&mut given, |flag| ["proxy-mode", "bind-address"].contains(&flag.name));
    let mode = given.file.mode;
    given.file =
        KubeProxyConfiguration { mode, ..KubeProxyConfiguration::defaults_at(&given.file.bind_address) };
    command_line.apply(&mut given, |_| true);
    given.own.says_min_sync_period = command_line.flags().any(|flag| flag.name.ends_with("min-sync-period"));
    let OwnFlags { healthz_port, metrics_port, .. } = given.own;
    apply_port(&mut given.file.healthz_bind_address, healthz_port);
    apply_port(&mut given.file.metrics_bind_address, metrics_port);
    given
}

/// What a deprecated port flag does to an address: 0 switches the listener off; else it completes an address without port.
fn apply_port(address: &mut String, port: i32) {
    if port == 0
        && let Ok(listener) = crate::listener::parse(address)
    {
        *address = SocketAddr::new(listener.ip(), 0).to_string();
        return;
    }
    match u16::try_from(port) {
        Ok(port) => append_port_if_needed(address, port),
        // Validation tells that this is no port.
        Err(_) if model::parse_addr(address).is_ok() => *address = format!("{address}:{port}"),
        Err(_) => {}
    }
}

/// The file, and above it the few flags that win.
fn from_file(
    command_line: &CommandLine,
    text: io::Result<String>,
    notes: &mut Vec<Note>,
) -> Result<Given, CompleteError> {
    let path = || command_line.config().map(|path| path.display().to_string()).unwrap_or_default();
    let text = text.map_err(|error| CompleteError::Read { path: path(), error })?;
    let Decoded { mut file, complaints } =
        file::decode(&text).map_err(|error| CompleteError::Decode { path: path(), error })?;
    if !complaints.is_empty() {
        notes.push(Note::Lenient(complaints));
    }
    let ignored = command_line.ignored_with_config();
    if !ignored.is_empty() {
        notes.push(Note::IgnoredFlags(ignored));
    }
    let says_min_sync_period = *file.mode_section_mut().min_sync_period != GoDuration::ZERO;
    file.set_defaults();
    let mut given = Given { file, own: OwnFlags { says_min_sync_period, ..OwnFlags::default() } };
    command_line.apply(&mut given, |flag| flag.with_config != WithConfig::Ignored);
    Ok(given)
}

/// `--hostname-override` is spelt as the API does; the file's field is kept as it is written.
fn override_hostname(
    command_line: &CommandLine,
    file: &mut KubeProxyConfiguration,
) -> Result<(), CompleteError> {
    let was_typed = command_line.flags().any(|flag| flag.name == "hostname-override");
    if was_typed && !command_line.is_given_empty("hostname-override") {
        file.hostname_override =
            validate::node_name(&file.hostname_override).ok_or(CompleteError::Hostname)?;
    }
    Ok(())
}

fn check_source(given: &Given) -> Result<(), CompleteError> {
    if given.own.manifests.is_empty() {
        return Ok(());
    }
    if !given.own.master.is_empty() {
        return Err(CompleteError::TwoSources("--master"));
    }
    if !given.file.client_connection.kubeconfig.is_empty() {
        return Err(CompleteError::TwoSources("a kubeconfig"));
    }
    Ok(())
}

fn remark(
    command_line: &CommandLine,
    file: &KubeProxyConfiguration,
    mode: Mode,
    gates: &Gates,
    notes: &mut Vec<Note>,
) {
    let flags = command_line.flags();
    notes.extend(
        flags.filter_map(|flag| Some(Note::FlagWithoutEffect { flag: flag.name, why: flag.no_effect? })),
    );
    notes.extend(effects::notes(file, mode));
    notes.extend(gates.ineffective().map(|(gate, why)| Note::GateWithoutEffect { gate: gate.name, why }));
    let unknown = gates.unknown();
    if !unknown.is_empty() {
        notes.push(Note::UnknownGates(unknown));
    }
    let done: Vec<_> = gates.done().map(|gate| gate.name).collect();
    if !done.is_empty() {
        notes.push(Note::FinishedGates(done));
    }
    if file.mode.is_empty() {
        notes.push(Note::ModeChosen(mode));
    }
}

/// What depends on the mode and the operating system (upstream's `platformApplyDefaults`).
fn set_platform_defaults(file: &mut KubeProxyConfiguration, mode: Mode) {
    // A name that is no mode is kept for the message.
    if file.mode.is_empty() || Mode::named(&file.mode).is_some() {
        file.settle_mode(mode);
    }
    if mode.section() == Mode::NfTables && file.node_port_addresses.as_ref().is_none_or(Vec::is_empty) {
        file.node_port_addresses = Some(vec!["primary".to_owned()]);
    }
    // Upstream, too, writes it without its value.
    file.port_range.clear();
    if file.detect_local_mode.is_empty() {
        "ClusterCIDR".clone_into(&mut file.detect_local_mode);
    }
}
