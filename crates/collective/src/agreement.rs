//! How the workers of a generation agree on memory or TCP: by trying.
//!
//! Whether two processes share a host is not to be told from addresses, names or variables; containers and network
//! namespaces make all of them lie. So rank 0 makes the memory and offers it, every other rank tries to take it and
//! says whether it has it, and rank 0 tells all what follows. All this is said over the connections, between workers
//! that have proven who they are; `shared_memory/passing.rs` tells how the memory itself gets across.

use crate::mesh::{Mesh, wait_for};
use crate::shared_memory::{NAME_LEN, Offer, Segment};
use crate::{CollectiveError, Group, Key, Medium};
use rustix::event::{PollFd, PollFlags};
use tracing::{debug, warn};

/// What a rank says about the memory that it was offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Vote {
    has_memory: bool,
    /// It wants nothing else.
    insists: bool,
}

/// What rank 0 makes of all votes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decision {
    Memory,
    Tcp,
    /// This rank has no memory, and some rank wants nothing else.
    Impossible(usize),
}

/// Bytes of an offer: whether there is one, and its name.
const OFFER_LEN: usize = 1 + NAME_LEN;

/// Bytes of a vote.
pub(crate) const VOTE_LEN: usize = 1;

/// Bytes of a decision: which, and a rank.
const DECISION_LEN: usize = 5;

/// The memory of the group, if all can share it; `None` if they fold over TCP. The same on every rank.
pub(crate) fn agree(
    mesh: &mut Mesh,
    key: &Key,
    group: &Group,
    bucket_len: usize,
    medium: Medium,
) -> Result<Option<Segment>, CollectiveError> {
    let (segment, decision) = match (group.world(), group.rank()) {
        (1, _) => return Ok(None),
        (_, 0) => lead(mesh, key, group, bucket_len, medium)?,
        _ => follow(mesh, key, group, bucket_len, medium)?,
    };
    match decision {
        Decision::Memory => Ok(segment),
        Decision::Tcp => Ok(None),
        Decision::Impossible(rank) => Err(CollectiveError::NoSharedMemory { rank }),
    }
}

fn lead(
    mesh: &mut Mesh,
    key: &Key,
    group: &Group,
    bucket_len: usize,
    medium: Medium,
) -> Result<(Option<Segment>, Decision), CollectiveError> {
    let offer = match medium {
        Medium::Tcp => Err("this worker was told to use TCP".to_string()),
        Medium::Auto | Medium::SharedMemory | Medium::Nccl => Offer::make(key, group, bucket_len),
    };
    let own = vote(medium, &offer);
    let mut offer = offer.ok();
    let mut words = [0; OFFER_LEN];
    if let Some(offer) = &offer {
        words[0] = 1;
        words[1..].copy_from_slice(&offer.name());
    }
    for peer in &mut mesh.peers {
        peer.send(&words)?;
    }
    let mut votes = vec![own];
    votes.extend(collect_votes(mesh, offer.as_mut())?);
    let decision = decide(&votes);
    for peer in &mut mesh.peers {
        peer.send(&decision.to_bytes())?;
    }
    debug!(?votes, ?decision, "the group has agreed on shared memory or TCP");
    Ok((offer.map(Offer::into_segment), decision))
}

/// Hands the memory to whoever comes for it until all peers have voted, in the order of the peers.
fn collect_votes(mesh: &mut Mesh, mut offer: Option<&mut Offer>) -> Result<Vec<Vote>, CollectiveError> {
    let mut votes: Vec<Option<Vote>> = vec![None; mesh.peers.len()];
    while let Some(missing) = votes.iter().position(Option::is_none) {
        mesh.check(mesh.peers[missing].rank)?;
        let voting = mesh.peers.iter().zip(&votes).filter(|(_, vote)| vote.is_none());
        let mut places: Vec<_> = voting.map(|(peer, _)| PollFd::new(&peer.stream, PollFlags::IN)).collect();
        places.extend(offer.iter().flat_map(|offer| offer.places()));
        wait_for(&mut places)?;
        if let Some(offer) = &mut offer {
            offer.hand_out();
        }
        for (peer, vote) in mesh.peers.iter_mut().zip(&mut votes).filter(|(_, vote)| vote.is_none()) {
            let mut byte = [0; VOTE_LEN];
            if peer.read_some(&mut byte)? == VOTE_LEN {
                *vote = Some(Vote::from_byte(byte[0]).ok_or(CollectiveError::Corrupt { rank: peer.rank })?);
            }
        }
    }
    Ok(votes.into_iter().flatten().collect())
}

fn follow(
    mesh: &mut Mesh,
    key: &Key,
    group: &Group,
    bucket_len: usize,
    medium: Medium,
) -> Result<(Option<Segment>, Decision), CollectiveError> {
    let mut words = [0; OFFER_LEN];
    mesh.receive(0, &mut words)?;
    let name = words.last_chunk().expect("an offer ends in a name");
    let segment = match (medium, words[0]) {
        (Medium::Tcp, _) => Err("this worker was told to use TCP".to_string()),
        (_, 0) => Err("rank 0 has none to offer".to_string()),
        _ => Segment::take(name, key, group, bucket_len),
    };
    mesh.peers[0].send(&[vote(medium, &segment).to_byte()])?;
    let mut words = [0; DECISION_LEN];
    mesh.receive(0, &mut words)?;
    let decision = Decision::from_bytes(words).ok_or(CollectiveError::Corrupt { rank: 0 })?;
    Ok((segment.ok(), decision))
}

/// What a worker that wants `medium` says of the memory that it has, or has not for the reason given.
fn vote<T>(medium: Medium, memory: &Result<T, String>) -> Vote {
    let insists = medium == Medium::SharedMemory;
    match memory {
        Err(reason) if insists => warn!(reason, "no shared memory, and this worker wants nothing else"),
        Err(reason) => debug!(reason, "no shared memory"),
        Ok(_) => {}
    }
    Vote { has_memory: memory.is_ok(), insists }
}

/// Memory if all have it. If not, TCP, unless someone wants nothing but memory.
fn decide(votes: &[Vote]) -> Decision {
    match votes.iter().position(|vote| !vote.has_memory) {
        None => Decision::Memory,
        Some(rank) if votes.iter().any(|vote| vote.insists) => Decision::Impossible(rank),
        Some(_) => Decision::Tcp,
    }
}

impl Vote {
    fn to_byte(self) -> u8 {
        u8::from(self.has_memory) | u8::from(self.insists) << 1
    }

    fn from_byte(byte: u8) -> Option<Self> {
        (byte < 4).then_some(Vote { has_memory: byte & 1 != 0, insists: byte & 2 != 0 })
    }
}

impl Decision {
    fn to_bytes(self) -> [u8; DECISION_LEN] {
        let (which, rank) = match self {
            Decision::Memory => (1, 0),
            Decision::Tcp => (2, 0),
            Decision::Impossible(rank) => (3, rank as u32),
        };
        let mut bytes = [which; DECISION_LEN];
        bytes[1..].copy_from_slice(&rank.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: [u8; DECISION_LEN]) -> Option<Self> {
        let [which, rank @ ..] = bytes;
        match which {
            1 => Some(Decision::Memory),
            2 => Some(Decision::Tcp),
            3 => Some(Decision::Impossible(u32::from_le_bytes(rank) as usize)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_needs_everybody_and_only_who_requires_it_forbids_tcp() {
        let [none, has, insists, both] = [0, 1, 2, 3].map(|byte| Vote::from_byte(byte).unwrap());
        for (votes, expected) in [
            (&[has, both, has][..], Decision::Memory),
            (&[has, none, has], Decision::Tcp),
            (&[none, none], Decision::Tcp),
            (&[has, none, insists], Decision::Impossible(1)),
            (&[both, has, none], Decision::Impossible(2)),
            (&[insists, has], Decision::Impossible(0)),
        ] {
            assert_eq!(decide(votes), expected, "{votes:?}");
            assert_eq!(Decision::from_bytes(expected.to_bytes()), Some(expected));
            for vote in votes {
                assert_eq!(Vote::from_byte(vote.to_byte()), Some(*vote));
            }
        }
        assert_eq!(Vote::from_byte(4), None);
        assert_eq!(Decision::from_bytes([4; DECISION_LEN]), None);
    }
}
