//! Which of the host's own TCP connections come from where (`/proc/net/tcp`). Pure, except for the reading.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use crate::file::Root;

/// Whether a connection of the host comes from one of these addresses. False if that can't be told.
pub(super) fn come_from(root: &Root, addresses: &BTreeSet<IpAddr>) -> bool {
    ["tcp", "tcp6"].into_iter().any(|name| {
        let text = std::fs::read_to_string(root.path(&format!("proc/thread-self/net/{name}")));
        text.is_ok_and(|text| connected(&text).any(|address| addresses.contains(&address)))
    })
}

/// The local addresses of sockets that have a peer which may still send something.
fn connected(text: &str) -> impl Iterator<Item = IpAddr> {
    /// `TCP_TIME_WAIT`, `TCP_CLOSE` and `TCP_LISTEN`
    const OTHERS: [&str; 3] = ["06", "07", "0A"];
    text.lines().filter_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let (local, _remote, state) = (words.next()?, words.next()?, words.next()?);
        if OTHERS.contains(&state) { None } else { parse(local.split_once(':')?.0) }
    })
}

/// Words of the host's byte order, which stand for the bytes of an address in their own order.
fn parse(hex: &str) -> Option<IpAddr> {
    let word = |at: usize| u32::from_str_radix(hex.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    match hex.len() {
        8 => word(0).map(IpAddr::from),
        32 => {
            let words = [word(0)?, word(8)?, word(16)?, word(24)?];
            let bytes: [u8; 16] = words.as_flattened().try_into().ok()?;
            Some(Ipv6Addr::from(bytes).to_canonical())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn connections_are_told_from_other_sockets() {
        let text = "  sl  local_address rem_address   st tx_queue\n\
             0: 0100007F:2810 00000000:0000 0A 00000000:00000000\n\
             1: 0A00600A:A2B4 0A00600A:0050 01 00000000:00000000\n\
             2: 0B00600A:A2B5 0B00600A:0050 06 00000000:00000000\n\
             3: 000000FD00000000000000000A000000:A2B6 0 02\n\
             4: 0000000000000000FFFF00000C00600A:A2B7 0 04\n\
             5: nonsense 0 01\n\
             6: 0D00600A\n";
        let expected = ["10.96.0.10", "fd00::a", "10.96.0.12"].map(|text| text.parse::<IpAddr>().unwrap());
        assert_eq!(connected(text).collect::<Vec<_>>(), expected);
    }
}
