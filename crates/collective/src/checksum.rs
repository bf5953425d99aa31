//! CRC-32C, the checksum of payloads.

use crc_fast::{CrcAlgorithm, Digest};

/// The checksum of some bytes followed by `more`, given that of the first; that of no bytes is 0.
pub(crate) fn extend(checksum: u32, more: &[u8]) -> u32 {
    // A CRC ends with the inversion of its register, so this continues where the first part ended.
    let mut digest = Digest::new_with_init_state(CrcAlgorithm::Crc32Iscsi, u64::from(!checksum));
    digest.update(more);
    digest.finalize() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_catalogue_value_comes_from_any_split() {
        let bytes = b"123456789";
        for split in 0..=bytes.len() {
            assert_eq!(extend(extend(0, &bytes[..split]), &bytes[split..]), 0xe306_9283);
        }
    }
}
