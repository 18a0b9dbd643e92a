//! The commands: help, completions, manual pages and parsing come from these definitions.

use std::net::{IpAddr, SocketAddr};

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use inspect::Selector;

use crate::client::Server;
use crate::itself;

/// Where a proxy with the default configuration answers.
const SERVER: &str = "http://127.0.0.1:10249";
/// The environment's word for `--server`.
pub const SERVER_VARIABLE: &str = "KUBE_PROXY_SERVER";

/// A command and how it is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invocation {
    /// Who is asked.
    pub server: Server,
    /// What is asked.
    pub what: What,
    /// How the answer is printed.
    pub output: Output,
    /// It is asked again and again, and what differs is printed.
    pub watch: bool,
    /// Tables have headings.
    pub headings: bool,
    /// Colours, if the output is a terminal.
    pub colours: bool,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// `status`
    Status,
    /// `list services`
    Services(Selector),
    /// `list endpoints`
    Endpoints(Selector),
    /// `list conflicts`
    Conflicts,
    /// `list rejected`
    Rejected,
    /// `list drains`
    Drains(Selector),
    /// `list flows`
    Flows(Selector),
    /// `explain service`
    ExplainService {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// That port alone.
        port: Option<String>,
    },
    /// `explain endpoint`
    ExplainEndpoint {
        /// Its address.
        ip: IpAddr,
        /// Its port.
        port: Option<u16>,
    },
    /// `explain packet`
    ExplainPacket {
        /// The parameters of the API.
        query: String,
    },
    /// `top`
    Top(Selector),
    /// `trace`
    Trace(TraceQuestion),
    /// `check`
    Check,
    /// `dump`
    Dump {
        /// The file to write; none: one with a name of its own, here.
        path: Option<String>,
    },
}

/// Which packets are traced, and how many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceQuestion {
    /// Namespace and name of the Service; none: those of all.
    pub service: Option<(String, String)>,
    /// So many packets, then it ends.
    pub count: usize,
    /// So many a second for each address at most.
    pub per_second: u32,
    /// It ends after so many seconds.
    pub seconds: Option<u64>,
}

/// How answers are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Output {
    /// As a table or text for people.
    #[default]
    Table,
    /// As a table with more columns.
    Wide,
    /// As the API's document.
    Json,
    /// The same in YAML.
    Yaml,
    /// Names alone.
    Name,
}

/// Whether the first argument is a command. If not, the arguments are flags of the proxy itself.
pub fn is_command(argument: &str) -> bool {
    argument == "help"
        || itself::is_meant(argument)
        || commands().iter().any(|command| command.get_name() == argument)
}

/// The whole program: the proxy's flags, and the commands.
pub fn program() -> Command {
    config::command().subcommands(commands()).subcommands(itself::commands())
}

/// Reads the arguments that follow the program's name.
///
/// # Errors
/// They can't be understood, or ask for help, which is an error that prints it and has exit code 0.
pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Invocation, clap::Error> {
    let program = Command::new("kube-proxy")
        .about("Asks the proxy of this node. Without a command, it is the proxy: see kube-proxy --help")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands(commands())
        .subcommands(itself::commands());
    let matches = program.try_get_matches_from(std::iter::once("kube-proxy".to_owned()).chain(arguments))?;
    let (name, matches) = matches.subcommand().unwrap_or(("status", &matches));
    let (what, matches) = match name {
        "list" => list(matches),
        "explain" => explain(matches)?,
        "top" => (What::Top(named(matches)), matches),
        "trace" => (What::Trace(trace(matches)?), matches),
        "check" => (What::Check, matches),
        "dump" => (What::Dump { path: text(matches, "file") }, matches),
        _ => (What::Status, matches),
    };
    Ok(Invocation {
        server: matches.get_one::<Server>("server").cloned().unwrap_or_else(default_server),
        what,
        output: output(matches),
        watch: flag(matches, "watch"),
        headings: !flag(matches, "no-headers"),
        colours: !flag(matches, "no-color"),
    })
}

fn default_server() -> Server {
    let named = std::env::var(SERVER_VARIABLE).ok().and_then(|text| text.parse().ok());
    named.unwrap_or_else(|| SERVER.parse().expect("a server's address"))
}

pub(crate) fn commands() -> Vec<Command> {
    vec![
        shared(
            Command::new("status")
                .about("Shows how the proxy is: what is in force, what waits, what went wrong"),
        ),
        list_command(),
        explain_command(),
        shared(
            Command::new("top")
                .about("Shows live what goes through: new flows a second by Service port, and who gets them")
                .after_help(
                    "Keys: c, t, r, d, n sort by rate, total, refused, dropped, name; / filters; Enter shows endpoints; q ends.\n\
                     Without a terminal, or with --output, it prints what there is and ends.",
                )
                .arg(Arg::new("name").help("Name of the Service, or NAMESPACE/NAME"))
                .arg(namespace()),
        ),
        shared(trace_command()),
        shared(
            Command::new("check")
                .about("Looks for what breaks Services on this node, and says how to mend it")
                .after_help(
                    "Exit code 0: nothing found. 1: warnings or errors. 3: the proxy does not answer.",
                ),
        ),
        shared(Command::new("dump").about("Writes an archive for a bug report, without secrets").arg(
            Arg::new("file").help("File to write; - for standard output [default: kube-proxy-dump-NODE.tar]"),
        )),
    ]
}

/// What all commands take.
fn shared(command: Command) -> Command {
    let switch = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
    };
    command
        .arg(
            Arg::new("server")
                .long("server")
                .value_name("URL")
                .value_parser(value_parser!(Server))
                .help(format!("The proxy's metrics server, or unix:FILE for its inspectSocket [default: ${SERVER_VARIABLE} or {SERVER}]")),
        )
        .arg(
            Arg::new("output")
                .long("output")
                .short('o')
                .value_name("FORMAT")
                .value_parser(PossibleValuesParser::new(["json", "yaml", "wide", "name"]))
                .help("How to print"),
        )
        .arg(switch("watch", "Goes on, and prints what differs").short('w'))
        .arg(switch("no-headers", "Tables without headings"))
        .arg(switch("no-color", "No colours on terminals either; so does $NO_COLOR"))
}

fn list_command() -> Command {
    let selected =
        |name: &'static str, about: &'static str| selecting(shared(Command::new(name).about(about)));
    Command::new("list")
        .about("Lists Services, endpoints, and what is unusual about them")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands([
            selected("services", "Services on this node").visible_alias("svc"),
            selected("endpoints", "Endpoints, with their use on this node").visible_alias("ep"),
            shared(Command::new("conflicts").about("Addresses that several Services claim")),
            shared(Command::new("rejected").about("Objects, and parts of objects, that can't be used")),
            selected("drains", "Endpoints that are ending, with the flows that they still have"),
            selected("flows", "Tracked flows to Services, and who answers them"),
        ])
}

fn selecting(command: Command) -> Command {
    let ip = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name("IP").value_parser(value_parser!(IpAddr)).help(help)
    };
    command
        .arg(Arg::new("name").help("Name of the Service; * at an end stands for anything"))
        .arg(namespace())
        .arg(ip("address", "With this cluster, external or load-balancer IP"))
        .arg(
            Arg::new("node-port")
                .long("node-port")
                .value_name("PORT")
                .value_parser(value_parser!(u16))
                .help("With this node port"),
        )
        .arg(ip("endpoint", "With an endpoint of this address"))
        .arg(
            Arg::new("no-endpoints")
                .long("no-endpoints")
                .action(ArgAction::SetTrue)
                .help("Without an endpoint that takes new flows"),
        )
}

fn namespace() -> Arg {
    Arg::new("namespace").long("namespace").short('n').value_name("NAMESPACE").help("Of this namespace")
}

fn required(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).required(true).help(help)
}

fn explain_command() -> Command {
    Command::new("explain")
        .about("Says where packets go on this node, and why")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands([
            shared(
                Command::new("service")
                    .visible_alias("svc")
                    .about("A Service: its addresses, policies and endpoints")
                    .arg(required("service", "NAMESPACE/NAME, or NAMESPACE/NAME:PORT with a port's name")),
            ),
            shared(
                Command::new("endpoint")
                    .visible_alias("ep")
                    .about("An endpoint: whose it is, and whether it takes new flows")
                    .arg(required("endpoint", "IP or IP:PORT")),
            ),
            shared(explain_packet_command()),
        ])
}

fn explain_packet_command() -> Command {
    Command::new("packet")
        .about("A packet: what becomes of it, by the rules as they are in the kernel")
        .arg(required("source", "IP or IP:PORT of the client"))
        .arg(required("destination", "IP:PORT/PROTOCOL, such as 10.96.0.10:53/UDP; TCP if not said"))
        .arg(
            Arg::new("from")
                .long("from")
                .value_parser(PossibleValuesParser::new(["pod", "node", "outside"]))
                .help("Where it comes from [default: by its source address]"),
        )
        .arg(Arg::new("in").long("in").value_name("INTERFACE").help("The interface that it arrives on"))
}

fn trace_command() -> Command {
    let number = |name: &'static str, default: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name("N").default_value(default).help(help)
    };
    Command::new("trace")
        .about("Shows packets of Services as they pass the rules of this node: Service, endpoint and verdict")
        .after_help(
            "Has to run on the node itself, with CAP_NET_ADMIN. A table of its own has the kernel trace; that belongs to this \
             command and goes when it ends, however it ends.",
        )
        .arg(Arg::new("service").help("NAMESPACE/NAME; without it, packets of all Services"))
        .arg(number("count", "100", "Ends after so many packets").value_parser(value_parser!(u32).range(1..=100_000)))
        .arg(
            number("per-second", "20", "Traces at most so many a second for each address")
                .value_parser(value_parser!(u32).range(1..=1000)),
        )
        .arg(
            Arg::new("seconds")
                .long("seconds")
                .value_name("N")
                .value_parser(value_parser!(u64).range(1..))
                .help("Ends after so many seconds"),
        )
}

fn trace(matches: &ArgMatches) -> Result<TraceQuestion, clap::Error> {
    let service = text(matches, "service").map(|text| {
        let parts =
            text.split_once('/').filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty());
        let owned = parts.map(|(namespace, name)| (namespace.to_owned(), name.to_owned()));
        owned.ok_or_else(|| unusable(&text, "NAMESPACE/NAME"))
    });
    let number = |name: &str| matches.get_one::<u32>(name).copied().unwrap_or(1);
    Ok(TraceQuestion {
        service: service.transpose()?,
        count: usize::try_from(number("count")).unwrap_or(usize::MAX),
        per_second: number("per-second"),
        seconds: matches.get_one("seconds").copied(),
    })
}

fn list(matches: &ArgMatches) -> (What, &ArgMatches) {
    let (name, matches) = matches.subcommand().unwrap_or(("services", matches));
    let what = match name {
        "endpoints" => What::Endpoints(selector(matches)),
        "conflicts" => What::Conflicts,
        "rejected" => What::Rejected,
        "drains" => What::Drains(selector(matches)),
        "flows" => What::Flows(selector(matches)),
        _ => What::Services(selector(matches)),
    };
    (what, matches)
}

fn selector(matches: &ArgMatches) -> Selector {
    Selector {
        address: matches.get_one("address").copied(),
        node_port: matches.get_one("node-port").copied(),
        endpoint: matches.get_one("endpoint").copied(),
        no_endpoints: flag(matches, "no-endpoints"),
        ..named(matches)
    }
}

/// By name alone.
fn named(matches: &ArgMatches) -> Selector {
    let named = text(matches, "name").map(|name| match name.split_once('/') {
        Some((namespace, name)) => (Some(namespace.to_owned()), name.to_owned()),
        None => (None, name),
    });
    let (namespace, name) = named.unzip();
    Selector { namespace: text(matches, "namespace").or(namespace.flatten()), name, ..Selector::default() }
}

fn explain(matches: &ArgMatches) -> Result<(What, &ArgMatches), clap::Error> {
    let (name, matches) = matches.subcommand().unwrap_or(("service", matches));
    let given = |name: &str| text(matches, name).unwrap_or_default();
    let what = match name {
        "endpoint" => endpoint(&given("endpoint"))?,
        "packet" => packet(matches, &given("source"), &given("destination"))?,
        _ => service(&given("service"))?,
    };
    Ok((what, matches))
}

fn service(text: &str) -> Result<What, clap::Error> {
    let parts = text.split_once('/').filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty());
    let (namespace, name) = parts.ok_or_else(|| unusable(text, "NAMESPACE/NAME or NAMESPACE/NAME:PORT"))?;
    let (name, port) =
        name.split_once(':').map_or((name, None), |(name, port)| (name, Some(port.to_owned())));
    Ok(What::ExplainService { namespace: namespace.to_owned(), name: name.to_owned(), port })
}

fn endpoint(text: &str) -> Result<What, clap::Error> {
    let whole = text.parse().map(|address: SocketAddr| (address.ip(), Some(address.port())));
    let parsed = whole.or_else(|_no_port| text.parse().map(|ip: IpAddr| (ip, None)));
    let (ip, port) = parsed.map_err(|_unusable| unusable(text, "IP or IP:PORT"))?;
    Ok(What::ExplainEndpoint { ip, port })
}

fn packet(matches: &ArgMatches, source: &str, destination: &str) -> Result<What, clap::Error> {
    let (to, protocol) = destination.rsplit_once('/').unwrap_or((destination, "TCP"));
    if to.parse::<SocketAddr>().is_err() {
        return Err(unusable(destination, "IP:PORT/PROTOCOL"));
    }
    let mut query = format!("source={source}&destination={to}&protocol={protocol}");
    for (name, argument) in [("from", "from"), ("interface", "in")] {
        query.extend(text(matches, argument).map(|value| format!("&{name}={value}")));
    }
    Ok(What::ExplainPacket { query })
}

fn unusable(text: &str, wanted: &str) -> clap::Error {
    let message = format!("{text:?} is not {wanted}\n");
    clap::Error::raw(clap::error::ErrorKind::ValueValidation, message)
}

fn output(matches: &ArgMatches) -> Output {
    match matches.get_one::<String>("output").map(String::as_str) {
        Some("json") => Output::Json,
        Some("yaml") => Output::Yaml,
        Some("wide") => Output::Wide,
        Some("name") => Output::Name,
        _ => Output::Table,
    }
}

fn text(matches: &ArgMatches, name: &str) -> Option<String> {
    matches.get_one::<String>(name).cloned()
}

fn flag(matches: &ArgMatches, name: &str) -> bool {
    matches.get_flag(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn what(arguments: &str) -> What {
        parse(arguments.split_whitespace().map(str::to_owned)).unwrap().what
    }

    #[test]
    fn the_definitions_are_sound() {
        program().debug_assert();
    }

    #[test]
    fn commands_are_told_from_flags() {
        for word in
            ["status", "list", "explain", "top", "trace", "check", "dump", "help", "version", "completion"]
        {
            assert!(is_command(word), "{word}");
        }
        for word in ["--config=/x", "-v", "start", "", "services"] {
            assert!(!is_command(word), "{word}");
        }
    }

    #[test]
    fn arguments_become_questions() {
        assert_eq!(what("status"), What::Status);
        let selector = Selector {
            namespace: Some("shop".into()),
            name: Some("web*".into()),
            address: Some("10.96.0.10".parse().unwrap()),
            node_port: Some(30080),
            endpoint: Some("fd00::1".parse().unwrap()),
            no_endpoints: true,
        };
        let all = "list svc shop/web* --address 10.96.0.10 --node-port 30080 --endpoint fd00::1 --no-endpoints -o wide";
        assert_eq!(what(all), What::Services(selector));
        let top =
            Selector { namespace: Some("shop".into()), name: Some("web".into()), ..Selector::default() };
        assert_eq!(what("top shop/web"), What::Top(top.clone()));
        assert_eq!(what("top -n shop web -o json"), What::Top(top));
        let port = What::ExplainService { namespace: "a".into(), name: "b".into(), port: Some("c".into()) };
        assert_eq!(what("explain service a/b:c"), port);
        let endpoint = What::ExplainEndpoint { ip: "fd00::1".parse().unwrap(), port: Some(80) };
        assert_eq!(what("explain ep [fd00::1]:80"), endpoint);
        let query =
            "source=10.0.0.1&destination=[fd00::1]:53&protocol=UDP&from=pod&interface=cni0".to_owned();
        assert_eq!(
            what("explain packet 10.0.0.1 [fd00::1]:53/UDP --from pod --in cni0"),
            What::ExplainPacket { query }
        );
    }

    #[test]
    fn mistakes_are_told() {
        let error =
            |arguments: &str| parse(arguments.split_whitespace().map(str::to_owned)).unwrap_err().to_string();
        assert!(error("explain service web").contains("\"web\" is not NAMESPACE/NAME"));
        assert!(error("explain packet 10.0.0.1 10.0.0.2").contains("is not IP:PORT/PROTOCOL"));
        assert!(error("explain endpoint x").contains("\"x\" is not IP or IP:PORT"));
        assert!(error("list services --address x").contains("invalid value 'x'"));
        assert!(error("status --server x").contains("want http://ADDRESS:PORT"));
    }
}
