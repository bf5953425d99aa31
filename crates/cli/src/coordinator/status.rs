//! `coordinator status`: where a run stands.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use coordinator::RunDirectory;
use dashboard::{Address, AskError, Asked, Credentials, Status, Watched, status_lines};

use super::{StatusArguments, WhomArguments};
use crate::exit::{self, Ending, answer};
use crate::security::read_token;

/// How long a coordinator that has answered may be away: a run that has ended has no dashboard any more, and one that is
/// started again has one in a moment.
const ABSENCE: Duration = Duration::from_secs(30);

/// Says where the run stands, once or until it has ended.
pub(super) fn run(arguments: &StatusArguments) -> Result<Ending> {
    let mut watched = watched(&arguments.whom)?;
    if !arguments.watch {
        let (status, asked) = watched.look()?;
        say(&status, &asked, arguments.json);
        return Ok(Ending::Done);
    }
    let interval = Duration::from_secs(arguments.interval_s);
    let mut is_first = true;
    let say = |(status, asked): &(Status, Asked)| {
        if !std::mem::take(&mut is_first) && !arguments.json {
            answer("");
        }
        say(status, asked, arguments.json);
    };
    let last = watch(|| watched.look(), say, || thread::sleep(interval), interval)?;
    if !last.state.is_over() {
        // Not to be taken for a line of JSON.
        let (step, state) = (last.step, last.state.word());
        exit::say(&format!(
            "the coordinator has ended or is not reachable; last seen at step {step}, {state}"
        ));
    }
    Ok(Ending::Done)
}

/// Looks until the run is over, or until nobody has answered for long. How it stood last.
fn watch(
    mut look: impl FnMut() -> Result<(Status, Asked), AskError>,
    mut say: impl FnMut(&(Status, Asked)),
    mut pause: impl FnMut(),
    interval: Duration,
) -> Result<Status, AskError> {
    let (mut last, mut absence) = (None, Duration::ZERO);
    loop {
        match (look(), last) {
            (Ok(news), _) => {
                say(&news);
                if news.0.state.is_over() {
                    return Ok(news.0);
                }
                (last, absence) = (Some(news.0), Duration::ZERO);
            }
            (Err(AskError::NoAnswer { .. }), Some(status)) => {
                absence += interval;
                if absence >= ABSENCE {
                    return Ok(status);
                }
                last = Some(status);
            }
            (Err(error), _) => return Err(error),
        }
        pause();
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
            answer(&format!("told by the files of {}{}", folder.display(), silence(folder)));
        }
    }
}

/// What is known of a coordinator that does not answer. On another machine, say, nothing.
fn silence(folder: &Path) -> String {
    let at_work = |process| format!("; a coordinator is at work ({process}), its dashboard does not answer");
    RunDirectory::holder(folder).map_or_else(String::new, at_work)
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
    fn a_run_that_was_seen_is_watched_until_it_is_over_or_nobody_answers_for_long() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        fs::write(path.join("recipe.toml"), recipe::QUICKSTART).unwrap();
        let seen = || Watched::of_run(path, Credentials::default()).look();
        let no_answer =
            || Err(AskError::NoAnswer { url: "http://a".to_string(), reason: "gone".to_string() });
        let refused =
            || Err(AskError::Refused { url: "http://a".to_string(), reason: "a token".to_string() });
        let ended = r#"{"unix_time_ms":1,"event":"ended","outcome":"stopped","step":9}"#;
        // What is heard at each look, the last one again and again; how it ends, after how many looks.
        for (looks, expected) in [
            ("seen seen over", Ok((true, 3))),
            ("seen away away over", Ok((true, 4))),
            ("seen away", Ok((false, 16))),
            ("seen away seen away", Ok((false, 18))),
            ("away", Err(1)),
            ("seen refused", Err(2)),
        ] {
            let looks: Vec<&str> = looks.split(' ').collect();
            fs::write(path.join("journal.jsonl"), "").unwrap();
            let mut count = 0;
            let look = || {
                count += 1;
                match looks[looks.len().min(count) - 1] {
                    "away" => no_answer(),
                    "refused" => refused(),
                    "over" => {
                        fs::write(path.join("journal.jsonl"), format!("{ended}\n")).unwrap();
                        seen()
                    }
                    _ => seen(),
                }
            };
            let last = watch(look, |_| {}, || {}, Duration::from_secs(2));
            let found = last.map(|status| (status.state.is_over(), count)).map_err(|_| count);
            assert_eq!(found, expected, "{looks:?}");
        }
    }

    #[test]
    fn a_coordinator_without_a_dashboard_is_seen_by_its_lock() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(silence(folder.path()), "");
        let recipe = recipe::Recipe::from_toml(recipe::QUICKSTART, &[]).unwrap();
        let run = RunDirectory::create(folder.path(), &recipe, "1").unwrap();
        let expected = format!("a coordinator is at work (process {})", std::process::id());
        assert!(silence(folder.path()).contains(&expected), "{}", silence(folder.path()));
        drop(run);
        assert_eq!(silence(folder.path()), "");
        RunDirectory::open(folder.path()).unwrap();
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
