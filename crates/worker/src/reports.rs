//! What a worker tells the coordinator, and keeps until its next generation in case that has to be told again.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use protocol::{WorkerId, v1};
use simsiam::{Layout, Monitors, Parts, State};
use tokio::sync::mpsc;
use v1::report::Event;

use crate::WorkerError;

/// Reports that may wait to be sent: minutes of the shortest steps.
const REPORTS_UNDER_WAY: usize = 1024;

/// Steps that are kept for a coordinator which comes back: an hour of quarters of a second. With a hundred bytes each
/// they fit one message. Where it is away for longer, the oldest of them are missing from the metrics.
const STEPS_KEPT: usize = 16_384;

/// The way up to the coordinator. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Reports {
    worker: WorkerId,
    run_id: Bytes,
    told: Arc<Mutex<Told>>,
}

#[derive(Debug, Default)]
struct Told {
    /// While there is a coordinator.
    stream: Option<mpsc::Sender<v1::Report>>,
    /// Where this worker stands, but for the steps.
    position: v1::Attending,
    /// The last ones of this generation, in order.
    steps: VecDeque<v1::StepDone>,
    /// What else was said of it that still holds.
    kept: Vec<Event>,
}

impl Reports {
    pub(crate) fn new(worker: WorkerId, run_id: Bytes) -> Reports {
        Reports { worker, run_id, told: Arc::default() }
    }

    /// Begins a stream to a coordinator that knows of `committed_step` steps: with where this worker stands, and
    /// what may have been missed.
    pub(crate) fn attend(&self, committed_step: u64) -> mpsc::Receiver<v1::Report> {
        let mut told = self.told();
        let (sender, receiver) = mpsc::channel(REPORTS_UNDER_WAY + told.kept.len());
        let missed = told.steps.iter().filter(|done| done.step > committed_step);
        let attending = v1::Attending { steps: missed.cloned().collect(), ..told.position.clone() };
        for event in std::iter::once(Event::Attending(attending)).chain(told.kept.iter().cloned()) {
            // There is room: the channel is new.
            let _ = sender.try_send(self.report(event));
        }
        told.stream = Some(sender);
        receiver
    }

    /// The stream has ended.
    pub(crate) fn detach(&self) {
        self.told().stream = None;
    }

    /// This worker was ordered into `generation`. What was said of the one before is known to the coordinator, which
    /// could not have formed this one without.
    pub(crate) fn ordered_into(&self, generation: u64) {
        let mut told = self.told();
        told.position.generation = generation;
        told.position.set_part(v1::Part::Assembles);
        told.steps.clear();
        told.kept.clear();
    }

    /// This worker was told to start.
    pub(crate) fn starting(&self, generation: u64) {
        let mut told = self.told();
        if told.position.generation == generation {
            told.position.set_part(v1::Part::Trains);
        }
    }

    /// This worker is alive, was last ordered into `generation`, and its fold has not moved for so long.
    pub(crate) fn heartbeat(&self, generation: u64, standstill: Duration) {
        let stream = self.told().stream.clone();
        let standstill_ms = standstill.as_millis() as u64;
        self.send_if_there_is_room(stream, Event::Heartbeat(v1::Heartbeat { generation, standstill_ms }));
    }

    /// This worker wants to leave the run, and the next coordinator is to know it too.
    pub(crate) fn leaving(&self) {
        let mut told = self.told();
        told.position.leaves = true;
        let stream = told.stream.clone();
        drop(told);
        self.send_if_there_is_room(stream, Event::Leaving(v1::Leaving {}));
    }

    /// A step is committed. It never waits for the coordinator: with a thousand reports under way, a
    /// measurement less is the smaller harm.
    pub(crate) fn step_done(&self, done: v1::StepDone) {
        let mut told = self.told();
        if told.position.generation == done.generation {
            told.hold(Some(done.step));
            if told.steps.len() == STEPS_KEPT {
                told.steps.pop_front();
            }
            told.steps.push_back(done.clone());
        }
        let stream = told.stream.clone();
        drop(told);
        self.send_if_there_is_room(stream, Event::StepDone(done));
    }

    /// Where the time of a step went, for whoever listens now.
    pub(crate) fn step_spans(&self, spans: v1::StepSpans) {
        let stream = self.told().stream.clone();
        self.send_if_there_is_room(stream, Event::StepSpans(spans));
    }

    /// This worker is ready for the steps of a generation. Blocks while there is no room.
    pub(crate) fn assembled(&self, generation: u64, state: &State, layout: &Layout) {
        let event = Event::Assembled(v1::Assembled {
            generation,
            step: state.step,
            state_hash: Bytes::copy_from_slice(&state.hash().0),
            layout_hash: Bytes::copy_from_slice(&layout.hash()),
        });
        self.send(generation, event, |told| told.hold(Some(state.step)));
    }

    /// The last step is done, and its checkpoint published. Blocks while there is no room.
    pub(crate) fn finished(&self, generation: u64, state: &State) {
        let state_hash = Bytes::copy_from_slice(&state.hash().0);
        let event = Event::Finished(v1::Finished { step: state.step, state_hash, generation });
        self.send(generation, event, |told| told.hold(Some(state.step)));
    }

    /// This worker has left a generation with the state after this step, because of `error` or by order. Blocks while there is
    /// no room.
    pub(crate) fn halted(&self, generation: u64, held_step: Option<u64>, error: Option<&WorkerError>) {
        let error = error.filter(|error| !error.is_ordered());
        let event = Event::Halted(v1::Halted {
            generation,
            holds_state: held_step.is_some(),
            step: held_step.unwrap_or(0),
            reason: error.map(WorkerError::to_string).unwrap_or_default(),
            suspect_worker_id: error.map_or(0, suspect_worker_id),
        });
        self.send(generation, event, |told| {
            told.position.set_part(v1::Part::None);
            told.hold(held_step);
            // Its place in the position says all of it.
            told.kept.clear();
        });
    }

    /// This worker was told to save, and could not. Blocks while there is no room.
    pub(crate) fn unsaved(&self, generation: u64, error: &WorkerError) {
        let event = Event::Unsaved(v1::Unsaved { generation, reason: error.to_string() });
        self.send(generation, event, |_| {});
    }

    /// This worker cannot go on. Blocks while there is no room.
    pub(crate) fn failed(&self, generation: u64, step: u64, error: &WorkerError) {
        let (reason, suspect_worker_id) = (error.to_string(), suspect_worker_id(error));
        let event = Event::Failed(v1::Failed { step, reason, suspect_worker_id, generation });
        self.send(generation, event, |_| {});
    }

    /// Sends what was said of `generation`, and keeps it while that is the present one. It is kept first: if the
    /// stream breaks meanwhile, the next one has it, and what comes twice changes nothing.
    fn send(&self, generation: u64, event: Event, note: impl FnOnce(&mut Told)) {
        let mut told = self.told();
        if told.position.generation == generation {
            // Where it has halted is its position; and a coordinator that comes back orders anew what is to be saved.
            if !matches!(event, Event::Halted(_) | Event::Unsaved(_)) {
                told.kept.push(event.clone());
            }
            note(&mut told);
        }
        let stream = told.stream.clone();
        drop(told);
        if let Some(stream) = stream {
            // If nobody takes reports any more the connection is lost, and that is noticed elsewhere.
            let _ = stream.blocking_send(self.report(event));
        }
    }

    fn send_if_there_is_room(&self, stream: Option<mpsc::Sender<v1::Report>>, event: Event) {
        if let Some(stream) = stream {
            let _ = stream.try_send(self.report(event));
        }
    }

    fn report(&self, event: Event) -> v1::Report {
        let (worker_id, run_id) = (self.worker.0, self.run_id.clone());
        v1::Report { worker_id, run_id, event: Some(event), crc32c: 0 }.with_checksum()
    }

    /// A thread that panicked while it held this has left it whole: each change is one of plain values.
    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Told {
    fn hold(&mut self, step: Option<u64>) {
        self.position.holds_state = step.is_some();
        self.position.step = step.unwrap_or(0);
    }
}

/// What a step says of the network's health, as a message.
pub(crate) fn monitors(monitors: Monitors) -> v1::Monitors {
    let parts = |parts: Parts| {
        let Parts { backbone, projector, predictor } = parts;
        Some(v1::Parts { backbone, projector, predictor })
    };
    v1::Monitors {
        effective_dimensions: monitors.effective_dimensions,
        gradient_norms: parts(monitors.gradient_norms),
        update_ratios: parts(monitors.update_ratios),
        statistics_change: monitors.statistics_change,
        without_gradient: monitors.without_gradient,
    }
}

/// In a message, 0 is nobody.
fn suspect_worker_id(error: &WorkerError) -> u64 {
    error.suspect().map_or(0, |worker| worker.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reports() -> Reports {
        Reports::new(WorkerId(3), Bytes::from_static(&[7; 16]))
    }

    fn step(generation: u64, step: u64) -> v1::StepDone {
        v1::StepDone { generation, step, ..v1::StepDone::default() }
    }

    /// Where the worker stands when it attends, and what it says after that.
    fn attend(reports: &Reports, committed_step: u64) -> (v1::Attending, Vec<Event>) {
        let mut stream = reports.attend(committed_step);
        let mut events = std::iter::from_fn(|| stream.try_recv().ok()?.event);
        let Some(Event::Attending(attending)) = events.next() else { panic!("expected Attending first") };
        (attending, events.collect())
    }

    #[test]
    fn a_new_worker_stands_nowhere() {
        assert_eq!(attend(&reports(), 0), (v1::Attending::default(), Vec::new()));
    }

    #[test]
    fn what_was_missed_is_told_to_the_next_coordinator() {
        let reports = reports();
        reports.ordered_into(2);
        reports.starting(2);
        // One of them is heard, the others are not.
        let stream = reports.attend(0);
        reports.step_done(step(2, 41));
        drop(stream);
        reports.detach();
        for number in 42..=44 {
            reports.step_done(step(2, number));
        }
        let (attending, rest) = attend(&reports, 41);
        assert_eq!((attending.generation, attending.part(), attending.step), (2, v1::Part::Trains, 44));
        assert_eq!(attending.steps.iter().map(|done| done.step).collect::<Vec<_>>(), [42, 43, 44]);
        assert_eq!(rest, []);

        // It halts while nobody listens, and is ordered into the next.
        reports.detach();
        reports.halted(2, None, None);
        reports.unsaved(2, &WorkerError::Publish { step: 44, problem: "the disk is full".to_string() });
        let (attending, rest) = attend(&reports, 44);
        assert_eq!((attending.part(), attending.holds_state, rest.len()), (v1::Part::None, false, 0));
        assert!(!attending.leaves);
        reports.leaving();
        assert!(attend(&reports, 44).0.leaves);
        reports.ordered_into(3);
        reports.step_done(step(2, 45));
        let (attending, _) = attend(&reports, 0);
        assert_eq!((attending.generation, attending.part()), (3, v1::Part::Assembles));
        assert_eq!(attending.steps, [], "nothing of an older generation is told");
    }

    #[test]
    fn the_steps_that_are_kept_are_bounded_and_fit_a_message() {
        let reports = reports();
        reports.ordered_into(1);
        for number in 1..=STEPS_KEPT as u64 + 5 {
            let full = v1::StepDone { loss: -0.5, collapse_level: 0.9, step_seconds: 0.1, ..step(1, number) };
            let times =
                v1::StepDone { data_seconds: 0.1, forward_seconds: 0.1, backward_seconds: 0.1, ..full };
            let all =
                v1::StepDone { learning_rate: 0.1, gradient_norm: 1.0, all_reduce_seconds: 0.1, ..times };
            reports.step_done(v1::StepDone { update_seconds: 0.1, ..all });
        }
        let (attending, _) = attend(&reports, 0);
        assert_eq!((attending.steps.len(), attending.steps[0].step), (STEPS_KEPT, 6));
        // A report is length-delimited fields; a step has eleven numbers of at most ten bytes each.
        let bytes = attending.steps.len() * (11 * 9 + 12);
        assert!(bytes < protocol::MESSAGE_BYTES, "{bytes}");
    }
}
