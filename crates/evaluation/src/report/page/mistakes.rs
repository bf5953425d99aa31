//! Which classes are told apart.

use maud::{Markup, html};

use super::super::chart::heat_map;
use super::super::run_files::RunFiles;
use super::words::percent;

/// The confusion matrix of the newest linear probe, or else of kNN.
pub(super) fn render(run: &RunFiles) -> Markup {
    let newest = |kind: &&str| {
        let card = run.newest(kind)?;
        Some((card, card.scores.as_ref()?))
    };
    let Some((card, scores)) = ["linear", "knn"].iter().find_map(newest) else {
        return html! { p.missing { "There is no card of a classifier yet: " code { "evaluate linear RUN" } " or " code { "evaluate knn RUN" } " makes one." } };
    };
    html! {
        p.caption {
            @if card.kind == "linear" { "The linear probe" } @else { "kNN" } " on " (card.weights()) " and " (card.data) ": rows are the true classes, columns the "
            "answers, and the bars say how much of each class is right. In all, " (scores.top1.correct) " of " (scores.top1.of) " images, "
            (percent(scores.top1.share)) "."
        }
        div.scroll tabindex="0" { (heat_map(scores)) }
    }
}
