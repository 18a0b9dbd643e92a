//! What a flag is: its name, its type, where its value goes and what that does here.

use std::collections::BTreeMap;

use crate::duration::GoDuration;
use crate::go::{self, ValueError};
use crate::platform::Platform;
use crate::quantity::Quantity;
use crate::v1alpha1::{KubeProxyConfiguration, VmoduleItem};
use crate::version::VersionFlag;

/// One flag. The parser, `--help`, `docs/flags.md`, the completions and the manual page are all made from this.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flag {
    /// Name after the two dashes.
    pub(crate) name: &'static str,
    /// Letter after one dash.
    pub(crate) short: Option<char>,
    /// What stands for the value in `--help`.
    pub(crate) placeholder: &'static str,
    /// What it is for.
    pub(crate) help: &'static str,
    /// Its type, and where the value goes.
    pub(crate) target: Target,
    /// What it says in terms of the configuration file.
    pub(crate) maps_to: MapsTo,
    /// What becomes of it when `--config` is given too.
    pub(crate) with_config: WithConfig,
    /// What to use instead; a deprecated flag is not listed in `--help`.
    pub(crate) deprecated: Option<&'static str>,
    /// Why it does nothing, for a flag without a field; those of fields are in `effects`.
    pub(crate) no_effect: Option<&'static str>,
}

/// A list of flags with a heading.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Group {
    pub(crate) title: &'static str,
    pub(crate) flags: &'static [Flag],
    /// The system whose builds alone have them.
    pub(crate) only_on: Option<Platform>,
}

/// The configuration file's counterpart of a flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MapsTo {
    /// The field of this path; the flag's default is the field's.
    Field(&'static str),
    /// None; the flag's default.
    Nothing { default: &'static str },
}

/// Whether a flag counts next to `--config`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WithConfig {
    /// The file's value counts, also its default.
    Ignored,
    /// The flag counts.
    Wins,
    /// The file has nothing to say about it.
    Independent,
}

/// What the flags say: in terms of the file, and what the file has no field for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Given {
    pub(crate) file: KubeProxyConfiguration,
    pub(crate) own: OwnFlags,
}

/// Flags without a field in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OwnFlags {
    pub(crate) config: String,
    pub(crate) write_config_to: String,
    pub(crate) cleanup: bool,
    pub(crate) hand_over: GoDuration,
    pub(crate) init_only: bool,
    pub(crate) version: VersionFlag,
    pub(crate) master: String,
    pub(crate) manifests: String,
    pub(crate) userspace_policy: String,
    pub(crate) windows_priority_class: String,
    pub(crate) log_file: String,
    pub(crate) healthz_port: i32,
    pub(crate) metrics_port: i32,
    /// `minSyncPeriod` was said, by a flag or in the file: upstream's default of it is not honoured.
    pub(crate) says_min_sync_period: bool,
}

impl Default for OwnFlags {
    fn default() -> Self {
        Self {
            config: String::new(),
            write_config_to: String::new(),
            cleanup: false,
            hand_over: GoDuration::ZERO,
            init_only: false,
            version: VersionFlag::No,
            master: String::new(),
            manifests: String::new(),
            userspace_policy: String::new(),
            windows_priority_class: String::new(),
            log_file: String::new(),
            healthz_port: crate::v1alpha1::HEALTHZ_PORT.into(),
            metrics_port: crate::v1alpha1::METRICS_PORT.into(),
            says_min_sync_period: false,
        }
    }
}

type Set<T> = fn(&mut Given, T);

/// A type of flag with the place where its value goes. Every kind but the collecting ones takes the last of several values.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    Bool(Set<bool>),
    Int(Set<i32>),
    Level(Set<u32>),
    Float(Set<f32>),
    Duration(Set<GoDuration>),
    Quantity(Set<Quantity>),
    Text(Set<String>),
    /// An IP address; empty says nothing.
    Ip(Set<String>),
    /// An IP address with or without a port; empty says nothing.
    Listener(Set<String>),
    /// Texts separated by commas; collects.
    List(Set<Vec<String>>),
    /// `name=bool` separated by commas; collects.
    Gates(Set<BTreeMap<String, bool>>),
    /// `pattern=level` separated by commas.
    Vmodule(Set<Vec<VmoduleItem>>),
    Version(Set<VersionFlag>),
}

pub(crate) const fn field(
    name: &'static str,
    path: &'static str,
    target: Target,
    help: &'static str,
) -> Flag {
    Flag {
        name,
        short: None,
        placeholder: target.placeholder(),
        help,
        target,
        maps_to: MapsTo::Field(path),
        with_config: WithConfig::Ignored,
        deprecated: None,
        no_effect: None,
    }
}

/// A flag without a field.
pub(crate) const fn own(
    name: &'static str,
    default: &'static str,
    target: Target,
    help: &'static str,
) -> Flag {
    let with_config = WithConfig::Independent;
    Flag { maps_to: MapsTo::Nothing { default }, with_config, ..field(name, "", target, help) }
}

impl Flag {
    pub(crate) const fn short(mut self, letter: char) -> Self {
        self.short = Some(letter);
        self
    }

    pub(crate) const fn placeholder(mut self, text: &'static str) -> Self {
        self.placeholder = text;
        self
    }

    /// It counts more than the file.
    pub(crate) const fn wins(mut self) -> Self {
        self.with_config = WithConfig::Wins;
        self
    }

    pub(crate) const fn deprecated(mut self, advice: &'static str) -> Self {
        self.deprecated = Some(advice);
        self.with_config = WithConfig::Ignored;
        self
    }

    pub(crate) const fn no_effect(mut self, why: &'static str) -> Self {
        self.no_effect = Some(why);
        self
    }

    /// Why it does nothing on a system, or only in some mode.
    pub(crate) fn without_effect(&self, platform: Platform) -> Option<&'static str> {
        match self.maps_to {
            MapsTo::Field(path) => crate::effects::on(path, platform),
            MapsTo::Nothing { .. } => self.no_effect,
        }
    }

    /// Whether a value must follow; booleans stand for themselves.
    pub(crate) const fn needs_value(&self) -> bool {
        !matches!(self.target, Target::Bool(_) | Target::Version(_))
    }
}

impl Target {
    const fn placeholder(self) -> &'static str {
        match self {
            Self::Bool(_) => "BOOL",
            Self::Int(_) | Self::Level(_) => "N",
            Self::Float(_) => "NUMBER",
            Self::Duration(_) => "DURATION",
            Self::Quantity(_) => "QUANTITY",
            Self::Text(_) => "TEXT",
            Self::Ip(_) => "IP",
            Self::Listener(_) => "IP[:PORT]",
            Self::List(_) => "TEXT,...",
            Self::Gates(_) => "NAME=BOOL,...",
            Self::Vmodule(_) => "PATTERN=N,...",
            Self::Version(_) => "true|raw|vX.Y.Z",
        }
    }

    /// The type's name in the documentation.
    pub(crate) const fn type_name(self) -> &'static str {
        match self {
            Self::Bool(_) => "bool",
            Self::Int(_) => "int32",
            Self::Level(_) => "uint32",
            Self::Float(_) => "float32",
            Self::Duration(_) => "duration",
            Self::Quantity(_) => "quantity",
            Self::Text(_) => "string",
            Self::Ip(_) => "IP",
            Self::Listener(_) => "IP or IP:port",
            Self::List(_) => "list",
            Self::Gates(_) => "map of name=bool",
            Self::Vmodule(_) => "list of pattern=level",
            Self::Version(_) => "bool, `raw` or version",
        }
    }

    /// Reads all values of one flag, in their order, and puts the result in its place.
    pub(crate) fn set(self, given: &mut Given, values: &[String]) -> Result<(), RejectedValue> {
        match self {
            Self::Bool(set) => put(set, given, last(values, go::parse_bool)?),
            Self::Int(set) => put(set, given, last(values, go::parse_int)?),
            Self::Level(set) => put(set, given, last(values, go::parse_uint)?),
            Self::Float(set) => put(set, given, last(values, go::parse_float)?),
            Self::Duration(set) => {
                put(set, given, last(values, |text| text.parse().map_err(ValueError::new))?);
            }
            Self::Quantity(set) => {
                put(set, given, last(values, |text| text.parse().map_err(ValueError::new))?);
            }
            Self::Text(set) => put(set, given, last(values, |text| Ok(text.to_owned()))?),
            Self::Ip(set) => put(set, given, last(values, ip)?.filter(|text| !text.is_empty())),
            Self::Listener(set) => put(set, given, last(values, listener)?.filter(|text| !text.is_empty())),
            Self::List(set) => set(given, values.iter().flat_map(|text| list(text)).collect()),
            Self::Gates(set) => set(given, each(values, gates)?.into_iter().flatten().collect()),
            Self::Vmodule(set) => put(set, given, last(values, vmodule)?),
            Self::Version(set) => put(set, given, last(values, VersionFlag::parse)?),
        }
        Ok(())
    }
}

/// A value that was refused, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RejectedValue {
    pub(crate) value: String,
    pub(crate) error: ValueError,
}

fn put<T>(set: Set<T>, given: &mut Given, value: Option<T>) {
    if let Some(value) = value {
        set(given, value);
    }
}

fn each<T>(values: &[String], read: impl Fn(&str) -> Result<T, ValueError>) -> Result<Vec<T>, RejectedValue> {
    let read = |value: &String| read(value).map_err(|error| RejectedValue { value: value.clone(), error });
    values.iter().map(read).collect()
}

/// All values must be sound, though only the last counts.
fn last<T>(
    values: &[String],
    read: impl Fn(&str) -> Result<T, ValueError>,
) -> Result<Option<T>, RejectedValue> {
    Ok(each(values, read)?.pop())
}

fn ip(text: &str) -> Result<String, ValueError> {
    if !text.is_empty() {
        model::parse_addr(text).map_err(ValueError::new)?;
    }
    Ok(text.to_owned())
}

fn listener(text: &str) -> Result<String, ValueError> {
    let is_sound = text.is_empty() || model::parse_addr(text).is_ok() || crate::listener::parse(text).is_ok();
    is_sound.then(|| text.to_owned()).ok_or_else(|| ValueError::new("want an IP address or IP:port"))
}

fn list(text: &str) -> Vec<String> {
    if text.is_empty() { Vec::new() } else { text.split(',').map(str::to_owned).collect() }
}

fn gates(text: &str) -> Result<BTreeMap<String, bool>, ValueError> {
    let pair = |pair: &str| {
        let (name, value) =
            pair.split_once('=').ok_or_else(|| ValueError::new("want NAME=true or NAME=false"))?;
        Ok((name.trim().to_owned(), go::parse_bool(value.trim())?))
    };
    text.split(',').filter(|pair| !pair.is_empty()).map(pair).collect()
}

fn vmodule(text: &str) -> Result<Vec<VmoduleItem>, ValueError> {
    let item = |pair: &str| {
        let (pattern, level) = pair.split_once('=').ok_or_else(|| ValueError::new("want PATTERN=LEVEL"))?;
        if pattern.is_empty() {
            return Err(ValueError::new("want PATTERN=LEVEL"));
        }
        Ok(VmoduleItem { file_pattern: pattern.to_owned(), verbosity: go::parse_uint(level)? })
    };
    text.split(',').filter(|pair| !pair.is_empty()).map(item).collect()
}
