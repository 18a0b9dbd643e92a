//! How things read on the terminal. Pure.

use std::net::SocketAddr;
use std::time::Duration;

use crate::traffic::Counts;

/// `pod0 104  pod1 97`, in the order of the names.
pub(crate) fn counts(counts: &Counts) -> String {
    let words: Vec<String> = counts.iter().map(|(pod, count)| format!("{pod} {count}")).collect();
    if words.is_empty() { "nobody".to_owned() } else { words.join("  ") }
}

/// The URL of an address, without the port where it is the usual one.
pub(crate) fn url(address: SocketAddr) -> String {
    match address {
        SocketAddr::V4(v4) if v4.port() == 80 => format!("http://{}/", v4.ip()),
        SocketAddr::V6(v6) if v6.port() == 80 => format!("http://[{}]/", v6.ip()),
        other => format!("http://{other}/"),
    }
}

/// A time in milliseconds, with two places below ten.
pub(crate) fn millis(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1000.0;
    if ms < 10.0 { format!("{ms:.2} ms") } else { format!("{ms:.0} ms") }
}

/// The sets and chains with these names out of a listing by `nft list table`, in its order; the rest becomes `...`.
pub(crate) fn excerpt(listing: &str, names: &[&str]) -> String {
    let mut lines = Vec::new();
    let mut wanted = true;
    for line in listing.lines() {
        let block = line.strip_prefix('\t').filter(|rest| !rest.starts_with('\t') && rest.ends_with('{'));
        if let Some(head) = block {
            wanted = head.split(' ').nth(1).is_some_and(|name| names.contains(&name));
            if !wanted && lines.last() != Some(&"\t...") {
                lines.push("\t...");
            }
        }
        if !line.starts_with('\t') && !line.is_empty() {
            wanted = true;
        }
        if wanted && !line.is_empty() {
            lines.push(line);
        }
    }
    lines.join("\n")
}

/// The text with every line moved to the right, and tabs as four spaces.
pub(crate) fn indented(text: &str) -> String {
    let lines: Vec<String> = text.lines().map(|line| format!("   {}", line.replace('\t', "    "))).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_in_the_order_of_the_names() {
        let given = [("pod1", 97), ("pod0", 104)].map(|(pod, count)| (pod.to_owned(), count));
        assert_eq!(counts(&given.into()), "pod0 104  pod1 97");
        assert_eq!(counts(&Counts::new()), "nobody");
    }

    #[test]
    fn urls_are_written_as_people_type_them() {
        let urls =
            ["10.96.0.10:80", "[fd00::a]:80", "[fd00::a]:30080"].map(|text| url(text.parse().unwrap()));
        assert_eq!(urls, ["http://10.96.0.10/", "http://[fd00::a]/", "http://[fd00::a]:30080/"]);
    }

    #[test]
    fn times_have_as_many_places_as_say_something() {
        assert_eq!(millis(Duration::from_micros(836)), "0.84 ms");
        assert_eq!(millis(Duration::from_millis(1234)), "1234 ms");
    }

    #[test]
    fn an_excerpt_keeps_the_named_blocks_and_the_frame() {
        let listing = "table ip t {\n\tmap a {\n\t\ttype x\n\t}\n\n\tmap b {\n\t}\n\n\tchain c {\n\t}\n\n\tchain a-long {\n\t}\n}\n";
        assert_eq!(
            excerpt(listing, &["a", "c"]),
            "table ip t {\n\tmap a {\n\t\ttype x\n\t}\n\t...\n\tchain c {\n\t}\n\t...\n}"
        );
        assert_eq!(excerpt(listing, &[]), "table ip t {\n\t...\n}");
    }

    #[test]
    fn listings_are_indented_by_spaces() {
        assert_eq!(indented("a {\n\tb\n}"), "   a {\n       b\n   }");
    }
}
