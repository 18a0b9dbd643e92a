//! Random, cut and flipped input: an error or an object, but never a panic and never an endless loop.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use api::{
    Format, FrameReader, ManifestFormat, Outcome, Parsed, decode_list, decode_object, decode_status,
    parse_manifests,
};
use model::{Interner, Kind};
use proptest::prelude::*;

const FORMATS: [Format; 2] = [Format::Protobuf, Format::Json];

fn wire_files() -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/wire");
    let mut paths: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

fn check_bounds(parsed: &Parsed) {
    let rejected = match &parsed.outcome {
        Outcome::Reject(rejection) => Some(rejection),
        Outcome::Keep(_) | Outcome::Ignore(..) => None,
    };
    assert!(parsed.notes.len() <= 17);
    for rejection in parsed.notes.iter().chain(rejected) {
        assert!(rejection.to_string().len() < 1200, "{rejection}");
    }
}

/// Feeds the bytes to every decoder.
fn decode_all(bytes: &[u8], chunk: usize) {
    let mut interner = Interner::default();
    for format in FORMATS {
        if let Some(status) = decode_status(format, bytes) {
            assert!(status.message.len() < 300);
        }
        for kind in Kind::ALL {
            check_bounds(&decode_object(kind, format, bytes, &mut interner));
            if let Err(error) = decode_list(kind, format, bytes, &mut interner, |item| check_bounds(&item)) {
                assert!(error.to_string().len() < 600);
            }
        }
        let mut reader = FrameReader::new(format, 1 << 20);
        'stream: for chunk in bytes.chunks(chunk.max(1)) {
            reader.push(chunk);
            // Each event takes a byte at least.
            for _ in 0..=bytes.len() {
                match reader.next_event(Kind::Service, &mut interner) {
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(_) => break 'stream,
                }
            }
        }
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        for format in [ManifestFormat::Yaml, ManifestFormat::Json] {
            if let Ok(manifests) = parse_manifests(text, format, &mut interner) {
                manifests.objects.iter().for_each(check_bounds);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn random_bytes(bytes in prop::collection::vec(any::<u8>(), 0..400), chunk in 1usize..50) {
        decode_all(&bytes, chunk);
    }

    #[test]
    fn truncated_answers(file in 0usize..1000, cut in any::<prop::sample::Index>(), chunk in 1usize..5000) {
        let files = wire_files();
        let bytes = &files[file % files.len()];
        decode_all(&bytes[..cut.index(bytes.len())], chunk);
    }

    #[test]
    fn flipped_answers(
        file in 0usize..1000,
        flips in prop::collection::vec((any::<prop::sample::Index>(), 0u8..8), 1..10),
    ) {
        let files = wire_files();
        let mut bytes = files[file % files.len()].clone();
        for (at, bit) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
        }
        decode_all(&bytes, bytes.len());
    }
}

#[test]
fn deep_nesting_is_refused() {
    for text in ["[".repeat(100_000), "{\"a\":".repeat(100_000), "- ".repeat(10_000)] {
        decode_all(text.as_bytes(), 1000);
    }
}
