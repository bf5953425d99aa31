//! A run from beginning to end: what it is made of, the server that workers connect to, and how it ends.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use protocol::{MESSAGE_BYTES, ServerTls, Token};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;
use tonic::service::interceptor::InterceptedService;

use crate::Blocks;
use crate::checkpoint::CheckpointError;
use crate::control::Control;
use crate::evaluations::Evaluations;
use crate::guard::Guard;
use crate::incoming::{self, Listener};
use crate::membership::{OnFailure, Outcome, Request, SettingsError, Timeouts};
use crate::progress::Progress;
use crate::run_directory::{RunDirectory, RunDirectoryError};
use crate::service::{Facts, Service};
use crate::supervisor::LocalWorkers;

/// Inputs that wait for the control loop; the handlers wait once they are this many.
const INPUTS_UNDER_WAY: usize = 256;

/// How long the server may take to close connections that nobody uses any more.
const SERVER_END: Duration = Duration::from_secs(1);

/// A run that is ready to be served.
#[derive(Debug)]
pub struct Run {
    /// Its folder, new or opened. In one that has checkpoints the run goes on from the newest valid one.
    pub directory: RunDirectory,
    /// What the data is, for the workers.
    pub manifest_json: String,
    /// Steps in the whole run.
    pub total_steps: u64,
    /// How many workers it waits for.
    pub workers: u32,
    /// How many of them come from other machines: where the run is complete already, they are told so.
    pub remote_workers: u32,
    /// How many it has places for.
    pub max_workers: u32,
    /// Whether workers may round differently, as different kinds of CPUs do, or of GPUs.
    pub mixes_arithmetic: bool,
    /// What the loss of one means.
    pub on_failure: OnFailure,
    /// With how few it goes on.
    pub min_workers: u32,
    /// How long it waits for what.
    pub timeouts: Timeouts,
    /// The version that workers must have too.
    pub program_version: String,
    /// What workers show to get in.
    pub token: Token,
    /// How it shows who it is; without it, calls are not encrypted.
    pub tls: Option<ServerTls>,
    /// Workers that were started with it; `None` if they come from elsewhere.
    pub local_workers: Option<LocalWorkers>,
    /// What judges the encoder meanwhile, if anything does.
    pub evaluations: Option<Evaluations>,
    /// What the first views look like, as PNG, for TensorBoard.
    pub views_png: Option<Vec<u8>>,
}

/// Why a coordinator cannot go on. A run that fails is not among these: that is an [`Outcome`].
#[derive(Debug, thiserror::Error)]
pub enum CoordinatorError {
    /// The settings do not fit each other.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The run directory cannot be used.
    #[error(transparent)]
    RunDirectory(#[from] RunDirectoryError),
    /// The checkpoints cannot be used.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Workers would refuse the answer to their first call.
    #[error(
        "recipe and manifest have {bytes} bytes, but a message holds {MESSAGE_BYTES}: use larger blocks or fewer \
         shards"
    )]
    TooLarge {
        /// Both together.
        bytes: usize,
    },
    /// Workers would start from the seed's weights.
    #[error(
        "the recipe starts from a file of weights, but the run directory has no checkpoint step-000000 of them"
    )]
    NoStart,
    /// What it shows workers is no certificate with its key.
    #[error("certificates for TLS: {0}; correct --tls-cert, --tls-key and --tls-ca")]
    Certificates(String),
    /// The server ended by itself.
    #[error("the gRPC server ended: {0}")]
    Server(String),
}

/// Runs the coordinator on `listener` until the run is over, and says how it ended.
///
/// `requests` are what a person asks for meanwhile. `observer` is called from the control loop, so it must be quick.
///
/// # Errors
/// See [`CoordinatorError`]. Workers that are connected by then are told.
pub async fn serve(
    listener: impl Listener,
    run: Run,
    blocks: Arc<dyn Blocks>,
    observer: impl FnMut(&Progress) + Send,
    mut requests: mpsc::Receiver<Request>,
) -> Result<Outcome, CoordinatorError> {
    let start = {
        let checkpoints = run.directory.checkpoints().clone();
        spawn_blocking(move || checkpoints.latest_valid())
            .await
            .expect("reading checkpoints does not panic")?
    };
    if run.directory.recipe().start.is_some() && start.is_none() {
        return Err(CoordinatorError::NoStart);
    }
    let facts = facts(&run)?;
    let grpc = grpc_server(run.tls.as_ref())?;
    let guard = Guard::new(run.token.clone());
    let (inputs, received) = mpsc::channel(INPUTS_UNDER_WAY);
    let address = listener.local_addr().ok().map(|address| address.to_string());
    let mut control = Control::new(run, address, start.as_ref(), observer, inputs.clone())?;
    let mut server = Server::start(listener, grpc, guard, Service::new(facts, blocks, inputs));

    let result = control.run(received, &mut requests, &mut server).await;
    server.end().await;
    if matches!(result, Ok(Outcome::Completed { .. })) {
        control.finish_evaluations(&mut requests).await;
    }
    if let Some(local_workers) = control.local_workers.take() {
        // Waits for the processes to end; a panic in there is no reason to lose the outcome.
        let _ = spawn_blocking(move || drop(local_workers)).await;
    }
    result
}

/// Whether workers can be shown these certificates.
///
/// # Errors
/// [`CoordinatorError::Certificates`] if one is none, or has another key.
pub fn check_certificates(tls: Option<&ServerTls>) -> Result<(), CoordinatorError> {
    grpc_server(tls).map(drop)
}

fn grpc_server(tls: Option<&ServerTls>) -> Result<tonic::transport::Server, CoordinatorError> {
    protocol::server(tls).map_err(|error| CoordinatorError::Certificates(protocol::innermost(&error)))
}

fn facts(run: &Run) -> Result<Facts, CoordinatorError> {
    let recipe = run.directory.recipe();
    let recipe_toml = recipe.to_toml();
    let bytes = recipe_toml.len() + run.manifest_json.len();
    // The rest of the answer is less than a hundred bytes.
    if bytes + 1024 > MESSAGE_BYTES {
        return Err(CoordinatorError::TooLarge { bytes });
    }
    Ok(Facts {
        program_version: run.program_version.clone(),
        run_id: Bytes::copy_from_slice(&run.directory.run_id()),
        recipe_toml,
        manifest_json: run.manifest_json.clone(),
        shards: recipe.training.shards,
        checkpoints: run.directory.checkpoints().clone(),
    })
}

/// The server's task, and the word that ends it.
pub(crate) struct Server {
    task: JoinHandle<Result<(), tonic::transport::Error>>,
    end: Option<oneshot::Sender<()>>,
}

impl Server {
    fn start(
        listener: impl Listener,
        grpc: tonic::transport::Server,
        guard: Guard,
        service: Service,
    ) -> Server {
        let incoming = incoming::accept(listener, service.facts.shards as usize);
        let (end, ended) = oneshot::channel();
        let task = tokio::spawn(grpc.serve_with_incoming_shutdown(
            InterceptedService::new(protocol::service(service), guard),
            incoming,
            async {
                // A dropped sender means the same as a sent word.
                let _ = ended.await;
            },
        ));
        Server { task, end: Some(end) }
    }

    /// Why it ended by itself, once it has.
    pub(crate) async fn ended(&mut self) -> String {
        match (&mut self.task).await {
            Ok(Ok(())) => "it stopped listening".to_string(),
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        }
    }

    async fn end(mut self) {
        drop(self.end.take());
        if timeout(SERVER_END, &mut self.task).await.is_err() {
            self.task.abort();
        }
    }
}
