//! Hashes of whole files that this crate made, so that damage is found before it is trained on.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// A BLAKE3 hash; in JSON its 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContentHash([u8; 32]);

/// A file is hashed in pieces of this size, one core each: large enough that the pieces' own hashes cost
/// nothing, small enough that a file of some hundred MiB keeps all cores busy.
const PIECE_BYTES: usize = 16 << 20;

impl ContentHash {
    /// The BLAKE3 hash of `bytes`.
    pub fn of(bytes: &[u8]) -> ContentHash {
        ContentHash(blake3::hash(bytes).into())
    }

    /// The BLAKE3 hash of the hashes of the pieces of `bytes`, computed on all cores.
    pub(crate) fn of_large(bytes: &[u8]) -> ContentHash {
        let pieces: Vec<ContentHash> = bytes.par_chunks(PIECE_BYTES).map(ContentHash::of).collect();
        ContentHash::of(&pieces.iter().flat_map(|piece| piece.0).collect::<Vec<u8>>())
    }

    /// The 32 bytes themselves.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<[u8; 32]> for ContentHash {
    fn from(bytes: [u8; 32]) -> Self {
        ContentHash(bytes)
    }
}

impl std::fmt::Display for ContentHash {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        blake3::Hash::from_bytes(self.0).to_hex().fmt(formatter)
    }
}

impl From<ContentHash> for String {
    fn from(hash: ContentHash) -> String {
        hash.to_string()
    }
}

impl TryFrom<String> for ContentHash {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        blake3::Hash::from_hex(&text)
            .map(|hash| ContentHash(hash.into()))
            .map_err(|error| format!("{text:?} is not a BLAKE3 hash of 64 hexadecimal digits: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_survives_json_and_bad_text_is_refused() {
        let hash = ContentHash::of(b"abc");
        let text = serde_json::to_string(&hash).unwrap();
        assert_eq!(text.len(), 66);
        assert_eq!(serde_json::from_str::<ContentHash>(&text).unwrap(), hash);
        for bad in ["\"\"", "\"zz\"", "7", "\"6437b3ac38465133ffb63b75273a8db5\""] {
            assert!(serde_json::from_str::<ContentHash>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_byte_of_a_large_file_counts() {
        let mut bytes = vec![0; PIECE_BYTES + 2];
        let clean = ContentHash::of_large(&bytes);
        for at in [0, PIECE_BYTES, PIECE_BYTES + 1] {
            bytes[at] = 1;
            assert_ne!(ContentHash::of_large(&bytes), clean, "byte {at}");
            bytes[at] = 0;
        }
    }
}
