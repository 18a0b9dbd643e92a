//! Commands about the program itself, which ask no proxy: `version` and `completion`.

use std::io::Write;
use std::process::ExitCode;

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgMatches, Command, value_parser};
use clap_complete::Shell;
use config::BuildInfo;
use serde_json::{Value, json};

const VERSION: &str = "version";
const COMPLETION: &str = "completion";

pub(crate) fn commands() -> [Command; 2] {
    [
        Command::new(VERSION).about("Prints the version of this program").arg(
            Arg::new("output")
                .long("output")
                .short('o')
                .value_name("FORMAT")
                .value_parser(PossibleValuesParser::new(["json", "yaml"]))
                .help("How to print"),
        ),
        Command::new(COMPLETION)
            .about("Prints a script that completes flags and commands in a shell")
            .after_help("For bash, for example: source <(kube-proxy completion bash)")
            .arg(Arg::new("shell").required(true).value_parser(value_parser!(Shell))),
    ]
}

/// Whether this is one of these commands.
pub(crate) fn is_meant(argument: &str) -> bool {
    [VERSION, COMPLETION].contains(&argument)
}

/// Carries one out. `arguments` begin with the command's name.
pub(crate) fn run(arguments: impl IntoIterator<Item = String>, out: &mut impl Write) -> ExitCode {
    let program = Command::new("kube-proxy").subcommands(commands());
    let matches =
        match program.try_get_matches_from(std::iter::once("kube-proxy".to_owned()).chain(arguments)) {
            Ok(matches) => matches,
            Err(error) => {
                // Nothing is left to do if nobody reads it.
                drop(error.print());
                return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(1));
            }
        };
    drop(out.write_all(&printed(&matches)));
    ExitCode::SUCCESS
}

fn printed(matches: &ArgMatches) -> Vec<u8> {
    match matches.subcommand() {
        Some((COMPLETION, matches)) => completion(matches.get_one("shell").copied().unwrap_or(Shell::Bash)),
        Some((_, matches)) => version(matches.get_one::<String>("output").map(String::as_str)).into_bytes(),
        None => Vec::new(),
    }
}

fn completion(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut crate::program(), "kube-proxy", &mut script);
    script
}

fn version(format: Option<&str>) -> String {
    let build = BuildInfo::of_this_program();
    match format {
        Some("json") => format!("{:#}\n", document(&build)),
        Some(_) => config::yaml(&document(&build)),
        None => format!("Kubernetes {}\n", build.git_version),
    }
}

/// As `kubectl version` prints a component, without the fields that only a Go program has.
fn document(build: &BuildInfo) -> Value {
    json!({
        "major": build.major,
        "minor": build.minor,
        "gitVersion": build.git_version,
        "gitCommit": build.git_commit,
        "compiler": "rustc",
        "platform": build.platform,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(arguments: &str) -> String {
        let mut out = Vec::new();
        run(arguments.split_whitespace().map(str::to_owned), &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_version_is_printed_in_each_format() {
        let line = output("version");
        let version = line.strip_prefix("Kubernetes ").unwrap().trim_end();
        assert!(version.starts_with("v1.36.1+rust."), "{line}");
        let document: Value = serde_json::from_str(&output("version -o json")).unwrap();
        assert_eq!(document["gitVersion"], version);
        assert_eq!(document["platform"], "linux/amd64".replace("amd64", goarch()));
        assert!(output("version -o yaml").contains(&format!("gitVersion: {version}\n")));
    }

    fn goarch() -> &'static str {
        if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
    }

    #[test]
    fn each_shell_has_a_script_that_knows_commands_and_flags() {
        for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
            let script = output(&format!("completion {shell}"));
            for word in ["explain", "no-endpoints", "proxy-mode", "completion"] {
                assert!(script.contains(word), "{shell}: {word}");
            }
        }
    }

    #[test]
    fn what_is_not_meant_prints_nothing() {
        assert_eq!(output("completion tcsh"), "");
        assert_eq!(output("version extra"), "");
    }
}
