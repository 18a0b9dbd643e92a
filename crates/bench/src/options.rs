//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use testkit::cluster::Flavour;

use crate::changes::Effort;
use crate::churn::Churn;
use crate::contender::{Contender, Series};

/// What was asked for.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// Numbers of Services.
    pub(crate) sizes: Vec<u32>,
    pub(crate) endpoints: u32,
    /// Repetitions of everything, in which the programs take turns.
    pub(crate) rounds: u32,
    /// Single changes of each kind in each round.
    pub(crate) effort: Effort,
    pub(crate) churn: Churn,
    /// How long a program at rest is looked at.
    pub(crate) idle: Duration,
    /// In mode iptables, which kind of iptables the node has.
    pub(crate) flavour: Option<Flavour>,
    /// Only what changes while others commit is measured.
    pub(crate) disturbed: bool,
    /// Ours, and the peer if there is one.
    pub(crate) contenders: Vec<Contender>,
    /// Where the results go.
    pub(crate) folder: PathBuf,
}

/// Reads this process's arguments; ends it if they are wrong.
pub(crate) fn read() -> Options {
    options(&command().get_matches())
}

fn command() -> Command {
    let number = |name: &'static str, default: &'static str, help: &'static str| {
        Arg::new(name)
            .long(name)
            .value_name("N")
            .default_value(default)
            .value_parser(value_parser!(u32).range(1..))
            .help(help)
    };
    let text = |name: &'static str, default: &'static str, help: &'static str| {
        // A value that begins with a dash is what arguments are.
        Arg::new(name).long(name).default_value(default).allow_hyphen_values(true).help(help)
    };
    let path = |name: &'static str| Arg::new(name).value_parser(value_parser!(PathBuf));
    let sizes = Arg::new("services").long("services").value_name("N").value_delimiter(',');
    let sizes = sizes.default_value("100,1000,10000").value_parser(value_parser!(u32).range(100..=100_000));
    let flavour = Arg::new("flavour")
        .long("flavour")
        .default_value(Flavour::Nft.suffix())
        .value_parser(FLAVOURS.map(Flavour::suffix))
        .help("Which kind of iptables the node has, in mode iptables");
    let disturbed = Arg::new("disturbed").long("disturbed").action(ArgAction::SetTrue);
    let disturbed =
        disturbed.help("Instead, measure PROGRAM alone while others commit rules 20 times a second");
    Command::new("bench")
        .about(
            "Measures a kube-proxy in network namespaces of its own, beside another one and the kernel alone",
        )
        .arg(sizes.help("Numbers of Services; everything is measured at each"))
        .arg(number("endpoints", "10", "Endpoints of each Service"))
        .arg(number("rounds", "3", "Repetitions of everything, in which the programs take turns"))
        .arg(number("changes", "70", "Single changes of each kind in each round"))
        .arg(number("seconds", "30", "Longest time for all changes of a kind in a round"))
        .arg(number("churn-rate", "1000", "Changes a second of the churn"))
        .arg(number("churn-seconds", "3", "Duration of the churn"))
        .arg(number("idle-seconds", "10", "How long a program at rest is looked at"))
        .arg(disturbed)
        .arg(text("mode", "nftables", "Given to the programs as --proxy-mode").value_name("MODE"))
        .arg(flavour)
        .arg(text("arguments", "", "More arguments of PROGRAM").value_name("ARGS"))
        .arg(path("peer").long("peer").value_name("PROGRAM").help("Another kube-proxy to measure in turns"))
        .arg(text("peer-arguments", "", "More arguments of the peer").value_name("ARGS"))
        .arg(
            path("folder")
                .long("folder")
                .value_name("DIR")
                .default_value("target/bench")
                .help("For the results"),
        )
        .arg(path("PROGRAM").required(true).help("The kube-proxy, such as target/release/kube-proxy"))
}

const FLAVOURS: [Flavour; 2] = [Flavour::Nft, Flavour::Legacy];

fn options(matches: &ArgMatches) -> Options {
    let number = |name: &str| matches.get_one::<u32>(name).copied().unwrap_or_default();
    let seconds = |name: &str| Duration::from_secs(number(name).into());
    let text = |name: &str| matches.get_one::<String>(name).cloned().unwrap_or_default();
    let path = |name: &str| matches.get_one::<PathBuf>(name).cloned();
    let contender = |series, program, extra: &str| Contender {
        series,
        program,
        mode: text("mode"),
        extra: text(extra).split_whitespace().map(str::to_owned).collect(),
    };
    let ours = contender(Series::Ours, path("PROGRAM").unwrap_or_default(), "arguments");
    let peer = path("peer").map(|program| contender(Series::Peer, program, "peer-arguments"));
    let flavour = FLAVOURS.into_iter().find(|flavour| flavour.suffix() == text("flavour"));
    Options {
        flavour: flavour.filter(|_| text("mode") == "iptables"),
        sizes: matches.get_many("services").into_iter().flatten().copied().collect(),
        endpoints: number("endpoints"),
        rounds: number("rounds"),
        effort: Effort { changes: number("changes") as usize, limit: seconds("seconds") },
        churn: Churn { rate: number("churn-rate"), time: seconds("churn-seconds") },
        idle: seconds("idle-seconds"),
        disturbed: matches.get_flag("disturbed"),
        contenders: std::iter::once(ours).chain(peer).collect(),
        folder: path("folder").unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Options {
        options(&command().try_get_matches_from(line.split(' ')).unwrap())
    }

    #[test]
    fn the_arguments_are_sound() {
        command().debug_assert();
    }

    #[test]
    fn a_peer_has_arguments_of_its_own() {
        let options = parse("bench --services 100,170 --mode iptables --peer up --peer-arguments=--v=2 ours");
        assert_eq!(options.sizes, [100, 170]);
        let [ours, peer] = &options.contenders[..] else { unreachable!("two programs") };
        assert_eq!((ours.program.as_path(), ours.extra.len()), ("ours".as_ref(), 0));
        assert_eq!((peer.program.as_path(), &peer.extra[..]), ("up".as_ref(), &["--v=2".to_owned()][..]));
        assert_eq!(peer.mode, "iptables");
        assert_eq!(parse("bench ours").contenders.len(), 1);
    }

    #[test]
    fn a_flavour_is_for_mode_iptables() {
        assert_eq!(parse("bench --mode iptables ours").flavour, Some(Flavour::Nft));
        assert_eq!(parse("bench --mode iptables --flavour legacy ours").flavour, Some(Flavour::Legacy));
        assert_eq!(parse("bench ours").flavour, None);
        assert!(command().try_get_matches_from(["bench", "--flavour", "x", "ours"]).is_err());
    }
}
