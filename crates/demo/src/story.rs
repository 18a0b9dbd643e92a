//! The story, step by step. What it promises is checked on the way; the first broken promise is an error.

use std::io::{self, Write as _};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use testkit::client::five_sigma;
use testkit::lab::Host;
use testkit::proxy::{Proxy, wait_until};
use tokio::time::Instant;

use crate::stage::{Committed, NODE_PORT, Stage, WEB_IP4, WEB_IP6};
use crate::text::{counts, excerpt, indented, millis};
use crate::traffic::{Account, Stream, get, spread};

/// Time between the requests of a stream: 200 a second.
const EVERY: Duration = Duration::from_millis(5);
/// How long each situation is watched.
const LOOK: Duration = Duration::from_millis(1200);
/// Refusals are asked for this often. The first answer to one may be lost on the way (see
/// `testkit::client::ConnectFailure`), and TCP then asks again after a second.
const REFUSALS: usize = 5;

/// What the summary tells.
#[derive(Debug)]
struct Figures {
    steady: Account,
    commits: Vec<Duration>,
    refused: Duration,
    restart: Duration,
}

/// Plays the whole story.
///
/// # Errors
/// A request failed or went elsewhere than it should have, or the cluster did not do as it was told.
pub(crate) fn tell(stage: &Stage, is_root: bool) -> anyhow::Result<()> {
    let begun = Instant::now();
    say("")?;
    introduce(stage, is_root)?;
    let mut proxy = first_start(stage)?;
    balance(stage)?;
    let mut stream = Stream::start(stage.client(), Stage::web(false), EVERY);
    let mut commits = scale(stage, &mut stream)?;
    settle(stream.lap().failed, &stream.stop_for_pause(), &proxy)?;
    let (refused, back) = go_away_and_return(stage)?;
    commits.extend(back);
    let restart = kill_and_restart(stage, &mut proxy, &mut stream)?;
    show_rules(stage)?;
    let figures = Figures { steady: stream.stop(), commits, refused, restart };
    summary(&figures, begun.elapsed())
}
