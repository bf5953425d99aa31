//! `coordinator ask`: a run that is under way is asked for something, by its dashboard.

use std::path::Path;

use anyhow::{Context, Result};
use dashboard::{Action, Address, act};

use super::status::{credentials, is_address, meant};
use super::{AskArguments, Wish};
use crate::exit::{Ending, answer};

/// Asks, and says what the coordinator answered.
pub(super) fn run(arguments: &AskArguments) -> Result<Ending> {
    let credentials = credentials(&arguments.whom)?;
    let run = meant(&arguments.whom)?;
    let whom = match is_address(&run) {
        true => Address::new(&run),
        false => Address::of_run(Path::new(&run))?,
    };
    let action = match arguments.what {
        Wish::Pause => Action::Pause,
        Wish::Continue => Action::Continue,
        Wish::Save => Action::Save,
        Wish::Stop => Action::Stop,
        Wish::Drain => Action::Drain { worker: arguments.worker.context("which worker? give --worker")? },
    };
    answer(&act(&whom, &credentials, action)?);
    Ok(Ending::Done)
}
