//! `coordinator status`: where a run stands.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dashboard::{Asked, Status, ask, read_status, status_lines};
use protocol::Token;

use super::{StatusArguments, WhomArguments};
use crate::exit::{Ending, answer};
use crate::security::{is_this_machine, read_token};

/// Says where the run stands, once or until it has ended.
pub(super) fn run(arguments: &StatusArguments) -> Result<Ending> {
    let token = read_token(arguments.whom.token_file.as_deref())?;
    let run = meant(&arguments.whom)?;
    loop {
        let (status, asked) = read(&run, token.as_ref(), arguments.whom.insecure_network)?;
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

/// Whether `run` is an address and no folder. A token is shown there only if nobody overhears it.
pub(super) fn is_address(run: &str, token: Option<&Token>, insecure_network: bool) -> Result<bool> {
    if !run.starts_with("http://") && !run.starts_with("https://") {
        return Ok(false);
    }
    let is_safe = run.starts_with("https://") || is_this_machine(host(run)) || insecure_network;
    ensure!(
        token.is_none() || is_safe,
        "{run}: without TLS whoever sees the traffic can read the token; reach it through an SSH tunnel, or, in a \
         network where that is fine, add --insecure-network"
    );
    Ok(true)
}

pub(super) fn read(run: &str, token: Option<&Token>, insecure_network: bool) -> Result<(Status, Asked)> {
    match is_address(run, token, insecure_network)? {
        true => Ok((ask(run, token)?, Asked::Coordinator(run.to_string()))),
        false => Ok(read_status(Path::new(run), token)?),
    }
}

/// The host of an address such as `http://[::1]:7080/`.
fn host(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    match authority.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or(v6),
        None => authority.rsplit_once(':').map_or(authority, |(host, _)| host),
    }
}

fn say(status: &Status, asked: &Asked, json: bool) {
    if json {
        answer(&serde_json::to_string(status).expect("a status can be written as JSON"));
        return;
    }
    status_lines(status).iter().for_each(|line| answer(line));
    match asked {
        Asked::Coordinator(url) => answer(&format!("the page of this run: {url}")),
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
    fn a_token_goes_only_where_nobody_overhears_it() {
        for (url, expected) in [
            ("http://127.0.0.1:7080", "127.0.0.1"),
            ("http://[::1]:7080/", "::1"),
            ("http://trainer", "trainer"),
            ("https://trainer:1/a:b", "trainer"),
        ] {
            assert_eq!(host(url), expected);
        }
        let token = Token::random().unwrap();
        let error = read("http://192.0.2.7:7080", Some(&token), false).unwrap_err();
        assert!(format!("{error:#}").contains("--insecure-network"), "{error:#}");
    }

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
