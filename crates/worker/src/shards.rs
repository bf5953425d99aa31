//! Forward and backward of a worker's shards: one after the other, or side by side where BatchNorm takes its statistics
//! over all of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::v1::Phase;
use simsiam::{PhaseSeconds, Replica, Trainer};

use crate::WorkerError;
use crate::session::Session;
use crate::stopwatch::Stopwatch;

/// Adds up the buckets of all shards of this worker. With `stop`, this worker wants the
/// run to end.
pub(crate) fn compute(
    trainer: &Trainer,
    replica: &Replica,
    session: &mut Session,
    stop: bool,
    watch: &mut Stopwatch,
) -> Result<(), WorkerError> {
    session.sums().clear();
    let step = replica.step();
    if let Some(lockstep) = session.lockstep().map(Arc::clone) {
        let lease = session.lease();
        let batch = |shard| session.next_batch(step, shard).map(|batch| (shard, batch.views));
        let shards: Result<Vec<_>, WorkerError> =
            watch.time(Phase::Data, None, || lease.map(batch).collect());
        let start = Instant::now();
        let computed = session.sums().add_side_by_side(trainer, replica, &lockstep, shards?, stop);
        if let Some(failure) = lockstep.failure() {
            return Err(session.collective_error(failure));
        }
        let (seconds, in_sums) = (computed?, lockstep.take_seconds());
        spans(watch, None, start, seconds);
        watch.add(Phase::Forward, (seconds.forward - in_sums / 2.0).max(0.0));
        watch.add(Phase::Backward, (seconds.backward - in_sums / 2.0).max(0.0));
        watch.add(Phase::AllReduce, in_sums);
        return Ok(());
    }
    let network = trainer.bind(replica);
    while let Some(shard) = session.sums().next_shard() {
        let batch = watch.time(Phase::Data, Some(shard), || session.next_batch(step, shard))?;
        let start = Instant::now();
        let seconds = session.sums().add(trainer, &network, batch.views, stop)?;
        spans(watch, Some(shard), start, seconds);
        watch.add(Phase::Forward, seconds.forward);
        watch.add(Phase::Backward, seconds.backward);
    }
    Ok(())
}

/// One pass follows the other.
fn spans(watch: &mut Stopwatch, shard: Option<u32>, start: Instant, seconds: PhaseSeconds) {
    watch.span(Phase::Forward, shard, start, seconds.forward);
    let turn = start + Duration::from_secs_f64(seconds.forward);
    watch.span(Phase::Backward, shard, turn, seconds.backward);
}
