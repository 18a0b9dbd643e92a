//! The story, step by step. What it promises is checked on the way; the first broken promise is an error.

use std::io::{self, Write as _};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use lab::Host;
use lab::client::five_sigma;
use lab::proxy::{Proxy, wait_until};
use tokio::time::Instant;

use crate::stage::{Committed, NODE_PORT, Stage, WEB_IP4, WEB_IP6};
use crate::text::{counts, excerpt, indented, millis, url};
use crate::traffic::{Account, Stream, get, spread};

/// Time between the requests of a stream: 200 a second.
const EVERY: Duration = Duration::from_millis(5);
/// How long each situation is watched.
const LOOK: Duration = Duration::from_millis(1200);
/// How often a refusal is asked for. The answer to one may be lost within the client's kernel (see
/// `lab::client::ConnectFailure::Refused`), which then asks again after a second.
const REFUSALS: usize = 5;

/// Plays the whole story.
///
/// # Errors
/// A request failed or went elsewhere than it should have, or the cluster did not do as it was told.
pub(crate) fn tell(stage: &Stage, is_root: bool) -> anyhow::Result<()> {
    let begun = Instant::now();
    introduce(stage, is_root)?;
    let (mut proxy, ready) = first_start(stage)?;
    balance(stage)?;
    let mut requests = Account::default();
    let mut commits = scale(stage, &proxy, &mut requests)?;
    let refused = go_away_and_return(stage, &mut commits)?;
    let restart = kill_and_restart(stage, &mut proxy, &mut requests)?;
    show_rules(stage)?;
    summary(&Figures { ready, commits, refused, restart, requests, all: begun.elapsed() })
}

fn say(line: &str) -> anyhow::Result<()> {
    writeln!(io::stdout(), "{line}").context("write to the terminal")
}

/// A line of a figure's name and value.
fn say_figure(name: &str, value: &str) -> anyhow::Result<()> {
    say(&format!("   {name:<36} {value}"))
}

// === 1 ===

fn introduce(stage: &Stage, is_root: bool) -> anyhow::Result<()> {
    let lab = &stage.cluster.lab;
    say("1. A cluster of network namespaces inside this process")?;
    if !is_root {
        say("   You are not root: all this is in a user namespace of its own. There the kernel limits")?;
        say("   socket buffers, so a large load would go to it in several transactions; this one is small.")?;
    }
    let entry = |host: &Host, what: &str| {
        say(&format!(
            "   {:<11} {:<15} {:<19} {what}",
            host.name(),
            host.ip4().to_string(),
            host.ip6().to_string()
        ))
    };
    entry(lab.node(), "the node that runs the proxy")?;
    entry(lab.node2(), "another node")?;
    entry(lab.outside(), "a client outside of the cluster")?;
    entry(stage.client(), "a client, a pod on node")?;
    for (number, pod) in stage.servers().into_iter().enumerate() {
        let node = if number < 2 { "node" } else { "node2" };
        let late = if number == 3 { ", joins later" } else { "" };
        entry(pod, &format!("an HTTP server, a pod on {node}{late}"))?;
    }
    say(&format!("   {:<11} {:<15} {:<19} Service, also port {NODE_PORT} of node", "web", WEB_IP4, WEB_IP6))?;
    say(&format!("   API server  {} on node", stage.cluster.api.url()))?;
    say("")
}

// === 2 ===

fn first_start(stage: &Stage) -> anyhow::Result<(Proxy, Duration)> {
    let [a, b, c, _] = stage.servers();
    stage.set_endpoints(&[a.name(), b.name(), c.name()])?;
    let (proxy, took) = stage.start_proxy()?;
    say(&format!("2. The proxy is started; its rules are in place after {}", millis(took)))?;
    Ok((proxy, took))
}

fn balance(stage: &Stage) -> anyhow::Result<()> {
    let lab = &stage.cluster.lab;
    let node = (lab.node().ip4(), NODE_PORT).into();
    let node6 = (lab.node().ip6(), NODE_PORT).into();
    let [a, b, c, _] = stage.servers();
    for (host, n_requests, address) in [
        (stage.client(), 300, Stage::web(false)),
        (stage.client(), 100, Stage::web(true)),
        (lab.node(), 100, Stage::web(false)),
        (lab.outside(), 100, node),
        (lab.outside(), 100, node6),
    ] {
        let what = || format!("request {} from {}", url(address), host.name());
        let met = host.run(|| spread(n_requests, address)).with_context(what)?;
        five_sigma(&met, &[a.name(), b.name(), c.name()]).with_context(what)?;
        say(&format!("   {n_requests} x {} from {}", url(address), host.name()))?;
        say(&format!("       {}", counts(&met)))?;
    }
    say("")
}

// === 3 ===

fn scale(stage: &Stage, proxy: &Proxy, requests: &mut Account) -> anyhow::Result<Vec<Duration>> {
    let [a, b, c, d] = stage.servers().map(|pod| pod.name());
    let per_second = Duration::from_secs(1).as_millis() / EVERY.as_millis();
    say(&format!("3. Scaling under {per_second} requests a second from {}", stage.client().name()))?;
    let mut stream = Stream::start(stage.client(), Stage::web(false), EVERY);
    say(&format!("   before               {}", counts(&stream.lap_of(LOOK).counts)))?;
    let added = stage.change_endpoints(&[a, b, c, d])?;
    say(&format!("   {d} is added; {}", in_kernel(added)))?;
    let lap = stream.lap_of(LOOK);
    say(&format!("   after                {}", counts(&lap.counts)))?;
    ensure!(lap.counts.contains_key(d), "{d} was added but got no request");
    let removed = stage.change_endpoints(&[a, c, d])?;
    say(&format!("   {b} is removed; {}", in_kernel(removed)))?;
    say("   (its server goes on for a while, as in any pod that ends gracefully)")?;
    let lap = stream.lap_of(LOOK);
    say(&format!("   after                {}", counts(&lap.counts)))?;
    ensure!(!lap.counts.contains_key(b), "{b} was removed but still gets requests");
    settle(stream, proxy, requests)?;
    Ok(vec![added.v4, added.v6, removed.v4, removed.v6])
}

fn in_kernel(committed: Committed) -> String {
    format!("API write to kernel commit: IPv4 {}, IPv6 {}", millis(committed.v4), millis(committed.v6))
}

/// Ends a stream: none of its requests may have failed.
fn settle(stream: Stream, proxy: &Proxy, requests: &mut Account) -> anyhow::Result<()> {
    let account = stream.stop();
    let (answered, failed) = (account.answered(), account.failed);
    say(&format!("   {answered} requests answered, {failed} failed, slowest {}", millis(account.slowest)))?;
    say("")?;
    let why = account.first_failure.as_deref().unwrap_or_default();
    ensure!(
        failed == 0,
        "{failed} requests failed, the first: {why}; the proxy's log:\n{}",
        proxy.log().join("\n")
    );
    requests.add(&account);
    Ok(())
}

// === 4 ===

fn go_away_and_return(stage: &Stage, commits: &mut Vec<Duration>) -> anyhow::Result<Duration> {
    let [a, _, c, d] = stage.servers().map(|pod| pod.name());
    say("4. All endpoints go")?;
    let gone = stage.change_endpoints(&[])?;
    say(&format!("   {}", in_kernel(gone)))?;
    let mut times: Vec<Duration> = (0..REFUSALS).map(|_| refusal(stage)).collect::<anyhow::Result<_>>()?;
    times.sort_unstable();
    let median = times[REFUSALS / 2];
    say(&format!(
        "   the client gets \"connection refused\" after {} (median of {REFUSALS})",
        millis(median)
    ))?;
    let back = stage.change_endpoints(&[a, c, d])?;
    let served = wait_until(LOOK, || stage.client().run(|| get(Stage::web(false))).is_ok());
    ensure!(served, "the endpoints are back but requests fail");
    say(&format!("   they come back; {}; requests are answered", in_kernel(back)))?;
    say("")?;
    commits.extend([gone.v4, gone.v6, back.v4, back.v6]);
    Ok(median)
}

fn refusal(stage: &Stage) -> anyhow::Result<Duration> {
    let (outcome, took) = stage.client().run(|| {
        let begun = Instant::now();
        (get(Stage::web(false)), begun.elapsed())
    });
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(took),
        Err(error) => Err(error).context("without endpoints a request was not refused but failed otherwise"),
        Ok(pod) => anyhow::bail!("without endpoints a request was answered by {pod}"),
    }
}

// === 5 ===

fn kill_and_restart(stage: &Stage, proxy: &mut Proxy, requests: &mut Account) -> anyhow::Result<Duration> {
    say("5. The proxy is killed (SIGKILL) and started again, under the same requests")?;
    let mut stream = Stream::start(stage.client(), Stage::web(false), EVERY);
    let before = stage.generation()?;
    proxy.kill().context("kill the proxy")?;
    say(&format!("   without a proxy      {}", counts(&stream.lap_of(LOOK).counts)))?;
    let (started, took) = stage.start_proxy()?;
    *proxy = started;
    say(&format!("   started, rules read and compared after {}", millis(took)))?;
    say(&format!("   with the new proxy   {}", counts(&stream.lap_of(LOOK).counts)))?;
    let after = stage.generation()?;
    ensure!(before == after, "the restart changed the kernel's rules: generation {before}, then {after}");
    say(&format!("   the kernel's ruleset is generation {after}, as before: nothing was written"))?;
    settle(stream, proxy, requests)?;
    Ok(took)
}

// === 6 ===

/// The sets and chains that a packet to the Service meets on its way to a pod.
const PATH: [&str; 7] =
    ["service-ips", "service-chains", "endpoints", "nat-prerouting", "services", "balance", "choice-4"];

fn show_rules(stage: &Stage) -> anyhow::Result<()> {
    let listing = stage.cluster.lab.node().exec("nft", &["list", "table", "ip", "kube-proxy"])?;
    let total = listing.lines().count();
    say(&format!(
        "6. The rules that a request to {WEB_IP4} meets (of {total} lines of `nft list table ip kube-proxy`)"
    ))?;
    say(&indented(&excerpt(&listing, &PATH)))?;
    say("")
}

// === 7 ===

/// What the summary tells.
#[derive(Debug)]
struct Figures {
    /// From the first start of the proxy until its rules were in place.
    ready: Duration,
    /// From each write to the API server until the kernel had committed it. Not empty.
    commits: Vec<Duration>,
    /// Until a request was refused while there were no endpoints.
    refused: Duration,
    /// From the restart until the rules had been compared.
    restart: Duration,
    /// Those of the streams.
    requests: Account,
    /// The whole story.
    all: Duration,
}

fn summary(figures: &Figures) -> anyhow::Result<()> {
    let Figures { ready, commits, refused, restart, requests, all } = figures;
    let mut commits = commits.clone();
    commits.sort_unstable();
    let (median, slowest) = (commits[commits.len() / 2], commits[commits.len() - 1]);
    let [median, slowest] = [median, slowest].map(millis);
    say("7. Summary")?;
    say_figure("first start to rules in place", &millis(*ready))?;
    say_figure(
        "API write to kernel commit",
        &format!("median {median}, slowest {slowest} of {}", commits.len()),
    )?;
    say_figure("refusal without endpoints", &millis(*refused))?;
    say_figure("restart to rules checked", &format!("{}, nothing written", millis(*restart)))?;
    let (answered, failed) = (requests.answered(), requests.failed);
    say_figure("requests during changes and restart", &format!("{answered} answered, {failed} failed"))?;
    say_figure("slowest of these", &millis(requests.slowest))?;
    say(&format!("   {:.0} s in all. Namespaces and proxy end with this process.", all.as_secs_f64()))
}
