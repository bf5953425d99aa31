//! How anyone gets the same again.

use maud::{Markup, html};

use super::super::commands::{evaluate, train, verify};
use super::super::run_files::RunFiles;

/// Commands and recipes.
pub(super) fn render(runs: &[RunFiles]) -> Markup {
    html! { @for run in runs { (of_one(run, runs.len() > 1)) } }
}

fn of_one(run: &RunFiles, named: bool) -> Markup {
    html! {
        @if named { h3 { (run.name) } }
        p.caption {
            "The run is a function of its recipe: on a CPU of the same kind, any number of workers gives the same bits"
            @if let Some(hash) = &run.journal.state_hash { ", here the state " code.hash { (hash) } }
            "."
        }
        pre tabindex="0" { code { (train(run)) } }
        @if !run.cards.is_empty() {
            p.caption { "The figures; " code { "verify" } " computes a card again and says whether it is equal." }
            pre tabindex="0" { code {
                @for command in run.cards.iter().filter_map(|card| evaluate(run, card)) { (command) "\n" }
                "\n"
                @for card in &run.cards { (verify(run, card)) "\n" }
            } }
        }
        details open[!named] {
            summary { "The complete recipe" }
            pre tabindex="0" { code { (run.recipe.to_toml()) } }
        }
    }
}
