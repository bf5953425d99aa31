//! `coordinator status`: where a run stands.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};
use dashboard::{Address, Asked, Credentials, Status, Watched, status_lines};

use super::{StatusArguments, WhomArguments};
use crate::exit::{Ending, answer};
use crate::security::read_token;

/// Says where the run stands, once or until it has ended.
pub(super) fn run(arguments: &StatusArguments) -> Result<Ending> {
    let mut watched = watched(&arguments.whom)?;
    loop {
        let (status, asked) = watched.look()?;
        say(&status, &asked, arguments.json);
        if !arguments.watch || status.state.is_over() {
            return Ok(Ending::Done);
        }
        sleep(Duration::from_secs(arguments.interval_s));
        if !arguments.json {
            answer("");
        }
    }
}

/// The run that is meant, as folder or address.
pub(super) fn meant(whom: &WhomArguments) -> Result<String> {
    match &whom.run {
        Some(run) => Ok(run.clone()),
        None => Ok(newest(&whom.out)?.display().to_string()),
    }
}

/// What its coordinator is shown.
pub(super) fn credentials(whom: &WhomArguments) -> Result<Credentials> {
    let token = read_token(whom.token_file.as_deref())?;
    Ok(Credentials { token, insecure_network: whom.insecure_network })
}

/// Whether `run` is an address and no folder.
pub(super) fn is_address(run: &str) -> bool {
    run.starts_with("http://") || run.starts_with("https://")
}

/// The run that is meant, to be looked at.
pub(super) fn watched(whom: &WhomArguments) -> Result<Watched> {
    let (run, credentials) = (meant(whom)?, credentials(whom)?);
    Ok(match is_address(&run) {
        true => Watched::at(Address::new(&run), credentials),
        false => Watched::of_run(Path::new(&run), credentials),
    })
}

fn say(status: &Status, asked: &Asked, json: bool) {
    if json {
        answer(&serde_json::to_string(status).expect("a status can be written as JSON"));
        return;
    }
    status_lines(status).iter().for_each(|line| answer(line));
    match asked {
        Asked::Coordinator(whom) => answer(&format!("the page of this run: {whom}")),
        Asked::Files(_) if status.state.is_over() => {}
        Asked::Files(folder) => {
            answer(&format!("told by the files of {}, no coordinator answers", folder.display()));
        }
    }
}

/// The run that was written to last.
pub(super) fn newest(out: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(out).with_context(|| format!("look for runs in {}", out.display()))?;
    let runs = entries.flatten().filter_map(|entry| {
        let written_at = entry.path().join("journal.jsonl").metadata().ok()?.modified().ok()?;
        let metrics = entry.path().join("metrics.jsonl").metadata().and_then(|file| file.modified());
        Some((metrics.unwrap_or(written_at).max(written_at), entry.path()))
    });
    let newest = runs.max().map(|(_, path)| path);
    newest.with_context(|| format!("there is no run in {}: name a run's folder or address", out.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_run_that_was_written_to_last_is_meant() {
        let folder = tempfile::tempdir().unwrap();
        assert!(newest(folder.path()).unwrap_err().to_string().contains("no run"));
        for name in ["a", "b"] {
            fs::create_dir(folder.path().join(name)).unwrap();
            fs::write(folder.path().join(name).join("journal.jsonl"), "").unwrap();
        }
        let old = fs::File::options().append(true).open(folder.path().join("b/journal.jsonl")).unwrap();
        old.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(newest(folder.path()).unwrap(), folder.path().join("a"));
    }
}
