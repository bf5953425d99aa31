//! How a run goes back to an earlier state and on from there with other learning rates.
//!
//! What workers hold was made with the old rates. So their generation is over, nothing that they say of it counts any
//! more, and the next one takes its state from the disk. That holds for workers that are away, too, and under the next
//! coordinator, which reads in the journal up to which generation states were taken back.

use std::iter::once;
use std::time::Duration;

use protocol::Generation;

use super::{Action, Membership, Phase, Rollback, Saved, Stage};
use crate::journal::Record;

impl Membership {
    /// Whether the run is to make more steps, so that it may go back, or be stopped.
    pub fn is_to_go_on(&self) -> bool {
        !self.stop_requested && !self.is_ended() && self.phase != Phase::Stopping
    }

    /// Whether what was made in `generation` is the run's. What lies on the disk always is.
    pub fn counts(&self, generation: Generation) -> bool {
        generation > self.taken_back
    }

    /// Ends the present generation; the next one begins with what is on the disk.
    pub(super) fn roll_back(&mut self, rollback: Rollback, now: Duration) -> Vec<Action> {
        let Rollback { checkpoint, step, learning_rate_changes } = rollback;
        let generation = self.generation;
        let record = Record::RolledBack { generation: generation.0, checkpoint: checkpoint.clone(), step };
        self.taken_back = generation;
        self.saved = Saved { checkpoint, step };
        self.committed_step = step;
        self.settings.learning_rate_changes = learning_rate_changes;
        self.unconfirmed.clear();
        self.saver = None;
        for member in self.members.values_mut() {
            if matches!(member.stage, Stage::Idle(_) | Stage::Finished(_)) {
                member.stage = Stage::Idle(None);
            }
        }
        let consequences = match self.phase {
            Phase::Reuniting | Phase::Assembling | Phase::Training => {
                self.break_off(format!("the run goes back to step {step}"), now)
            }
            // These end in a generation that begins with what is on the disk.
            _ => Vec::new(),
        };
        once(Action::Record(record)).chain(consequences).collect()
    }
}
