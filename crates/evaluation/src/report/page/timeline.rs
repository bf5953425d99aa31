//! What happened when.

use maud::{Markup, html};

use super::super::run_files::RunFiles;
use super::words::{date, duration};

/// The runs' stories.
pub(super) fn render(runs: &[RunFiles]) -> Markup {
    html! { @for run in runs { (of_one(run, runs.len() > 1)) } }
}

fn of_one(run: &RunFiles, named: bool) -> Markup {
    html! {
        @if named { h3 { (run.name) } }
        @match run.journal.start_unix_ms {
            None => p.missing { "There is no " code { "journal.jsonl" } ": the coordinator writes it when it makes the run." },
            Some(start) => {
                p.caption { "Begun " (date(start)) "." }
                ol.timeline {
                    @for moment in &run.journal.moments {
                        li class=(kind(&moment.event)) {
                            span.time { "+" (duration(moment.seconds)) } " "
                            strong { (moment.event.replace('_', " ")) } " " (moment.detail)
                        }
                    }
                }
            }
        }
    }
}

/// What deserves another colour.
fn kind(event: &str) -> &'static str {
    match event {
        "lost" => "bad",
        "checkpoint" | "ended" => "good",
        _ => "plain",
    }
}
