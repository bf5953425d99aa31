//! What the server answers from: the record that is read, what the control loop told, and who may ask.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use crate::access::Access;
use crate::action::Action;
use crate::history::{Bucket, Columns};
use crate::live::{Live, lock};
use crate::prometheus;
use crate::record::{self, RunRecord};
use crate::server::Views;
use crate::status::{Frame, State, Status};

#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) folder: PathBuf,
    pub(crate) frame: Frame,
    pub(crate) program_version: String,
    pub(crate) views: Option<Views>,
    /// Tells a page that another process answers now, whose secret is another.
    pub(crate) instance: String,
    pub(crate) access: Access,
    pub(crate) record: Mutex<RunRecord>,
    pub(crate) live: Arc<Mutex<Live>>,
    pub(crate) actions: mpsc::Sender<Action>,
    /// Whether what the run directory held at first was read.
    pub(crate) is_read: watch::Receiver<bool>,
    /// Whether the run is over and pages are told for the last time.
    pub(crate) ending: watch::Receiver<bool>,
}

/// Why an action was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotTaken {
    #[error("this is not possible as the run stands: `coordinator status` says how")]
    NotPossible,
    #[error("no such worker takes part: `coordinator status` has their numbers")]
    NoSuchWorker,
    #[error("the coordinator does not listen: it has other requests to answer first, or has ended")]
    NotHeard,
}

impl Site {
    pub(crate) fn record(&self) -> MutexGuard<'_, RunRecord> {
        lock(&self.record)
    }

    pub(crate) fn status(&self) -> Status {
        let record = self.record();
        self.status_of(&record)
    }

    fn status_of(&self, record: &RunRecord) -> Status {
        let live = lock(&self.live);
        let mut status = Status::new(&self.frame, record, Some(&live));
        // Of a drain it depends on the worker, too.
        let all = Action::OF_THE_RUN.into_iter().chain([Action::Drain { worker: 0 }]);
        let possible = all.filter(|action| is_possible(*action, status.state, &live));
        status.actions = possible.map(|action| action.name().to_string()).collect();
        status
    }

    /// What changes seldom: timeline, generations, evaluations, cards.
    pub(crate) fn story(&self, record: &RunRecord) -> Value {
        let timeline = &record.timeline;
        json!({
            "moments": timeline.moments,
            "generations": timeline.generations,
            "evaluations": record.evaluations,
            "cards": record.cards,
            "steps_per_epoch": record.steps_per_epoch.or_else(|| {
                Some(self.frame.total_steps? / u64::from(self.frame.recipe.training.epochs).max(1))
            }),
        })
    }

    /// The picture of that name, if it goes with a result card: a JPEG.
    pub(crate) fn evaluation_picture(&self, name: &str) -> Option<Vec<u8>> {
        let is_known = self.record().cards.iter().any(|card| card.picture.as_deref() == Some(name));
        is_known.then(|| fs::read(self.folder.join("evaluations").join(name)).ok()).flatten()
    }

    pub(crate) fn metrics(&self) -> String {
        let record = self.record();
        prometheus::render(&self.status_of(&record), &record, &self.program_version)
    }

    /// Whether workers train, rest because a person wants that, or have done all there was to do.
    pub(crate) fn readiness(&self) -> Result<State, State> {
        let state = self.status().state;
        match state {
            State::Training | State::Paused | State::Stopping | State::Completed => Ok(state),
            other => Err(other),
        }
    }

    /// Steps of the run, as columns; may read the file.
    pub(crate) fn history(&self, from: u64, to: u64, points: usize) -> std::io::Result<Value> {
        let (found, last, life) = {
            let record = self.record();
            (record.history.find(from, to, points), record.history.last_step(), record.life)
        };
        let buckets: Vec<Bucket> = record::find(&self.folder, found, from, to, points)?;
        Ok(json!({ "last_step": last, "life": life, "columns": Columns::of(&buckets) }))
    }

    /// Asks the run for something.
    pub(crate) fn ask(&self, action: Action) -> Result<(), NotTaken> {
        let state = self.status().state;
        // One that has just come is in the journal, before it is seen.
        let is_in_journal = |worker| self.record().timeline.has_worker(worker);
        let is_told = matches!(action, Action::Drain { worker } if is_in_journal(worker));
        let mut live = lock(&self.live);
        if !is_possible(action, state, &live) {
            return Err(NotTaken::NotPossible);
        }
        if matches!(action, Action::Drain { worker } if !is_told && !live.has_worker(worker)) {
            return Err(NotTaken::NoSuchWorker);
        }
        self.actions.try_send(action).map_err(|_| NotTaken::NotHeard)?;
        match action {
            Action::Pause => live.is_paused = true,
            Action::Continue => live.is_paused = false,
            Action::Stop => live.is_stopping = true,
            Action::Save | Action::Drain { .. } => {}
        }
        Ok(())
    }
}

/// How the run stands, seen once a second, with what was asked for meanwhile.
fn as_asked(state: State, live: &Live) -> State {
    match (live.is_paused, state) {
        (true, state) if !state.is_over() => State::Paused,
        (false, State::Paused) => State::Assembling,
        (_, state) => state,
    }
}

fn is_possible(action: Action, state: State, live: &Live) -> bool {
    action.is_possible(as_asked(state, live)) && !live.is_stopping
}
