//! The training loop: one step, from top to bottom.

use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Instant;

use bytes::Bytes;
use protocol::v1::{self, Phase};
use simsiam::{Commit, Replica, State, Trainer};

use crate::WorkerError;
use crate::publish::Publisher;
use crate::reports::{self, Reports};
use crate::session::Session;
use crate::shards;
use crate::stopwatch::Stopwatch;
use crate::training_thread::{Command, unexpected};

/// After how many steps the workers compare the hashes of their states, which must be the same. Hashing takes as long
/// as writing the state into memory, so this costs no step a hundredth of its time.
const REPLICAS_COMPARED_EVERY_STEPS: u64 = 100;

/// After how many steps the network's health is looked at, which reads weights and momentum once.
const MONITORED_EVERY_STEPS: u64 = 10;

/// Runs steps until the last one, or until any worker was asked to stop: then all stop after the same step.
/// `publisher` is there on the one worker that publishes the checkpoints. `stopping` stays set once this
/// worker was asked to, in later generations too.
///
/// An error leaves `replica` as the last committed step made it.
pub(crate) fn train(
    trainer: &Trainer,
    replica: &mut Replica,
    session: &mut Session,
    commands: &Receiver<Command>,
    mut publisher: Option<&mut Publisher>,
    reports: &Reports,
    stopping: &mut bool,
) -> Result<(), WorkerError> {
    let total_steps = trainer.schedule().total_steps();
    let mut stop = false;
    while replica.step() < total_steps && !stop {
        let mut watch = Stopwatch::start();
        let mut done = v1::StepDone { generation: session.generation(), ..v1::StepDone::default() };
        let is_save_ordered = hear(commands, session, stopping)?;

        // Forward and backward of every leased shard. Views were made while the last step ran.
        let step = replica.step();
        shards::compute(trainer, replica, session, *stopping, &mut watch)?;

        // The sum over all shards, with the same bits on every worker: from here on all decide alike.
        let folded = watch.time(Phase::AllReduce, None, || session.fold(trainer, step))?;

        // Weights, momentum, statistics and position together, or nothing.
        let rates = trainer.schedule().at(step);
        let commit = watch.time(Phase::Update, None, || trainer.commit(replica, &folded, rates));
        stop = folded.stop_requested();
        done.loss = folded.loss();
        done.collapse_level = folded.collapse_level();
        done.gradient_norm = folded.gradient_norm();
        if commit == Ok(Commit::Applied) && is_monitored(replica.step()) {
            let seen = watch.time(Phase::Monitor, None, || trainer.monitors(replica, &folded, rates));
            done.monitors = Some(reports::monitors(seen?));
        }
        drop(folded);
        match commit {
            Ok(Commit::Applied) => {}
            Ok(Commit::Skipped(found)) => {
                done.skipped = Some(v1::Skipped { shards: found.shards.clone() });
                tracing::warn!(generation = done.generation, "{}; the step is skipped", session.blame(found));
            }
            Err(found) => {
                let blame = session.blame(found);
                return Err(WorkerError::NonFinite { is_saved: save_before(publisher, replica), blame });
            }
        }

        done.step = replica.step();
        done.learning_rate = rates.encoder;
        if done.step.is_multiple_of(REPLICAS_COMPARED_EVERY_STEPS) {
            let hash = watch.time(Phase::Monitor, None, || replica.state().map(State::hash));
            done.state_hash = Bytes::copy_from_slice(&hash?.0);
        }
        let spans = watch.stop(&mut done);
        reports.step_done(done);
        reports.step_spans(spans);

        if let Some(publisher) = &mut publisher {
            publisher.publish_if_due(replica, is_save_ordered, Instant::now())?;
        }
    }
    match publisher {
        Some(publisher) => publisher.publish_last(replica.state()?, Instant::now()),
        None => Ok(()),
    }
}

/// The first step is looked at, so that what is wrong from the beginning is found there.
fn is_monitored(step: u64) -> bool {
    step == 1 || step.is_multiple_of(MONITORED_EVERY_STEPS)
}

/// Saves the state before a step that ends the run, so that the step can be computed again and looked at. Whether it
/// is saved; why the run ends matters more than that it may not be.
fn save_before(publisher: Option<&mut Publisher>, replica: &mut Replica) -> bool {
    let Some(publisher) = publisher else { return false };
    let state = replica.state().map_err(WorkerError::from);
    let saved = state.and_then(|state| publisher.publish_last(state, Instant::now()));
    saved.inspect_err(|error| tracing::error!("{error}")).is_ok()
}

/// Takes up an order, if there is one. Whether it is to save.
fn hear(commands: &Receiver<Command>, session: &Session, stopping: &mut bool) -> Result<bool, WorkerError> {
    match commands.try_recv() {
        Ok(Command::Stop) => {
            *stopping = true;
            Ok(false)
        }
        Ok(Command::Save) => Ok(true),
        Ok(Command::Halt { .. }) => Err(session.halted()),
        Ok(Command::Dismiss) => Err(WorkerError::Dismissed("dismissed in the middle of a run".to_string())),
        Ok(Command::Assemble(..) | Command::Start { .. }) => {
            Err(unexpected("a new generation cannot form while this one trains".to_string()))
        }
        Err(TryRecvError::Empty) => Ok(false),
        Err(TryRecvError::Disconnected) => Err(WorkerError::CoordinatorLost("no more orders".to_string())),
    }
}
