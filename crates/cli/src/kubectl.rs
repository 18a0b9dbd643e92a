//! `kubectl kproxy`: the commands on nodes of a cluster. The same program under the name `kubectl-kproxy`.
//!
//! `kubectl`, which has started this, knows the way to the cluster and who is asking. It finds the proxy's pods and runs the
//! commands in them, so nothing has to listen beyond the node itself.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{IsTerminal as _, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Output, Stdio};

use clap::{Arg, ArgAction, ArgMatches};
use inspect::document::TrafficList;
use serde::Deserialize;

use crate::client::ClientError;
use crate::command::{Invocation, Output as Format, What};
use crate::top::{self, Feed};

/// The name that kubectl knows its plugin by.
const NAME: &str = "kubectl-kproxy";
/// kubectl, unless the environment says another.
const KUBECTL: &str = "kubectl";
/// The environment's word for it.
const KUBECTL_VARIABLE: &str = "KUBE_PROXY_KUBECTL";

/// Whether the program was started under the plugin's name.
pub fn is_plugin(program: &OsStr) -> bool {
    Path::new(program).file_name() == Some(OsStr::new(NAME))
}

/// What can't be done.
#[derive(Debug, thiserror::Error)]
enum PluginError {
    #[error("run {program}")]
    Start {
        program: String,
        #[source]
        source: std::io::Error,
    },
    #[error("{what}: {stderr}")]
    Failed { what: String, stderr: String },
    #[error("what kubectl told can't be understood")]
    Answer(#[source] serde_json::Error),
    #[error("no pod of kube-proxy runs on {0} (looked for {1} in namespace {2})")]
    NoPod(String, String, String),
    #[error("name a node with --node, or ask --all-nodes; there are {0}")]
    WhichNode(String),
    #[error("{0} is asked on one node alone: name it with --node")]
    OneNode(&'static str),
}

/// Who is asked, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    /// What kubectl is told before anything else: cluster and user.
    cluster: Vec<String>,
    namespace: String,
    selector: String,
    nodes: Nodes,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Nodes {
    /// The only one, if there is one.
    Only,
    One(String),
    All,
}

/// A pod of the proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pod {
    name: String,
    node: String,
}

/// The options that are the plugin's own; they may stand anywhere.
fn own_options() -> Vec<Arg> {
    let option = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).global(true).help(help)
    };
    vec![
        option("node", "NODE", "The node to ask"),
        Arg::new("all-nodes")
            .long("all-nodes")
            .action(ArgAction::SetTrue)
            .conflicts_with("node")
            .global(true)
            .help("Asks every node; top adds them up"),
        option("proxy-namespace", "NAMESPACE", "Where the proxy's pods are [default: kube-system]"),
        option("proxy-selector", "LABELS", "The proxy's pods [default: k8s-app=kube-proxy]"),
        option("context", "NAME", "As of kubectl"),
        option("kubeconfig", "FILE", "As of kubectl"),
        option("as", "USER", "As of kubectl"),
    ]
}

/// The whole program under this name.
fn program() -> clap::Command {
    clap::Command::new(NAME)
        .bin_name("kubectl kproxy")
        .about("Asks kube-proxy on nodes of a cluster, with the commands of kube-proxy itself")
        .after_help("Needs the right to list pods and to execute in the proxy's pods (pods/exec).")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .args(own_options())
        .subcommands(crate::command::commands())
}

fn target(matches: &ArgMatches) -> Target {
    let text = |name: &str| matches.get_one::<String>(name).cloned();
    let told = |name: &str| text(name).map(|value| format!("--{name}={value}"));
    let nodes = match (text("node"), matches.get_flag("all-nodes")) {
        (Some(node), _) => Nodes::One(node),
        (None, true) => Nodes::All,
        (None, false) => Nodes::Only,
    };
    Target {
        cluster: ["context", "kubeconfig", "as"].into_iter().filter_map(told).collect(),
        namespace: text("proxy-namespace").unwrap_or_else(|| "kube-system".to_owned()),
        selector: text("proxy-selector").unwrap_or_else(|| "k8s-app=kube-proxy".to_owned()),
        nodes,
    }
}

/// The arguments without the plugin's own.
fn for_the_node(arguments: &[String]) -> Vec<String> {
    let own: BTreeMap<String, bool> = own_options()
        .iter()
        .map(|option| (format!("--{}", option.get_id()), option.get_action().takes_values()))
        .collect();
    let mut rest = Vec::new();
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let name = argument.split_once('=').map_or(argument.as_str(), |(name, _)| name);
        match own.get(name) {
            Some(true) if !argument.contains('=') => drop(arguments.next()),
            Some(_) => {}
            None => rest.push(argument.clone()),
        }
    }
    rest
}

/// Carries a command out on nodes.
pub fn run(arguments: impl IntoIterator<Item = String>) -> ExitCode {
    let arguments: Vec<String> = arguments.into_iter().collect();
    let parsed = program().try_get_matches_from(std::iter::once(NAME.to_owned()).chain(arguments.clone()));
    let matches = match parsed {
        Ok(matches) => matches,
        Err(error) => {
            drop(error.print());
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(1));
        }
    };
    let rest = for_the_node(&arguments);
    let outcome =
        crate::command::parse(rest.clone()).map_err(|error| error.to_string()).and_then(|invocation| {
            carry_out(&target(&matches), &invocation, &rest).map_err(|error| crate::run::told(&error))
        });
    match outcome {
        Ok(code) => code,
        Err(error) => {
            drop(writeln!(std::io::stderr(), "Error: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn carry_out(
    target: &Target,
    invocation: &Invocation,
    arguments: &[String],
) -> Result<ExitCode, PluginError> {
    let pods = target.pods()?;
    let is_top = matches!(invocation.what, What::Top(_));
    match pods.as_slice() {
        [pod] => target.hand_over(pod, arguments),
        pods if is_top => top_of_all(target, pods, invocation),
        _ if matches!(invocation.what, What::Trace(_)) => Err(PluginError::OneNode("trace")),
        _ if matches!(invocation.what, What::Dump { .. }) => Err(PluginError::OneNode("dump")),
        _ if invocation.watch => Err(PluginError::OneNode("--watch")),
        pods => target.each(pods, arguments),
    }
}

impl Target {
    fn kubectl(&self) -> Command {
        let program = std::env::var_os(KUBECTL_VARIABLE).unwrap_or_else(|| KUBECTL.into());
        let mut command = Command::new(program);
        command.args(&self.cluster);
        command
    }

    /// The pods to ask, by node.
    fn pods(&self) -> Result<Vec<Pod>, PluginError> {
        let mut command = self.kubectl();
        command.args(["get", "pods", "--output=json", "--field-selector=status.phase=Running"]);
        command.args([format!("--namespace={}", self.namespace), format!("--selector={}", self.selector)]);
        let output = output(&mut command, "list the proxy's pods")?;
        let mut pods = read_pods(&output.stdout).map_err(PluginError::Answer)?;
        let none =
            |node: &str| PluginError::NoPod(node.to_owned(), self.selector.clone(), self.namespace.clone());
        match &self.nodes {
            _ if pods.is_empty() => Err(none("any node")),
            Nodes::All => Ok(pods),
            Nodes::One(node) => {
                pods.retain(|pod| pod.node == *node);
                if pods.is_empty() { Err(none(node)) } else { Ok(pods) }
            }
            Nodes::Only if pods.len() == 1 => Ok(pods),
            Nodes::Only => {
                let nodes: Vec<_> = pods.iter().map(|pod| pod.node.as_str()).collect();
                Err(PluginError::WhichNode(nodes.join(", ")))
            }
        }
    }

    fn exec(&self, pod: &Pod, terminal: bool, arguments: &[String]) -> Command {
        let mut command = self.kubectl();
        command.arg("exec").arg(format!("--namespace={}", self.namespace)).arg(&pod.name);
        if terminal {
            command.args(["--stdin", "--tty"]);
        }
        command.args(["--", "kube-proxy"]).args(arguments);
        command
    }

    /// One node: what it says goes straight to the user, and its exit code is ours.
    fn hand_over(&self, pod: &Pod, arguments: &[String]) -> Result<ExitCode, PluginError> {
        let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
        let mut command = self.exec(pod, terminal, arguments);
        let status = command.status().map_err(|source| start_error(&command, source))?;
        Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
    }

    /// Several nodes, one after the other, each under its name. The worst exit code is ours.
    fn each(&self, pods: &[Pod], arguments: &[String]) -> Result<ExitCode, PluginError> {
        let mut worst = 0;
        for pod in pods {
            let mut command = self.exec(pod, false, arguments);
            drop(writeln!(std::io::stdout(), "Node {}:", pod.node));
            let status = command.status().map_err(|source| start_error(&command, source))?;
            worst = worst.max(status.code().unwrap_or(1));
            drop(writeln!(std::io::stdout()));
        }
        Ok(ExitCode::from(u8::try_from(worst).unwrap_or(1)))
    }

    /// What went through on all nodes, together; fails if one does not answer.
    fn traffic(&self, pods: &[Pod]) -> Result<TrafficList, PluginError> {
        let ask = |pod: &Pod| {
            let mut command = self.exec(pod, false, &["top".to_owned(), "--output=json".to_owned()]);
            output(&mut command, &format!("ask node {}", pod.node))
        };
        let answers: Vec<Result<Output, PluginError>> = std::thread::scope(|scope| {
            let asked: Vec<_> = pods.iter().map(|pod| scope.spawn(move || ask(pod))).collect();
            let lost =
                || Err(PluginError::Failed { what: "ask a node".to_owned(), stderr: "a panic".to_owned() });
            asked.into_iter().map(|thread| thread.join().unwrap_or_else(|_| lost())).collect()
        });
        let mut lists = Vec::new();
        for answer in answers {
            let list = answer?;
            lists.push(serde_json::from_slice(&list.stdout).map_err(PluginError::Answer)?);
        }
        Ok(top::added_up(lists))
    }
}

fn start_error(command: &Command, source: std::io::Error) -> PluginError {
    PluginError::Start { program: command.get_program().to_string_lossy().into_owned(), source }
}

/// Runs kubectl to its end; a failure has what it said.
fn output(command: &mut Command, what: &str) -> Result<Output, PluginError> {
    let output = command.stdin(Stdio::null()).output().map_err(|source| start_error(command, source))?;
    if output.status.success() {
        return Ok(output);
    }
    let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(PluginError::Failed { what: what.to_owned(), stderr })
}

/// A list of pods, as far as it matters.
fn read_pods(json: &[u8]) -> Result<Vec<Pod>, serde_json::Error> {
    #[derive(Deserialize)]
    struct List {
        items: Vec<Item>,
    }
    #[derive(Deserialize)]
    struct Item {
        metadata: Metadata,
        spec: Spec,
    }
    #[derive(Deserialize)]
    struct Metadata {
        name: String,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Spec {
        #[serde(default)]
        node_name: String,
    }
    let list: List = serde_json::from_slice(json)?;
    let mut pods: Vec<Pod> = list
        .items
        .into_iter()
        .map(|item| Pod { name: item.metadata.name, node: item.spec.node_name })
        .collect();
    pods.sort_by(|a, b| a.node.cmp(&b.node));
    Ok(pods)
}

/// All nodes as one.
struct AllNodes<'a> {
    target: &'a Target,
    pods: &'a [Pod],
}

impl Feed for AllNodes<'_> {
    fn name(&self) -> String {
        format!("{} nodes", self.pods.len())
    }

    async fn traffic(&self) -> Result<TrafficList, ClientError> {
        let (target, pods) = (self.target.clone(), self.pods.to_vec());
        let asked = tokio::task::spawn_blocking(move || target.traffic(&pods)).await;
        let failed = |error: &dyn std::error::Error| ClientError::Refused(crate::run::told(error));
        asked.map_err(|error| failed(&error))?.map_err(|error| failed(&error))
    }
}

fn top_of_all(target: &Target, pods: &[Pod], invocation: &Invocation) -> Result<ExitCode, PluginError> {
    let What::Top(selector) = &invocation.what else { return Err(PluginError::OneNode("this")) };
    let failed = |error: &dyn std::error::Error| PluginError::Failed {
        what: "show all nodes".to_owned(),
        stderr: crate::run::told(error),
    };
    if invocation.output == Format::Table && std::io::stdout().is_terminal() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| failed(&error))?;
        let shown = runtime.block_on(top::live(&AllNodes { target, pods }, selector));
        return shown.map(|()| ExitCode::SUCCESS).map_err(|error| failed(&error));
    }
    let mut list = target.traffic(pods)?;
    list.items.retain(|row| top::is_meant(selector, row));
    let text = match invocation.output {
        Format::Json => format!("{:#}\n", serde_json::to_value(&list).unwrap_or_default()),
        Format::Yaml => config::yaml(&serde_json::to_value(&list).unwrap_or_default()),
        Format::Name => list.items.iter().flat_map(|row| [row.service_port.as_str(), "\n"]).collect(),
        Format::Table | Format::Wide => top::table(&list).text(false, invocation.headings),
    };
    std::io::stdout().write_all(text.as_bytes()).map(|()| ExitCode::SUCCESS).map_err(|error| failed(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn the_plugin_is_known_by_its_name() {
        for (program, is_it) in [
            ("/usr/local/bin/kubectl-kproxy", true),
            ("kubectl-kproxy", true),
            ("/usr/local/bin/kube-proxy", false),
            ("", false),
        ] {
            assert_eq!(is_plugin(OsStr::new(program)), is_it, "{program}");
        }
        program().debug_assert();
    }

    #[test]
    fn what_is_the_plugins_own_may_stand_anywhere_and_does_not_reach_the_node() {
        let all = words("--context prod list --node=n1 services -n shop --proxy-namespace net web -o wide");
        assert_eq!(for_the_node(&all), words("list services -n shop web -o wide"));
        let matches = program().try_get_matches_from([words("kubectl-kproxy"), all].concat()).unwrap();
        let expected = Target {
            cluster: words("--context=prod"),
            namespace: "net".into(),
            selector: "k8s-app=kube-proxy".into(),
            nodes: Nodes::One("n1".into()),
        };
        assert_eq!(target(&matches), expected);
        assert_eq!(for_the_node(&words("top --all-nodes")), words("top"));
        assert!(program().try_get_matches_from(words("kubectl-kproxy top --all-nodes --node x")).is_err());
    }

    #[test]
    fn pods_come_by_node() {
        let list = r#"{"items": [{"metadata": {"name": "kube-proxy-b"}, "spec": {"nodeName": "n2", "x": 1}},
            {"metadata": {"name": "kube-proxy-a"}, "spec": {"nodeName": "n1"}}]}"#;
        let pods = read_pods(list.as_bytes()).unwrap();
        let pod = |name: &str, node: &str| Pod { name: name.into(), node: node.into() };
        assert_eq!(pods, [pod("kube-proxy-a", "n1"), pod("kube-proxy-b", "n2")]);
        assert!(read_pods(b"{}").is_err());
    }
}
