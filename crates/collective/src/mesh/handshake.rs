//! What two workers tell each other before the first frame, how each proves to be of the run, and what the other
//! makes of it.
//!
//! The dialling side greets: a hello and a nonce. The dialled side answers with its own and a proof, the dialling
//! side with a proof. A proof is the keyed hash of both greetings, so it names both ranks, the generation and the run,
//! and is good for these two nonces only. Nothing that a greeting says has a consequence before its proof has come,
//! and nothing is allocated for it. A connection counts only after the last proof, so that one whose dialler has long
//! given up is not taken for a peer; and the dialled side then says so, for its dialler must not take one for a peer that
//! has been dropped while the proof was under way.
//!
//! Two workers may have several connections. Who was dialled decides how many, and says so in its answer; who dialled
//! opens the further ones, each of which names its lane in its greeting and is proven like the first.

use crate::{CollectiveError, Group, Key, Limits};
use std::io;
use std::ops::Range;

/// Bytes in a hello.
const HELLO_LEN: usize = 64;

/// Bytes in a greeting: a hello, and a number that was never used before.
pub(crate) const GREETING_LEN: usize = HELLO_LEN + 32;

/// Bytes in a proof.
pub(crate) const PROOF_LEN: usize = blake3::OUT_LEN;

/// What the dialled side says once a connection counts. That it comes says all.
pub(crate) const WELCOME: [u8; 1] = [1];

/// What a worker says first.
pub(crate) type Greeting = [u8; GREETING_LEN];

/// That it knows the key.
pub(crate) type Proof = [u8; PROOF_LEN];

/// No other protocol begins like this.
const MAGIC: [u8; 8] = *b"simsiam\n";

/// Version of everything said over a connection. Since 2 both sides prove that they know the key; since 3 the group
/// agrees on shared memory or TCP after that; since 5 workers of different hosts have several connections; since 6
/// payloads have another checksum; since 7 the dialled side says that a connection counts; since 8 the headers of frames are
/// sealed.
const VERSION: u32 = 8;

/// Written in the host's order: payloads are floats as they lie in memory, so both sides must share it.
const BYTE_ORDER: u32 = 0x0102_0304;

/// What a worker says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    run: [u8; 16],
    version: u32,
    pub(crate) generation: u64,
    rank: u16,
    /// Which of the connections between the two this is; zero in an answer.
    lane: u8,
    /// How many connections the two have; zero from who dials, for it does not decide.
    lanes: u8,
    world: u32,
    bucket_len: u64,
    shards: u32,
    leases_checksum: u32,
}

/// Who proves; the proofs of the two sides differ, so that neither can be sent back as one's own.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(crate) enum Side {
    Dialled = 1,
    Dialling = 2,
}

/// Both greetings of one connection, which its proofs are about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Greetings<'a> {
    pub(crate) dialling: &'a Greeting,
    pub(crate) dialled: &'a Greeting,
}

impl Greetings<'_> {
    /// What shows the other side that `side` knows `key`.
    pub(crate) fn proof(&self, key: &Key, side: Side) -> Proof {
        *self.hash(key, side).as_bytes()
    }

    /// Whether `proof` came from someone who knows `key`.
    pub(crate) fn are_proven(&self, key: &Key, side: Side, proof: Proof) -> bool {
        // Hashes are compared in a time that does not depend on where they differ.
        self.hash(key, side) == blake3::Hash::from_bytes(proof)
    }

    fn hash(&self, key: &Key, side: Side) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(key.bytes());
        hasher.update(&[side as u8]).update(self.dialling).update(self.dialled).finalize()
    }
}

/// What is to be done with the sender of a greeting.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// It is this rank of our generation, on this of our connections, and says that we have so many.
    Peer { rank: usize, lane: u8, lanes: u8 },
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
    pub(crate) fn new(group: &Group, limits: &Limits) -> Self {
        Self {
            run: group.run(),
            version: VERSION,
            generation: group.generation(),
            rank: group.rank() as u16, // a group has at most 65536
            lane: 0,
            lanes: 0,
            world: group.world() as u32,
            bucket_len: limits.bucket_len as u64,
            shards: group.shards(),
            leases_checksum: group.leases_checksum(),
        }
    }

    /// What whoever dials says on one of its connections.
    pub(crate) fn on_lane(&self, lane: u8) -> Self {
        Self { lane, ..self.clone() }
    }

    /// What is answered where the two are to have so many connections.
    pub(crate) fn with_lanes(&self, lanes: u8) -> Self {
        Self { lanes, ..self.clone() }
    }

    /// This hello with a new nonce, for one connection. Fails where the system has no randomness.
    pub(crate) fn greeting(&self) -> io::Result<Greeting> {
        let mut greeting = [0; GREETING_LEN];
        greeting[..HELLO_LEN].copy_from_slice(&self.to_bytes());
        getrandom::fill(&mut greeting[HELLO_LEN..]).map_err(io::Error::other)?;
        Ok(greeting)
    }

    fn to_bytes(&self) -> [u8; HELLO_LEN] {
        let mut bytes = [0; HELLO_LEN];
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&BYTE_ORDER.to_ne_bytes());
        bytes[12..16].copy_from_slice(&self.version.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.run);
        bytes[32..40].copy_from_slice(&self.generation.to_le_bytes());
        bytes[40..42].copy_from_slice(&self.rank.to_le_bytes());
        bytes[42] = self.lane;
        bytes[43] = self.lanes;
        bytes[44..48].copy_from_slice(&self.world.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.bucket_len.to_le_bytes());
        bytes[56..60].copy_from_slice(&self.shards.to_le_bytes());
        bytes[60..64].copy_from_slice(&self.leases_checksum.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &Greeting) -> Self {
        Self {
            run: field(bytes, 16),
            version: u32::from_le_bytes(field(bytes, 12)),
            generation: u64::from_le_bytes(field(bytes, 32)),
            rank: u16::from_le_bytes(field(bytes, 40)),
            lane: bytes[42],
            lanes: bytes[43],
            world: u32::from_le_bytes(field(bytes, 44)),
            bucket_len: u64::from_le_bytes(field(bytes, 48)),
            shards: u32::from_le_bytes(field(bytes, 56)),
            leases_checksum: u32::from_le_bytes(field(bytes, 60)),
        }
    }

    /// Judges the greeting `bytes` of a worker that should hold one of `ranks`, on one of at most `lanes` connections. It
    /// may be a lie, until it is proven.
    pub(crate) fn judge(&self, bytes: &Greeting, ranks: &Range<usize>, lanes: u8) -> Verdict {
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
        let rank = usize::from(theirs.rank);
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
        if !ranks.contains(&rank) {
            return Verdict::Stranger("its rank is not expected here");
        }
        if theirs.lane >= lanes {
            return Verdict::Stranger("it opens more connections than it was told to");
        }
        Verdict::Peer { rank, lane: theirs.lane, lanes: theirs.lanes }
    }
}

/// The `N` bytes at `start`.
pub(crate) fn field<const N: usize>(bytes: &[u8], start: usize) -> [u8; N] {
    bytes[start..].first_chunk().copied().expect("fields lie within their fixed-size header")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{group, limits};
    use proptest::prelude::*;

    fn greeting(hello: &Hello) -> Greeting {
        hello.greeting().unwrap()
    }

    #[test]
    fn greetings_are_judged_by_run_then_generation_then_terms() {
        let ours = Hello::new(&group(5, 0, 4, 8), &limits(100));
        let check = |theirs: &Hello, expected: &str| {
            assert_eq!(Hello::from_bytes(&greeting(theirs)), *theirs);
            let verdict = format!("{:?}", ours.judge(&greeting(theirs), &(1..4), 3));
            assert!(verdict.starts_with(expected), "{verdict} is not {expected}");
        };
        let theirs = Hello::new(&group(5, 2, 4, 8), &limits(100));
        check(&theirs, "Peer { rank: 2, lane: 0, lanes: 0 }");
        check(&theirs.on_lane(2), "Peer { rank: 2, lane: 2, lanes: 0 }");
        check(&theirs.with_lanes(4), "Peer { rank: 2, lane: 0, lanes: 4 }");
        check(&theirs.on_lane(3), "Stranger");
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
        let mut bytes = greeting(&theirs);
        bytes[8..12].reverse();
        assert!(matches!(ours.judge(&bytes, &(1..4), 3), Verdict::Stranger(_)));
        assert!(matches!(ours.judge(&[0x47; GREETING_LEN], &(1..4), 3), Verdict::Stranger(_)));
    }

    #[test]
    fn a_proof_is_good_for_its_key_its_side_and_both_greetings_only() {
        let (key, dialled) = (Key::new([3; 32]), greeting(&Hello::new(&group(5, 0, 4, 8), &limits(100))));
        let dialling = greeting(&Hello::new(&group(5, 2, 4, 8), &limits(100)));
        let greetings = Greetings { dialling: &dialling, dialled: &dialled };
        let proof = greetings.proof(&key, Side::Dialling);
        assert!(greetings.are_proven(&key, Side::Dialling, proof));
        assert!(!greetings.are_proven(&key, Side::Dialled, proof), "a proof sent back");
        assert!(!greetings.are_proven(&Key::new([4; 32]), Side::Dialling, proof), "another key");
        let again = greeting(&Hello::new(&group(5, 2, 4, 8), &limits(100)));
        let replayed = Greetings { dialling: &again, ..greetings };
        assert!(!replayed.are_proven(&key, Side::Dialling, proof), "another nonce");
        for place in 0..GREETING_LEN {
            let mut changed = dialled;
            changed[place] ^= 1;
            let changed = Greetings { dialled: &changed, ..greetings };
            assert!(!changed.are_proven(&key, Side::Dialling, proof), "byte {place}");
        }
    }

    proptest! {
        /// Any bytes, and those of a real greeting with some of them changed, get a verdict; and whoever is taken for
        /// a peer has said nothing that differs from what a peer says.
        #[test]
        fn any_greeting_gets_a_verdict(
            noise in proptest::collection::vec(any::<u8>(), GREETING_LEN),
            changes in proptest::collection::vec((0..HELLO_LEN, any::<u8>()), 0..4),
        ) {
            let ours = Hello::new(&group(5, 0, 4, 8), &limits(100));
            let noise = *noise.first_chunk().unwrap();
            prop_assert!(matches!(ours.judge(&noise, &(1..4), 3), Verdict::Stranger(_)));
            let mut changed = greeting(&Hello::new(&group(5, 2, 4, 8), &limits(100)));
            for (place, byte) in changes {
                changed[place] = byte;
            }
            if let Verdict::Peer { rank, lane, lanes } = ours.judge(&changed, &(1..4), 3) {
                prop_assert!(lane < 3);
                let peer = Hello::new(&group(5, rank, 4, 8), &limits(100));
                prop_assert_eq!(Hello::from_bytes(&changed), peer.on_lane(lane).with_lanes(lanes));
            }
        }
    }
}
