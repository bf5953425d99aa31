//! How the workers of a generation agree to sum on their GPUs: if each has one of its own, and NCCL.
//!
//! Every rank tells rank 0 what it has, a GPU only where it can load NCCL; rank 0 tells all what follows, with the id by
//! which NCCL's ranks find each other. All this is said over the connections, between workers that have proven who they are.

use crate::mesh::Mesh;
use crate::{CollectiveError, Group, Medium};
use tracing::{debug, warn};

/// A worker's GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gpu {
    /// Its number among those that this process sees.
    pub index: usize,
    /// By which two processes tell whether they have the same.
    pub uuid: [u8; 16],
}

/// What a rank says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Card {
    /// Of the GPU that it can sum on.
    gpu: Option<[u8; 16]>,
    /// It wants nothing else.
    insists: bool,
}

/// What rank 0 makes of all cards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decision {
    OnGpus,
    OnHosts,
    /// This rank has no GPU of its own, and some rank wants nothing else.
    Impossible(usize),
}

/// Bytes of NCCL's id.
pub(crate) const ID_BYTES: usize = 128;

/// Bytes of a card: flags, and the GPU.
pub(crate) const CARD_BYTES: usize = 17;

/// Bytes of a decision: which, a rank, and the id.
const DECISION_BYTES: usize = 5 + ID_BYTES;

/// The id for a sum on GPUs; `None` if the group folds through its hosts. The same on every rank.
pub(crate) fn agree(
    mesh: &mut Mesh,
    group: &Group,
    gpu: Option<Gpu>,
    medium: Medium,
) -> Result<Option<[u8; ID_BYTES]>, CollectiveError> {
    if group.world() == 1 && medium != Medium::Nccl {
        return Ok(None);
    }
    let mut card = Card::of(gpu, medium, look_for_library);
    if group.rank() > 0 {
        mesh.peers[0].send(&card.to_bytes())?;
        let mut bytes = [0; DECISION_BYTES];
        mesh.receive(0, &mut bytes)?;
        let (decision, id) = Decision::from_bytes(&bytes).ok_or(CollectiveError::Corrupt { rank: 0 })?;
        return decision.into_result(id);
    }
    let mut id = [0; ID_BYTES];
    if card.gpu.is_some() {
        match new_id() {
            Ok(new) => id = new,
            Err(reason) => {
                debug!(reason, "this worker cannot sum on its GPU");
                card.gpu = None;
            }
        }
    }
    let mut cards = vec![card];
    for place in 0..mesh.peers.len() {
        let mut bytes = [0; CARD_BYTES];
        mesh.receive(place, &mut bytes)?;
        let rank = mesh.peers[place].rank;
        cards.push(Card::from_bytes(bytes).ok_or(CollectiveError::Corrupt { rank })?);
    }
    let decision = decide(&cards);
    debug!(?cards, ?decision, "the group has agreed on GPUs or hosts");
    for peer in &mut mesh.peers {
        peer.send(&decision.to_bytes(&id))?;
    }
    decision.into_result(id)
}

/// On GPUs if every rank has one that no other has. If not, on hosts, unless someone wants nothing but GPUs.
fn decide(cards: &[Card]) -> Decision {
    let shares = |rank: usize| cards[..rank].iter().any(|other| other.gpu == cards[rank].gpu);
    match (0..cards.len()).find(|&rank| cards[rank].gpu.is_none() || shares(rank)) {
        None => Decision::OnGpus,
        Some(rank) if cards.iter().any(|card| card.insists) => Decision::Impossible(rank),
        Some(_) => Decision::OnHosts,
    }
}

#[cfg(feature = "nccl")]
fn look_for_library() -> Result<(), String> {
    crate::nccl::look_for_library().map_err(|error| error.to_string())
}

#[cfg(not(feature = "nccl"))]
fn look_for_library() -> Result<(), String> {
    Err("this program was built without NCCL".to_string())
}

#[cfg(feature = "nccl")]
fn new_id() -> Result<[u8; ID_BYTES], String> {
    crate::nccl::UniqueId::new().map(|id| id.0).map_err(|error| error.to_string())
}

#[cfg(not(feature = "nccl"))]
fn new_id() -> Result<[u8; ID_BYTES], String> {
    Err("this program was built without NCCL".to_string())
}

impl Card {
    /// Of a worker that wants `medium`. If the group agreed on GPUs and one of them could not load the library, the
    /// generation would fail, and the next one again.
    fn of(gpu: Option<Gpu>, medium: Medium, look_for_library: impl FnOnce() -> Result<(), String>) -> Card {
        let insists = medium == Medium::Nccl;
        let mut card = Card { gpu: None, insists };
        if let Some(gpu) = gpu
            && (insists || medium == Medium::Auto)
        {
            match look_for_library() {
                Ok(()) => card.gpu = Some(gpu.uuid),
                Err(reason) if insists => {
                    warn!(reason, "this worker cannot sum on its GPU, and wants nothing else");
                }
                Err(reason) => debug!(reason, "this worker cannot sum on its GPU"),
            }
        }
        card
    }

    fn to_bytes(self) -> [u8; CARD_BYTES] {
        let mut bytes = [u8::from(self.gpu.is_some()) | u8::from(self.insists) << 1; CARD_BYTES];
        bytes[1..].copy_from_slice(&self.gpu.unwrap_or_default());
        bytes
    }

    fn from_bytes(bytes: [u8; CARD_BYTES]) -> Option<Card> {
        let [flags, uuid @ ..] = bytes;
        (flags < 4).then_some(Card { gpu: (flags & 1 != 0).then_some(uuid), insists: flags & 2 != 0 })
    }
}

impl Decision {
    fn into_result(self, id: [u8; ID_BYTES]) -> Result<Option<[u8; ID_BYTES]>, CollectiveError> {
        match self {
            Decision::OnGpus => Ok(Some(id)),
            Decision::OnHosts => Ok(None),
            Decision::Impossible(rank) => Err(CollectiveError::NoGpu { rank }),
        }
    }

    fn to_bytes(self, id: &[u8; ID_BYTES]) -> [u8; DECISION_BYTES] {
        let (which, rank) = match self {
            Decision::OnGpus => (1, 0),
            Decision::OnHosts => (2, 0),
            Decision::Impossible(rank) => (3, rank as u32),
        };
        let mut bytes = [which; DECISION_BYTES];
        bytes[1..5].copy_from_slice(&rank.to_le_bytes());
        bytes[5..].copy_from_slice(id);
        bytes
    }

    fn from_bytes(bytes: &[u8; DECISION_BYTES]) -> Option<(Decision, [u8; ID_BYTES])> {
        let [which, rest @ ..] = bytes;
        let (rank, id) = (rest.first_chunk::<4>()?, rest.last_chunk::<ID_BYTES>()?);
        let decision = match which {
            1 => Decision::OnGpus,
            2 => Decision::OnHosts,
            3 => Decision::Impossible(u32::from_le_bytes(*rank) as usize),
            _ => return None,
        };
        Some((decision, *id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_counts_only_with_the_library_and_where_the_medium_allows_it() {
        let gpu = Some(Gpu { index: 0, uuid: [7; 16] });
        let found = || Ok(());
        let missing = || Err("there is no NCCL".to_string());
        for (medium, has_gpu, insists) in [
            (Medium::Auto, true, false),
            (Medium::Nccl, true, true),
            (Medium::SharedMemory, false, false),
            (Medium::Tcp, false, false),
        ] {
            let uuid = has_gpu.then_some([7; 16]);
            assert_eq!(Card::of(gpu, medium, found), Card { gpu: uuid, insists }, "{medium:?}");
            assert_eq!(Card::of(gpu, medium, missing), Card { gpu: None, insists }, "{medium:?}");
            assert_eq!(Card::of(None, medium, found), Card { gpu: None, insists }, "{medium:?}");
        }
    }

    #[test]
    fn gpus_need_one_for_each_and_only_who_requires_them_forbids_hosts() {
        let card = |gpu: Option<u8>, insists| Card { gpu: gpu.map(|number| [number; 16]), insists };
        let (first, second) = (card(Some(1), false), card(Some(2), false));
        let (none, insists) = (card(None, false), card(Some(3), true));
        for (cards, expected) in [
            (&[first, second, insists][..], Decision::OnGpus),
            (&[first], Decision::OnGpus),
            (&[first, none, second], Decision::OnHosts),
            (&[none, none], Decision::OnHosts),
            (&[first, second, first], Decision::OnHosts),
            (&[first, none, insists], Decision::Impossible(1)),
            (&[insists, first, insists], Decision::Impossible(2)),
            (&[card(None, true)], Decision::Impossible(0)),
        ] {
            assert_eq!(decide(cards), expected, "{cards:?}");
            let id = [7; ID_BYTES];
            assert_eq!(Decision::from_bytes(&expected.to_bytes(&id)), Some((expected, id)));
            for card in cards {
                assert_eq!(Card::from_bytes(card.to_bytes()), Some(*card));
            }
        }
        assert_eq!(Card::from_bytes([4; CARD_BYTES]), None);
        assert_eq!(Decision::from_bytes(&[4; DECISION_BYTES]), None);
    }
}
