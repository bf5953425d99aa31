//! What two workers tell each other before the first frame, and what each makes of it.

use super::frame::field;
use crate::{CollectiveError, Group, Limits};
use std::ops::Range;

/// Bytes in a greeting.
pub(super) const HELLO_LEN: usize = 64;

/// Sent by the dialling side once it accepts the answer; a connection counts only then, so that one whose
/// dialler has long given up is not taken for a peer.
pub(super) const CONFIRMATION: [u8; 8] = *b"welcome\n";

/// No other protocol begins like this.
const MAGIC: [u8; 8] = *b"simsiam\n";

/// Version of greeting and frames.
const VERSION: u32 = 1;

/// Written in the host's order: payloads are floats as they lie in memory, so both sides must share it.
const BYTE_ORDER: u32 = 0x0102_0304;

/// What a worker says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hello {
    run: [u8; 16],
    version: u32,
    pub(super) generation: u64,
    rank: u32,
    world: u32,
    bucket_len: u64,
    shards: u32,
    leases_checksum: u32,
}

/// What is to be done with the sender of a greeting.
#[derive(Debug)]
pub(super) enum Verdict {
    /// It is this rank of our generation.
    Peer(usize),
    /// It has nothing to do with us.
    Stranger(&'static str),
    /// It is of our run, in an older generation.
    Stale { theirs: u64 },
    /// It is of our run, in a newer generation.
    Newer { theirs: u64 },
    /// It is of our generation and yet disagrees: neither side can go on.
    Mismatch(CollectiveError),
}

impl Hello {
    pub(super) fn new(group: &Group, limits: &Limits) -> Self {
        Self {
            run: group.run(),
            version: VERSION,
            generation: group.generation(),
            rank: group.rank() as u32,
            world: group.world() as u32,
            bucket_len: limits.bucket_len as u64,
            shards: group.shards(),
            leases_checksum: group.leases_checksum(),
        }
    }

    pub(super) fn to_bytes(&self) -> [u8; HELLO_LEN] {
        let mut bytes = [0; HELLO_LEN];
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&BYTE_ORDER.to_ne_bytes());
        bytes[12..16].copy_from_slice(&self.version.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.run);
        bytes[32..40].copy_from_slice(&self.generation.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.rank.to_le_bytes());
        bytes[44..48].copy_from_slice(&self.world.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.bucket_len.to_le_bytes());
        bytes[56..60].copy_from_slice(&self.shards.to_le_bytes());
        bytes[60..64].copy_from_slice(&self.leases_checksum.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8; HELLO_LEN]) -> Self {
        Self {
            run: field(bytes, 16),
            version: u32::from_le_bytes(field(bytes, 12)),
            generation: u64::from_le_bytes(field(bytes, 32)),
            rank: u32::from_le_bytes(field(bytes, 40)),
            world: u32::from_le_bytes(field(bytes, 44)),
            bucket_len: u64::from_le_bytes(field(bytes, 48)),
            shards: u32::from_le_bytes(field(bytes, 56)),
            leases_checksum: u32::from_le_bytes(field(bytes, 60)),
        }
    }

    /// Judges the greeting `bytes` of a worker that should hold one of `ranks`.
    pub(super) fn judge(&self, bytes: &[u8; HELLO_LEN], ranks: &Range<usize>) -> Verdict {
        if bytes[0..8] != MAGIC {
            return Verdict::Stranger("it does not speak this protocol");
        }
        if bytes[8..12] != BYTE_ORDER.to_ne_bytes() {
            return Verdict::Stranger("its processor has the other byte order");
        }
        let theirs = Self::from_bytes(bytes);
        if theirs.run != self.run {
            return Verdict::Stranger("it is of another run");
        }
        if theirs.generation < self.generation {
            return Verdict::Stale { theirs: theirs.generation };
        }
        if theirs.generation > self.generation {
            return Verdict::Newer { theirs: theirs.generation };
        }
        let rank = theirs.rank as usize;
        let fields = [
            ("protocol version", self.version.into(), theirs.version.into()),
            ("number of workers", self.world.into(), theirs.world.into()),
            ("number of shards", self.shards.into(), theirs.shards.into()),
            ("leases (checksum)", self.leases_checksum.into(), theirs.leases_checksum.into()),
            ("bucket length", self.bucket_len, theirs.bucket_len),
        ];
        for (field, expected, found) in fields {
            if expected != found {
                return Verdict::Mismatch(CollectiveError::Protocol { rank, field, expected, found });
            }
        }
        if ranks.contains(&rank) {
            Verdict::Peer(rank)
        } else {
            Verdict::Stranger("its rank is not expected here")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{group, limits};

    #[test]
    fn greetings_are_judged_by_run_then_generation_then_terms() {
        let ours = Hello::new(&group(5, 0, 4, 8), &limits(100));
        let check = |theirs: &Hello, expected: &str| {
            assert_eq!(Hello::from_bytes(&theirs.to_bytes()), *theirs);
            let verdict = format!("{:?}", ours.judge(&theirs.to_bytes(), &(1..4)));
            assert!(verdict.starts_with(expected), "{verdict} is not {expected}");
        };
        let theirs = Hello::new(&group(5, 2, 4, 8), &limits(100));
        check(&theirs, "Peer(2)");
        check(&ours, "Stranger");
        check(&Hello { run: [8; 16], ..theirs.clone() }, "Stranger");
        check(&Hello { generation: 4, bucket_len: 1, ..theirs.clone() }, "Stale { theirs: 4 }");
        check(&Hello { generation: 6, ..theirs.clone() }, "Newer { theirs: 6 }");
        check(
            &Hello { version: 9, ..theirs.clone() },
            "Mismatch(Protocol { rank: 2, field: \"protocol version\"",
        );
        check(
            &Hello { bucket_len: 9, ..theirs.clone() },
            "Mismatch(Protocol { rank: 2, field: \"bucket length\"",
        );
        check(
            &Hello { shards: 4, ..theirs.clone() },
            "Mismatch(Protocol { rank: 2, field: \"number of shards\"",
        );
        let mut bytes = theirs.to_bytes();
        bytes[8..12].reverse();
        assert!(matches!(ours.judge(&bytes, &(1..4)), Verdict::Stranger(_)));
        assert!(matches!(ours.judge(&[0x47; HELLO_LEN], &(1..4)), Verdict::Stranger(_)));
    }
}
