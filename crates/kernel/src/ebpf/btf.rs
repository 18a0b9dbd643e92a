//! Types for the storage in sockets, which the kernel does not make without (`linux/btf.h`): a number as key, and a structure of
//! numbers as value.

/// The types' numbers: the first one, and the last one.
pub(crate) const KEY_TYPE: u32 = 1;
pub(crate) const VALUE_TYPE: u32 = 3;

const MAGIC: u16 = 0xeb9f;
const HEADER_BYTES: u32 = 24;
const KIND_INT: u32 = 1;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const SIGNED: u32 = 1 << 24;

/// A description of a value of so many bytes, a multiple of four.
pub(crate) fn of_value(bytes: u32) -> Vec<u8> {
    let kind = |kind: u32, members: u32| kind << 24 | members;
    let names = b"\0int\0original\0words\0";
    let (int, original, words) = (1, 5, 14);
    let types = [
        // int
        int,
        kind(KIND_INT, 0),
        4,
        SIGNED | 32,
        // int[bytes / 4]
        0,
        kind(KIND_ARRAY, 0),
        0,
        KEY_TYPE,
        KEY_TYPE,
        bytes / 4,
        // struct original { int words[bytes / 4]; }
        original,
        kind(KIND_STRUCT, 1),
        bytes,
        words,
        2,
        0,
    ];
    let type_bytes = types.map(u32::to_ne_bytes).concat();
    let type_len = u32::try_from(type_bytes.len()).unwrap_or(u32::MAX);
    let name_len = u32::try_from(names.len()).unwrap_or(u32::MAX);
    let mut out = MAGIC.to_ne_bytes().to_vec();
    out.extend([1, 0]);
    out.extend([HEADER_BYTES, 0, type_len, type_len, name_len].map(u32::to_ne_bytes).concat());
    out.extend(type_bytes);
    out.extend(names);
    out
}
