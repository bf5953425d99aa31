//! The status of a run from elsewhere: from its coordinator, or from its files where none answers.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use protocol::Token;
use recipe::Recipe;
use serde::de::DeserializeOwned;
use ureq::{Agent, RequestBuilder};

use crate::access::PROGRAM_HEADER;
use crate::action::Action;
use crate::history::Curves;
use crate::live::lock;
use crate::record::{self, Reader, RunRecord};
use crate::status::{Frame, Status};

/// The file of a run directory that says where its dashboard is, while there is one.
pub const ADDRESS_FILE: &str = "dashboard.url";

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

/// Who answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// The coordinator at this address.
    Coordinator(String),
    /// The files of this run, since no coordinator answered.
    Files(PathBuf),
}

/// Asks the dashboard at `url` (`http://HOST:PORT`) where its run stands. May wait for seconds.
///
/// # Errors
/// [`AskError::NoAnswer`], [`AskError::Refused`].
pub fn ask(url: &str, token: Option<&Token>) -> Result<Status, AskError> {
    parse(url, &call(url, token, &Wish::Read("/api/status"))?)
}

/// The curves of a run, in at most so many points. May wait for seconds.
///
/// # Errors
/// [`AskError`].
pub fn curves(run: &Asked, token: Option<&Token>, points: usize) -> Result<Curves, AskError> {
    match run {
        Asked::Coordinator(url) => {
            let path = format!("/api/history?points={points}");
            Ok(Curves::of_answer(&parse(url, &call(url, token, &Wish::Read(&path))?)?))
        }
        Asked::Files(folder) => {
            let (_, record) = of_files(folder)?;
            let io = |source| AskError::Io { path: folder.clone(), source };
            let found = record.history.find(1, u64::MAX, points);
            Ok(Curves::of(&record::find(folder, found, 1, u64::MAX, points).map_err(io)?))
        }
    }
}

fn parse<T: DeserializeOwned>(url: &str, body: &[u8]) -> Result<T, AskError> {
    serde_json::from_slice(body).map_err(|error| AskError::NoAnswer {
        url: url.to_string(),
        reason: format!("what came is no answer of a dashboard ({error})"),
    })
}

/// Asks the run whose dashboard is at `url` for something. May wait for seconds.
///
/// # Errors
/// [`AskError::NoAnswer`], [`AskError::Refused`], the latter also where the run is not in a state for it.
pub fn act(url: &str, token: Option<&Token>, action: Action) -> Result<String, AskError> {
    let answer = call(url, token, &Wish::Act(action))?;
    Ok(String::from_utf8_lossy(&answer).trim().to_string())
}

/// What a dashboard is called for.
enum Wish<'a> {
    /// What it has at this path.
    Read(&'a str),
    Act(Action),
}

/// The body of what the dashboard answers.
fn call(url: &str, token: Option<&Token>, wish: &Wish) -> Result<Vec<u8>, AskError> {
    let url = url.trim_end_matches('/');
    let no_answer = |reason: String| AskError::NoAnswer { url: url.to_string(), reason };
    let agent: Agent = Agent::config_builder()
        .timeout_global(Some(ANSWER_LIMIT))
        .http_status_as_error(false)
        // A token is for the coordinator, and for nobody that an answer or a variable names.
        .max_redirects(0)
        .proxy(None)
        .build()
        .into();
    let bearer = token.map(|token| format!("Bearer {}", token.secret()));
    let answer = match wish {
        Wish::Read(path) => {
            let request = agent.get(format!("{url}{path}"));
            with_token(request, bearer).call()
        }
        Wish::Act(action) => {
            let request = agent.post(format!("{url}/api/actions")).header(PROGRAM_HEADER, "1");
            with_token(request, bearer).send(serde_json::json!(action).to_string())
        }
    };
    let mut answer = answer.map_err(|error| no_answer(error.to_string()))?;
    let body = answer.body_mut().with_config().limit(ANSWER_BYTES).read_to_vec();
    let body = body.map_err(|error| no_answer(error.to_string()))?;
    match answer.status().as_u16() {
        200 | 202 => Ok(body),
        401 | 403 | 409 | 421 => {
            let reason = String::from_utf8_lossy(&body).trim().chars().take(400).collect();
            Err(AskError::Refused { url: url.to_string(), reason })
        }
        status => Err(no_answer(format!("HTTP {status}"))),
    }
}

fn with_token<B>(request: RequestBuilder<B>, bearer: Option<String>) -> RequestBuilder<B> {
    match bearer {
        Some(bearer) => request.header("authorization", bearer),
        None => request,
    }
}

/// Where the run in `folder` stands: as its coordinator says, or as its files do where none answers. May wait for
/// seconds.
///
/// # Errors
/// [`AskError::NotARun`], [`AskError::Refused`], [`AskError::Io`].
pub fn read_status(folder: &Path, token: Option<&Token>) -> Result<(Status, Asked), AskError> {
    let (recipe, record) = of_files(folder)?;
    let from_files = Status::new(&Frame::of_recipe(recipe), &record, None);
    if let Ok(url) = fs::read_to_string(folder.join(ADDRESS_FILE)) {
        let url = url.trim();
        match ask(url, token) {
            // Another run may have its dashboard there by now.
            Ok(status) if status.run_id == from_files.run_id => {
                return Ok((status, Asked::Coordinator(url.to_string())));
            }
            Err(refused @ AskError::Refused { .. }) => return Err(refused),
            Ok(_) | Err(_) => {}
        }
    }
    Ok((from_files, Asked::Files(folder.to_path_buf())))
}

fn of_files(folder: &Path) -> Result<(Recipe, RunRecord), AskError> {
    let not_a_run = |reason: String| AskError::NotARun { path: folder.to_path_buf(), reason };
    let text =
        fs::read_to_string(folder.join("recipe.toml")).map_err(|error| not_a_run(error.to_string()))?;
    let recipe = Recipe::from_toml(&text, &[]).map_err(|error| not_a_run(error.to_string()))?;
    let record = Mutex::new(RunRecord::default());
    Reader::new(folder)
        .read(|change| change(&mut lock(&record)))
        .map_err(|source| AskError::Io { path: folder.to_path_buf(), source })?;
    Ok((recipe, record.into_inner().expect("reading a run does not panic")))
}
