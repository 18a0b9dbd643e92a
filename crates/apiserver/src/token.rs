//! Continue tokens of paginated lists, and the base64 that they are made of.

use serde::{Deserialize, Serialize};

/// Where a paginated list goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Continuation {
    v: String,
    /// Revision of the list, or -1 for the present state.
    pub(super) rv: i64,
    /// `/` and the first key of the rest; a key with a zero byte appended comes right after that key.
    start: String,
}

impl Continuation {
    /// Goes on after `key` at `revision`.
    pub(super) fn after(key: &str, revision: u64) -> Self {
        let rv = i64::try_from(revision).unwrap_or(i64::MAX);
        Self { v: "meta.k8s.io/v1".to_owned(), rv, start: format!("/{key}\0") }
    }

    /// The same place in the present state.
    pub(super) fn at_present(self) -> Self {
        Self { rv: -1, ..self }
    }

    /// The first key of the rest.
    pub(super) fn start_key(&self) -> &str {
        self.start.strip_prefix('/').unwrap_or(&self.start)
    }

    pub(super) fn encode(&self) -> String {
        encode_base64(serde_json::to_string(self).unwrap_or_default().as_bytes())
    }

    /// Reads a token; `None` for anything that this server did not make.
    pub(super) fn decode(token: &str) -> Option<Self> {
        let decoded: Self = serde_json::from_slice(&decode_base64(token)?).ok()?;
        (decoded.v == "meta.k8s.io/v1").then_some(decoded)
    }
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// URL-safe base64 without padding.
fn encode_base64(bytes: &[u8]) -> String {
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0u32, |w, b| w << 8 | u32::from(*b)) << (8 * (3 - chunk.len()));
        for i in 0..=chunk.len() {
            out.push(char::from(ALPHABET[(word >> (18 - 6 * i)) as usize & 63]));
        }
    }
    out
}

fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let (mut word, mut bits) = (0u32, 0);
    for byte in text.trim_end_matches('=').bytes() {
        let digit = ALPHABET.iter().position(|c| *c == byte)?;
        word = word << 6 | u32::try_from(digit).ok()?;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            out.push(u8::try_from(word >> bits & 0xff).ok()?);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_what_a_real_server_makes() {
        let token = Continuation::after("shop/edge", 240);
        assert_eq!(
            token.encode(),
            "eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6MjQwLCJzdGFydCI6Ii9zaG9wL2VkZ2VcdTAwMDAifQ"
        );
        assert_eq!(Continuation::decode(&token.encode()), Some(token));
    }

    #[test]
    fn foreign_tokens_are_refused() {
        assert_eq!(Continuation::decode("x"), None);
        assert_eq!(Continuation::decode("!!!!"), None);
        assert_eq!(Continuation::decode(&encode_base64(br#"{"v":"v0","rv":1,"start":"a"}"#)), None);
    }

    #[test]
    fn base64_of_every_length() {
        for len in 0..9u8 {
            let bytes: Vec<u8> = (0..len).map(|b| b.wrapping_mul(83)).collect();
            assert_eq!(decode_base64(&encode_base64(&bytes)), Some(bytes));
        }
    }
}
