//! What the journal tells: how the run was made, who took part, and how far it came.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::membership::{Outcome, Place};

/// One line of `journal.jsonl`. Steps are not among them: `metrics.jsonl` has a line for each, and the
/// checkpoints say which ones count. What a later version adds is read as empty where an earlier one wrote.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Record {
    /// The first line: the run exists.
    Created(Created),
    /// The images were dealt from which the run learns, as long as it lives.
    Dealt(Dealt),
    /// A coordinator took charge of the run.
    Opened {
        /// Its version.
        program_version: String,
        /// Where it starts from; `None` from the beginning, or where workers may hold a newer state.
        checkpoint: Option<String>,
        /// Steps committed there.
        step: u64,
        /// Where it listens.
        #[serde(default)]
        address: Option<String>,
        /// How many workers it waits for.
        #[serde(default)]
        workers: u32,
        /// How many of them it has started itself.
        #[serde(default)]
        local_workers: u32,
        /// The workers of the coordinator before it that may come back.
        #[serde(default)]
        awaited: Vec<u64>,
    },
    /// A worker was admitted.
    Joined {
        /// Its id.
        worker: u64,
        /// The number that it drew when it started.
        incarnation: u64,
        /// Where other workers reach it.
        collective_address: String,
        /// Its host and process.
        description: String,
        /// Whether it goes on without a coordinator.
        #[serde(default)]
        outlives_coordinator: bool,
        /// What it computes with.
        #[serde(default)]
        arithmetic: String,
    },
    /// A worker came back, from the coordinator before this one or after its connection had ended.
    Returned {
        /// Its id.
        worker: u64,
        /// Steps committed in the state that it holds, if it holds one.
        step: Option<u64>,
    },
    /// A worker's connection has ended. It may be back in a moment.
    Detached {
        /// Its id.
        worker: u64,
        /// What was seen of it.
        reason: String,
    },
    /// A worker has left in order, and the run goes on without it.
    Left {
        /// Its id.
        worker: u64,
        /// Steps committed in the state that it held, if it held one.
        step: Option<u64>,
    },
    /// A worker is gone.
    Lost {
        /// Its id.
        worker: u64,
        /// What was seen of it.
        reason: String,
    },
    /// A generation was formed.
    Generation {
        /// Its number.
        generation: u64,
        /// Its workers in order of rank, with their shards.
        places: Vec<Place>,
    },
    /// All were assembled with the same state.
    Started {
        /// The generation.
        generation: u64,
        /// The step that it runs first.
        step: u64,
        /// Hash of the state that all hold.
        state_hash: String,
    },
    /// All workers of a generation are back, and it goes on.
    Adopted {
        /// The generation.
        generation: u64,
        /// Steps that are known to be committed.
        step: u64,
    },
    /// A checkpoint was published.
    Checkpoint {
        /// The generation that made it.
        generation: u64,
        /// Its name.
        checkpoint: String,
        /// Steps committed in it.
        step: u64,
    },
    /// A step was left out, because something in it was not finite.
    Skipped {
        /// Steps committed, this one included.
        step: u64,
        /// The shards in which it was not.
        shards: Vec<u32>,
    },
    /// The first steps of a coordinator say how long the rest takes, if nothing changes and evaluations and checkpoints are
    /// left out.
    Predicted {
        /// Steps committed by then.
        step: u64,
        /// Steps after these.
        steps_left: u64,
        /// How long they take.
        seconds_left: f64,
    },
    /// The others of its generation wait for this worker.
    Straggler {
        /// Its id.
        worker: u64,
        /// Its host and process.
        description: String,
        /// How many times longer than the median of the others it takes for a shard.
        times_slower: f64,
        /// Steps committed by then.
        step: u64,
    },
    /// The network does not learn as it should.
    Unhealthy {
        /// Steps committed by then.
        step: u64,
        /// What was seen, what it means, and what to do.
        finding: String,
        /// Whether the run stops for it.
        stops: bool,
    },
    /// The run went back to an earlier state, and makes the steps after it again with other learning rates: its recipe
    /// says which.
    RolledBack {
        /// What workers hold of this generation, or of one before it, is not the run's any more.
        generation: u64,
        /// The checkpoint that it goes on from; `None` at the beginning.
        checkpoint: Option<String>,
        /// Steps committed there.
        step: u64,
    },
    /// A person wants no more steps for now.
    Paused {
        /// Steps committed by then.
        step: u64,
    },
    /// The run goes on after a pause.
    Continued {
        /// Steps committed by then.
        step: u64,
    },
    /// A stop was asked for.
    StopRequested {
        /// Steps committed by then.
        step: u64,
    },
    /// The run is over.
    Ended(Outcome),
}

impl Record {
    /// Whether it may be written later than what it tells is done. Whoever takes charge of a run must know the number of
    /// its last generation: it would give it to another one, and their workers would take each other for their own. What
    /// else is missing, it treats as something that has not happened, which costs a place or a generation and no step.
    pub(crate) fn can_wait(&self) -> bool {
        match self {
            Record::Created(_)
            | Record::Dealt(_)
            | Record::Opened { .. }
            | Record::Generation { .. }
            | Record::RolledBack { .. } => false,
            Record::Joined { .. }
            | Record::Returned { .. }
            | Record::Detached { .. }
            | Record::Left { .. }
            | Record::Lost { .. }
            | Record::Started { .. }
            | Record::Adopted { .. }
            | Record::Checkpoint { .. }
            | Record::Skipped { .. }
            | Record::Predicted { .. }
            | Record::Straggler { .. }
            | Record::Unhealthy { .. }
            | Record::Paused { .. }
            | Record::Continued { .. }
            | Record::StopRequested { .. }
            | Record::Ended(_) => true,
        }
    }
}

/// The first line of a journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Created {
    /// 32 hexadecimal digits, drawn when the run was created.
    pub run_id: String,
    /// The version of the program that created it.
    pub program_version: String,
}

/// Which images a run learns from. With others, its steps would be other steps, and a later epoch another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dealt {
    /// The data set's name, for people.
    pub name: String,
    /// Its images, with those that are left out because the shards are of one size.
    pub images: u64,
    /// What is equal only if every shard holds the same pixels in the same order.
    pub digest: String,
}

impl fmt::Display for Dealt {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.digest.get(..8).unwrap_or(&self.digest);
        write!(formatter, "{} images of {} ({digits}…)", self.images, self.name)
    }
}
