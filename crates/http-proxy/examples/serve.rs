//! A proxy for tests and measurements: `serve LISTEN POLICY ENDPOINT...` carries HTTP from an address to endpoints. It says where it
//! listens, and ends with its standard input.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a program for tests")]

#[path = "../tests/common/mod.rs"]
mod common;

use std::net::SocketAddr;

use anyhow::Context as _;
use balance::Policy;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let listen = arguments.next().context("no address to listen at")?;
    let policy = arguments.next().context("no policy")?;
    let policy = Policy::named(&policy).with_context(|| format!("{policy} is not a policy"))?;
    let endpoints: Result<Vec<SocketAddr>, _> = arguments.map(|text| text.parse()).collect();
    let endpoints = endpoints.context("endpoints are ADDRESS:PORT")?;
    let proxy = common::Proxy::listening(&listen, policy, common::SETTINGS, &endpoints).await;
    println!("{}", proxy.address);
    // Requests are carried on other threads.
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    Ok(())
}
