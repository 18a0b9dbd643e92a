//! Messages about tables, sets, chains and rules.

use std::borrow::Cow;

use crate::encode::Encoder;
use crate::encode::exprs::put_expr;
use crate::set::DEFAULT_LEARNT_SIZE;
use crate::wire::{COUNTER, DATA_TYPE_VERDICT, Writer, attr, flag, kind, set_flag};
use crate::{BaseChain, Expr, Family, Field, Name, Op, Set, SetData, SetKind, udata};

/// Makes something unless it exists; without `NLM_F_EXCL` the kernel only checks that it is of the same kind.
const CREATE: u16 = flag::REQUEST | flag::CREATE;

/// `NF_ACCEPT`
const POLICY_ACCEPT: u32 = 1;

impl Encoder<'_> {
    /// Writes the messages of any operation but those on elements.
    pub(super) fn put_object(&mut self, op: &Op) {
        match op {
            Op::AddTable => {
                // Without flags a dormant table wakes.
                self.put_message(kind::NEW_TABLE, CREATE, attr::TABLE_NAME, |out| {
                    out.u32(attr::TABLE_FLAGS, 0);
                });
            }
            Op::DeleteTable => self.put_message(kind::DEL_TABLE, flag::REQUEST, attr::TABLE_NAME, |_| {}),
            Op::AddSet(set) => {
                self.set_id += 1;
                let (id, family) = (self.set_id, self.tx.family);
                self.put_message(kind::NEW_SET, CREATE, attr::SET_TABLE, |out| put_set(out, set, id, family));
            }
            Op::DeleteSet(name) => self.put_deletion(kind::DEL_SET, attr::SET_TABLE, attr::SET_NAME, name),
            Op::AddChain { name, base } => {
                self.put_message(kind::NEW_CHAIN, CREATE, attr::CHAIN_TABLE, |out| {
                    put_chain(out, name, base.as_ref());
                });
            }
            Op::DeleteChain(name) => {
                self.put_deletion(kind::DEL_CHAIN, attr::CHAIN_TABLE, attr::CHAIN_NAME, name);
            }
            Op::DeleteObject(object, name) => {
                self.put_message(kind::DEL_OBJECT, flag::REQUEST, attr::OBJECT_TABLE, |out| {
                    out.text(attr::OBJECT_NAME, name);
                    out.u32(attr::OBJECT_TYPE, object.0);
                });
            }
            Op::DeleteFlowtable(name) => {
                self.put_deletion(kind::DEL_FLOWTABLE, attr::FLOWTABLE_TABLE, attr::FLOWTABLE_NAME, name);
            }
            Op::SetRules { chain, rules } => {
                let family = self.tx.family;
                let compiled =
                    rules.iter().map(|rule| (rule.compile(family).into(), rule.comment.as_deref()));
                self.put_rules(chain, compiled);
            }
            Op::CopyRules { chain, rules } => {
                self.put_rules(chain, rules.iter().map(|rule| (Cow::Borrowed(&rule[..]), None)));
            }
            // Written by `put_elements`.
            Op::AddElements { .. } | Op::ReplaceElements { .. } | Op::DeleteElements { .. } => {}
        }
    }

    fn put_deletion(&mut self, kind: u16, table_attr: u16, name_attr: u16, name: &str) {
        self.put_message(kind, flag::REQUEST, table_attr, |out| out.text(name_attr, name));
    }

    /// Flushes the chain (deletes a rule without saying which) and adds the rules.
    fn put_rules<'r>(
        &mut self,
        chain: &Name,
        rules: impl Iterator<Item = (Cow<'r, [Expr]>, Option<&'r str>)>,
    ) {
        self.put_message(kind::DEL_RULE, flag::REQUEST, attr::RULE_TABLE, |out| {
            out.text(attr::RULE_CHAIN, chain);
        });
        for (rule, comment) in rules {
            self.put_message(kind::NEW_RULE, CREATE | flag::APPEND, attr::RULE_TABLE, |out| {
                put_rule(out, chain, &rule, comment);
            });
        }
    }
}

fn put_set(out: &mut Writer, set: &Set, id: u32, family: Family) {
    out.text(attr::SET_NAME, &set.name);
    out.u32(attr::SET_FLAGS, set_flags(set));
    out.u32(attr::SET_KEY_TYPE, type_number(&set.key, family));
    out.u32(attr::SET_KEY_LEN, length(set.key_wire_bytes(family)));
    if set.data != SetData::None {
        out.u32(attr::SET_DATA_TYPE, data_type(&set.data, family));
        out.u32(attr::SET_DATA_LEN, length(set.data_wire_bytes(family)));
    }
    out.u32(attr::SET_ID, id);
    match set.kind {
        SetKind::Networks if set.has_key_ends() => out.nest(attr::SET_DESC, |out| {
            out.nest(attr::DESC_CONCAT, |out| put_field_lengths(out, &set.key, family));
        }),
        SetKind::Exact | SetKind::Networks | SetKind::Learnt { size: DEFAULT_LEARNT_SIZE } => {}
        SetKind::Learnt { size } => out.nest(attr::SET_DESC, |out| out.u32(attr::DESC_SIZE, size)),
        SetKind::Leased { timeout_secs } => {
            out.bytes(attr::SET_TIMEOUT, &(u64::from(timeout_secs) * 1000).to_be_bytes());
        }
    }
    out.bytes(attr::SET_USERDATA, &udata::set(set, family));
    if set.is_counted {
        out.nest(attr::SET_EXPR, |out| {
            out.text(attr::EXPR_NAME, COUNTER);
            out.nest(attr::EXPR_DATA, |_| {});
        });
    }
}

/// How long the fields are on which the kernel matches ranges.
fn put_field_lengths(out: &mut Writer, key: &[Field], family: Family) {
    for field in key {
        out.nest(attr::LIST_ELEM, |out| out.u32(attr::FIELD_LEN, length(field.len_bytes(family))));
    }
}

/// Flags of a declaration.
pub(crate) const fn set_flags(set: &Set) -> u32 {
    let map = match set.data {
        SetData::None => 0,
        SetData::Verdict | SetData::Fields(_) => set_flag::MAP,
    };
    map | match set.kind {
        SetKind::Exact => 0,
        SetKind::Networks if set.has_key_ends() => set_flag::INTERVAL | set_flag::CONCAT,
        SetKind::Networks => set_flag::INTERVAL,
        SetKind::Learnt { .. } => set_flag::TIMEOUT | set_flag::EVAL,
        SetKind::Leased { .. } => set_flag::TIMEOUT,
    }
}

/// nft's number of the data type; 0 for a plain set.
pub(crate) fn data_type(data: &SetData, family: Family) -> u32 {
    match data {
        SetData::None => 0,
        SetData::Verdict => DATA_TYPE_VERDICT,
        SetData::Fields(fields) => type_number(fields, family),
    }
}

/// nft's number of a type: six bits for each field, the last field lowest.
pub(crate) fn type_number(fields: &[Field], family: Family) -> u32 {
    fields.iter().fold(0, |number, field| (number << 6) | field_type(*field, family))
}

/// `ipv4_addr`, `ipv6_addr`, `inet_proto`, `inet_service`, `integer` and `classid` in nft's table of types.
const fn field_type(field: Field, family: Family) -> u32 {
    match (field, family) {
        (Field::SourceAddr | Field::DestAddr, Family::Ip) => 7,
        (Field::SourceAddr | Field::DestAddr, Family::Ip6) => 8,
        (Field::L4Proto, _) => 12,
        (Field::DestPort, _) => 13,
        (Field::NumgenRandom { .. }, _) => 4,
        (Field::Priority | Field::PriorityBits { .. }, _) => 23,
    }
}

fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

pub(crate) fn put_chain(out: &mut Writer, name: &Name, base: Option<&BaseChain>) {
    out.text(attr::CHAIN_NAME, name);
    let Some(base) = base else { return };
    out.text(attr::CHAIN_TYPE, base.kind.as_str());
    out.u32(attr::CHAIN_POLICY, POLICY_ACCEPT);
    out.nest(attr::CHAIN_HOOK, |out| {
        out.u32(attr::HOOK_NUMBER, base.hook.number());
        out.u32(attr::HOOK_PRIORITY, base.priority.cast_unsigned());
    });
}

fn put_rule(out: &mut Writer, chain: &Name, rule: &[Expr], comment: Option<&str>) {
    out.text(attr::RULE_CHAIN, chain);
    out.nest(attr::RULE_EXPRESSIONS, |out| {
        for expr in rule {
            out.nest(attr::LIST_ELEM, |out| put_expr(out, expr));
        }
    });
    if let Some(comment) = comment {
        let mut userdata = Vec::with_capacity(udata::comment_bytes(comment));
        udata::put_comment(&mut userdata, comment);
        out.bytes(attr::RULE_USERDATA, &userdata);
    }
}
