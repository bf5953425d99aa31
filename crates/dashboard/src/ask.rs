//! A coordinator is asked from elsewhere, over HTTP, by its dashboard.

use std::path::PathBuf;
use std::time::Duration;

use serde::de::DeserializeOwned;
use ureq::{Agent, RequestBuilder};

use crate::access::{PROGRAM_HEADER, RUN_HEADER};
use crate::action::Action;
use crate::address::{ADDRESS_FILE, Address, Credentials};
use crate::history::Curves;
use crate::status::Status;

/// How long a coordinator may take: it answers from its memory.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);

/// A larger answer is not one: a status has a few hundred bytes for each worker.
const ANSWER_BYTES: u64 = 16 << 20;

/// Why a status cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody is there, or something else is.
    #[error(
        "no coordinator answers at {url}: {reason}; give the address that it printed, or the folder of the run"
    )]
    NoAnswer {
        /// Who was asked.
        url: String,
        /// What came instead.
        reason: String,
    },
    /// It does not answer everyone.
    #[error("the coordinator at {url} refused: {reason}")]
    Refused {
        /// Who was asked.
        url: String,
        /// Its sentence.
        reason: String,
    },
    /// By now it is that of another run.
    #[error(
        "another run has its dashboard at {url} now, so no coordinator answers for this one; `coordinator status` with the \
         folder of the run says how it stands"
    )]
    AnotherRun {
        /// Who was asked.
        url: String,
    },
    /// It would see the token, and so would others.
    #[error(
        "{url}: without TLS whoever sees the traffic can read the token; reach it through an SSH tunnel, or, in a network \
         where that is fine, add --insecure-network"
    )]
    Overheard {
        /// Who was to be asked.
        url: String,
    },
    /// Nobody says where to ask.
    #[error(
        "{path}: expected {ADDRESS_FILE} in the run's folder; no coordinator with a dashboard is at work there"
    )]
    NoDashboard {
        /// The run.
        path: PathBuf,
    },
    /// It is no run.
    #[error(
        "{path}: expected the folder of a run, with its recipe.toml ({reason}); name the folder, or the address of a dashboard"
    )]
    NotARun {
        /// What was named.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Its files cannot be read.
    #[error("read {path}: {source}")]
    Io {
        /// The run.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
}

/// Asks a dashboard where its run stands. May wait for seconds.
///
/// # Errors
/// [`AskError::NoAnswer`], [`AskError::Refused`], [`AskError::AnotherRun`], [`AskError::Overheard`].
pub(crate) fn ask(whom: &Address, credentials: &Credentials) -> Result<Status, AskError> {
    parse(whom, &call(whom, credentials, &Wish::Read("/api/status"))?)
}

/// Asks a dashboard for the curves of its run, in at most so many points. May wait for seconds.
///
/// # Errors
/// As [`ask`].
pub(crate) fn curves(whom: &Address, credentials: &Credentials, points: usize) -> Result<Curves, AskError> {
    let path = format!("/api/history?points={points}");
    Ok(Curves::of_answer(&parse(whom, &call(whom, credentials, &Wish::Read(&path))?)?))
}

fn parse<T: DeserializeOwned>(whom: &Address, body: &[u8]) -> Result<T, AskError> {
    serde_json::from_slice(body).map_err(|error| AskError::NoAnswer {
        url: whom.url.clone(),
        reason: format!("what came is no answer of a dashboard ({error})"),
    })
}

/// Asks the run of a dashboard for something. May wait for seconds.
///
/// # Errors
/// As for its status; [`AskError::Refused`] also where the run is not in a state for it.
pub fn act(whom: &Address, credentials: &Credentials, action: Action) -> Result<String, AskError> {
    let answer = call(whom, credentials, &Wish::Act(action))?;
    Ok(String::from_utf8_lossy(&answer).trim().to_string())
}

/// What a dashboard is called for.
enum Wish<'a> {
    /// What it has at this path.
    Read(&'a str),
    Act(Action),
}

/// The body of what the dashboard answers.
fn call(whom: &Address, credentials: &Credentials, wish: &Wish) -> Result<Vec<u8>, AskError> {
    let url = &whom.url;
    let token = credentials.token_for(url)?;
    let no_answer = |reason: String| AskError::NoAnswer { url: url.clone(), reason };
    let agent: Agent = Agent::config_builder()
        .timeout_global(Some(ANSWER_LIMIT))
        .http_status_as_error(false)
        // A token is for the coordinator, and for nobody that an answer or a variable names.
        .max_redirects(0)
        .proxy(None)
        .build()
        .into();
    let bearer = token.map(|token| format!("Bearer {}", token.secret()));
    let headers = [("authorization", bearer), (RUN_HEADER, whom.run_id.clone())];
    let answer = match wish {
        Wish::Read(path) => with(agent.get(format!("{url}{path}")), headers).call(),
        Wish::Act(action) => {
            let request = agent.post(format!("{url}/api/actions")).header(PROGRAM_HEADER, "1");
            with(request, headers).send(serde_json::json!(action).to_string())
        }
    };
    let mut answer = answer.map_err(|error| no_answer(error.to_string()))?;
    let body = answer.body_mut().with_config().limit(ANSWER_BYTES).read_to_vec();
    let body = body.map_err(|error| no_answer(error.to_string()))?;
    match answer.status().as_u16() {
        200 | 202 => Ok(body),
        401 | 403 | 409 | 421 => {
            let reason = String::from_utf8_lossy(&body).trim().chars().take(400).collect();
            Err(AskError::Refused { url: url.clone(), reason })
        }
        412 => Err(AskError::AnotherRun { url: url.clone() }),
        status => Err(no_answer(format!("HTTP {status}"))),
    }
}

/// With those headers that have a value.
fn with<B>(request: RequestBuilder<B>, headers: [(&str, Option<String>); 2]) -> RequestBuilder<B> {
    headers.into_iter().fold(request, |request, (name, value)| match value {
        Some(value) => request.header(name, value),
        None => request,
    })
}
