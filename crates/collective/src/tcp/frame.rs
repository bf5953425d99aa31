//! The frames between workers: 32 bytes of header, of which the receiver knows every field but the checksum. The header is
//! sealed, so that what was changed on its way is told from what the sender meant otherwise.

use crate::layout::Layout;
use crate::mesh::field;
use crate::{CollectiveError, checksum};
use std::ops::Range;

/// Bytes in a header.
pub(super) const HEADER_LEN: usize = 32;

/// What the seal of a header takes the place of its checksum by, so that zeros are none.
const MAGIC: u16 = 0xf01d;

/// What a frame's payload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// A part of one subtree sum, on its way to the rank that folds it.
    Scatter = 1,
    /// A part of the folded bucket, on its way from the rank that folded it.
    Gather = 2,
}

/// One frame: which floats of the bucket it carries, and of what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: Kind,
    /// For [`Kind::Scatter`], the place of the subtree among the sender's nodes.
    pub(super) node: usize,
    /// The place of the chunk in the slice.
    pub(super) chunk: usize,
    /// The floats carried, as they lie in the bucket.
    pub(super) range: Range<usize>,
    /// Whether they are sent as bf16.
    pub(super) is_rounded: bool,
}

/// What all frames of one sender in one fold share.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stamp {
    pub(super) sender: usize,
    pub(super) generation: u64,
    pub(super) step: u64,
}

/// A header as its fields, in the order they are written after its seal, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    kind: u8,
    node: u8,
    chunk: u16,
    sender: u16,
    generation: u64,
    step: u64,
    payload_len: u32,
    checksum: u32,
}

impl Frame {
    /// The frame of a chunk of the slice of `rank`.
    pub(super) fn of(layout: &Layout, rank: usize, kind: Kind, node: usize, chunk: usize) -> Self {
        let range = layout.chunk(rank, chunk);
        let is_rounded = layout.is_rounded(&range);
        Self { kind, node, chunk, range, is_rounded }
    }

    /// Bytes of payload.
    pub(super) fn payload_len(&self) -> usize {
        self.range.len() * if self.is_rounded { size_of::<u16>() } else { size_of::<f32>() }
    }

    fn header(&self, stamp: Stamp, checksum: u32) -> Header {
        Header {
            kind: self.kind as u8,
            node: self.node as u8, // a contiguous lease has at most 62 subtrees
            chunk: self.chunk as u16,
            sender: stamp.sender as u16,
            generation: stamp.generation,
            step: stamp.step,
            payload_len: self.payload_len() as u32,
            checksum,
        }
    }

    /// The header to send before a payload with this checksum.
    pub(super) fn encode(&self, stamp: Stamp, checksum: u32) -> [u8; HEADER_LEN] {
        self.header(stamp, checksum).to_bytes()
    }
}

/// The kind that a received header claims, if it is a header and arrived as it was sent.
pub(super) fn kind(bytes: &[u8; HEADER_LEN]) -> Option<Kind> {
    if field(bytes, 0) != seal(bytes) {
        return None;
    }
    match bytes[2] {
        1 => Some(Kind::Scatter),
        2 => Some(Kind::Gather),
        _ => None,
    }
}

/// The two bytes that a header begins with, made of the others.
fn seal(bytes: &[u8; HEADER_LEN]) -> [u8; 2] {
    (MAGIC ^ checksum::of(&bytes[2..]) as u16).to_le_bytes()
}

/// Checks that a received header, whose [`kind`] is known, is that of `expected`, and returns the checksum it announces.
pub(super) fn check(
    bytes: &[u8; HEADER_LEN],
    expected: &Frame,
    stamp: Stamp,
) -> Result<u32, CollectiveError> {
    let found = Header::from_bytes(bytes);
    let expected = expected.header(stamp, found.checksum);
    let rank = stamp.sender;
    let fields = [
        ("rank", expected.sender.into(), found.sender.into()),
        ("generation", expected.generation, found.generation),
        ("step", expected.step, found.step),
        ("subtree in turn", expected.node.into(), found.node.into()),
        ("chunk in turn", expected.chunk.into(), found.chunk.into()),
        ("bytes in the chunk", expected.payload_len.into(), found.payload_len.into()),
    ];
    for (field, expected, found) in fields {
        if expected != found {
            return Err(CollectiveError::Protocol { rank, field, expected, found });
        }
    }
    Ok(found.checksum)
}

impl Header {
    fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[2] = self.kind;
        bytes[3] = self.node;
        bytes[4..6].copy_from_slice(&self.chunk.to_le_bytes());
        bytes[6..8].copy_from_slice(&self.sender.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.generation.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.step.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.payload_len.to_le_bytes());
        bytes[28..32].copy_from_slice(&self.checksum.to_le_bytes());
        let seal = seal(&bytes);
        bytes[0..2].copy_from_slice(&seal);
        bytes
    }

    fn from_bytes(bytes: &[u8; HEADER_LEN]) -> Self {
        Self {
            kind: bytes[2],
            node: bytes[3],
            chunk: u16::from_le_bytes(field(bytes, 4)),
            sender: u16::from_le_bytes(field(bytes, 6)),
            generation: u64::from_le_bytes(field(bytes, 8)),
            step: u64::from_le_bytes(field(bytes, 16)),
            payload_len: u32::from_le_bytes(field(bytes, 24)),
            checksum: u32::from_le_bytes(field(bytes, 28)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_was_changed_is_told_from_what_was_meant_otherwise() {
        let frame = Frame { kind: Kind::Gather, node: 0, chunk: 3, range: 100..164, is_rounded: false };
        let stamp = Stamp { sender: 5, generation: 1 << 40, step: 77 };
        let bytes = frame.encode(stamp, 0xdead_beef);
        assert_eq!(kind(&bytes), Some(Kind::Gather));
        assert_eq!(check(&bytes, &frame, stamp).unwrap(), 0xdead_beef);
        for bit in 0..8 * HEADER_LEN {
            let mut bytes = bytes;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(kind(&bytes), None, "bit {bit}");
        }
        assert_eq!(kind(&[0; HEADER_LEN]), None);
        let rounded = Frame { is_rounded: true, ..frame.clone() };
        let other = check(&bytes, &rounded, stamp).unwrap_err();
        let named =
            CollectiveError::Protocol { rank: 5, field: "bytes in the chunk", expected: 128, found: 256 };
        assert_eq!(other.to_string(), named.to_string());
        let late = check(&bytes, &frame, Stamp { step: 78, ..stamp }).unwrap_err();
        let named = CollectiveError::Protocol { rank: 5, field: "step", expected: 78, found: 77 };
        assert_eq!(late.to_string(), named.to_string());
    }

    proptest! {
        /// Of any bytes, and of a header with some of its fields changed and sealed again, none but the expected header is
        /// accepted.
        #[test]
        fn no_other_header_is_accepted(
            noise in proptest::array::uniform32(any::<u8>()),
            changes in proptest::collection::vec((0..28usize, any::<u8>()), 0..4),
        ) {
            let frame = Frame { kind: Kind::Scatter, node: 3, chunk: 9, range: 0..1000, is_rounded: false };
            let stamp = Stamp { sender: 2, generation: 7, step: 40 };
            prop_assert!(check(&noise, &frame, stamp).is_err());
            let bytes = frame.encode(stamp, 1);
            let mut changed = bytes;
            for (place, byte) in changes {
                changed[place] = byte;
            }
            // The kind is what the receiver chooses the expected frame by.
            let is_other = changed[3..] != bytes[3..];
            let sealed = seal(&changed);
            changed[..2].copy_from_slice(&sealed);
            prop_assert_eq!(check(&changed, &frame, stamp).is_err(), is_other);
            let _ = kind(&changed);
        }
    }
}
