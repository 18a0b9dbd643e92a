//! `top`: live, by Service port: new flows in a second, how endpoints share them, what is refused and dropped.
//!
//! [`screen`] decides what is shown and what keys do, without a terminal; [`terminal`] is one.

pub(crate) mod screen;
mod terminal;

use std::time::Duration;

use inspect::Selector;
use inspect::document::{TrafficList, TrafficRow, TrafficShare};

use crate::client::ClientError;
use crate::show::per_second_text;
use crate::table::Table;
use screen::{Screen, Wish};
use terminal::{Input, Terminal};

/// Counters are not read more often.
const PAUSE: Duration = Duration::from_secs(1);

/// Where the numbers come from: one proxy, or several that are added up.
pub(crate) trait Feed {
    /// Who is asked, for the first line.
    fn name(&self) -> String;

    /// What went through, as of now.
    async fn traffic(&self) -> Result<Told, ClientError>;
}

/// What is known.
pub(crate) struct Told {
    pub(crate) list: TrafficList,
    /// What is missing in it, and why.
    pub(crate) complaint: Option<String>,
}

/// Shows it until the user has seen enough, or something else ends the program. The terminal is left as it was found.
pub(crate) async fn live(feed: &impl Feed, selector: &Selector) -> Result<(), ClientError> {
    let of_those = |mut told: Told| {
        told.list.items.retain(|row| is_meant(selector, row));
        told
    };
    let mut screen = Screen::new(feed.name());
    // The first answer is asked for on the terminal as it was, where an error stays to be read.
    screen.take(of_those(feed.traffic().await?));
    let mut terminal = Terminal::open().map_err(ClientError::Terminal)?;
    let mut tick = tokio::time::interval(PAUSE);
    // Keys are heard while an answer is waited for.
    let mut asked = None;
    loop {
        terminal.draw(&screen.lines(Terminal::size())).map_err(ClientError::Terminal)?;
        tokio::select! {
            _ = tick.tick(), if asked.is_none() => asked = Some(Box::pin(feed.traffic())),
            told = answer(&mut asked) => {
                asked = None;
                match told {
                    Ok(told) => screen.take(of_those(told)),
                    Err(error) => screen.complain(&error),
                }
            }
            input = terminal.input() => match input {
                Input::Key(key) => match screen.key(key) {
                    Wish::GoOn => {}
                    Wish::End => return Ok(()),
                },
                Input::Resized => {}
                Input::End => return Ok(()),
            },
        }
    }
}

/// What comes of a question; nothing without one.
async fn answer<A, F: Future<Output = A> + Unpin>(asked: &mut Option<F>) -> A {
    match asked {
        Some(asked) => asked.await,
        None => std::future::pending().await,
    }
}

/// Whether a row is of a Service that was asked for.
pub(crate) fn is_meant(selector: &Selector, row: &TrafficRow) -> bool {
    selector.namespace.as_ref().is_none_or(|namespace| *namespace == row.namespace)
        && selector.name.as_ref().is_none_or(|name| inspect::name_matches(name, &row.name))
}

/// As a table, where nobody looks at a terminal.
pub(crate) fn table(list: &TrafficList) -> Table {
    let mut table = Table::new(&[
        "SERVICE-PORT",
        "PROTOCOL",
        "CONNECTIONS",
        "RATE",
        "REFUSED",
        "DROPPED",
        "BYTES",
        "SHARES",
    ]);
    for row in &list.items {
        table.row(vec![
            row.service_port.as_str().into(),
            row.protocol.as_str().into(),
            row.connections.to_string().into(),
            row.connections_per_second.map(per_second_text).unwrap_or_default().into(),
            row.refused.to_string().into(),
            row.dropped.to_string().into(),
            row.bytes.map(|bytes| bytes.to_string()).unwrap_or_default().into(),
            shares(row)
                .into_iter()
                .map(|(share, text)| format!("{text} {share:.0}%"))
                .collect::<Vec<_>>()
                .join(",")
                .into(),
        ]);
    }
    table
}

/// The part of each endpoint in percent, the largest first: of what is new lately, or of all if nothing is.
pub(crate) fn shares(row: &TrafficRow) -> Vec<(f64, String)> {
    let is_lately = row.connections_per_second.is_some_and(|rate| rate > 0.0);
    #[expect(clippy::cast_precision_loss, reason = "a share need not be exact")]
    let part = |share: &TrafficShare| match share.connections_per_second.filter(|_| is_lately) {
        Some(rate) => rate,
        None => share.connections as f64,
    };
    let all: f64 = row.endpoints.iter().map(part).sum();
    let mut shares: Vec<_> = row
        .endpoints
        .iter()
        .map(|share| (part(share), share.address.to_string()))
        .filter(|(part, _)| *part > 0.0)
        .map(|(part, address)| (part / all * 100.0, address))
        .collect();
    shares.sort_by(|(a, a_address), (b, b_address)| b.total_cmp(a).then(a_address.cmp(b_address)));
    shares
}

/// Several nodes' answers as one.
pub(crate) fn added_up(lists: Vec<TrafficList>) -> TrafficList {
    let mut sum = TrafficList::default();
    for list in lists {
        sum.now = sum.now.max(list.now);
        sum.age_seconds = sum.age_seconds.into_iter().chain(list.age_seconds).reduce(f64::max);
        sum.items.extend(list.items);
    }
    let key = |row: &TrafficRow| (row.service_port.clone(), row.protocol.clone());
    sum.items.sort_by_key(key);
    let mut items: Vec<TrafficRow> = Vec::new();
    for row in sum.items {
        match items.last_mut() {
            Some(last) if key(last) == key(&row) => add(last, row),
            _ => items.push(row),
        }
    }
    TrafficList { items, ..sum }
}

fn add(sum: &mut TrafficRow, more: TrafficRow) {
    let plus = |a: Option<f64>, b: Option<f64>| a.into_iter().chain(b).reduce(|a, b| a + b);
    sum.connections += more.connections;
    sum.refused += more.refused;
    sum.dropped += more.dropped;
    for (sum, more) in
        [(&mut sum.packets, more.packets), (&mut sum.bytes, more.bytes), (&mut sum.retries, more.retries)]
    {
        *sum = sum.iter().chain(&more).copied().reduce(|a, b| a + b);
    }
    sum.connections_per_second = plus(sum.connections_per_second, more.connections_per_second);
    sum.refused_per_second = plus(sum.refused_per_second, more.refused_per_second);
    sum.dropped_per_second = plus(sum.dropped_per_second, more.dropped_per_second);
    for share in more.endpoints {
        match sum.endpoints.iter_mut().find(|known| known.address == share.address) {
            Some(known) => {
                known.connections += share.connections;
                known.bytes = known.bytes.into_iter().chain(share.bytes).reduce(|a, b| a + b);
                known.connections_per_second =
                    plus(known.connections_per_second, share.connections_per_second);
            }
            None => sum.endpoints.push(share),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn row(name: &str, rates: &[f64], refused: u64) -> TrafficRow {
        let share = |(n, rate): (usize, &f64)| TrafficShare {
            address: format!("10.244.0.{}:8080", n + 1).parse().unwrap(),
            connections: 100,
            connections_per_second: Some(*rate),
            bytes: None,
        };
        TrafficRow {
            namespace: "shop".into(),
            name: name.into(),
            service_port: format!("shop/{name}:http"),
            protocol: "TCP".into(),
            connections: 100 * rates.len() as u64,
            refused,
            dropped: 0,
            connections_per_second: Some(rates.iter().sum()),
            refused_per_second: Some(0.0),
            dropped_per_second: Some(0.0),
            packets: None,
            bytes: None,
            retries: None,
            endpoints: rates.iter().enumerate().map(share).collect(),
        }
    }

    #[test]
    fn shares_are_of_what_is_new_or_of_all() {
        let text = |row: &TrafficRow| {
            shares(row)
                .into_iter()
                .map(|(share, address)| format!("{address} {share:.0}"))
                .collect::<Vec<_>>()
        };
        let lately = ["10.244.0.2:8080 75", "10.244.0.1:8080 25"];
        assert_eq!(text(&row("web", &[1.0, 3.0], 0)), lately);
        let of_all = ["10.244.0.1:8080 50", "10.244.0.2:8080 50"];
        assert_eq!(text(&row("web", &[0.0, 0.0], 0)), of_all);
    }

    #[test]
    fn nodes_are_added_up() {
        let list = |items| TrafficList { now: 1.0, age_seconds: Some(0.5), items };
        let here = list(vec![row("api", &[1.0], 2), row("web", &[1.0, 3.0], 0)]);
        let there = list(vec![row("web", &[2.0], 5)]);
        let sum = added_up(vec![here, there]);
        let [api, web] = sum.items.as_slice() else { panic!("{sum:?}") };
        assert_eq!(*api, row("api", &[1.0], 2));
        assert_eq!((web.connections, web.refused, web.connections_per_second), (300, 5, Some(6.0)));
        let connections: Vec<u64> = web.endpoints.iter().map(|endpoint| endpoint.connections).collect();
        assert_eq!(connections, [200, 100]);
    }
}
