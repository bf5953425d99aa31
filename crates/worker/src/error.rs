//! Why a worker cannot go on.

use collective::CollectiveError;
use protocol::WorkerId;

use crate::blame::Blame;

/// Why a worker cannot go on, in a sentence for a person.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The coordinator cannot be reached.
    #[error(transparent)]
    Connect(#[from] protocol::ConnectError),
    /// The coordinator answered, but said no.
    #[error("the coordinator refused: {0}")]
    Refused(String),
    /// The connection broke before the coordinator had answered anything.
    #[error(
        "the coordinator took the connection, but it broke before the first answer ({0}); where the coordinator uses \
         TLS, give its authority by --tls-ca, and if it asks workers for a certificate, --tls-cert and --tls-key"
    )]
    Unheard(String),
    /// The coordinator's answers stopped, and it did not come back.
    #[error("the connection to the coordinator is lost ({0}); start the worker again once it is back")]
    CoordinatorLost(String),
    /// The coordinator sent something this program cannot use.
    #[error("the coordinator sent {what} that cannot be used: {problem}")]
    Unusable {
        /// What it sent.
        what: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// Images could not be had.
    #[error("read images: {0}")]
    Data(#[from] dataset::DatasetError),
    /// The gradients could not be exchanged.
    #[error("exchange gradients: {source}")]
    Collective {
        /// What happened.
        source: CollectiveError,
        /// The worker at the other end, if one caused it.
        suspect: Option<WorkerId>,
    },
    /// Loss or gradient is not finite, more often in a row than the recipe allows.
    #[error(
        "{blame}. {} In a new run lower optimizer.base_learning_rate, lengthen optimizer.warmup_epochs, or let such \
         steps be left out with training.max_skipped_steps",
        told_saved(*.is_saved)
    )]
    NonFinite {
        /// The step, and whose images it took.
        blame: Blame,
        /// Whether the state before it is saved.
        is_saved: bool,
    },
    /// This worker's device failed; another worker can take over.
    #[error(transparent)]
    Device(#[from] simsiam::DeviceFailure),
    /// A call to the coordinator failed.
    #[error("{call}: {problem}")]
    Call {
        /// What was asked, as a verb.
        call: &'static str,
        /// What the coordinator or the network said.
        problem: String,
    },
    /// The checkpoint to start from cannot be used.
    #[error("start from {name}: {source}")]
    Checkpoint {
        /// Its name.
        name: String,
        /// What is wrong with it.
        source: simsiam::checkpoint::CheckpointError,
    },
    /// The last checkpoint did not reach the run directory.
    #[error("publish the checkpoint of step {step}: {problem}")]
    Publish {
        /// Steps committed in it.
        step: u64,
        /// What the coordinator or the network said.
        problem: String,
    },
    /// A socket could not be opened.
    #[error("listen on {address} for other workers: {source}; choose another --listen")]
    Listen {
        /// The address asked for.
        address: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// The coordinator ended the run because of a failure elsewhere.
    #[error("the run ended: {0}")]
    Dismissed(String),
    /// It joined when all steps were done.
    #[error("the run is complete: there is nothing left to do")]
    Complete,
    /// This worker was told to leave before it was let in.
    #[error("told to end before it had joined the run")]
    NotJoined,
    /// The run was stopped in order, this worker's state is saved, and there are steps left to do.
    #[error("the run was stopped after step {step}; start the worker again once the run goes on")]
    Stopped {
        /// Steps committed.
        step: u64,
    },
}

fn told_saved(is_saved: bool) -> &'static str {
    match is_saved {
        true => {
            "The state before it is saved, and `worker replay` computes the step again and shows its views."
        }
        false => "This worker has not saved the state before it.",
    }
}

impl WorkerError {
    /// Whether this worker can take part in the next generation: only another worker's part, or an order, has
    /// ended this one.
    pub(crate) fn ends_only_the_generation(&self) -> bool {
        matches!(self, WorkerError::Collective { source, .. } if source.ends_only_the_generation())
    }

    /// Whether the coordinator asked for it.
    pub(crate) fn is_ordered(&self) -> bool {
        matches!(self, WorkerError::Collective { source: CollectiveError::Interrupted { .. }, .. })
    }

    /// The other worker that caused this, if one did.
    pub(crate) fn suspect(&self) -> Option<WorkerId> {
        match self {
            WorkerError::Collective { suspect, .. } => *suspect,
            _ => None,
        }
    }
}
