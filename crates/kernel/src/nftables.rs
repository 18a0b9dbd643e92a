//! `nf_tables` of the network namespace in which the socket was opened.

use std::io;
use std::thread;
use std::time::Duration;

use netlink::NetlinkError;
use nft::dump::{Count, MAX_CHAINS, MAX_KEYS, Message, Request, RulesetReader, messages};
use nft::{
    Applied, Batch, Bytes, Counts, Encoder, Family, Kernel, Name, Reading, Ruleset, Set, SetKind, Transaction,
};
use tokio::time::Instant;

use crate::socket::{Buffer, Channel, Socket, Wait, explained};
use crate::touches::{Touched, Touches};
use crate::watch::OwnPort;

/// The kernel fills dumps into datagrams of at most 32 KiB (`netlink_dump` of `net/netlink/af_netlink.c`).
const RECEIVE_BYTES: usize = 128 * 1024;
/// Room for the answers to a batch of which thousands of messages are refused.
const RECEIVE_BUFFER_BYTES: libc::c_int = 8 * 1024 * 1024;
/// The kernel keeps this much of the send buffer (`netlink_sendmsg`: `len > sk->sk_sndbuf - 32`).
const SEND_OVERHEAD_BYTES: usize = 32;
/// Batches are not halved below this.
const MIN_LIMIT_BYTES: usize = 4096;
/// Requests have this bit in their sequence numbers, batches have not: neither takes the other's stale answers.
const REQUEST_SEQ: u32 = 0x8000_0000;
/// How often a table is read when others keep changing it meanwhile, or when its hash tables are just being resized.
const READ_ATTEMPTS: u32 = 10;
/// Pauses between attempts grow by this much; together they are 0.9 s.
const READ_PAUSE: Duration = Duration::from_millis(20);

/// A netfilter socket that applies transactions and reads tables.
#[derive(Debug)]
pub struct Nftables<C: Channel = Socket> {
    socket: C,
    /// What is sent from the socket is no foreign change.
    own_port: OwnPort,
    received: Vec<u8>,
    seq: u32,
    /// Longest batch, when the send buffer can't be made larger or the caller wants it shorter.
    limit: Option<usize>,
    likely_keys: LikelyKeys,
    /// Sets of so many elements are asked for by key.
    large: usize,
}

/// The keys that a set probably has, worked out from those sets of its table that have been read already: the ones with
/// fewer elements. `None` if its keys do not follow from others; anything else than exactly its keys makes the set be read whole.
pub type LikelyKeys = fn(&Name, &Ruleset) -> Option<Vec<Bytes>>;

/// Sets with fewer elements are read whole. An answer for each key costs some 1.5 µs more than an element of a dump, which for its
/// part takes about 7.5 ps for each pair of elements: at 200,000 they are even.
const LARGE: usize = 150_000;
/// What an answer about one key takes of the receive buffer (`nft_get_set_elem` allocates `NLMSG_GOODSIZE`).
const KEY_ANSWER_BYTES: usize = 8 * 1024;

impl Nftables {
    /// Opens a socket in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When the system has no netfilter sockets for us. That `nf_tables` or permission is lacking shows later.
    pub fn open() -> Result<Self, NetlinkError> {
        Self::over_channel()
    }
}

impl<C: Channel> Nftables<C> {
    /// As [`Nftables::open`], over another kind of socket.
    ///
    /// # Errors
    /// As [`Nftables::open`].
    pub fn over_channel() -> Result<Self, NetlinkError> {
        let (socket, own_port) = open_own_socket()?;
        let received = vec![0; RECEIVE_BYTES];
        let likely_keys = |_: &Name, _: &Ruleset| None;
        Ok(Self { socket, own_port, received, seq: REQUEST_SEQ, limit: None, likely_keys, large: LARGE })
    }

    /// Has large sets asked for by key where that gives all of them: the time for that is proportional to their size, where a
    /// reading of the whole takes its square.
    #[must_use]
    pub fn expecting(self, likely_keys: LikelyKeys) -> Self {
        Self { likely_keys, ..self }
    }

    /// From how many elements on a set is large; the default is where reading by key begins to be cheaper.
    #[must_use]
    pub fn with_large_sets_from(self, elements: usize) -> Self {
        Self { large: elements, ..self }
    }

    /// Cuts transactions into batches of at most this many bytes; `None` (the default) cuts only what the send
    /// buffer can't hold.
    pub fn set_batch_limit(&mut self, bytes: Option<usize>) {
        self.limit = bytes;
    }

    /// The batch limit that is set, or was learnt from the size of the send buffer.
    pub fn batch_limit(&self) -> Option<usize> {
        self.limit
    }
}

impl<C: Channel> Kernel for Nftables<C> {
    fn apply(&mut self, tx: &Transaction) -> Result<Applied, NetlinkError> {
        let mut applied = Applied::default();
        let mut limit = self.limit;
        let mut encoder = Encoder::new(tx);
        loop {
            let start = encoder.cursor();
            let Some(batch) = encoder.next_batch(limit) else { return Ok(applied) };
            let room = self.make_room(batch.bytes.len());
            if limit.is_none() && batch.bytes.len() > room {
                (self.limit, limit) = (Some(room), Some(room));
                encoder.rewind(start);
                continue;
            }
            match self.apply_batch(tx, &batch) {
                Ok(kernel_time) => count(&mut applied, &batch, kernel_time),
                Err(error) => match halved(&error, batch.bytes.len()) {
                    // The kernel did not take the batch, so nothing of it is applied.
                    Some(half) => {
                        limit = Some(half);
                        encoder.rewind(start);
                    }
                    None => return Err(partial(&applied, error)),
                },
            }
        }
    }

    fn read(&mut self, family: Family, table: &Name) -> Result<Reading, NetlinkError> {
        let reading = self.read_repeatedly(family, table);
        if reading.is_err() {
            // The rest of a dump may still be under way; a new socket has no past.
            (self.socket, self.own_port) = open_own_socket()?;
        }
        reading
    }

    fn counts(&mut self, family: Family, table: &Name, sets: &[Name]) -> Result<Counts, NetlinkError> {
        let counts = self.read_counts(family, table, sets);
        if counts.is_err() {
            (self.socket, self.own_port) = open_own_socket()?;
        }
        counts
    }
}

/// What went while it was read has nothing to tell.
fn unless_absent(error: NetlinkError) -> Result<(), NetlinkError> {
    if is_absent(&error) { Ok(()) } else { Err(error) }
}

fn is_absent(error: &NetlinkError) -> bool {
    matches!(error, NetlinkError::Refused { errno: libc::ENOENT, .. })
}

fn open_own_socket<C: Channel>() -> Result<(C, OwnPort), NetlinkError> {
    let open = || -> io::Result<_> {
        let socket: C = open_socket()?;
        let own_port = OwnPort::register(socket.port()?);
        Ok((socket, own_port))
    };
    open().map_err(|source| NetlinkError::Open { source })
}

fn open_socket<C: Channel>() -> io::Result<C> {
    let socket = C::open().and_then(explained)?;
    // Without the capability the buffer stays within the system's limit, which is enough for all but a flood of errors.
    Buffer::Receive.set_size(&socket, RECEIVE_BUFFER_BYTES)?;
    Ok(socket)
}

fn count(applied: &mut Applied, batch: &Batch, kernel_time: Duration) {
    applied.batches += 1;
    applied.messages += batch.message_count();
    applied.bytes += batch.bytes.len();
    applied.kernel_time += kernel_time;
}

/// Half the size, if the batch was too long to be sent and can be halved.
fn halved(error: &NetlinkError, bytes: usize) -> Option<usize> {
    let NetlinkError::Send { source, .. } = error else { return None };
    let too_long = matches!(source.raw_os_error(), Some(libc::EMSGSIZE | libc::ENOBUFS));
    (too_long && bytes / 2 >= MIN_LIMIT_BYTES).then_some(bytes / 2)
}

fn partial(applied: &Applied, error: NetlinkError) -> NetlinkError {
    error.besides(u64::try_from(applied.batches).unwrap_or(u64::MAX), "applied batches")
}

// === apply ===

impl<C: Channel> Nftables<C> {
    /// Makes the send buffer hold a message of this length if the kernel lets us; gives the length that it holds. The kernel
    /// doubles the size for its bookkeeping, of which a message to itself needs next to nothing.
    fn make_room(&self, bytes: usize) -> usize {
        let held = Buffer::Send.make_room(&self.socket, bytes + SEND_OVERHEAD_BYTES);
        held.saturating_sub(SEND_OVERHEAD_BYTES)
    }

    fn apply_batch(&mut self, tx: &Transaction, batch: &Batch) -> Result<Duration, NetlinkError> {
        let sent = Instant::now();
        self.send(&batch.bytes)?;
        let kernel_time = sent.elapsed();
        self.outcome(tx, batch)?;
        Ok(kernel_time)
    }

    /// Whether the kernel committed the batch.
    ///
    /// `nfnetlink_rcv_batch` of `net/netfilter/nfnetlink.c` runs inside our `send`, from the first message to the
    /// commit, so every answer is in the receive buffer before we look, and nothing has to be waited for. It answers
    /// each message that failed, and the last one in any case because that asks for it. A failed commit is answered
    /// under the number of the batch's first message. So: the last message acknowledged, no error, none lost, is
    /// success and nothing else is. (An acknowledgement of the batch's end itself would say it in one, but only
    /// kernels from 6.10 on send it.)
    fn outcome(&mut self, tx: &Transaction, batch: &Batch) -> Result<(), NetlinkError> {
        let (mut refused, mut acknowledged, mut lost) = (None, false, false);
        loop {
            match self.socket.receive(&mut self.received, Wait::Never) {
                Ok(received) => {
                    for (seq, ack) in messages(received).filter_map(|m| Some((m.seq, m.ack()?))) {
                        if ack.errno == 0 {
                            acknowledged |= seq == batch.last_seq();
                        } else if refused.is_none() && seq & REQUEST_SEQ == 0 {
                            let object = batch.object(tx, seq, ack.offset);
                            refused = Some(NetlinkError::refused(object, ack.errno, ack.message));
                        }
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => lost = true,
                Err(_) => return Err(NetlinkError::OutcomeUnknown { why: "answers can't be received" }),
            }
        }
        match refused {
            Some(error) => Err(error),
            None if lost => Err(NetlinkError::OutcomeUnknown { why: "the receive buffer overflowed" }),
            None if !acknowledged => {
                Err(NetlinkError::OutcomeUnknown { why: "the last message was not answered" })
            }
            None => Ok(()),
        }
    }

    fn send(&self, bytes: &[u8]) -> Result<(), NetlinkError> {
        self.socket.send(bytes).map_err(|source| NetlinkError::Send { bytes: bytes.len(), source })
    }
}

// === read ===

/// What one attempt to read came to.
enum Attempt {
    /// The table at one moment.
    Whole(Option<Ruleset>),
    /// Probably that, but something may be missing, or it can't be told whether the table changed.
    Unsure(Ruleset),
    /// The table changed meanwhile.
    Torn,
}

impl<C: Channel> Nftables<C> {
    /// Reads the table until an attempt succeeds, or two that leave a doubt agree.
    fn read_repeatedly(&mut self, family: Family, table: &Name) -> Result<Reading, NetlinkError> {
        let mut previous = None;
        for attempt in 0..READ_ATTEMPTS {
            match self.read_once(family, table)? {
                Attempt::Whole(found) => return Ok(Reading::Whole(found)),
                Attempt::Unsure(found) if previous.as_ref() == Some(&found) => {
                    return Ok(Reading::Whole(Some(found)));
                }
                Attempt::Unsure(found) => previous = Some(found),
                Attempt::Torn => previous = None,
            }
            thread::sleep(READ_PAUSE * attempt);
        }
        Ok(Reading::Unstable)
    }

    fn read_once(&mut self, family: Family, table: &Name) -> Result<Attempt, NetlinkError> {
        let mut touches = Touches::open(family, table)?;
        let before = self.generation()?;
        let mut reader = RulesetReader::new(family, table);
        match self.ask(&Request::Table(family, table), |message| reader.add(message)) {
            Err(error) if is_absent(&error) => return Ok(Attempt::Whole(None)),
            other => other?,
        }
        match self.collect(family, table, &mut reader, &mut touches) {
            Ok(true) => {}
            Ok(false) => return Ok(Attempt::Torn),
            // What was there a moment ago and is not any more was deleted meanwhile.
            Err(error) if is_absent(&error) => return Ok(Attempt::Torn),
            Err(error) => return Err(error),
        }
        let after = self.generation()?;
        let touched = touches.between(before, after)?;
        let collected = reader.finish();
        Ok(match touched {
            Touched::Yes => Attempt::Torn,
            Touched::No if collected.is_complete => Attempt::Whole(Some(collected.ruleset)),
            Touched::No | Touched::Unknown => Attempt::Unsure(collected.ruleset),
        })
    }

    /// Asks for everything in the table; false if it is known already that this was in vain.
    fn collect(
        &mut self,
        family: Family,
        table: &Name,
        reader: &mut RulesetReader<'_>,
        touches: &mut Touches<'_, C>,
    ) -> Result<bool, NetlinkError> {
        self.ask(&Request::Sets(family, table), |message| reader.add(message))?;
        for (set, count) in reader.sets() {
            if touches.take_in()? {
                return Ok(false);
            }
            self.read_elements(family, table, (&set, count), reader, touches)?;
        }
        for request in [
            Request::Rules(family, table),
            Request::Objects(family, table),
            Request::Flowtables(family, table),
        ] {
            self.ask(&request, |message| reader.add(message))?;
        }
        // The kernel can't list one table's chains. Ours have rules, so asking for those by name is enough unless others
        // have made one without.
        for names in reader.chains_with_rules().chunks(MAX_CHAINS) {
            self.ask(&Request::Chains(family, table, names), |message| reader.add(message))?;
        }
        if !reader.has_all_members() {
            self.ask(&Request::AllChains(family), |message| reader.add(message))?;
        }
        Ok(!touches.take_in()?)
    }

    fn read_elements(
        &mut self,
        family: Family,
        table: &Name,
        (set, count): (&Set, Option<usize>),
        reader: &mut RulesetReader<'_>,
        touches: &mut Touches<'_, C>,
    ) -> Result<(), NetlinkError> {
        let likely = count.filter(|count| *count >= self.large && set.kind == SetKind::Exact);
        let keys = likely.and_then(|count| Some((count, (self.likely_keys)(&set.name, reader.so_far())?)));
        let is_read = match keys {
            Some((count, keys)) if keys.len() == count => {
                self.read_keys(family, table, set, &keys, reader, touches)?
            }
            _ => false,
        };
        if is_read {
            return Ok(());
        }
        self.ask(&Request::Elements(family, table, &set.name), |message| reader.add(message))
    }

    /// What elements have counted. Large sets are asked for by key, for which smaller ones have to be read before.
    fn read_counts(&mut self, family: Family, table: &Name, sets: &[Name]) -> Result<Counts, NetlinkError> {
        let mut reader = RulesetReader::new(family, table);
        match self.ask(&Request::Sets(family, table), |message| reader.add(message)) {
            Err(error) if is_absent(&error) => return Ok(Counts::new()),
            other => other?,
        }
        let all = reader.sets();
        let (asked_for, others): (Vec<_>, Vec<_>) =
            all.iter().partition(|(set, _)| set.is_counted && sets.contains(&set.name));
        let mut others = others.into_iter().map(|(set, _)| &set.name);
        let mut counts = Counts::new();
        for (set, count) in asked_for {
            let keys = if count.is_some_and(|count| count >= self.large) {
                self.find_keys(family, table, &set.name, &mut others, &mut reader)?
            } else {
                Vec::new()
            };
            let found = self.read_counts_of(family, table, set, &keys)?;
            counts.insert(set.name.clone(), found);
        }
        Ok(counts)
    }

    /// The likely keys of a set. Of the others, from the smallest on, so many are read as that takes.
    fn find_keys<'a>(
        &mut self,
        family: Family,
        table: &Name,
        set: &Name,
        others: &mut impl Iterator<Item = &'a Name>,
        reader: &mut RulesetReader<'_>,
    ) -> Result<Vec<Bytes>, NetlinkError> {
        loop {
            let Some(keys) = (self.likely_keys)(set, reader.so_far()) else { return Ok(Vec::new()) };
            if !keys.is_empty() {
                return Ok(keys);
            }
            let Some(other) = others.next() else { return Ok(keys) };
            let request = Request::Elements(family, table, other);
            self.ask(&request, |message| reader.add(message)).or_else(unless_absent)?;
        }
    }

    fn read_counts_of(
        &mut self,
        family: Family,
        table: &Name,
        set: &Set,
        keys: &[Bytes],
    ) -> Result<Vec<Count>, NetlinkError> {
        let mut found = Vec::new();
        if keys.is_empty() {
            let request = Request::Elements(family, table, &set.name);
            self.ask(&request, |message| found.extend(nft::dump::counts(message))).or_else(unless_absent)?;
        }
        for keys in keys.chunks(self.keys_at_once()) {
            let before = found.len();
            let request = Request::Keys(family, table, set, keys);
            match self.ask(&request, |message| found.extend(nft::dump::counts(message))) {
                // One of them went meanwhile, and hides those behind it.
                Err(error) if is_absent(&error) => found.truncate(before),
                other => {
                    other?;
                    continue;
                }
            }
            for key in keys.chunks(1) {
                let request = Request::Keys(family, table, set, key);
                self.ask(&request, |message| found.extend(nft::dump::counts(message)))
                    .or_else(unless_absent)?;
            }
        }
        Ok(found)
    }

    /// So many answers about keys fit into the receive buffer.
    fn keys_at_once(&self) -> usize {
        (Buffer::Receive.size(&self.socket) / KEY_ANSWER_BYTES).clamp(1, MAX_KEYS)
    }

    /// Reads a set by its keys; false if one of them is not in it, and then nothing is read.
    fn read_keys(
        &mut self,
        family: Family,
        table: &Name,
        set: &Set,
        keys: &[Bytes],
        reader: &mut RulesetReader<'_>,
        touches: &mut Touches<'_, C>,
    ) -> Result<bool, NetlinkError> {
        for keys in keys.chunks(self.keys_at_once()) {
            touches.take_in()?;
            match self.ask(&Request::Keys(family, table, set, keys), |message| reader.add(message)) {
                Err(NetlinkError::Refused { .. }) => {
                    reader.forget_elements(&set.name);
                    return Ok(false);
                }
                other => other?,
            }
        }
        Ok(true)
    }

    fn generation(&mut self) -> Result<u32, NetlinkError> {
        let mut generation = None;
        self.ask(&Request::Generation, |message| generation = nft::dump::generation(message))?;
        generation.ok_or(NetlinkError::Decode { what: "no generation in the answer" })
    }

    /// Sends a request and passes on the messages of its answer. The kernel marks a dump during which anything in the network
    /// namespace was committed (`NLM_F_DUMP_INTR`); that says nothing about our table, so it is not looked at.
    fn ask(&mut self, request: &Request<'_>, mut take: impl FnMut(&Message<'_>)) -> Result<(), NetlinkError> {
        self.seq = self.seq.wrapping_add(1) | REQUEST_SEQ;
        self.send(&request.encode(self.seq))?;
        loop {
            let received = self.socket.receive(&mut self.received, Wait::Block);
            let received = received.map_err(|source| NetlinkError::Receive { source })?;
            for message in messages(received).filter(|message| message.seq == self.seq) {
                if let Some(ack) = message.ack().filter(|ack| ack.errno != 0) {
                    return Err(NetlinkError::refused(request.to_string(), ack.errno, ack.message));
                }
                if !message.is_done() {
                    take(&message);
                }
                if request.ends_with(&message) {
                    return Ok(());
                }
            }
        }
    }
}
