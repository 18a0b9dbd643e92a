//! Single elements of a table, for who wants to know where one packet goes: the cost is the same however many Services there are,
//! where a reading of the whole table grows with them.

use netlink::NetlinkError;
use nft::dump::{Message, Request, RulesetReader, messages};
use nft::{AnyChain, Bytes, Element, Family, Name, Ruleset, Set, SetKind};

use crate::socket::{Channel, Socket, Wait, explained};

/// As for readings of whole tables.
const RECEIVE_BYTES: usize = 128 * 1024;
/// How often the rules are read when they keep changing meanwhile.
const ATTEMPTS: usize = 10;

/// A netfilter socket that reads rules, and elements one by one. It changes nothing.
#[derive(Debug)]
pub struct TableReader<C: Channel = Socket> {
    socket: C,
    received: Vec<u8>,
    seq: u32,
}

impl TableReader {
    /// Opens a socket in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When the system has no netfilter sockets for us. That `nf_tables` or permission is lacking shows later.
    pub fn open() -> Result<Self, NetlinkError> {
        Self::over_channel()
    }
}

impl<C: Channel> TableReader<C> {
    /// As [`TableReader::open`], over another kind of socket.
    ///
    /// # Errors
    /// As [`TableReader::open`].
    pub fn over_channel() -> Result<Self, NetlinkError> {
        let socket = C::open().and_then(explained).map_err(|source| NetlinkError::Open { source })?;
        Ok(Self { socket, received: vec![0; RECEIVE_BYTES], seq: 0 })
    }

    /// A table's chains with their rules, and the declarations of its sets, with the elements of those alone that hold networks.
    /// `None`: there is no such table.
    ///
    /// # Errors
    /// The kernel does not answer, or the rules of the network namespace kept changing.
    pub fn rules(&mut self, family: Family, table: &Name) -> Result<Option<Ruleset>, NetlinkError> {
        let mut previous = None;
        for _ in 0..ATTEMPTS {
            let before = self.generation()?;
            let read = match self.rules_once(family, table) {
                // What was there a moment ago and is not any more was deleted meanwhile.
                Err(error) if error.errno() == Some(libc::ENOENT) => None,
                other => Some(other?),
            };
            // Others may commit to tables of theirs all the time: two equal readings are believed.
            match read {
                Some(read) if self.generation()? == before || previous.as_ref() == Some(&read) => {
                    return Ok(read);
                }
                read => previous = read,
            }
        }
        Err(NetlinkError::Interrupted)
    }

    /// The element with this key of a set of [`SetKind::Exact`] or [`SetKind::Learnt`], if there is one.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn element(
        &mut self,
        family: Family,
        table: &Name,
        set: &Set,
        key: &Bytes,
    ) -> Result<Option<Element>, NetlinkError> {
        let mut found = None;
        let keys = [*key];
        let answer = self.ask(&Request::Keys(family, table, set, &keys), |message| {
            found = nft::dump::elements(message).into_iter().next();
        });
        match answer {
            Ok(()) => Ok(found),
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The chains of all tables of a family, whosever they are.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn all_chains(&mut self, family: Family) -> Result<Vec<AnyChain>, NetlinkError> {
        let mut chains = Vec::new();
        self.ask(&Request::AllChains(family), |message| chains.extend(nft::any_chain(message)))?;
        Ok(chains)
    }

    fn rules_once(&mut self, family: Family, table: &Name) -> Result<Option<Ruleset>, NetlinkError> {
        let mut reader = RulesetReader::new(family, table);
        match self.ask(&Request::Table(family, table), |message| reader.add(message)) {
            Err(error) if error.errno() == Some(libc::ENOENT) => return Ok(None),
            other => other?,
        }
        self.ask(&Request::Sets(family, table), |message| reader.add(message))?;
        for (set, _) in reader.sets() {
            if set.kind == SetKind::Networks {
                self.ask(&Request::Elements(family, table, &set.name), |message| reader.add(message))?;
            }
        }
        self.ask(&Request::Rules(family, table), |message| reader.add(message))?;
        self.ask(&Request::AllChains(family), |message| reader.add(message))?;
        Ok(Some(reader.finish().ruleset))
    }

    fn generation(&mut self) -> Result<u32, NetlinkError> {
        let mut generation = None;
        self.ask(&Request::Generation, |message| generation = nft::dump::generation(message))?;
        generation.ok_or(NetlinkError::Decode { what: "no generation in the answer" })
    }

    /// Sends a request and passes on the messages of its answer. That something was committed meanwhile is seen by the
    /// generation.
    fn ask(&mut self, request: &Request<'_>, mut take: impl FnMut(&Message<'_>)) -> Result<(), NetlinkError> {
        self.seq = self.seq.wrapping_add(1);
        let bytes = request.encode(self.seq);
        self.socket.send(&bytes).map_err(|source| NetlinkError::Send { bytes: bytes.len(), source })?;
        loop {
            let received = self.socket.receive(&mut self.received, Wait::Block);
            let received = received.map_err(|source| NetlinkError::Receive { source })?;
            for message in messages(received).filter(|message| message.seq == self.seq) {
                if let Some(ack) = message.ack().filter(|ack| ack.errno != 0) {
                    return Err(NetlinkError::refused(request.to_string(), ack.errno, ack.message));
                }
                if message.ack().is_none() && !message.is_done() {
                    take(&message);
                }
                if request.ends_with(&message) {
                    return Ok(());
                }
            }
        }
    }
}
