//! Why a group could not be assembled or a bucket not folded.

use std::io;

/// Why a group could not be assembled or a bucket not folded.
///
/// A rank named here is the one this worker saw fail. When one worker ends, the others break off with each
/// other too, so different ranks may name different culprits; who is really gone is the coordinator's to say.
#[derive(Debug, thiserror::Error)]
pub enum CollectiveError {
    /// A peer closed its connection, or ended, while it was still needed.
    #[error("rank {rank} broke off the connection ({reason}); join the next generation")]
    PeerLost {
        /// The peer.
        rank: usize,
        /// What the socket said.
        reason: String,
    },
    /// A peer did not come, or did not go on, in time.
    #[error("rank {rank} was late: {what} did not end within {limit_ms} ms; see whether it still runs")]
    Deadline {
        /// The peer that is furthest behind.
        rank: usize,
        /// What was waited for.
        what: &'static str,
        /// The limit that has passed, in milliseconds.
        limit_ms: u64,
    },
    /// A peer of this generation disagrees about what is being done.
    #[error(
        "rank {rank} disagrees on the {field}: expected {expected}, found {found}; all workers must run the same program on the same recipe"
    )]
    Protocol {
        /// The peer.
        rank: usize,
        /// What the two disagree on.
        field: &'static str,
        /// This worker's value.
        expected: u64,
        /// The peer's value.
        found: u64,
    },
    /// Bytes arrived that are not those that were sent.
    #[error(
        "data from rank {rank} is corrupt: its checksum or its header is wrong; look at that worker's network and memory"
    )]
    Corrupt {
        /// The peer.
        rank: usize,
    },
    /// A peer has moved on to a newer generation.
    #[error("generation {ours} is over: a peer is already in generation {theirs}; join that one")]
    Superseded {
        /// This worker's generation.
        ours: u64,
        /// The newer one.
        theirs: u64,
    },
    /// This worker was told to leave the generation.
    #[error("generation {generation} was interrupted; assemble the next one")]
    Interrupted {
        /// The generation.
        generation: u64,
    },
    /// An earlier error has ended this collective.
    #[error("this collective has already failed; assemble the next generation")]
    Poisoned,
    /// Some worker was told to fold through shared memory only, and one cannot, or was told not to.
    #[error(
        "rank {rank} shares no memory with the others, which a worker asks for: start all of them on one host (in containers: on one network), or let them choose TCP; the logs of rank {rank} and of rank 0 say what was tried"
    )]
    NoSharedMemory {
        /// The first such rank.
        rank: usize,
    },
    /// Some worker was told to sum on GPUs only, and one has none of its own there.
    #[error(
        "rank {rank} has no GPU of its own that NCCL can sum on, which a worker asks for: give each worker a GPU and \
         NCCL, and a program built with --features cuda, or let them choose the hosts"
    )]
    NoGpu {
        /// The first such rank.
        rank: usize,
    },
    /// The library that sums on GPUs has failed, perhaps because a peer did.
    #[error("{problem}")]
    Nccl {
        /// What it says, and what to do.
        problem: String,
    },
    /// A shard of the lease has not been pushed yet.
    #[error("shard {shard} is missing from the sums; push every shard of the lease before the fold")]
    IncompleteSums {
        /// The first missing shard.
        shard: u32,
    },
    /// The list of addresses does not fit the group.
    #[error("a group of {expected} needs as many addresses, found {found}; name one for each rank in order")]
    Addresses {
        /// Workers in the group.
        expected: usize,
        /// Addresses given.
        found: usize,
    },
    /// The operating system refused something that concerns no peer.
    #[error("{what}: {source}")]
    Socket {
        /// What was tried, as a verb.
        what: &'static str,
        /// What it said.
        source: io::Error,
    },
}

impl CollectiveError {
    /// Whether only this generation is over: a peer is gone or late, bytes were lost on the way, or someone ended
    /// it. The next generation may well succeed. What remains are disagreements and mistakes, which would come
    /// back in every generation.
    pub fn ends_only_the_generation(&self) -> bool {
        match self {
            CollectiveError::PeerLost { .. }
            | CollectiveError::Deadline { .. }
            | CollectiveError::Corrupt { .. }
            | CollectiveError::Superseded { .. }
            | CollectiveError::Interrupted { .. }
            | CollectiveError::Poisoned
            | CollectiveError::Nccl { .. }
            | CollectiveError::Socket { .. } => true,
            CollectiveError::Protocol { .. }
            | CollectiveError::NoSharedMemory { .. }
            | CollectiveError::NoGpu { .. }
            | CollectiveError::IncompleteSums { .. }
            | CollectiveError::Addresses { .. } => false,
        }
    }

    /// The rank that this worker saw fail, if it was one.
    pub fn peer(&self) -> Option<usize> {
        match *self {
            CollectiveError::PeerLost { rank, .. }
            | CollectiveError::Deadline { rank, .. }
            | CollectiveError::Protocol { rank, .. }
            | CollectiveError::NoSharedMemory { rank }
            | CollectiveError::NoGpu { rank }
            | CollectiveError::Corrupt { rank } => Some(rank),
            CollectiveError::Superseded { .. }
            | CollectiveError::Interrupted { .. }
            | CollectiveError::Poisoned
            | CollectiveError::Nccl { .. }
            | CollectiveError::IncompleteSums { .. }
            | CollectiveError::Addresses { .. }
            | CollectiveError::Socket { .. } => None,
        }
    }
}
