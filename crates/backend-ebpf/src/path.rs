//! The fast path of a family: maps, programs, and what is known of them. Lives as long as the process.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ebpf::{Explained, FastPath, FastPathError, Write};
use mode::{Counters, Meter};
use model::{Family, FrontendKey};
use tokio::time::Instant;

use crate::served::{Change, Wanted};
use crate::state::{Outgrown, State};

/// Opens programs and maps; called again after it failed.
pub type OpenPath<F> = Box<dyn Fn() -> Result<Box<dyn FastPath<F>>, FastPathError> + Send>;
/// The node's addresses as they are now.
pub type ReadAddresses = Box<dyn Fn() -> Result<BTreeSet<IpAddr>, String> + Send>;

/// Told after each work.
pub type Tell = Box<dyn Fn(&Condition, &Statistics) + Send>;

/// What the fast path does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It serves what it knows.
    On,
    /// It leaves everything to the rules, for this reason.
    Off(String),
}

/// What has been done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Writes to maps.
    pub writes: u64,
    /// Times that all maps were made anew.
    pub rebuilds: u64,
    /// Times that maps or programs were found to be other than they should be.
    pub divergences: u64,
    /// Frontends that are served.
    pub frontends: usize,
    /// How long the last work on maps and programs took.
    pub took: Duration,
}

/// Maps, programs, and what is known of them.
pub struct SocketPath<F: Family> {
    open: OpenPath<F>,
    addresses: ReadAddresses,
    tell: Tell,
    path: Option<Box<dyn FastPath<F>>>,
    /// What the maps hold, and which addresses that is right for. `None`: everything has to be looked at.
    known: Option<Known<F>>,
    /// What was counted when it was last known.
    counted: Vec<Meter>,
    statistics: Statistics,
}

struct Known<F: Family> {
    state: State<F>,
    node_addresses: BTreeSet<IpAddr>,
}

/// Shared by the targets that follow each other.
pub fn share<F: Family>(path: SocketPath<F>) -> Arc<Mutex<SocketPath<F>>> {
    Arc::new(Mutex::new(path))
}

impl<F: Family> fmt::Debug for SocketPath<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SocketPath").field("statistics", &self.statistics).finish_non_exhaustive()
    }
}

const UNKNOWN: &str = "it is not known what the maps hold";

/// Why it does not serve.
#[derive(Debug)]
enum Trouble {
    Path(FastPathError),
    Text(String),
}

impl From<FastPathError> for Trouble {
    fn from(error: FastPathError) -> Self {
        Self::Path(error)
    }
}

impl Trouble {
    /// With its causes.
    fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Path(error) => {
                let mut text = error.to_string();
                let mut cause = std::error::Error::source(error);
                while let Some(error) = cause {
                    text = format!("{text}: {error}");
                    cause = error.source();
                }
                text
            }
        }
    }
}

impl<F: Family> SocketPath<F> {
    /// One that nothing is known of.
    pub fn new(open: OpenPath<F>, addresses: ReadAddresses, tell: Tell) -> Self {
        Self {
            open,
            addresses,
            tell,
            path: None,
            known: None,
            counted: Vec::new(),
            statistics: Statistics::default(),
        }
    }

    /// What has been done so far.
    pub fn statistics(&self) -> Statistics {
        self.statistics
    }

    /// Makes a change. Whatever fails, nothing is translated in a way that is not wanted: it is switched off, and everything has
    /// to be looked at.
    pub fn change(&mut self, change: &Change<F>) -> Condition {
        let begun = Instant::now();
        let made = match change {
            Change::Some(frontends) => match &mut self.known {
                Some(known) => match known.state.change(frontends) {
                    Ok(writes) => self.write(&writes),
                    Err(Outgrown) => Err(Trouble::Text("there is no room in the maps".to_owned())),
                },
                None => Err(Trouble::Text(UNKNOWN.to_owned())),
            },
            Change::All(wanted) => self.set_all(wanted),
        };
        self.statistics.took = begun.elapsed();
        self.conclude(made)
    }

    /// Whether maps and programs are as they should be; switches it off if not.
    pub fn check(&mut self) -> Condition {
        self.compared(true)
    }

    /// The same without reading the maps: whether the programs run, for the addresses that the node has.
    pub fn look(&mut self) -> Condition {
        self.compared(false)
    }

    fn compared(&mut self, with_maps: bool) -> Condition {
        if self.known.is_none() {
            // That is no news; and what an earlier process left goes on.
            return Condition::Off(UNKNOWN.to_owned());
        }
        let found = self.compare(with_maps);
        self.statistics.divergences += u64::from(found.is_err());
        self.conclude(found)
    }

    /// Whether it is known what the maps hold, so that there is something to prove.
    pub fn is_known(&self) -> bool {
        self.known.is_some()
    }

    /// Connections that were translated, by Service port and endpoint. While it is not known whose the counters are, what they said
    /// before.
    pub fn meters(&mut self) -> Vec<Meter> {
        if let (Some(path), Some(known)) = (&self.path, &self.known) {
            let meters = known.state.counted().filter_map(|counted| {
                let connections = path.translated(counted.number);
                (connections > 0).then(|| Meter {
                    service: counted.service.clone(),
                    endpoint: Some(SocketAddr::new(counted.socket.address.into(), counted.socket.port)),
                    id: counted.epoch.into(),
                    counters: Counters::connections(connections),
                })
            });
            self.counted = meters.collect();
        }
        self.counted.clone()
    }

    fn conclude(&mut self, outcome: Result<(), Trouble>) -> Condition {
        let condition = match outcome {
            Ok(()) => Condition::On,
            Err(trouble) => {
                if let Some(path) = &mut self.path {
                    path.switch(false);
                }
                self.known = None;
                self.statistics.frontends = 0;
                Condition::Off(trouble.text())
            }
        };
        (self.tell)(&condition, &self.statistics);
        condition
    }

    fn compare(&mut self, with_maps: bool) -> Result<(), Trouble> {
        let addresses = (self.addresses)().map_err(Trouble::Text)?;
        let (Some(path), Some(known)) = (&mut self.path, &self.known) else {
            return Err(Trouble::Text(UNKNOWN.to_owned()));
        };
        if with_maps && path.read()?.as_ref() != Some(known.state.contents()) {
            return Err(Trouble::Text("the maps are not as they were written".to_owned()));
        }
        if addresses != known.node_addresses {
            return Err(Trouble::Text("the node has other addresses".to_owned()));
        }
        path.prove().map_err(Trouble::from)
    }

    /// What of the maps serves a frontend, as it is there: the element, and the endpoints of its slots.
    ///
    /// # Errors
    /// It can't be read.
    pub fn explain(&mut self, key: &FrontendKey<F>) -> Result<Option<Explained<F>>, FastPathError> {
        let (Some(path), Some(_)) = (&mut self.path, &self.known) else { return Ok(None) };
        path.look_up(key)
    }

    fn write(&mut self, writes: &[Write<F>]) -> Result<(), Trouble> {
        let path = self.path.as_mut().ok_or(FastPathError::NoMaps)?;
        path.write(writes)?;
        self.statistics.writes += u64::try_from(writes.len()).unwrap_or(u64::MAX);
        if let Some(known) = &self.known {
            self.statistics.frontends = known.state.contents().frontends.len();
        }
        Ok(())
    }

    fn set_all(&mut self, wanted: &Wanted<F>) -> Result<(), Trouble> {
        // Until this has succeeded nothing is known.
        self.known = None;
        let mut path = match self.path.take() {
            Some(path) => path,
            None => (self.open)()?,
        };
        let done = (self.addresses)().map_err(Trouble::Text).and_then(|addresses| {
            let (state, writes) = bring_to(&mut *path, wanted, &addresses)?;
            Ok((state, writes, addresses))
        });
        self.path = Some(path);
        let (state, writes, node_addresses) = done?;
        self.statistics.frontends = state.contents().frontends.len();
        match writes {
            Some(writes) => self.statistics.writes += u64::try_from(writes).unwrap_or(u64::MAX),
            None => self.statistics.rebuilds += 1,
        }
        self.known = Some(Known { state, node_addresses });
        let path = self.path.as_mut().ok_or(FastPathError::NoMaps)?;
        path.prove()?;
        path.switch(true);
        Ok(())
    }
}

/// Brings maps and programs to what is wanted, from whatever is there. Gives how many writes it took; `None`: all maps are new.
fn bring_to<F: Family>(
    path: &mut dyn FastPath<F>,
    wanted: &Wanted<F>,
    addresses: &BTreeSet<IpAddr>,
) -> Result<(State<F>, Option<usize>), Trouble> {
    let node_addresses = wanted.node_addresses(addresses);
    if let Some(mut state) = adopt(path, wanted)
        && let Ok(mut writes) = state.set_all(&wanted.frontends)
    {
        writes.extend(state.set_node_addresses(&node_addresses));
        path.attach()?;
        path.write(&writes)?;
        return Ok((state, Some(writes.len())));
    }
    // A state that has outgrown its maps is of no use.
    let before = adopt(path, wanted);
    let no_room = |Outgrown| Trouble::Text("there is no room in new maps".to_owned());
    let (mut state, renumbered) = State::in_new_maps(before.as_ref(), &wanted.frontends).map_err(no_room)?;
    state.set_node_addresses(&node_addresses);
    path.rebuild(state.contents(), &renumbered)?;
    Ok((state, None))
}

/// What of the maps is wanted; `None`: nothing, or they can't be read, and are replaced.
fn adopt<F: Family>(path: &mut dyn FastPath<F>, wanted: &Wanted<F>) -> Option<State<F>> {
    let found = path.read().ok().flatten()?;
    State::adopt(found, &wanted.frontends)
}
