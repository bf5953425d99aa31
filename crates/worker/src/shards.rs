//! Forward and backward of a worker's shards: one after the other, or side by side where BatchNorm takes its statistics
//! over all of them.

use std::sync::Arc;

use protocol::v1;
use simsiam::{Replica, Trainer};

use crate::WorkerError;
use crate::session::Session;
use crate::train::timed;

/// Adds up the buckets of all shards of this worker, and what that takes in `done`. With `stop`, this worker wants the
/// run to end.
pub(crate) fn compute(
    trainer: &Trainer,
    replica: &Replica,
    session: &mut Session,
    stop: bool,
    done: &mut v1::StepDone,
) -> Result<(), WorkerError> {
    session.sums().clear();
    let step = replica.step();
    if let Some(lockstep) = session.lockstep().map(Arc::clone) {
        let lease = session.lease();
        let batch = |shard| session.next_batch(step, shard).map(|batch| (shard, batch.views));
        let shards: Result<Vec<_>, WorkerError> =
            timed(&mut done.data_seconds, || lease.map(batch).collect());
        let computed = session.sums().add_side_by_side(trainer, replica, &lockstep, shards?, stop);
        if let Some(failure) = lockstep.failure() {
            return Err(session.collective_error(failure));
        }
        let (seconds, in_sums) = (computed?, lockstep.take_seconds());
        done.forward_seconds = (seconds.forward - in_sums / 2.0).max(0.0);
        done.backward_seconds = (seconds.backward - in_sums / 2.0).max(0.0);
        done.all_reduce_seconds = in_sums;
        return Ok(());
    }
    let network = trainer.bind(replica);
    while let Some(shard) = session.sums().next_shard() {
        let batch = timed(&mut done.data_seconds, || session.next_batch(step, shard))?;
        let seconds = session.sums().add(trainer, &network, batch.views, stop)?;
        done.forward_seconds += seconds.forward;
        done.backward_seconds += seconds.backward;
    }
    Ok(())
}
