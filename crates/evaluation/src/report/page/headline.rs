//! The first screen: which runs, and how they went.

use maud::{Markup, html};

use super::super::cards::{FigureValue, ResultCard};
use super::super::chart::number;
use super::super::health::{Health, judge, last_mean};
use super::super::run_files::RunFiles;
use super::words::{date, duration, figure, images, interval, network, percent};

/// Kinds whose figures have their own places on the page.
const TILED: [&str; 4] = ["knn", "linear", "linear-folds", "quality"];

/// A figure in large type.
struct Tile {
    name: String,
    value: String,
    note: String,
}

/// The headline of a report of one run.
pub(super) fn of_one(run: &RunFiles) -> Markup {
    let (health, sentence) = judge(&run.steps, &run.cards);
    let training = &run.recipe.training;
    html! {
        p.kind { "SimSiam run" @if let Some(start) = run.journal.start_unix_ms { " · " (date(start)) } @if let Some(outcome) = &run.journal.outcome { " · " (outcome) } }
        h1 { (run.name) }
        p.subtitle {
            (network(&run.recipe)) " on " (images(&run.recipe)) " · " (training.epochs) " epochs · batch " (training.batch)
            " in " (training.shards) " shards · seed " (run.recipe.seed)
        }
        p class={ "health " (class(health)) } { (judgement(&sentence)) }
        dl.tiles {
            @for tile in tiles(run) {
                div { dt { (tile.name) } dd { (tile.value) } dd.note { (tile.note) } }
            }
        }
    }
}

/// The headline of a comparison.
pub(super) fn of_several(runs: &[RunFiles]) -> Markup {
    html! {
        p.kind { "SimSiam runs compared" }
        h1 { (runs.iter().map(|run| run.name.as_str()).collect::<Vec<_>>().join(" · ")) }
        div.scroll tabindex="0" {
            table {
                thead { tr { th { "run" } th.number { "step" } th.number { "loss" } th.number { "collapse level" } th.number { "best kNN" } th.number { "linear" } th.number { "images/s" } th { "is it healthy?" } } }
                tbody {
                    @for (place, run) in runs.iter().enumerate() {
                        @let (health, sentence) = judge(&run.steps, &run.cards);
                        @let mean = |of| if run.steps.is_empty() { f64::NAN } else { last_mean(&run.steps, of) };
                        tr {
                            th scope="row" { span class={ "c" (place % 10) } { i.swatch {} } (run.name) }
                            td.number { (run.steps.last().map_or(0, |last| last.step)) }
                            td.number { (number(mean(|step| step.loss), 3)) }
                            td.number { (number(mean(|step| step.collapse_level), 2)) }
                            td.number { (best_neighbours(run).map_or("–".to_owned(), |(_, _, share)| percent(share))) }
                            td.number { (linear(run).map_or("–".to_owned(), |tile| tile.value)) }
                            td.number { (number(mean(|step| step.images_per_second), 0)) }
                            td class={ "prose " (class(health)) } { (judgement(&sentence)) }
                        }
                    }
                }
            }
        }
    }
}

/// The sentence with its verdict, which ends at the colon, in bold.
fn judgement(sentence: &str) -> Markup {
    html! {
        @match sentence.split_once(':') {
            Some((verdict, reasons)) => { strong { (verdict) ":" } (reasons) }
            None => (sentence),
        }
    }
}

fn class(health: Health) -> &'static str {
    match health {
        Health::Good => "good",
        Health::Doubtful => "doubtful",
        Health::Bad => "bad",
    }
}

fn tiles(run: &RunFiles) -> Vec<Tile> {
    let tile = |name: &str, value: String, note: String| Tile { name: name.to_owned(), value, note };
    let mut tiles = Vec::new();
    if let Some(last) = run.steps.last() {
        let total =
            run.steps_per_epoch().map(|steps| steps.saturating_mul(run.recipe.training.epochs.into()));
        let of = total.map_or(String::new(), |total| format!(" of {}", number(total as f64, 0)));
        let epoch = format!("epoch {} of {}", last.epoch, run.recipe.training.epochs);
        tiles.push(tile("steps", format!("{}{of}", number(last.step as f64, 0)), epoch));
        let mean = |of| last_mean(&run.steps, of);
        tiles.push(tile(
            "final loss",
            number(mean(|step| step.loss), 3),
            "between −1 and 1, mean of the last steps".into(),
        ));
        tiles.push(tile(
            "collapse level",
            number(mean(|step| step.collapse_level), 2),
            "near 1 is healthy, near 0 is collapse".into(),
        ));
    }
    if let Some((setting, card, share)) = best_neighbours(run) {
        let mut note = format!("{setting}, {}", origin(card));
        if let Some(random) = random_baseline(run, card, &setting) {
            note += &format!("; random weights {}", percent(random));
        }
        tiles.push(tile("best kNN", percent(share), note));
    }
    tiles.extend(linear(run));
    for card in others(run) {
        if let Some(top1) = card.top1() {
            let value = FigureValue::Share(*top1);
            let note = format!("95 %: {}, {}", interval(&value).unwrap_or_default(), origin(card));
            tiles.push(tile(&card.kind.replace('-', " "), figure(&value), note));
        }
    }
    if !run.steps.is_empty() {
        let seconds: f64 = run.steps.iter().map(|step| step.seconds.step).sum();
        let rate = run.recipe.training.batch as f64 * run.steps.len() as f64 / seconds.max(f64::MIN_POSITIVE);
        let workers = match run.journal.workers {
            0 => String::new(),
            1 => ", 1 worker".to_owned(),
            workers => format!(", {workers} workers"),
        };
        tiles.push(tile(
            "images per second",
            number(rate, 0),
            format!("{} in steps{workers}", duration(seconds)),
        ));
    }
    tiles
}

/// Of which weights, on which images and how a figure was made, as in `10 % of labels, 20 epochs, step-000048 on cifar10`.
fn origin(card: &ResultCard) -> String {
    let settings =
        card.settings.iter().map(|setting| format!("{} {}, ", figure(&setting.value), setting.label));
    format!("{}{} on {}", settings.collect::<String>(), card.weights(), card.data)
}

/// Setting, card and share of the best kNN of a checkpoint, among cards that can be compared.
fn best_neighbours(run: &RunFiles) -> Option<(String, &ResultCard, f64)> {
    let cards = run.comparable("knn").into_iter().filter(|card| card.checkpoint.is_some());
    let shares = cards.flat_map(|card| {
        card.figures.iter().filter_map(move |figure| match &figure.value {
            FigureValue::Share(share) => Some((figure.label.clone(), card, share.share)),
            _ => None,
        })
    });
    shares.reduce(|best, next| if next.2 > best.2 { next } else { best })
}

fn random_baseline(run: &RunFiles, card: &ResultCard, setting: &str) -> Option<f64> {
    let random = run.cards.iter().find(|other| other.checkpoint.is_none() && other.compares_with(card))?;
    let figure = random.figures.iter().find(|figure| figure.label == setting)?;
    match &figure.value {
        FigureValue::Share(share) => Some(share.share),
        _ => None,
    }
}

/// The newest linear probe, or the mean over folds.
fn linear(run: &RunFiles) -> Option<Tile> {
    let card = run.newest("linear").or_else(|| run.newest("linear-folds"))?;
    let first = card.figures.first()?;
    let note = match interval(&first.value) {
        Some(interval) => format!("95 %: {interval}, {}", origin(card)),
        None => format!("{}, {}", first.label, origin(card)),
    };
    Some(Tile { name: "linear probe".to_owned(), value: figure(&first.value), note })
}

/// The newest card of each kind that has no place of its own.
fn others(run: &RunFiles) -> Vec<&ResultCard> {
    let mut kinds: Vec<&str> = run.cards.iter().map(|card| card.kind.as_str()).collect();
    kinds.sort_unstable();
    kinds.dedup();
    kinds.into_iter().filter(|kind| !TILED.contains(kind)).filter_map(|kind| run.newest(kind)).collect()
}
