//! Messages of the contract as membership's words, and back. Nothing is decided here.

use std::time::Duration;

use protocol::{Generation, WorkerId, v1};
use recipe::LearningRateChange;
use tonic::Status;

use crate::flight_recorder::{Span, StepPhase, StepSpans};
use crate::membership::{
    Candidate, Complaint, Digest, Event, Holding, Monitors, Order, Part, Parts, Position, StepReport,
    StepSeconds,
};
use crate::service::{Input, Note};

pub(crate) fn candidate(request: v1::JoinRequest) -> Candidate {
    Candidate {
        returning: (request.worker_id != 0).then_some(WorkerId(request.worker_id)),
        incarnation: request.incarnation,
        outlives_coordinator: request.outlives_coordinator,
        collective_address: request.collective_address,
        description: request.description,
        arithmetic: request.arithmetic,
    }
}

/// What `worker` reports. `INVALID_ARGUMENT` for what this version cannot read.
pub(crate) fn input(worker: WorkerId, report: v1::report::Event) -> Result<Input, Status> {
    use v1::report::Event as Wire;
    Ok(Input::Event(match report {
        Wire::StepSpans(spans) => return Ok(Input::Note(Note::Spans(step_spans(worker, &spans)))),
        Wire::Attending(attending) => Event::Attending { worker, position: position(&attending)? },
        Wire::Heartbeat(v1::Heartbeat { generation, standstill_ms }) => Event::Heartbeat {
            worker,
            generation: Generation(generation),
            standstill: Duration::from_millis(standstill_ms),
        },
        Wire::Leaving(v1::Leaving {}) => Event::Leaving { worker },
        Wire::Assembled(assembled) => Event::Assembled {
            worker,
            generation: Generation(assembled.generation),
            holding: Holding {
                step: assembled.step,
                state_hash: digest("state_hash", &assembled.state_hash)?,
                layout_hash: digest("layout_hash", &assembled.layout_hash)?,
            },
        },
        Wire::StepDone(done) => Event::StepDone { worker, report: step_report(&done)? },
        Wire::Finished(finished) => Event::Finished {
            worker,
            generation: Generation(finished.generation),
            step: finished.step,
            state_hash: digest("state_hash", &finished.state_hash)?,
        },
        Wire::Failed(failed) => Event::WorkerFailed {
            worker,
            generation: Generation(failed.generation),
            step: failed.step,
            complaint: complaint(failed.reason, failed.suspect_worker_id),
        },
        Wire::Halted(halted) => Event::Halted {
            worker,
            generation: Generation(halted.generation),
            held_step: halted.holds_state.then_some(halted.step),
            complaint: (!halted.reason.is_empty())
                .then(|| complaint(halted.reason, halted.suspect_worker_id)),
        },
        Wire::Unsaved(v1::Unsaved { generation, reason }) => {
            Event::Unsaved { worker, generation: Generation(generation), reason }
        }
    }))
}

/// More than three for each of the most shards that a run can have are not a step's.
const MOST_SPANS: usize = 1 << 14;

fn step_spans(worker: WorkerId, step: &v1::StepSpans) -> StepSpans {
    let span = |span: &v1::Span| Span {
        phase: match span.phase() {
            v1::Phase::Unknown => StepPhase::Unknown,
            v1::Phase::Data => StepPhase::Data,
            v1::Phase::Forward => StepPhase::Forward,
            v1::Phase::Backward => StepPhase::Backward,
            v1::Phase::AllReduce => StepPhase::AllReduce,
            v1::Phase::Update => StepPhase::Update,
            v1::Phase::Monitor => StepPhase::Monitor,
        },
        shard: span.shard,
        start_us: span.start_us,
        duration_us: span.duration_us,
    };
    StepSpans {
        worker: worker.0,
        generation: step.generation,
        step: step.step,
        began_unix_us: step.began_unix_us,
        spans: step.spans.iter().take(MOST_SPANS).map(span).collect(),
    }
}

fn position(attending: &v1::Attending) -> Result<Position, Status> {
    Ok(Position {
        generation: Generation(attending.generation),
        part: match attending.part() {
            v1::Part::None => Part::None,
            v1::Part::Assembles => Part::Assembles,
            v1::Part::Trains => Part::Trains,
        },
        held_step: attending.holds_state.then_some(attending.step),
        steps: attending.steps.iter().map(step_report).collect::<Result<_, _>>()?,
        is_leaving: attending.leaves,
    })
}

/// On the wire, worker 0 is nobody.
fn complaint(reason: String, suspect_worker_id: u64) -> Complaint {
    Complaint { reason, suspect: (suspect_worker_id != 0).then_some(WorkerId(suspect_worker_id)) }
}

fn digest(field: &str, bytes: &[u8]) -> Result<Digest, Status> {
    bytes.try_into().map(Digest).map_err(|_| {
        Status::invalid_argument(format!("{field}: expected 32 bytes of BLAKE3, found {} bytes", bytes.len()))
    })
}

fn step_report(done: &v1::StepDone) -> Result<StepReport, Status> {
    Ok(StepReport {
        generation: Generation(done.generation),
        step: done.step,
        loss: done.loss,
        collapse_level: done.collapse_level,
        learning_rate: done.learning_rate,
        gradient_norm: done.gradient_norm,
        seconds: StepSeconds {
            data: done.data_seconds,
            forward: done.forward_seconds,
            backward: done.backward_seconds,
            all_reduce: done.all_reduce_seconds,
            update: done.update_seconds,
            step: done.step_seconds,
        },
        skipped: done.skipped.as_ref().map(|skipped| skipped.shards.clone()),
        state_hash: match done.state_hash.is_empty() {
            true => None,
            false => Some(digest("state_hash", &done.state_hash)?),
        },
        monitors: done.monitors.as_ref().map(monitors),
    })
}

fn monitors(monitors: &v1::Monitors) -> Monitors {
    // A message that says nothing of a part says zero.
    let parts = |parts: Option<v1::Parts>| {
        let v1::Parts { backbone, projector, predictor } = parts.unwrap_or_default();
        Parts { backbone, projector, predictor }
    };
    Monitors {
        effective_dimensions: monitors.effective_dimensions,
        gradient_norms: parts(monitors.gradient_norms),
        update_ratios: parts(monitors.update_ratios),
        statistics_change: monitors.statistics_change,
        without_gradient: monitors.without_gradient.clone(),
    }
}

fn change(change: &LearningRateChange) -> v1::LearningRateChange {
    v1::LearningRateChange { after_step: change.after_step, factor: change.factor }
}

pub(crate) fn order(order: Order) -> v1::Order {
    use v1::order::Order as Wire;
    let order = match order {
        Order::Assemble {
            generation,
            places,
            rank,
            publishes,
            limit,
            step,
            checkpoint,
            checkpoint_step,
            learning_rate_changes,
        } => {
            let members = places.iter().map(|place| v1::Member {
                worker_id: place.worker.0,
                collective_address: place.collective_address.clone(),
                first_shard: place.first_shard,
                shard_count: place.shard_count,
            });
            Wire::Assemble(v1::Assemble {
                generation: generation.0,
                members: members.collect(),
                rank: rank.0,
                publishes,
                deadline_ms: limit.as_millis() as u64,
                step,
                checkpoint: checkpoint.unwrap_or_default(),
                checkpoint_step,
                learning_rate_changes: learning_rate_changes.iter().map(change).collect(),
            })
        }
        Order::Start { generation } => Wire::Start(v1::Start { generation: generation.0 }),
        Order::Halt { generation, reason } => Wire::Halt(v1::Halt { generation: generation.0, reason }),
        Order::Save { generation } => Wire::Save(v1::Save { generation: generation.0 }),
        Order::Stop { generation, reason } => Wire::Stop(v1::Stop { generation: generation.0, reason }),
        Order::Leave => Wire::Leave(v1::Leave {}),
        Order::Dismiss { failure } => Wire::Dismiss(v1::Dismiss { failure: failure.unwrap_or_default() }),
    };
    v1::Order { order: Some(order), crc32c: 0 }.with_checksum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use proptest::prelude::*;
    use prost::Message;
    use v1::report::Event as Wire;

    /// One of each kind of report that has anything to read in it.
    fn reports() -> Vec<v1::Report> {
        let hash = Bytes::from_static(&[7; 32]);
        let (state_hash, layout_hash) = (hash.clone(), hash);
        [
            Wire::Attending(v1::Attending { generation: 3, holds_state: true, ..v1::Attending::default() }),
            Wire::Heartbeat(v1::Heartbeat { generation: 3, standstill_ms: 7 }),
            Wire::Leaving(v1::Leaving {}),
            Wire::Assembled(v1::Assembled {
                generation: 3,
                step: 9,
                state_hash: state_hash.clone(),
                layout_hash,
            }),
            Wire::StepDone(v1::StepDone { generation: 3, step: 9, loss: -0.5, ..v1::StepDone::default() }),
            Wire::StepSpans(v1::StepSpans {
                step: 9,
                spans: vec![v1::Span::default()],
                ..Default::default()
            }),
            Wire::Finished(v1::Finished { step: 9, state_hash, generation: 3 }),
            Wire::Failed(v1::Failed { step: 9, reason: "full".into(), suspect_worker_id: 2, generation: 3 }),
            Wire::Halted(v1::Halted { generation: 3, reason: "lost".into(), ..v1::Halted::default() }),
            Wire::Unsaved(v1::Unsaved { generation: 3, reason: "full".into() }),
        ]
        .into_iter()
        .map(|event| v1::Report {
            worker_id: 1,
            run_id: Bytes::from_static(&[1; 16]),
            event: Some(event),
            crc32c: 0,
        })
        .collect()
    }

    proptest! {
        /// Reports come over the network: what cannot be read is refused, whatever its bytes.
        #[test]
        fn damaged_reports_never_panic(
            report in proptest::sample::select(reports()),
            changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..6),
            noise in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let mut bytes = report.encode_to_vec();
            for (place, byte) in changes {
                let place = place.index(bytes.len());
                bytes[place] = byte;
            }
            for bytes in [bytes.clone(), noise.clone(), [bytes, noise].concat()] {
                if let Ok(v1::Report { event: Some(read), .. }) = v1::Report::decode(&bytes[..])
                    && let Err(status) = input(WorkerId(1), read)
                {
                    prop_assert_eq!(status.code(), tonic::Code::InvalidArgument);
                }
                if let Ok(request) = v1::JoinRequest::decode(&bytes[..]) {
                    let _ = candidate(request);
                }
            }
        }
    }
}
