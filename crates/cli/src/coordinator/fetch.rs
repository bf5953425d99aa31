//! `coordinator fetch`: downloads a public data set.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use dataset::fetch::{Archive, Event, Patience, Phase, fetch};

use super::{DataSet, FetchArguments};
use crate::display::{PLAIN_INTERVAL, Screen};
use crate::exit::{Ending, answer};
use crate::logging;

/// Makes the folder of the data set, from wherever an earlier call was interrupted.
pub(super) fn run(arguments: &FetchArguments) -> Result<Ending> {
    let screen = Screen::stderr();
    logging::start(&screen);
    let mut archive = match arguments.data_set {
        DataSet::Stl10 => Archive::stl10(),
        DataSet::Cifar10 => Archive::cifar10(),
    };
    if let Some(url) = &arguments.url {
        archive.url.clone_from(url);
    }
    let parent = match arguments.folder.as_path() {
        folder if folder.as_os_str().is_empty() => Path::new("."),
        folder => folder,
    };
    let mut told_at = Instant::now();
    let mut report = |event: Event| match event {
        Event::Progress { phase, done_bytes, total_bytes } => {
            let text = describe(phase, done_bytes, total_bytes);
            if !screen.is_terminal() && told_at.elapsed() >= PLAIN_INTERVAL {
                told_at = Instant::now();
                screen.line(&text);
            }
            screen.action(done_bytes, total_bytes, text);
        }
        Event::Interrupted { reason, pause } => {
            screen.line(&format!("interrupted: {reason}; tried again in {} s", pause.as_secs()));
        }
    };
    let fetched = fetch(&archive, parent, &Patience::default(), &mut report);
    screen.finish();
    let fetched = fetched.with_context(|| format!("fetch {}", archive.folder))?;
    answer(&format!("{} {}", fetched.folder.display(), outcome(fetched.was_there, archive.has_sums())));
    Ok(Ending::Done)
}

/// What is known of the folder.
fn outcome(was_there: bool, has_sums: bool) -> &'static str {
    match (was_there, has_sums) {
        (false, _) => "is fetched, whole and right",
        (true, true) => "was there already, whole and right",
        (true, false) => {
            "was there already: its files have the right lengths, and what they hold cannot be checked, as only the \
             archive has a published sum; to be sure of them, move the folder away and fetch again"
        }
    }
}

fn describe(phase: Phase, done_bytes: u64, total_bytes: u64) -> String {
    let verb = match phase {
        Phase::Check => "checking",
        Phase::Download => "downloading",
        Phase::Extract => "extracting",
    };
    format!("{verb} {:.0} of {:.0} MB", done_bytes as f64 / 1e6, total_bytes as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_without_sums_are_not_called_right() {
        for (archive, was_there, is_right) in [
            (Archive::stl10(), true, true),
            (Archive::stl10(), false, true),
            (Archive::cifar10(), true, false),
            (Archive::cifar10(), false, true),
        ] {
            let told = outcome(was_there, archive.has_sums());
            assert_eq!(told.contains("whole and right"), is_right, "{}: {told}", archive.folder);
        }
    }
}
