//! Documents of the API as tables and text for people.

use agent::snapshot::{Endpoint, FamilyState, RecentChange, TrafficPolicy, Usage};
use inspect::document::{
    ConflictList, Ending, EndpointList, EndpointRow, FindingList, FlowList, PacketReport, Place,
    RejectionList, RuleStep, ServiceList, ServiceRow, Severity, Status, Verdict,
};
use inspect::words;

use crate::human::duration;
use crate::table::{Cell, Table, Tone, printable};

/// Services, one a line.
pub fn services(list: &ServiceList, wide: bool) -> Table {
    let mut headings = vec!["NAMESPACE", "NAME", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "ENDPOINTS"];
    headings.extend(["CONNECTIONS", "RATE"]);
    if wide {
        headings.extend(["REFUSED", "DROPPED", "LOCAL", "TERMINATING", "INTERNAL", "EXTERNAL", "AFFINITY"]);
    }
    headings.push("STATE");
    let mut table = Table::new(&headings);
    for row in &list.items {
        table.row(service(row, wide));
    }
    table
}

fn service(row: &ServiceRow, wide: bool) -> Vec<Cell> {
    let counts = row.endpoints;
    let tone = match (counts.serving, counts.serving < counts.total) {
        (0, _) => Tone::Bad,
        (_, true) => Tone::Warn,
        (_, false) => Tone::Good,
    };
    let mut cells: Vec<Cell> = vec![
        row.namespace.as_str().into(),
        row.name.as_str().into(),
        joined(&row.cluster_ips).into(),
        joined(&row.external_ips).into(),
        joined(&row.ports).into(),
        Cell::toned(format!("{}/{}", counts.serving, counts.total), tone),
        count(row.connections),
        rate(row.connections_per_second),
    ];
    if wide {
        let affinity = row.affinity_seconds.map(|seconds| format!("{seconds}s"));
        cells.extend([
            count(row.refused),
            count(row.dropped),
            counts.local.to_string().into(),
            counts.terminating.to_string().into(),
            policy(row.internal_policy).into(),
            policy(row.external_policy).into(),
            Cell::from(affinity.unwrap_or_default()),
        ]);
    }
    cells.push(state(row));
    cells
}

fn count(n: Option<u64>) -> Cell {
    n.map(|n| n.to_string()).unwrap_or_default().into()
}

/// In a second; less than one in ten seconds shows as well.
fn rate(per_second: Option<f64>) -> Cell {
    per_second.map(per_second_text).unwrap_or_default().into()
}

/// `12.5/s`
pub(crate) fn per_second_text(rate: f64) -> String {
    if rate >= 100.0 { format!("{rate:.0}/s") } else { format!("{rate:.1}/s") }
}

fn state(row: &ServiceRow) -> Cell {
    if row.conflicts > 0 {
        Cell::toned("Conflict", Tone::Bad)
    } else if row.cluster_ips.is_empty() && row.ports.is_empty() {
        Cell::toned("NotServed", Tone::Warn)
    } else if row.waiting {
        Cell::toned("Waiting", Tone::Warn)
    } else if row.endpoints.serving == 0 {
        Cell::toned("NoEndpoints", Tone::Bad)
    } else {
        Cell::toned("InForce", Tone::Good)
    }
}

fn policy(policy: Option<TrafficPolicy>) -> &'static str {
    policy.map_or("", words::policy_name)
}

fn joined<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// Endpoints, one for each Service port that they are of.
pub fn endpoints(list: &EndpointList, wide: bool) -> Table {
    let mut headings = vec!["SERVICE-PORT", "PROTOCOL", "ENDPOINT", "NODE", "CONDITIONS", "USE"];
    headings.extend(["CONNECTIONS", "RATE"]);
    if wide {
        headings.push("SLICE");
    }
    let mut table = Table::new(&headings);
    for row in &list.items {
        table.row(endpoint(row, wide));
    }
    table
}

fn endpoint(row: &EndpointRow, wide: bool) -> Vec<Cell> {
    let endpoint = &row.endpoint;
    let mut cells: Vec<Cell> = vec![
        row.service_port.as_str().into(),
        row.protocol.as_str().into(),
        endpoint.address.to_string().into(),
        if endpoint.is_local { "this" } else { "other" }.into(),
        conditions(endpoint),
        usage(endpoint),
        count(endpoint.traffic.map(|traffic| traffic.connections)),
        rate(endpoint.traffic.and_then(|traffic| traffic.connections_per_second)),
    ];
    if wide {
        cells.push(endpoint.slice.as_str().into());
    }
    cells
}

fn conditions(endpoint: &Endpoint) -> Cell {
    match (endpoint.is_terminating, endpoint.is_ready, endpoint.is_serving) {
        (true, _, true) => Cell::toned("Terminating,Serving", Tone::Warn),
        (true, _, false) => Cell::toned("Terminating", Tone::Bad),
        (false, true, _) => Cell::toned("Ready", Tone::Good),
        (false, false, _) => Cell::toned("NotReady", Tone::Bad),
    }
}

fn usage(endpoint: &Endpoint) -> Cell {
    let name = |usage| match usage {
        Usage::Serves => "Serves",
        Usage::OtherNode => "OtherNode",
        Usage::Terminating => "Terminating",
        Usage::NotReady => "NotReady",
        Usage::HintedElsewhere => "HintedElsewhere",
    };
    let mut uses: Vec<String> = endpoint
        .uses
        .iter()
        .map(|used| format!("{}:{}", words::policy_name(used.policy), name(used.usage)))
        .collect();
    if let [only] = endpoint.uses.as_slice() {
        uses = vec![name(only.usage).to_owned()];
    }
    if endpoint.out.is_some() {
        return Cell::toned("Out", Tone::Bad);
    }
    let serves = endpoint.uses.iter().any(|used| used.usage == Usage::Serves);
    Cell::toned(uses.join(","), if serves { Tone::Good } else { Tone::Warn })
}

/// Claims that lose.
pub fn conflicts(list: &ConflictList) -> Table {
    let mut table = Table::new(&["FAMILY", "ADDRESS", "PROTOCOL", "PORT", "SERVED", "NOT-SERVED"]);
    for conflict in &list.items {
        table.row(vec![
            conflict.family.as_str().into(),
            conflict.address.map_or_else(|| "node port".to_owned(), |ip| ip.to_string()).into(),
            conflict.protocol.as_str().into(),
            conflict.port.to_string().into(),
            conflict.winner.as_str().into(),
            Cell::toned(conflict.loser.clone(), Tone::Bad),
        ]);
    }
    table
}

/// What can't be used.
pub fn rejected(list: &RejectionList) -> Table {
    let mut table = Table::new(&["KIND", "NAMESPACE", "NAME", "FIELD", "REASON"]);
    for item in &list.items {
        let texts = [&item.kind, &item.namespace, &item.name, &item.field, &item.reason];
        table.row(texts.into_iter().map(|text| text.as_str().into()).collect());
    }
    table
}

/// Tracked flows.
pub fn flows(list: &FlowList) -> Table {
    let mut table = Table::new(&["PROTOCOL", "SOURCE", "DESTINATION", "ENDPOINT", "ANSWERED", "MASQUERADED"]);
    for flow in &list.items {
        let yes = |is: bool| if is { "yes" } else { "no" };
        table.row(vec![
            flow.protocol.as_str().into(),
            flow.source.to_string().into(),
            flow.destination.to_string().into(),
            flow.endpoint.to_string().into(),
            Cell::toned(yes(flow.replied), if flow.replied { Tone::Good } else { Tone::Warn }),
            yes(flow.masqueraded).into(),
        ]);
    }
    table
}

/// Endpoints that are ending, with their flows.
pub fn drains(endpoints: &EndpointList, flows: &FlowList) -> Table {
    let mut table = Table::new(&["SERVICE-PORT", "PROTOCOL", "ENDPOINT", "NODE", "SERVING", "FLOWS"]);
    for row in endpoints.items.iter().filter(|row| row.endpoint.is_terminating) {
        let own = flows
            .items
            .iter()
            .filter(|flow| flow.endpoint == row.endpoint.address && flow.protocol == row.protocol);
        let more = if flows.truncated { "+" } else { "" };
        table.row(vec![
            row.service_port.as_str().into(),
            row.protocol.as_str().into(),
            row.endpoint.address.to_string().into(),
            if row.endpoint.is_local { "this" } else { "other" }.into(),
            if row.endpoint.is_serving { "yes" } else { "no" }.into(),
            format!("{}{more}", own.count()).into(),
        ]);
    }
    table
}

/// Findings, as paragraphs.
pub fn findings(list: &FindingList, colours: bool) -> String {
    let mut lines = Vec::new();
    for finding in &list.items {
        let (word, tone) = match finding.severity {
            Severity::Error => ("ERROR", Tone::Bad),
            Severity::Warning => ("WARNING", Tone::Warn),
            Severity::Info => ("INFO", Tone::Plain),
        };
        lines.extend([
            format!("{}  {}", toned(word, tone, colours), printable(&finding.what)),
            format!("    why it matters: {}", printable(&finding.why)),
            format!("    to mend it:     {}", printable(&finding.mend)),
            String::new(),
        ]);
    }
    let count = |severity| list.items.iter().filter(|finding| finding.severity == severity).count();
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    let found = format!("{}, {}", counted(errors, "error"), counted(warnings, "warning"));
    lines.push(format!("{found}. Looked at: {}.", list.checked.join("; ")));
    text(&lines)
}

fn counted(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

fn text(lines: &[String]) -> String {
    lines.join("\n") + "\n"
}

/// How the proxy is.
pub fn status(status: &Status, colours: bool) -> String {
    let overview = &status.overview;
    let facts = facts(status, colours);
    let mut lines: Vec<String> =
        facts.into_iter().map(|(name, value)| format!("{:<14}{value}", format!("{name}:"))).collect();
    lines.push(String::new());
    lines.push(families(&overview.families).text(colours, true));
    for family in &overview.families {
        if let Some(failure) = &family.failure {
            let (error, again) = (printable(&failure.error), duration(failure.retry_in_seconds));
            let line = format!(
                "{}: {error} (failure {} in a row; tried again in {again})",
                family.family, failure.times
            );
            lines.extend([line, String::new()]);
        }
    }
    if !overview.recent_changes.is_empty() {
        let last = overview.recent_changes.len().saturating_sub(10);
        lines.push("Last changes:".to_owned());
        lines.push(changes(&overview.recent_changes[last..], status.now).text(colours, true));
    }
    lines.join("\n")
}

/// What there is in one line each.
fn facts(status: &Status, colours: bool) -> Vec<(&'static str, String)> {
    let overview = &status.overview;
    let reasons = status.health.reasons.join("; ");
    let health = match (status.health.healthy, reasons.is_empty()) {
        (true, true) => toned("healthy", Tone::Good, colours),
        (true, false) => toned(&format!("healthy, but: {reasons}"), Tone::Warn, colours),
        (false, _) => toned(&format!("not healthy: {reasons}"), Tone::Bad, colours),
    };
    let mut facts = vec![
        ("node", printable(&overview.node)),
        ("mode", status.mode.clone()),
        ("version", status.version.clone()),
        ("running for", duration(status.now - status.started_at)),
        ("health", health),
        ("Services", services_line(status)),
    ];
    if !status.health.canary.is_empty() {
        let told = status.health.canary.iter().map(|(family, state)| format!("{family} {state}"));
        facts.push(("canary", told.collect::<Vec<_>>().join(", ")));
    }
    if !overview.is_listed {
        facts.push((
            "waits",
            "not every kind of object has been listed, so nothing is programmed yet".to_owned(),
        ));
    }
    if overview.waits_for_pod_cidrs {
        facts.push(("waits", "the Node has no pod CIDRs, by which pods are recognised".to_owned()));
    }
    facts
        .extend(status.limits.iter().map(|limit| ("switched off", format!("{}: {}", limit.what, limit.why))));
    facts
}

fn services_line(status: &Status) -> String {
    match status.overview.conflicts.len() {
        0 => status.overview.services.to_string(),
        1 => format!("{}, with 1 conflict (kube-proxy list conflicts)", status.overview.services),
        n => format!("{}, with {n} conflicts (kube-proxy list conflicts)", status.overview.services),
    }
}

/// How each family is.
fn families(families: &[FamilyState]) -> Table {
    let mut table = Table::new(&[
        "FAMILY",
        "MODE",
        "STATE",
        "FRONTENDS",
        "REFUSED",
        "REPAIRS",
        "DIVERGENCES",
        "REBUILDS",
        "FAILURES",
    ]);
    for family in families {
        let state = match (family.waiting_seconds, family.was_synced) {
            (None, true) => Cell::toned("InForce", Tone::Good),
            (Some(seconds), true) => Cell::toned(format!("Waiting for {}", duration(seconds)), Tone::Warn),
            (_, false) => Cell::toned("Starting", Tone::Warn),
        };
        let repairs = family.repairs;
        table.row(vec![
            family.family.as_str().into(),
            family.mode.as_str().into(),
            state,
            family.frontends.to_string().into(),
            family.refused.to_string().into(),
            repairs.repairs.to_string().into(),
            repairs.audit_divergences.to_string().into(),
            repairs.rebuilds.to_string().into(),
            (repairs.failed_syncs + repairs.failed_readings).to_string().into(),
        ]);
    }
    table
}

/// Changes with their latencies.
pub fn changes(changes: &[RecentChange], now: f64) -> Table {
    let mut table = Table::new(&["AGE", "FAMILY", "SERVICE", "LATENCY"]);
    for change in changes {
        let latency = match change.latency_seconds {
            Some(seconds) => duration(seconds).into(),
            None => Cell::toned("not in force", Tone::Warn),
        };
        table.row(vec![
            duration((now - change.known_at).max(0.0)).into(),
            change.family.as_str().into(),
            format!("{}/{}", change.namespace, change.name).into(),
            latency,
        ]);
    }
    table
}

/// A packet's fate, with reasons.
pub fn packet(report: &PacketReport) -> String {
    let packet = &report.packet;
    let from = match packet.from {
        Place::Pod => "a pod of this node",
        Place::Node => "this node",
        Place::Outside => "outside of this node",
    };
    let on = packet.interface.as_ref().map(|name| format!(", in on {name}")).unwrap_or_default();
    let mut lines = vec![
        format!("{} {} -> {} from {from}{on}", packet.protocol, packet.source, packet.destination),
        String::new(),
    ];
    lines.extend(report.words.iter().map(|line| format!("  {}", printable(line))));
    lines.extend([String::new(), "Becomes:".to_owned()]);
    lines.extend(report.endings.iter().map(|one| format!("  {}", ending(one))));
    lines.extend([String::new(), "Rules that match, as read from the kernel:".to_owned()]);
    if report.rules.is_empty() {
        lines.push("  none".to_owned());
    }
    lines.extend(rules(&report.rules));
    lines.extend([String::new(), "Not known from here:".to_owned()]);
    lines.extend(report.unknown.iter().map(|line| format!("  {line}")));
    text(&lines)
}

/// Rules below the name of their chain.
fn rules(steps: &[RuleStep]) -> Vec<String> {
    let mut lines = Vec::new();
    let mut place = String::new();
    for step in steps {
        let now = chain(step);
        if now != place {
            lines.push(format!("  {now}"));
            place = now;
        }
        lines.push(format!("    {}", printable(&step.rule)));
        lines.extend(step.found.iter().map(|found| format!("      found in {}", printable(found))));
    }
    lines
}

fn chain(step: &RuleStep) -> String {
    let table = if step.table.is_empty() { String::new() } else { format!(" of table {}", step.table) };
    format!("hook {}, chain {}{table}", step.hook, printable(&step.chain))
}

fn ending(ending: &Ending) -> String {
    let what = match (ending.verdict, ending.to) {
        (Verdict::Translated, Some(to)) => format!("translated to {to}"),
        (Verdict::Refused, _) => "refused".to_owned(),
        (Verdict::Dropped, _) => "dropped".to_owned(),
        (Verdict::Proxied, _) => "carried by a worker of this node".to_owned(),
        (Verdict::Untouched | Verdict::Translated, _) => "left alone".to_owned(),
    };
    let source = if ending.masqueraded { ", masqueraded" } else { "" };
    format!("{:>4.0} %  {what}{source}", ending.share * 100.0)
}

fn toned(text: &str, tone: Tone, colours: bool) -> String {
    let mut table = Table::new(&["X"]);
    table.row(vec![Cell::toned(text, tone)]);
    table.text(colours, false).trim_end_matches('\n').to_owned()
}
