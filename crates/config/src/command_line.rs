//! The arguments of the program: read by `clap`, with the syntax, messages and exit codes of upstream's `pflag`.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::decode::Field as _;
use crate::duration::GoDuration;
use crate::effects::leaves;
use crate::flag::{Flag, Given, MapsTo, OwnFlags, RejectedValue, Target, WithConfig};
use crate::flags;
use crate::platform::Platform;
use crate::v1alpha1::KubeProxyConfiguration;
use crate::version::{self, VersionFlag};

/// Flags that were typed, checked by themselves.
#[derive(Clone, Debug, PartialEq)]
pub struct CommandLine {
    /// The values of each flag that was given, in their order.
    typed: BTreeMap<&'static str, Vec<String>>,
    own: OwnFlags,
}

/// What the arguments ask for.
#[derive(Clone, Debug, PartialEq)]
pub enum Parsed {
    /// To go on.
    Run(Box<CommandLine>),
    /// To print this on standard output and end with code 0.
    Print(String),
}

/// Arguments that can't be understood. The text is for standard error, as it is; the exit code is 1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(String);

/// What the program is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action<'a> {
    /// Serve until a signal comes.
    Serve,
    /// Write the configuration to this file.
    WriteConfig(&'a Path),
    /// Remove the rules of all modes.
    Cleanup,
    /// Have copies of the tables of mode nftables serve in their place for so long; none at all if a negative time was given.
    HandOver(Duration),
    /// Do what needs full privilege.
    InitOnly,
}

impl CommandLine {
    /// Reads the arguments that follow the program's name.
    ///
    /// # Errors
    /// A flag is unknown, lacks its value or has a bad one, or there is an argument that is no flag.
    pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Parsed, UsageError> {
        let arguments = std::iter::once(PROGRAM.to_owned()).chain(with_dashes(arguments));
        let matches = match command().try_get_matches_from(arguments) {
            Ok(matches) => matches,
            Err(error) if error.kind() == ErrorKind::DisplayHelp => return Ok(Parsed::Print(help())),
            Err(error) => return Err(usage_error(&reason(&error))),
        };
        let typed = typed(&matches);
        let mut given = Given { file: KubeProxyConfiguration::defaults(), own: OwnFlags::default() };
        for (name, values) in &typed {
            set(name, values, &mut given).map_err(|rejected| {
                usage_error(&format!(
                    "invalid argument {:?} for \"--{name}\" flag: {}",
                    rejected.value, rejected.error
                ))
            })?;
        }
        if let Some(text) = given.own.version.output() {
            return Ok(Parsed::Print(text));
        }
        let positional: Vec<_> = matches.get_many::<String>(POSITIONAL).into_iter().flatten().collect();
        if positional.iter().any(|argument| !argument.is_empty()) {
            return Err(UsageError(format!(
                "Error: {PROGRAM:?} does not take any arguments, got {positional:?}\n"
            )));
        }
        Ok(Parsed::Run(Box::new(Self { typed, own: given.own })))
    }

    /// Path of the configuration file, if there is one.
    pub fn config(&self) -> Option<&Path> {
        path(&self.own.config)
    }

    /// What to do.
    pub fn action(&self) -> Action<'_> {
        match path(&self.own.write_config_to) {
            Some(path) => Action::WriteConfig(path),
            None if self.own.cleanup => Action::Cleanup,
            None if self.own.hand_over != GoDuration::ZERO => {
                Action::HandOver(self.own.hand_over.to_std().unwrap_or_default())
            }
            None if self.own.init_only => Action::InitOnly,
            None => Action::Serve,
        }
    }

    /// The version to report, such as `v1.36.1+rust.0.1.0`.
    pub fn version(&self) -> String {
        match &self.own.version {
            VersionFlag::Report(version) => version.clone(),
            _ => version::built_in(),
        }
    }

    /// A line for each deprecated flag that was given, for standard error.
    pub fn deprecations(&self) -> Vec<String> {
        let line = |flag: &Flag| {
            flag.deprecated.map(|advice| format!("Flag --{} has been deprecated, {advice}", flag.name))
        };
        self.flags().filter_map(line).collect()
    }

    /// All flags with their values, by name, for `/flagz` and the log: the value typed, or the flag's default.
    pub fn values(&self) -> Vec<(&'static str, String)> {
        let mut values: Vec<_> = flags::all()
            .map(|flag| {
                let typed = self.typed.get(flag.name);
                (flag.name, typed.map_or_else(|| default(flag), |values| shown(flag.target, values)))
            })
            .collect();
        values.push(("help", "false".to_owned()));
        values.sort_unstable();
        values
    }

    /// The flags that were given, by name.
    pub(crate) fn flags(&self) -> impl Iterator<Item = &'static Flag> + '_ {
        self.typed.keys().filter_map(|name| flags::named(name))
    }

    /// Whether a flag was given with an empty value.
    pub(crate) fn is_given_empty(&self, name: &str) -> bool {
        self.typed.get(name).and_then(|values| values.last()).is_some_and(String::is_empty)
    }

    /// Applies the flags that `include` wants. The values were read before, so that none can be refused.
    pub(crate) fn apply(&self, given: &mut Given, include: impl Fn(&Flag) -> bool) {
        for flag in self.flags().filter(|flag| include(flag)) {
            if let Some(values) = self.typed.get(flag.name) {
                let checked = flag.target.set(given, values);
                debug_assert!(checked.is_ok(), "--{} was checked", flag.name);
            }
        }
    }

    /// The flags that say nothing because there is a file.
    pub(crate) fn ignored_with_config(&self) -> Vec<&'static str> {
        self.flags().filter(|flag| flag.with_config == WithConfig::Ignored).map(|flag| flag.name).collect()
    }
}

const PROGRAM: &str = "kube-proxy";
const POSITIONAL: &str = "positional";

/// The parser.
pub fn command() -> Command {
    let args = flags::groups().flat_map(|group| group.flags.iter().map(|flag| argument(flag, group.title)));
    let positional = Arg::new(POSITIONAL).num_args(0..).hide(true);
    Command::new(PROGRAM)
        .about("Directs packets for Kubernetes Services to their pods on this node")
        .override_usage("kube-proxy [flags]\n       kube-proxy COMMAND [options]")
        .after_help(
            "Commands ask the proxy that runs on this node, or are about the program: kube-proxy help",
        )
        .disable_help_subcommand(true)
        .disable_version_flag(true)
        .args(args)
        .arg(positional)
}

fn argument(flag: &Flag, heading: &'static str) -> Arg {
    let mut help = flag.help.to_owned();
    let default = default(flag);
    if !["", "false", "[]"].contains(&default.as_str()) {
        help = format!("{help} [default: {default}]");
    }
    if let Some(why) = flag.without_effect(Platform::HERE) {
        help = format!("{help} [no effect: {why}]");
    }
    let arg = Arg::new(flag.name)
        .long(flag.name)
        .short(flag.short)
        .value_name(flag.placeholder)
        .help(help)
        .help_heading(heading)
        .hide(flag.deprecated.is_some())
        .action(ArgAction::Append);
    if flag.needs_value() {
        arg.num_args(1).allow_hyphen_values(true)
    } else {
        arg.num_args(0..=1).require_equals(true).default_missing_value("true")
    }
}

/// The text of `--help`.
fn help() -> String {
    command().render_help().to_string()
}

fn usage_error(reason: &str) -> UsageError {
    UsageError(format!("{}\nError: {reason}\n", help()))
}

/// The parser's error in the words of upstream's.
fn reason(error: &clap::Error) -> String {
    let flag = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(text)) => text.split([' ', '=']).next().unwrap_or_default(),
        _ => return error.to_string(),
    };
    match error.kind() {
        ErrorKind::UnknownArgument => match error.get(ContextKind::SuggestedArg) {
            Some(ContextValue::String(similar)) => format!("unknown flag: {flag} (did you mean {similar}?)"),
            _ => format!("unknown flag: {flag}"),
        },
        ErrorKind::InvalidValue | ErrorKind::WrongNumberOfValues | ErrorKind::TooFewValues => {
            format!("flag needs an argument: {flag}")
        }
        _ => error.to_string(),
    }
}

/// Underscores in names are dashes; values are left alone.
fn with_dashes(arguments: impl IntoIterator<Item = String>) -> impl Iterator<Item = String> {
    let mut is_value = false;
    let mut only_positional = false;
    arguments.into_iter().map(move |argument| {
        if std::mem::take(&mut is_value) || only_positional || !argument.starts_with("--") {
            is_value = argument == "-v" && !only_positional;
            return argument;
        }
        only_positional = argument == "--";
        let name = argument.split('=').next().unwrap_or_default();
        let renamed = name.replace('_', "-");
        is_value = !argument.contains('=') && flags::named(&renamed[2..]).is_some_and(Flag::needs_value);
        format!("{renamed}{}", &argument[name.len()..])
    })
}

fn typed(matches: &ArgMatches) -> BTreeMap<&'static str, Vec<String>> {
    let values = |flag: &'static Flag| {
        let values = matches.get_many::<String>(flag.name)?;
        Some((flag.name, values.cloned().collect()))
    };
    flags::all().filter_map(values).collect()
}

fn set(name: &str, values: &[String], given: &mut Given) -> Result<(), RejectedValue> {
    flags::named(name).map_or(Ok(()), |flag| flag.target.set(given, values))
}

fn path(text: &str) -> Option<&Path> {
    (!text.is_empty()).then(|| Path::new(text))
}

/// The value of a flag that was not given, as `pflag` prints it.
pub(crate) fn default(flag: &Flag) -> String {
    match flag.maps_to {
        MapsTo::Nothing { default } => default.to_owned(),
        MapsTo::Field(path) => match leaves(&KubeProxyConfiguration::defaults().write()).get(path) {
            Some(serde_json::Value::String(text)) => text.clone(),
            Some(serde_json::Value::Null) => "[]".to_owned(),
            Some(value) => value.to_string(),
            // Left out when empty.
            None if matches!(flag.target, Target::Bool(_)) => "false".to_owned(),
            None => String::new(),
        },
    }
}

/// Values as they were understood.
fn shown(target: Target, values: &[String]) -> String {
    let last = values.last().map_or("", String::as_str);
    let again = |parsed: Option<String>| parsed.unwrap_or_else(|| last.to_owned());
    match target {
        Target::Bool(_) => again(crate::go::parse_bool(last).ok().map(|value| value.to_string())),
        Target::Int(_) => again(crate::go::parse_int(last).ok().map(|value| value.to_string())),
        Target::Float(_) => again(crate::go::parse_float(last).ok().map(|value| value.to_string())),
        Target::Duration(_) => {
            again(last.parse().ok().map(|value: crate::duration::GoDuration| value.to_string()))
        }
        Target::List(_) => {
            let items: Vec<_> = values.iter().filter(|value| !value.is_empty()).map(String::as_str).collect();
            format!("[{}]", items.join(","))
        }
        Target::Gates(_) => values.join(","),
        _ => last.to_owned(),
    }
}

#[cfg(test)]
mod tests;
