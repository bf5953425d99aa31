//! What a simulated worker tells the coordinator and keeps in case that it has to be told again: as in crate `worker`.

use std::cell::RefCell;
use std::rc::Rc;

use bytes::Bytes;
use protocol::v1;
use protocol::v1::report::Event;
use tokio::sync::mpsc;

use crate::state::State;

/// Clones share it.
#[derive(Clone)]
pub(crate) struct Reports {
    pub(crate) worker_id: u64,
    run_id: Bytes,
    told: Rc<RefCell<Told>>,
}

#[derive(Default)]
struct Told {
    stream: Option<mpsc::Sender<v1::Report>>,
    position: v1::Attending,
    steps: Vec<v1::StepDone>,
    kept: Vec<Event>,
}

impl Reports {
    pub(crate) fn new(joined: &v1::JoinReply) -> Reports {
        Reports { worker_id: joined.worker_id, run_id: joined.run_id.clone(), told: Rc::default() }
    }

    pub(crate) fn attend(&self, committed_step: u64) -> mpsc::Receiver<v1::Report> {
        let mut told = self.told.borrow_mut();
        let (sender, receiver) = mpsc::channel(1024);
        let steps = told.steps.iter().filter(|done| done.step > committed_step).cloned().collect();
        let attending = v1::Attending { steps, ..told.position.clone() };
        for event in std::iter::once(Event::Attending(attending)).chain(told.kept.iter().cloned()) {
            sender.try_send(self.report(event)).unwrap();
        }
        told.stream = Some(sender);
        receiver
    }

    pub(crate) fn detach(&self) {
        self.told.borrow_mut().stream = None;
    }

    pub(crate) fn ordered_into(&self, generation: u64) {
        let mut told = self.told.borrow_mut();
        told.position.generation = generation;
        told.position.set_part(v1::Part::Assembles);
        told.steps.clear();
        told.kept.clear();
    }

    pub(crate) fn starting(&self, generation: u64) {
        let mut told = self.told.borrow_mut();
        if told.position.generation == generation {
            told.position.set_part(v1::Part::Trains);
        }
    }

    pub(crate) fn heartbeat(&self, generation: u64) {
        self.send(Event::Heartbeat(v1::Heartbeat { generation, standstill_ms: 0 }));
    }

    pub(crate) fn leaving(&self) {
        self.told.borrow_mut().position.leaves = true;
        self.send(Event::Leaving(v1::Leaving {}));
    }

    pub(crate) fn step_done(&self, generation: u64, state: &State) {
        let is_compared = state.step.is_multiple_of(10);
        let done = v1::StepDone {
            generation,
            step: state.step,
            loss: state.loss(),
            step_seconds: 0.1,
            state_hash: if is_compared { Bytes::copy_from_slice(&state.hash) } else { Bytes::new() },
            ..v1::StepDone::default()
        };
        let mut told = self.told.borrow_mut();
        if told.position.generation == generation {
            told.hold(Some(state));
            told.steps.push(done.clone());
        }
        drop(told);
        self.send(Event::StepDone(done));
    }

    pub(crate) fn assembled(&self, generation: u64, state: &State) {
        let event = Event::Assembled(v1::Assembled {
            generation,
            step: state.step,
            state_hash: Bytes::copy_from_slice(&state.hash),
            layout_hash: Bytes::from_static(&[7; 32]),
        });
        self.keep(generation, Some(state), event);
    }

    pub(crate) fn finished(&self, generation: u64, state: &State) {
        let state_hash = Bytes::copy_from_slice(&state.hash);
        let event = Event::Finished(v1::Finished { step: state.step, state_hash, generation });
        self.keep(generation, Some(state), event);
    }

    pub(crate) fn failed(&self, generation: u64, reason: &str) {
        let reason = reason.to_string();
        self.send(Event::Failed(v1::Failed { reason, generation, ..v1::Failed::default() }));
    }

    /// `reason` is empty where it was ordered.
    pub(crate) fn halted(&self, generation: u64, state: Option<&State>, reason: &str) {
        let mut told = self.told.borrow_mut();
        if told.position.generation == generation {
            told.position.set_part(v1::Part::None);
            told.hold(state);
            told.kept.clear();
        }
        drop(told);
        self.send(Event::Halted(v1::Halted {
            generation,
            holds_state: state.is_some(),
            step: state.map_or(0, |state| state.step),
            reason: reason.to_string(),
            suspect_worker_id: 0,
        }));
    }

    pub(crate) fn unsaved(&self, generation: u64, reason: &str) {
        self.send(Event::Unsaved(v1::Unsaved { generation, reason: reason.to_string() }));
    }

    fn keep(&self, generation: u64, state: Option<&State>, event: Event) {
        let mut told = self.told.borrow_mut();
        if told.position.generation == generation {
            told.kept.push(event.clone());
            told.hold(state);
        }
        drop(told);
        self.send(event);
    }

    fn send(&self, event: Event) {
        if let Some(stream) = &self.told.borrow().stream {
            // If nobody takes reports any more the connection is lost, and that is noticed elsewhere.
            let _ = stream.try_send(self.report(event));
        }
    }

    fn report(&self, event: Event) -> v1::Report {
        let (worker_id, run_id) = (self.worker_id, self.run_id.clone());
        v1::Report { worker_id, run_id, event: Some(event), crc32c: 0 }.with_checksum()
    }
}

impl Told {
    fn hold(&mut self, state: Option<&State>) {
        self.position.holds_state = state.is_some();
        self.position.step = state.map_or(0, |state| state.step);
    }
}
