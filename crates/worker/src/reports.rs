//! What a worker tells the coordinator.

use bytes::Bytes;
use protocol::{WorkerId, v1};
use simsiam::{Layout, State};
use tokio::sync::mpsc;
use v1::report::Event;

use crate::WorkerError;

/// The way up to the coordinator. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Reports {
    worker: WorkerId,
    run_id: Bytes,
    sender: mpsc::Sender<v1::Report>,
}

impl Reports {
    pub(crate) fn new(worker: WorkerId, run_id: Bytes, sender: mpsc::Sender<v1::Report>) -> Reports {
        Reports { worker, run_id, sender }
    }

    /// This worker listens for orders.
    pub(crate) fn attending(&self) {
        self.send_if_there_is_room(Event::Attending(v1::Attending {}));
    }

    /// This worker is alive, and was last ordered into `generation`.
    pub(crate) fn heartbeat(&self, generation: u64) {
        self.send_if_there_is_room(Event::Heartbeat(v1::Heartbeat { generation }));
    }

    /// A step is committed. It never waits for the coordinator: with a thousand reports under way, a
    /// measurement less is the smaller harm.
    pub(crate) fn step_done(&self, done: v1::StepDone) {
        self.send_if_there_is_room(Event::StepDone(done));
    }

    /// This worker is ready for the steps of a generation. Blocks while there is no room.
    pub(crate) fn assembled(&self, generation: u64, state: &State, layout: &Layout) {
        self.send(Event::Assembled(v1::Assembled {
            generation,
            step: state.step,
            state_hash: Bytes::copy_from_slice(&state.hash().0),
            layout_hash: Bytes::copy_from_slice(&layout.hash()),
        }));
    }

    /// The last step is done, and its checkpoint published. Blocks while there is no room.
    pub(crate) fn finished(&self, generation: u64, state: &State) {
        let state_hash = Bytes::copy_from_slice(&state.hash().0);
        self.send(Event::Finished(v1::Finished { step: state.step, state_hash, generation }));
    }

    /// This worker has left a generation with this state, because of `error` or by order. Blocks while there is
    /// no room.
    pub(crate) fn halted(&self, generation: u64, state: Option<&State>, error: Option<&WorkerError>) {
        let error = error.filter(|error| !error.is_ordered());
        self.send(Event::Halted(v1::Halted {
            generation,
            holds_state: state.is_some(),
            step: state.map_or(0, |state| state.step),
            reason: error.map(WorkerError::to_string).unwrap_or_default(),
            suspect_worker_id: error.map_or(0, suspect_worker_id),
        }));
    }

    /// This worker cannot go on. Blocks while there is no room.
    pub(crate) fn failed(&self, generation: u64, step: u64, error: &WorkerError) {
        let (reason, suspect_worker_id) = (error.to_string(), suspect_worker_id(error));
        self.send(Event::Failed(v1::Failed { step, reason, suspect_worker_id, generation }));
    }

    fn send(&self, event: Event) {
        // If nobody takes reports any more the connection is lost, and that is said elsewhere.
        let _ = self.sender.blocking_send(self.report(event));
    }

    fn send_if_there_is_room(&self, event: Event) {
        let _ = self.sender.try_send(self.report(event));
    }

    fn report(&self, event: Event) -> v1::Report {
        v1::Report { worker_id: self.worker.0, run_id: self.run_id.clone(), event: Some(event) }
    }
}

/// In a message, 0 is nobody.
fn suspect_worker_id(error: &WorkerError) -> u64 {
    error.suspect().map_or(0, |worker| worker.0)
}
