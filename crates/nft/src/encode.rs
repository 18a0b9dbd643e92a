//! Transactions to netlink batches.
//!
//! A batch is applied by the kernel as a whole. One is enough for any transaction unless the socket's buffer is
//! limited; then [`Encoder`] cuts where [`Op`] allows. Elements go many to a message, as many as one attribute of
//! 65,535 bytes holds.

mod describe;
pub(crate) mod elements;
pub(crate) mod exprs;
pub(crate) mod objects;

use crate::wire::{HEADER_BYTES, Writer, flag, kind, put_batch_message};
use crate::{Op, Transaction};
use elements::ElementChange;

/// All batches of a transaction.
#[derive(Debug)]
pub struct Encoded {
    /// In the order of sending.
    pub batches: Vec<Batch>,
}

/// Encodes a transaction: into one batch without a limit, otherwise into batches of at most `limit` bytes wherever
/// the transaction can be cut. An empty transaction has no batch.
pub fn encode(tx: &Transaction, limit: Option<usize>) -> Encoded {
    let mut encoder = Encoder::new(tx);
    let batches = std::iter::from_fn(|| encoder.next_batch(limit)).collect();
    Encoded { batches }
}

/// One complete batch, to be sent in one piece. Sequence numbers count from 0, the batch's first message.
#[derive(Debug)]
pub struct Batch {
    /// The messages, from `BATCH_BEGIN` to `BATCH_END`.
    pub bytes: Vec<u8>,
    /// The messages between those two; the first has sequence number 1.
    messages: Vec<Message>,
}

/// Where a message begins, and which change it carries.
#[derive(Clone, Copy, Debug)]
struct Message {
    start: usize,
    op: usize,
}

impl Batch {
    /// Number of messages without the batch's framing.
    pub fn message_count(&self) -> usize {
        self.messages.len()
    }

    /// Sequence number of the last message, the only one that asks for an acknowledgement.
    pub fn last_seq(&self) -> u32 {
        u32::try_from(self.messages.len()).unwrap_or(u32::MAX)
    }

    /// Names the object of the message with this sequence number, for people. `offset` is where in that message
    /// the kernel says the fault is; with it a single element can be named.
    pub fn object(&self, tx: &Transaction, seq: u32, offset: Option<usize>) -> String {
        self.find_object(tx, seq, offset)
            .unwrap_or_else(|| format!("transaction of table {} {}", tx.family, tx.table))
    }

    fn find_object(&self, tx: &Transaction, seq: u32, offset: Option<usize>) -> Option<String> {
        let index = usize::try_from(seq).ok()?.checked_sub(1)?;
        let message = self.messages.get(index)?;
        let first_of_op = self.messages.iter().position(|other| other.op == message.op)?;
        let bytes = self.bytes.get(message.start..)?;
        Some(describe::object(tx, tx.ops.get(message.op)?, index - first_of_op, bytes, offset))
    }
}

/// How far a transaction is encoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    op: usize,
    element: usize,
}

/// Encodes a transaction batch by batch.
#[derive(Debug)]
pub struct Encoder<'a> {
    tx: &'a Transaction,
    cursor: Cursor,
    out: Writer,
    messages: Vec<Message>,
    /// Sets declared so far; the kernel wants a number for each new one.
    set_id: u32,
}

impl<'a> Encoder<'a> {
    /// At the start of the transaction.
    pub fn new(tx: &'a Transaction) -> Self {
        Self { tx, cursor: Cursor::default(), out: Writer::default(), messages: Vec::new(), set_id: 0 }
    }

    /// Where the next batch begins.
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// Goes back, to encode from there again with another limit.
    pub fn rewind(&mut self, cursor: Cursor) {
        self.cursor = cursor;
    }

    /// The next batch: of at most `limit` bytes, or of a single piece that can't be cut if that alone is longer.
    /// `None` at the end.
    pub fn next_batch(&mut self, limit: Option<usize>) -> Option<Batch> {
        let tx = self.tx;
        if self.cursor.op >= tx.ops.len() {
            return None;
        }
        // The end of the batch takes one more header.
        let limit = limit.unwrap_or(usize::MAX).saturating_sub(HEADER_BYTES);
        put_batch_message(&mut self.out, kind::BATCH_BEGIN, 0);
        while let Some(op) = tx.ops.get(self.cursor.op) {
            if !self.put_op(op, limit) {
                break;
            }
            self.cursor = Cursor { op: self.cursor.op + 1, element: 0 };
        }
        Some(self.finish())
    }

    /// Asks for an acknowledgement of the last message and closes the batch.
    fn finish(&mut self) -> Batch {
        if let Some(last) = self.messages.last() {
            self.out.add_flags(last.start, flag::ACK);
        }
        let end = self.next_seq();
        put_batch_message(&mut self.out, kind::BATCH_END, end);
        Batch { bytes: std::mem::take(&mut self.out.out), messages: std::mem::take(&mut self.messages) }
    }

    fn next_seq(&self) -> u32 {
        u32::try_from(self.messages.len() + 1).unwrap_or(u32::MAX)
    }

    /// Encodes the operation as far as it fits; false if something is left.
    fn put_op(&mut self, op: &Op, limit: usize) -> bool {
        match op {
            Op::AddElements { set, elements } => self.put_elements(set, &ElementChange::Add(elements), limit),
            Op::ReplaceElements { set, elements } => {
                self.put_elements(set, &ElementChange::Replace(elements), limit)
            }
            Op::DeleteElements { set, elements } => {
                self.put_elements(set, &ElementChange::Delete(elements), limit)
            }
            _ => self.put_whole(op, limit),
        }
    }

    /// Encodes an operation that can't be cut, unless it exceeds the batch and could begin the next one.
    fn put_whole(&mut self, op: &Op, limit: usize) -> bool {
        let (bytes_before, messages_before) = (self.out.out.len(), self.messages.len());
        self.put_object(op);
        let fits = self.out.out.len() <= limit || messages_before == 0;
        if !fits {
            self.out.out.truncate(bytes_before);
            self.messages.truncate(messages_before);
        }
        fits
    }

    /// Writes one message of the current operation about our table.
    fn put_message(&mut self, kind: u16, flags: u16, table_attr: u16, write: impl FnOnce(&mut Writer)) {
        let start = self.out.begin_message(kind, flags, self.next_seq(), self.tx.family.nfproto(), 0);
        self.out.text(table_attr, &self.tx.table);
        write(&mut self.out);
        self.out.end_message(start);
        self.messages.push(Message { start, op: self.cursor.op });
    }
}
