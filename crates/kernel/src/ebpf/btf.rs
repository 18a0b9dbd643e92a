//! Types for the storage in sockets, which the kernel does not make without (`linux/btf.h`): a number as key, and a structure of
//! numbers as value, which may begin with a lock.

/// The number of a function among the types that the kernel tells of itself (`/sys/kernel/btf/vmlinux`); `None`: it has none of this name,
/// or what was read is something else.
pub(crate) fn function(types: &[u8], name: &str) -> Option<u32> {
    let number = |at: usize| types.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    let index = |at: usize| usize::try_from(number(at)?).ok();
    if types.get(..2)? != MAGIC.to_ne_bytes() {
        return None;
    }
    let header = index(4)?;
    let (mut at, types_bytes, names) = (header + index(8)?, index(12)?, header + index(16)?);
    let end = at + types_bytes;
    let is_called = |offset: usize| {
        let text = types.get(names + offset..)?.get(..=name.len())?;
        Some(text == [name.as_bytes(), b"\0"].concat())
    };
    for id in 1.. {
        if at >= end {
            return None;
        }
        let (name_at, info) = (index(at)?, number(at + 4)?);
        let (kind, members) = (info >> 24 & 0x1f, usize::try_from(info & 0xffff).ok()?);
        if kind == KIND_FUNCTION && is_called(name_at) == Some(true) {
            return Some(id);
        }
        at += 12 + bytes_behind(kind, members)?;
    }
    None
}

/// What follows the three words that each type has, by its kind (`BTF_KIND_*`).
fn bytes_behind(kind: u32, members: usize) -> Option<usize> {
    Some(match kind {
        // Numbers, variables, tags of declarations.
        KIND_INT | 14 | 17 => 4,
        KIND_ARRAY => 12,
        // Structures, unions, sections, enumerations of 64 bits.
        KIND_STRUCT | 5 | 15 | 19 => 12 * members,
        // Enumerations, and prototypes of functions.
        6 | 13 => 8 * members,
        // Pointers, declarations, names, qualifiers, functions, floating-point numbers, tags of types.
        2 | 7..=11 | KIND_FUNCTION | 16 | 18 => 0,
        _ => return None,
    })
}

/// The types' numbers: the first one, and the last one.
pub(crate) const KEY_TYPE: u32 = 1;
pub(crate) const VALUE_TYPE: u32 = 3;
const ARRAY_TYPE: u32 = 2;
const LOCK_TYPE: u32 = 4;
const LOCK_BYTES: u32 = 4;

const MAGIC: u16 = 0xeb9f;
const HEADER_BYTES: u32 = 24;
const KIND_INT: u32 = 1;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_FUNCTION: u32 = 12;
const SIGNED: u32 = 1 << 24;

/// A description of a value of so many bytes, a multiple of four. `is_locked`: the first four are a lock.
pub(crate) fn of_value(bytes: u32, is_locked: bool) -> Vec<u8> {
    let kind = |kind: u32, members: u32| kind << 24 | members;
    let names = b"\0int\0value\0words\0bpf_spin_lock\0lock\0";
    let (int, value, words, spin_lock, lock) = (1, 5, 11, 17, 31);
    let lock_bytes = if is_locked { LOCK_BYTES } else { 0 };
    let mut types = vec![
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
        (bytes - lock_bytes) / 4,
        // struct value { struct bpf_spin_lock lock; int words[]; }, without a lock if there is none
        value,
        kind(KIND_STRUCT, if is_locked { 2 } else { 1 }),
        bytes,
    ];
    if is_locked {
        types.extend([lock, LOCK_TYPE, 0]);
    }
    types.extend([words, ARRAY_TYPE, lock_bytes * 8]);
    // struct bpf_spin_lock { int lock; }
    types.extend([spin_lock, kind(KIND_STRUCT, 1), LOCK_BYTES, lock, KEY_TYPE, 0]);
    let type_bytes: Vec<u8> = types.into_iter().flat_map(u32::to_ne_bytes).collect();
    let type_len = u32::try_from(type_bytes.len()).unwrap_or(u32::MAX);
    let name_len = u32::try_from(names.len()).unwrap_or(u32::MAX);
    let mut out = MAGIC.to_ne_bytes().to_vec();
    out.extend([1, 0]);
    out.extend([HEADER_BYTES, 0, type_len, type_len, name_len].map(u32::to_ne_bytes).concat());
    out.extend(type_bytes);
    out.extend(names);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Types of our own, and behind them functions.
    fn types(functions: &[&str]) -> Vec<u8> {
        let mut types = of_value(16, true);
        let word = |types: &[u8], at: usize| u32::from_ne_bytes(types[at..at + 4].try_into().unwrap());
        let (type_len, name_len) = (word(&types, 12), word(&types, 20));
        let names_at = usize::try_from(HEADER_BYTES + type_len).unwrap();
        let mut names = types.split_off(names_at);
        for name in functions {
            let offset = u32::try_from(names.len()).unwrap();
            types.extend([offset, KIND_FUNCTION << 24, 0].map(u32::to_ne_bytes).concat());
            names.extend(name.as_bytes());
            names.push(0);
        }
        let more = u32::try_from(functions.len()).unwrap() * 12;
        let more_names = u32::try_from(names.len()).unwrap() - name_len;
        for (at, value) in [(12, type_len + more), (16, type_len + more), (20, name_len + more_names)] {
            types[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        }
        types.extend(names);
        types
    }

    #[test]
    fn functions_are_found_by_name() {
        let types = types(&["bpf_iter", "bpf_iter_map", "other"]);
        assert_eq!(function(&types, "bpf_iter_map"), Some(6));
        assert_eq!(function(&types, "bpf_iter"), Some(5));
        assert_eq!(function(&types, "bpf_iter_ma"), None);
        // A structure, not a function.
        assert_eq!(function(&types, "value"), None);
        for len in 0..types.len() {
            assert!(function(&types[..len], "nothing").is_none());
        }
    }

    #[test]
    fn the_running_kernel_tells_of_its_functions() {
        let types = std::fs::read("/sys/kernel/btf/vmlinux").unwrap();
        assert!(function(&types, "bpf_iter_udp").is_some());
        assert_eq!(function(&types, "bpf_iter_udp_of_nobody"), None);
    }
}
