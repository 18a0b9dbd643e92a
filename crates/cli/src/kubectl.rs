//! `kubectl kproxy`: the commands on nodes of a cluster. The same program under the name `kubectl-kproxy`.
//!
//! `kubectl`, which has started this, knows the way to the cluster and who is asking. It finds the proxy's pods and runs the
//! commands in them, so nothing has to listen beyond the node itself.

mod nodes;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{IsTerminal as _, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Output, Stdio};
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches};
use inspect::document::TrafficList;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::client::ClientError;
use crate::command::{Invocation, Output as Format, What};
use crate::run::UNREACHABLE;
use crate::top::{self, Feed, Told};
use nodes::{Answer, Said};

/// The name that kubectl knows its plugin by.
const NAME: &str = "kubectl-kproxy";
/// kubectl, unless the environment says another.
const KUBECTL: &str = "kubectl";
/// How long each of several nodes may take, unless it is said.
const PATIENCE: Duration = Duration::from_secs(30);
/// The same while somebody looks on.
const LIVE_PATIENCE: Duration = Duration::from_secs(5);
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
    #[error("--node-timeout {0:?}: want seconds, 1 or more")]
    Timeout(String),
    #[error("no node answers: {0}")]
    NoAnswer(String),
    #[error("start the runtime")]
    Runtime(#[source] std::io::Error),
    #[error("write the answer")]
    Write(#[source] std::io::Error),
}

/// Who is asked, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    /// What kubectl is told before anything else: cluster and user.
    cluster: Vec<String>,
    namespace: String,
    selector: String,
    nodes: Nodes,
    /// How long each of several nodes may take.
    patience: Duration,
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
        option("node-timeout", "SECONDS", "How long each of several nodes may take [default: 30]"),
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

fn target(matches: &ArgMatches) -> Result<Target, PluginError> {
    let text = |name: &str| matches.get_one::<String>(name).cloned();
    let told = |name: &str| text(name).map(|value| format!("--{name}={value}"));
    let nodes = match (text("node"), matches.get_flag("all-nodes")) {
        (Some(node), _) => Nodes::One(node),
        (None, true) => Nodes::All,
        (None, false) => Nodes::Only,
    };
    let patience = match text("node-timeout") {
        Some(given) => match given.parse() {
            Ok(seconds @ 1..) => Duration::from_secs(seconds),
            _ => return Err(PluginError::Timeout(given)),
        },
        None => PATIENCE,
    };
    Ok(Target {
        cluster: ["context", "kubeconfig", "as"].into_iter().filter_map(told).collect(),
        namespace: text("proxy-namespace").unwrap_or_else(|| "kube-system".to_owned()),
        selector: text("proxy-selector").unwrap_or_else(|| "k8s-app=kube-proxy".to_owned()),
        nodes,
        patience,
    })
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
            let carried_out = target(&matches).and_then(|target| carry_out(&target, &invocation, &rest));
            carried_out.map_err(|error| crate::run::told(&error))
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
        pods => target.each(pods, arguments, invocation.output),
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

    /// Several nodes, each under its name. The worst exit code is ours.
    fn each(&self, pods: &[Pod], arguments: &[String], output: Format) -> Result<ExitCode, PluginError> {
        let answers = runtime()?.block_on(self.ask(pods, arguments, self.patience));
        let text = match output {
            Format::Json => format!("{:#}\n", as_json(&answers)),
            _ => answers.iter().map(|answer| under_name(answer, output)).collect(),
        };
        std::io::stdout().write_all(text.as_bytes()).map_err(PluginError::Write)?;
        let code = |answer: &Answer| answer.said.as_ref().map_or(UNREACHABLE, |said| said.code);
        Ok(ExitCode::from(answers.iter().map(code).max().unwrap_or_default()))
    }

    async fn ask(&self, pods: &[Pod], arguments: &[String], patience: Duration) -> Vec<Answer> {
        let questions = pods.iter().map(|pod| (pod.node.clone(), self.exec(pod, false, arguments)));
        nodes::ask(questions.collect::<Vec<_>>(), patience).await
    }

    /// What went through on all nodes that answer, together.
    async fn traffic(&self, pods: &[Pod], patience: Duration) -> Result<Summed, PluginError> {
        let arguments = ["top".to_owned(), "--output=json".to_owned()];
        let (mut lists, mut unanswered) = (Vec::new(), Vec::new());
        for Answer { node, said } in self.ask(pods, &arguments, patience).await {
            let read = |said: Said| serde_json::from_str(&said.stdout).map_err(|error| error.to_string());
            match said.and_then(read) {
                Ok(list) => lists.push(list),
                Err(why) => unanswered.push((node, why)),
            }
        }
        if lists.is_empty() {
            return Err(PluginError::NoAnswer(named(&unanswered)));
        }
        Ok(Summed { list: top::added_up(lists), unanswered })
    }
}

/// What went through, and nodes of which it is not known, with the reason.
struct Summed {
    list: TrafficList,
    unanswered: Vec<(String, String)>,
}

/// `a: reason; b: reason`
fn named(unanswered: &[(String, String)]) -> String {
    let one = |(node, why): &(String, String)| format!("{node}: {why}");
    unanswered.iter().map(one).collect::<Vec<_>>().join("; ")
}

fn runtime() -> Result<tokio::runtime::Runtime, PluginError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(PluginError::Runtime)
}

/// A node's answer for people, or as one of several documents.
fn under_name(Answer { node, said }: &Answer, output: Format) -> String {
    let (heading, end) = if output == Format::Yaml {
        (format!("---\n# Node {node}:"), "")
    } else {
        (format!("Node {node}:"), "\n")
    };
    match said {
        Ok(Said { stdout, stderr, .. }) => format!("{heading}\n{stdout}{stderr}{end}"),
        Err(why) if output == Format::Yaml => format!("{heading} no answer: {why}\n"),
        Err(why) => format!("{heading} no answer: {why}\n{end}"),
    }
}

/// The nodes' documents in one.
fn as_json(answers: &[Answer]) -> Value {
    let item = |Answer { node, said }: &Answer| {
        let read = |said: &Said| {
            serde_json::from_str::<Value>(&said.stdout).map_err(|_no_document| said.stderr.trim().to_owned())
        };
        match said.as_ref().map_err(String::clone).and_then(read) {
            Ok(document) => json!({ "node": node, "answer": document }),
            Err(error) => json!({ "node": node, "error": error }),
        }
    };
    json!({ "nodes": answers.iter().map(item).collect::<Vec<_>>() })
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

    async fn traffic(&self) -> Result<Told, ClientError> {
        let patience = self.target.patience.min(LIVE_PATIENCE);
        let asked = self.target.traffic(self.pods, patience).await;
        let Summed { list, unanswered } =
            asked.map_err(|error| ClientError::Refused(crate::run::told(&error)))?;
        Ok(Told { list, complaint: (!unanswered.is_empty()).then(|| named(&unanswered)) })
    }
}

fn top_of_all(target: &Target, pods: &[Pod], invocation: &Invocation) -> Result<ExitCode, PluginError> {
    let What::Top(selector) = &invocation.what else { return Err(PluginError::OneNode("this")) };
    let runtime = runtime()?;
    if invocation.output == Format::Table && std::io::stdout().is_terminal() {
        let shown = runtime.block_on(top::live(&AllNodes { target, pods }, selector));
        let failed = |error| PluginError::Failed {
            what: "show all nodes".to_owned(),
            stderr: crate::run::told(&error),
        };
        return shown.map(|()| ExitCode::SUCCESS).map_err(failed);
    }
    let Summed { mut list, unanswered } = match runtime.block_on(target.traffic(pods, target.patience)) {
        Err(error @ PluginError::NoAnswer(_)) => {
            drop(writeln!(std::io::stderr(), "Error: {error}"));
            return Ok(ExitCode::from(UNREACHABLE));
        }
        summed => summed?,
    };
    list.items.retain(|row| top::is_meant(selector, row));
    let text = match invocation.output {
        Format::Json => format!("{:#}\n", sum_as_json(&list, &unanswered)),
        Format::Yaml => config::yaml(&sum_as_json(&list, &unanswered)),
        Format::Name => list.items.iter().flat_map(|row| [row.service_port.as_str(), "\n"]).collect(),
        Format::Table | Format::Wide => top::table(&list).text(false, invocation.headings),
    };
    std::io::stdout().write_all(text.as_bytes()).map_err(PluginError::Write)?;
    for (node, why) in &unanswered {
        drop(writeln!(std::io::stderr(), "Node {node} is not in it, no answer: {why}"));
    }
    Ok(ExitCode::from(if unanswered.is_empty() { 0 } else { UNREACHABLE }))
}

/// With the nodes of which it is not known, if there are any.
fn sum_as_json(list: &TrafficList, unanswered: &[(String, String)]) -> Value {
    let mut value = serde_json::to_value(list).unwrap_or_default();
    if let Some(fields) = value.as_object_mut().filter(|_| !unanswered.is_empty()) {
        let item = |(node, why): &(String, String)| json!({ "node": node, "error": why });
        fields.insert("unanswered".to_owned(), unanswered.iter().map(item).collect());
    }
    value
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
            patience: PATIENCE,
        };
        assert_eq!(target(&matches).unwrap(), expected);
        for (given, expected) in [("5", Some(5)), ("0", None), ("-1", None), ("soon", None)] {
            let all = words(&format!("kubectl-kproxy top --all-nodes --node-timeout={given}"));
            let target = target(&program().try_get_matches_from(all).unwrap());
            assert_eq!(target.ok().map(|target| target.patience), expected.map(Duration::from_secs));
        }
        assert_eq!(for_the_node(&words("top --all-nodes")), words("top"));
        assert!(program().try_get_matches_from(words("kubectl-kproxy top --all-nodes --node x")).is_err());
    }

    #[test]
    fn a_node_without_an_answer_is_named() {
        let said = Said { stdout: "{\"a\": 1}\n".into(), stderr: String::new(), code: 0 };
        let answers = [
            Answer { node: "n1".into(), said: Ok(said) },
            Answer { node: "n2".into(), said: Err("nothing came within 30 s".into()) },
        ];
        let text: String = answers.iter().map(|answer| under_name(answer, Format::Table)).collect();
        assert_eq!(text, "Node n1:\n{\"a\": 1}\n\nNode n2: no answer: nothing came within 30 s\n\n");
        let text: String = answers.iter().map(|answer| under_name(answer, Format::Yaml)).collect();
        assert_eq!(
            text,
            "---\n# Node n1:\n{\"a\": 1}\n---\n# Node n2: no answer: nothing came within 30 s\n"
        );
        let expected = json!({ "nodes": [
            { "node": "n1", "answer": { "a": 1 } }, { "node": "n2", "error": "nothing came within 30 s" }] });
        assert_eq!(as_json(&answers), expected);
        let unanswered = [("n2".to_owned(), "gone".to_owned())];
        let list = TrafficList::default();
        assert_eq!(sum_as_json(&list, &unanswered)["unanswered"], json!([{ "node": "n2", "error": "gone" }]));
        assert!(sum_as_json(&list, &[]).get("unanswered").is_none());
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
