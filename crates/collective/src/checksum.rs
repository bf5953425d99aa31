//! The checksum of payloads: the lower half of XXH3-64 (<https://xxhash.com>), which any accident changes but for one in four
//! thousand million. Every byte of a fold is looked at twice, so its rate counts: where a core has no AVX-512, this has more
//! than twice that of CRC-32C.

use std::fmt;
use std::hash::Hasher;

use twox_hash::XxHash3_64;

/// A checksum of bytes that come one after the other.
#[derive(Default)]
pub(crate) struct Checksum(XxHash3_64);

impl fmt::Debug for Checksum {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Checksum({:08x})", self.value())
    }
}

impl Checksum {
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    /// That of all bytes so far.
    pub(crate) fn value(&self) -> u32 {
        self.0.finish() as u32
    }
}

/// That of bytes which are all here.
pub(crate) fn of(bytes: &[u8]) -> u32 {
    XxHash3_64::oneshot(bytes) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values are those of the reference in C, however the bytes come.
    #[test]
    fn a_known_value_comes_from_any_split() {
        for (length, expected) in
            [(0, 0x38d3_94c2), (9, 0xd730_d826), (240, 0x0ef8_eed7), (5000, 0x6d13_8bd8)]
        {
            let bytes: Vec<u8> = (0..length).map(|place| (place * 7 + place / 256) as u8).collect();
            for split in 0..=length {
                let mut checksum = Checksum::default();
                checksum.add(&bytes[..split]);
                checksum.add(&bytes[split..]);
                assert_eq!((checksum.value(), of(&bytes)), (expected, expected), "{split} of {length}");
            }
        }
    }
}
