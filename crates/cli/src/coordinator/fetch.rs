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
    let how =
        if fetched.was_there { "was there already, whole and right" } else { "is fetched, whole and right" };
    answer(&format!("{} {how}", fetched.folder.display()));
    Ok(Ending::Done)
}

fn describe(phase: Phase, done_bytes: u64, total_bytes: u64) -> String {
    let verb = match phase {
        Phase::Check => "checking",
        Phase::Download => "downloading",
        Phase::Extract => "extracting",
    };
    format!("{verb} {:.0} of {:.0} MB", done_bytes as f64 / 1e6, total_bytes as f64 / 1e6)
}
