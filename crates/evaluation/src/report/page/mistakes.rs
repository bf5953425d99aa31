//! Which classes are told apart.

use maud::{Markup, html};

use super::super::cards::ResultCard;
use super::super::chart::heat_map;
use super::super::run_files::RunFiles;
use super::words::percent;
use crate::scores::Scores;

/// The confusion matrix of the newest linear probe, or else of kNN.
pub(super) fn render(run: &RunFiles) -> Markup {
    let Some((card, scores)) = ["linear", "knn"].iter().find_map(|kind| with_scores(run.newest(kind)?))
    else {
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

fn with_scores(card: &ResultCard) -> Option<(&ResultCard, &Scores)> {
    // A card is a file that anyone may have changed: a matrix of another size has no names for its cells.
    let is_square = |scores: &&Scores| {
        let (classes, confusion) = (scores.per_class.len(), &scores.confusion);
        classes > 0 && confusion.len() == classes && confusion.iter().all(|row| row.len() == classes)
    };
    card.scores.as_ref().filter(is_square).map(|scores| (card, scores))
}
