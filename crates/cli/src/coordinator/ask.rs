//! `coordinator ask`: a run that is under way is asked for something, by its dashboard.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use dashboard::{ADDRESS_FILE, Action, act};

use super::status::{is_address, meant};
use super::{AskArguments, Wish};
use crate::exit::{Ending, answer};
use crate::security::read_token;

/// Asks, and says what the coordinator answered.
pub(super) fn run(arguments: &AskArguments) -> Result<Ending> {
    let token = read_token(arguments.whom.token_file.as_deref())?;
    let run = meant(&arguments.whom)?;
    let url = match is_address(&run, token.as_ref(), arguments.whom.insecure_network)? {
        true => run,
        false => fs::read_to_string(Path::new(&run).join(ADDRESS_FILE)).with_context(|| {
            format!("{run}: expected {ADDRESS_FILE} in the run's folder; no coordinator with a dashboard is at work there")
        })?,
    };
    let action = match arguments.what {
        Wish::Pause => Action::Pause,
        Wish::Continue => Action::Continue,
        Wish::Save => Action::Save,
        Wish::Stop => Action::Stop,
        Wish::Drain => Action::Drain { worker: arguments.worker.context("which worker? give --worker")? },
    };
    answer(&act(url.trim(), token.as_ref(), action)?);
    Ok(Ending::Done)
}
