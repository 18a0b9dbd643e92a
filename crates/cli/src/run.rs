//! Commands, carried out.

use std::collections::BTreeSet;
use std::io::{IsTerminal as _, Write};
use std::process::ExitCode;
use std::time::Duration;

use agent::snapshot::Service;
use inspect::Selector;
use inspect::document::{
    EndpointList, FindingList, FlowList, PacketReport, ServiceList, Severity, Status, TrafficList,
};
use inspect::words;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::client::{ClientError, Server};
use crate::command::{Invocation, Output, What};
use crate::table::Table;
use crate::top::{Feed, Told};
use crate::trace::Local;
use crate::{dump, itself, show, top, trace};

/// Exit code when something is found or wrong.
const FOUND: u8 = 1;
/// Exit code when the proxy does not answer.
pub(crate) const UNREACHABLE: u8 = 3;
/// Between two looks with `--watch`.
const PAUSE: Duration = Duration::from_secs(2);

/// An answer, printed in whatever way is wanted.
struct Answer {
    document: Box<dyn ToValue>,
    /// Names, for `-o name`.
    names: Vec<String>,
    body: Text,
    /// Something is wrong.
    found: bool,
}

/// A document, which most answers are printed without.
trait ToValue {
    fn to_value(&self) -> Value;
}

impl<T: Serialize> ToValue for T {
    fn to_value(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }
}

enum Text {
    Table(Table),
    Plain(String),
}

/// Carries a command out, and says how it went.
pub fn run(arguments: impl IntoIterator<Item = String>, local: &dyn Local) -> ExitCode {
    let mut arguments = arguments.into_iter().peekable();
    if arguments.peek().is_some_and(|first| itself::is_meant(first)) {
        return itself::run(arguments, &mut std::io::stdout());
    }
    let invocation = match crate::command::parse(arguments) {
        Ok(invocation) => invocation,
        Err(error) => {
            // Nothing is left to do if nobody reads it.
            drop(error.print());
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(FOUND));
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return complain(&error, FOUND),
    };
    let outcome = runtime.block_on(carry_out(&invocation, local, &mut std::io::stdout().lock()));
    match outcome {
        Ok(found) => ExitCode::from(if found { FOUND } else { 0 }),
        Err(error @ (ClientError::Connect { .. } | ClientError::Http { .. })) => {
            complain(&error, UNREACHABLE)
        }
        Err(error) => complain(&error, FOUND),
    }
}

fn complain(error: &dyn std::error::Error, code: u8) -> ExitCode {
    drop(writeln!(std::io::stderr(), "Error: {}", told(error)));
    ExitCode::from(code)
}

/// An error with its causes.
pub(crate) fn told(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    let causes: Vec<String> =
        std::iter::once(error.to_string()).chain(causes.map(ToString::to_string)).collect();
    causes.join(": ")
}

/// Asks and prints; true if something is wrong.
async fn carry_out(
    invocation: &Invocation,
    local: &dyn Local,
    out: &mut impl Write,
) -> Result<bool, ClientError> {
    if let What::Dump { path } = &invocation.what {
        return dump::write(&invocation.server, path.as_deref(), out).await.map(|()| false);
    }
    if let What::Trace(question) = &invocation.what {
        let as_json = invocation.output == Output::Json;
        return trace::run(&invocation.server, local, question, as_json, out).await.map(|()| false);
    }
    if let What::Top(selector) = &invocation.what
        && invocation.output == Output::Table
        && std::io::stdout().is_terminal()
    {
        let feed = OneProxy(&invocation.server);
        return top::live(&feed, selector).await.map(|()| false);
    }
    let colours =
        invocation.colours && std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let mut last: Option<String> = None;
    loop {
        let answer = ask(invocation, colours).await?;
        let text = rendered(&answer, invocation, colours, last.is_none());
        let news = news(invocation.output, last.as_deref(), &text);
        if out.write_all(news.as_bytes()).and_then(|()| out.flush()).is_err() || !invocation.watch {
            return Ok(answer.found);
        }
        last = Some(text);
        tokio::time::sleep(PAUSE).await;
    }
}

/// What is to be printed of an answer after the last one: lines that were not there, or a whole document that is another one.
fn news(output: Output, last: Option<&str>, text: &str) -> String {
    let Some(last) = last else { return text.to_owned() };
    match output {
        Output::Json | Output::Yaml if text == last => String::new(),
        Output::Json => text.to_owned(),
        Output::Yaml => format!("---\n{text}"),
        Output::Name | Output::Table | Output::Wide => {
            let known: BTreeSet<&str> = last.split_inclusive('\n').collect();
            text.split_inclusive('\n').filter(|line| !known.contains(line)).collect()
        }
    }
}

fn rendered(answer: &Answer, invocation: &Invocation, colours: bool, first: bool) -> String {
    match (invocation.output, &answer.body) {
        (Output::Json, _) => format!("{:#}\n", answer.document.to_value()),
        (Output::Yaml, _) => config::yaml(&answer.document.to_value()),
        (Output::Name, _) => answer.names.join("\n") + "\n",
        (Output::Table | Output::Wide, Text::Table(table))
            if table.is_empty() && first && !invocation.watch =>
        {
            "Nothing found.\n".to_owned()
        }
        (Output::Table | Output::Wide, Text::Table(table)) => {
            table.text(colours, invocation.headings && first)
        }
        (Output::Table | Output::Wide, Text::Plain(text)) => text.clone(),
    }
}

async fn ask(invocation: &Invocation, colours: bool) -> Result<Answer, ClientError> {
    let wide = invocation.output == Output::Wide;
    match &invocation.what {
        What::Status => {
            let status: Status = get(invocation, "status").await?;
            let found = !status.health.healthy;
            let names = vec![format!("node/{}", status.overview.node)];
            Ok(answer(names, Text::Plain(show::status(&status, colours)), found, status))
        }
        What::Services(selector) => {
            let list: ServiceList = get(invocation, &selected("services", selector)).await?;
            let names =
                list.items.iter().map(|row| format!("service/{}/{}", row.namespace, row.name)).collect();
            Ok(answer(names, Text::Table(show::services(&list, wide)), false, list))
        }
        What::Endpoints(selector) => {
            let list: EndpointList = get(invocation, &selected("endpoints", selector)).await?;
            let names = list.items.iter().map(|row| row.endpoint.address.to_string()).collect();
            Ok(answer(names, Text::Table(show::endpoints(&list, wide)), false, list))
        }
        What::Conflicts => conflicts(invocation).await,
        What::Rejected => rejected(invocation).await,
        What::Drains(selector) => drains(invocation, selector).await,
        What::Flows(selector) => flows(invocation, selector).await,
        What::ExplainService { namespace, name, port } => {
            let service: Service = get(invocation, &format!("services/{namespace}/{name}")).await?;
            let text = words::service(&service, port.as_deref());
            Ok(answer(vec![format!("service/{namespace}/{name}")], Text::Plain(text), false, service))
        }
        What::ExplainEndpoint { ip, port } => endpoint(invocation, *ip, *port).await,
        What::ExplainPacket { query } => {
            let report: PacketReport = get(invocation, &format!("packet?{query}")).await?;
            let names = report.service_port.iter().cloned().collect();
            Ok(answer(names, Text::Plain(show::packet(&report)), false, report))
        }
        What::Check => check(invocation, colours).await,
        What::Top(selector) => traffic(invocation, selector).await,
        What::Trace(_) | What::Dump { .. } => unreachable!("they are carried out elsewhere"),
    }
}

async fn traffic(invocation: &Invocation, selector: &Selector) -> Result<Answer, ClientError> {
    let mut list: TrafficList = get(invocation, "traffic").await?;
    list.items.retain(|row| top::is_meant(selector, row));
    let names = list.items.iter().map(|row| row.service_port.clone()).collect();
    Ok(answer(names, Text::Table(top::table(&list)), false, list))
}

/// The proxy that `--server` says.
struct OneProxy<'a>(&'a Server);

impl Feed for OneProxy<'_> {
    fn name(&self) -> String {
        self.0.to_string()
    }

    async fn traffic(&self) -> Result<Told, ClientError> {
        Ok(Told { list: self.0.get("traffic").await?, complaint: None })
    }
}

async fn conflicts(invocation: &Invocation) -> Result<Answer, ClientError> {
    let list: inspect::document::ConflictList = get(invocation, "conflicts").await?;
    let names = list.items.iter().map(|conflict| conflict.loser.clone()).collect();
    Ok(answer(names, Text::Table(show::conflicts(&list)), !list.items.is_empty(), list))
}

async fn rejected(invocation: &Invocation) -> Result<Answer, ClientError> {
    let list: inspect::document::RejectionList = get(invocation, "rejections").await?;
    let name = |item: &inspect::document::Rejection| {
        format!("{}/{}/{}", item.kind.to_lowercase(), item.namespace, item.name)
    };
    let names = list.items.iter().map(name).collect();
    Ok(answer(names, Text::Table(show::rejected(&list)), !list.items.is_empty(), list))
}

async fn check(invocation: &Invocation, colours: bool) -> Result<Answer, ClientError> {
    let list: FindingList = get(invocation, "findings").await?;
    let found = list.items.iter().any(|finding| finding.severity <= Severity::Warning);
    let names = list.items.iter().map(|finding| finding.id.clone()).collect();
    Ok(answer(names, Text::Plain(show::findings(&list, colours)), found, list))
}

fn answer(names: Vec<String>, body: Text, found: bool, document: impl Serialize + 'static) -> Answer {
    Answer { document: Box::new(document), names, body, found }
}

async fn get<T: DeserializeOwned>(invocation: &Invocation, path: &str) -> Result<T, ClientError> {
    invocation.server.get(path).await
}

fn selected(path: &str, selector: &Selector) -> String {
    format!("{path}?{}", selector.to_query())
}

/// Flows to the endpoints that are selected; to all, if nothing is.
async fn flows(invocation: &Invocation, selector: &Selector) -> Result<Answer, ClientError> {
    let mut list: FlowList = get(invocation, "flows").await?;
    if *selector != Selector::default() {
        let endpoints: EndpointList = get(invocation, &selected("endpoints", selector)).await?;
        let own: BTreeSet<_> =
            endpoints.items.iter().map(|row| (row.endpoint.address, row.protocol.clone())).collect();
        list.items.retain(|flow| own.contains(&(flow.endpoint, flow.protocol.clone())));
    }
    list.items.sort();
    let names = list.items.iter().map(|flow| flow.source.to_string()).collect();
    Ok(answer(names, Text::Table(show::flows(&list)), false, list))
}

async fn drains(invocation: &Invocation, selector: &Selector) -> Result<Answer, ClientError> {
    let mut list: EndpointList = get(invocation, &selected("endpoints", selector)).await?;
    list.items.retain(|row| row.endpoint.is_terminating);
    let flows: FlowList = get(invocation, "flows").await?;
    let names = list.items.iter().map(|row| row.endpoint.address.to_string()).collect();
    Ok(answer(names, Text::Table(show::drains(&list, &flows)), false, list))
}

async fn endpoint(
    invocation: &Invocation,
    ip: std::net::IpAddr,
    port: Option<u16>,
) -> Result<Answer, ClientError> {
    let selector = Selector { endpoint: Some(ip), ..Selector::default() };
    let mut list: EndpointList = get(invocation, &selected("endpoints", &selector)).await?;
    list.items.retain(|row| port.is_none_or(|port| row.endpoint.address.port() == port));
    let line = |row: &inspect::document::EndpointRow| {
        format!("{} {}\n  {}\n", row.service_port, row.protocol, words::endpoint(&row.endpoint))
    };
    let mut text = list.items.iter().map(line).collect::<Vec<_>>().concat();
    if list.items.is_empty() {
        text = format!("{ip} is an endpoint of no Service, as far as this node knows.\n");
    }
    let names = list.items.iter().map(|row| row.service_port.clone()).collect();
    Ok(answer(names, Text::Plain(text), list.items.is_empty(), list))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_watched_is_printed_when_it_differs() {
        let check =
            |output, last, text, expected| assert_eq!(news(output, last, text), expected, "{output:?}");
        check(Output::Table, None, "NAME\na\n", "NAME\na\n");
        check(Output::Table, Some("NAME\na\n"), "a\nb\n", "b\n");
        check(Output::Name, Some("a\nb\n"), "b\n", "");
        // A document is whole, or it can't be read.
        check(Output::Json, Some("{\n  \"n\": 1\n}\n"), "{\n  \"n\": 2\n}\n", "{\n  \"n\": 2\n}\n");
        check(Output::Json, Some("{}\n"), "{}\n", "");
        check(Output::Yaml, Some("n: 1\n"), "n: 2\n", "---\nn: 2\n");
    }
}
