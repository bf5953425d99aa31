//! What a coordinator that takes charge of a run knows from the journal: who took part under the one before.

use std::collections::BTreeMap;

use protocol::{Generation, WorkerId};

use super::{Candidate, Digest, Lease, Outcome, Place};
use crate::journal::{Dealt, Record};

/// What is left of a run whose coordinator is gone. Of one that ended in order, that is only what was counted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Past {
    /// The images that it learns from, once that is known.
    pub images: Option<Dealt>,
    /// The last generation that was formed; 0 if none was. The next one has a higher number.
    pub generation: Generation,
    /// States that were made in this one or before are not the run's any more, but for those on the disk.
    pub taken_back: Generation,
    /// How many workers were admitted, and so the highest id.
    pub workers_admitted: u64,
    /// Those that were neither lost nor dismissed, and go on without a coordinator.
    pub members: BTreeMap<WorkerId, Candidate>,
    /// The workers of the last generation, in order of rank, while anyone is left; some of them may be lost.
    pub ranks: Vec<WorkerId>,
    /// Their shards.
    pub leases: Vec<Lease>,
    /// Whether that generation was told to start.
    pub has_started: bool,
    /// Steps that were told. The journal does not know them; `metrics.jsonl` does.
    pub committed_step: u64,
    /// Steps and final state of a run that was completed, and not taken back since.
    pub completed: Option<(u64, Digest)>,
    /// Checkpoints that were published.
    pub checkpoints: u64,
    /// Where the coordinator listened, if that is known.
    pub address: Option<String>,
    /// How many workers it started itself.
    pub local_workers: u32,
    /// How many it waited for.
    pub workers: u32,
}

impl Past {
    /// What remains of these records once their coordinator is gone.
    pub fn replay<'a>(records: impl IntoIterator<Item = &'a Record>) -> Past {
        let mut past = Past::default();
        for record in records {
            past.note(record);
        }
        past.lose_coordinator();
        past
    }

    /// Whether workers may be looking for a coordinator.
    pub fn has_left_workers(&self) -> bool {
        !self.members.is_empty()
    }

    fn note(&mut self, record: &Record) {
        match record {
            Record::Dealt(images) => self.images = Some(images.clone()),
            Record::Opened { address, local_workers, workers, .. } => {
                self.lose_coordinator();
                self.address.clone_from(address);
                (self.local_workers, self.workers) = (*local_workers, *workers);
            }
            Record::Joined {
                worker,
                incarnation,
                collective_address,
                description,
                outlives_coordinator,
                arithmetic,
            } => {
                self.workers_admitted = self.workers_admitted.max(*worker);
                let candidate = Candidate {
                    returning: None,
                    incarnation: *incarnation,
                    outlives_coordinator: *outlives_coordinator,
                    collective_address: collective_address.clone(),
                    description: description.clone(),
                    arithmetic: arithmetic.clone(),
                };
                self.members.insert(WorkerId(*worker), candidate);
            }
            Record::Lost { worker, .. } | Record::Left { worker, .. } => {
                self.members.remove(&WorkerId(*worker));
            }
            Record::Generation { generation, places } => {
                self.generation = Generation(*generation);
                self.ranks = places.iter().map(|place| place.worker).collect();
                self.leases = places.iter().map(Place::lease).collect();
                self.has_started = false;
            }
            Record::Started { .. } => self.has_started = true,
            Record::Checkpoint { .. } => self.checkpoints += 1,
            Record::RolledBack { generation, .. } => {
                self.taken_back = Generation(*generation);
                self.completed = None;
            }
            Record::Ended(outcome) => {
                self.completed = match outcome {
                    Outcome::Completed { step, state_hash } => Some((*step, *state_hash)),
                    Outcome::Stopped { .. } | Outcome::Failed { .. } => None,
                };
                self.members.clear();
                self.lose_coordinator();
            }
            Record::Created(_)
            | Record::Returned { .. }
            | Record::Detached { .. }
            | Record::Adopted { .. }
            | Record::Skipped { .. }
            | Record::Predicted { .. }
            | Record::Straggler { .. }
            | Record::Unhealthy { .. }
            | Record::Paused { .. }
            | Record::Continued { .. }
            | Record::StopRequested { .. } => {}
        }
    }

    /// Workers that end with their coordinator are gone. If nobody is left of its last generation, nobody has to
    /// leave it either.
    fn lose_coordinator(&mut self) {
        self.members.retain(|_, candidate| candidate.outlives_coordinator);
        if self.members.is_empty() {
            self.ranks.clear();
            self.leases.clear();
            self.has_started = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::opened;
    use super::*;

    #[test]
    fn a_run_is_complete_until_more_is_made_of_it() {
        let completed = || Record::Ended(Outcome::Completed { step: 9, state_hash: Digest([1; 32]) });
        let rolled_back = Record::RolledBack { generation: 1, checkpoint: None, step: 0 };
        let stopped = Record::Ended(Outcome::Stopped { step: 9 });
        for (next, expected) in [(opened(), Some((9, Digest([1; 32])))), (rolled_back, None), (stopped, None)]
        {
            assert_eq!(Past::replay(&[completed(), next]).completed, expected);
        }
    }
}
