//! All result cards, a table for each kind.

use maud::{Markup, html};

use super::super::cards::{FigureValue, ResultCard};
use super::super::run_files::RunFiles;
use super::words::{figure, interval};

/// A card and the run that it belongs to.
type Row<'a> = (&'a RunFiles, &'a ResultCard);

/// The tables.
pub(super) fn render(runs: &[RunFiles]) -> Markup {
    let rows: Vec<Row<'_>> =
        runs.iter().flat_map(|run| run.cards.iter().map(move |card| (run, card))).collect();
    let mut kinds: Vec<&str> = rows.iter().map(|(_, card)| card.kind.as_str()).collect();
    kinds.sort_by_key(|kind| (ORDER.iter().position(|known| known == kind).unwrap_or(ORDER.len()), *kind));
    kinds.dedup();
    html! {
        @if rows.is_empty() {
            p.missing {
                "There are no result cards yet: " code { "evaluate knn RUN" } ", " code { "evaluate linear RUN" } " and "
                code { "evaluate quality RUN" } " make them."
            }
        }
        @for kind in kinds {
            h3 { (title(kind)) }
            (table(&rows.iter().filter(|(_, card)| card.kind == kind).copied().collect::<Vec<_>>(), runs.len() > 1))
        }
        @for sentence in runs.iter().flat_map(|run| &run.passed_over) { p.missing { (sentence) } }
    }
}

/// Kinds in the order in which people ask for them; others follow.
const ORDER: [&str; 6] = ["knn", "linear", "linear-folds", "linear-official", "finetune", "quality"];

fn title(kind: &str) -> String {
    match kind {
        "knn" => "k nearest neighbours".to_owned(),
        "linear" => "Linear probe".to_owned(),
        "linear-folds" => "Linear probe over folds of the training part".to_owned(),
        "linear-official" => "Linear layer by the official protocol".to_owned(),
        "finetune" => "Fine-tuned, not frozen: not comparable with the others".to_owned(),
        "quality" => "Quality without labels".to_owned(),
        other => other.replace('-', " "),
    }
}

fn table(rows: &[Row<'_>], name_runs: bool) -> Markup {
    let mut labels: Vec<&str> = Vec::new();
    for figure in rows.iter().flat_map(|(_, card)| card.columns()) {
        if !labels.contains(&figure.label.as_str()) {
            labels.push(&figure.label);
        }
    }
    let value = |card: &ResultCard, label: &str| -> Option<FigureValue> {
        card.columns().find(|figure| figure.label == label).map(|figure| figure.value.clone())
    };
    html! {
        div.scroll tabindex="0" {
            table {
                thead {
                    tr {
                        @if name_runs { th { "run" } }
                        th { "weights" } th { "images" } th.number { "px" }
                        @for label in &labels { th.number { (label) } }
                    }
                }
                tbody {
                    @for (run, card) in rows {
                        tr {
                            @if name_runs { td { (run.name) } }
                            th scope="row" title=(card.file) { (card.weights()) }
                            td { (card.data) }
                            td.number { @if card.side_px > 0 { (card.side_px) } @if card.native { " native" } }
                            @for label in &labels {
                                td.number {
                                    @if let Some(value) = value(card, label) {
                                        (figure(&value))
                                        @if let Some(interval) = interval(&value) { small title="95 % confidence interval" { (interval) } }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}
