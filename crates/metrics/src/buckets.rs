//! Upper bounds of histogram buckets, in seconds unless it says bytes.

/// Upstream's for durations of syncs: 1 ms doubled up to 16 s.
pub(crate) fn sync() -> Vec<f64> {
    (0..15).map(|power| 0.001 * f64::from(1 << power)).collect()
}

/// Upstream's for the network programming latency: fine at first, up to five minutes.
pub(crate) fn network_programming() -> Vec<f64> {
    let below_a_second = [0.25, 0.5].into_iter();
    let seconds = (1..60).chain((60..120).step_by(5)).chain((120..=300).step_by(30));
    below_a_second.chain(seconds.map(f64::from)).collect()
}

/// For a single change on its way into the kernel.
pub(crate) fn commit() -> Vec<f64> {
    vec![
        0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
        2.5, 5.0, 10.0,
    ]
}

/// client-go's for requests.
pub(crate) fn request() -> Vec<f64> {
    vec![0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0]
}

/// client-go's for sizes, in bytes.
pub(crate) fn size_bytes() -> Vec<f64> {
    vec![
        64.0,
        256.0,
        512.0,
        1024.0,
        4096.0,
        16_384.0,
        65_536.0,
        262_144.0,
        1_048_576.0,
        4_194_304.0,
        16_777_216.0,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_upstreams() {
        let sync = sync();
        assert_eq!((sync.len(), sync[0], sync[9], sync[14]), (15, 0.001, 0.512, 16.384));
        let programming = network_programming();
        assert_eq!(programming.len(), 80);
        assert_eq!(programming[..4], [0.25, 0.5, 1.0, 2.0]);
        assert_eq!(programming[59..64], [58.0, 59.0, 60.0, 65.0, 70.0][..]);
        assert_eq!(programming[71..75], [110.0, 115.0, 120.0, 150.0][..]);
        assert_eq!(programming[75..], [180.0, 210.0, 240.0, 270.0, 300.0][..]);
    }

    #[test]
    fn buckets_grow() {
        for buckets in [sync(), network_programming(), commit(), request(), size_bytes()] {
            assert!(buckets.is_sorted_by(|a, b| a < b), "{buckets:?}");
        }
    }
}
