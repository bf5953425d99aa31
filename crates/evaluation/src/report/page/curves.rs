//! How training went, step by step.

use maud::{Markup, html};

use super::super::cards::{FigureValue, ResultCard};
use super::super::chart::{LineChart, Sample, Series, Shape, Span, colour, number, thin};
use super::super::metrics::{Seconds, Step};
use super::super::run_files::RunFiles;
use super::words::duration;

/// The colours of a step's parts: those that follow each other are told apart easily.
const PART_COLOURS: [usize; 6] = [9, 0, 4, 1, 7, 3];

/// What all curves count along.
struct Horizontal {
    name: &'static str,
    /// Of each run: steps in one unit of the axis.
    steps: Vec<f64>,
    epoch: Option<f64>,
}

impl Horizontal {
    /// Steps, unless epochs of the runs have different numbers of them.
    fn of(runs: &[RunFiles]) -> Horizontal {
        let per_epoch: Vec<Option<u64>> = runs.iter().map(RunFiles::steps_per_epoch).collect();
        let all: Option<Vec<f64>> = per_epoch.iter().map(|steps| steps.map(|steps| steps as f64)).collect();
        match all {
            Some(steps) if steps.iter().any(|other| *other != steps[0]) => {
                Horizontal { name: "epochs", steps, epoch: None }
            }
            all => {
                let epoch = all.and_then(|steps| steps.first().copied());
                Horizontal { name: "steps", steps: vec![1.0; runs.len()], epoch }
            }
        }
    }
}

/// The charts.
pub(super) fn render(runs: &[RunFiles]) -> Markup {
    if runs.iter().all(|run| run.steps.is_empty()) {
        return html! { p.missing { "There are no steps in " code { "metrics.jsonl" } " yet: the curves begin with the first one." } };
    }
    let horizontal = Horizontal::of(runs);
    let chart = |title, decimals, span, guide, of: fn(&Step) -> f64| {
        let series = of_steps(runs, &horizontal, of);
        let (x_name, epoch) = (horizontal.name, horizontal.epoch);
        LineChart { title, unit: "", decimals, x_name, epoch, span, guide, series }.render()
    };
    let several = runs.len() > 1;
    html! {
        p.caption {
            "Along the bottom are " (horizontal.name) @if let Some(steps) = horizontal.epoch { ", " (steps) " to an epoch" } "."
            @if runs.iter().any(|run| run.steps.len() > 400) { " Lines are means of steps that follow each other, bands their extremes." }
        }
        div.charts {
            (chart("Loss", 3, Span::Fit, None, |step| step.loss))
            (chart("Collapse level", 3, Span::AtLeast(0.0, 1.0), Some((1.0, "1 is spread over the whole sphere, 0 collapse")), |step| step.collapse_level))
            (neighbours(runs, &horizontal))
            (chart("Learning rate", 4, Span::FromZero, None, |step| step.learning_rate))
            (chart("Gradient norm", 3, Span::FromZero, None, |step| step.gradient_norm))
            (chart("Images per second", 0, Span::FromZero, None, |step| step.images_per_second))
            @for (place, run) in runs.iter().enumerate() {
                @let title = if several { format!("Where time went: {}", run.name) } else { "Where time went".to_owned() };
                (shares(&title, run, &horizontal, place))
                (totals(run))
            }
        }
    }
}

fn of_steps(runs: &[RunFiles], horizontal: &Horizontal, of: fn(&Step) -> f64) -> Vec<Series> {
    let series = |(place, run): (usize, &RunFiles)| {
        let at = |step: &Step| step.step as f64 / horizontal.steps[place];
        let points: Vec<(f64, f64)> = run.steps.iter().map(|step| (at(step), of(step))).collect();
        let name = if runs.len() > 1 { run.name.clone() } else { String::new() };
        Series { name, colour: place, shape: Shape::Line, samples: thin(&points) }
    };
    runs.iter().enumerate().map(series).collect()
}

/// kNN and linear accuracy of the checkpoints.
fn neighbours(runs: &[RunFiles], horizontal: &Horizontal) -> Markup {
    let mut series = Vec::new();
    for (place, run) in runs.iter().enumerate() {
        let settings = of_cards(&run.comparable("knn"), horizontal.steps[place]);
        for (number, (setting, samples)) in settings.into_iter().enumerate() {
            let shape = if number == 0 { Shape::Marks } else { Shape::DashedMarks };
            let name = if runs.len() > 1 { format!("{}: {setting}", run.name) } else { setting };
            series.push(Series { name, colour: place, shape, samples });
        }
        let linear = of_cards(&run.comparable("linear"), horizontal.steps[place]).into_iter().next();
        if let Some((_, samples)) = linear.filter(|_| runs.len() == 1) {
            series.push(Series { name: "linear probe".to_owned(), colour: 1, shape: Shape::Marks, samples });
        }
    }
    if series.is_empty() {
        return html! {
            figure.chart { figcaption { span.title { "kNN accuracy" } }
                p.missing { "There is no kNN card yet: " code { "evaluate knn RUN --checkpoint NAME" } " makes one for a checkpoint, " code { "--random" } " for step 0." } }
        };
    }
    let title = if series.iter().any(|series| series.name == "linear probe") {
        "kNN and linear accuracy"
    } else {
        "kNN accuracy"
    };
    LineChart {
        title,
        unit: " %",
        decimals: 2,
        x_name: horizontal.name,
        epoch: horizontal.epoch,
        span: Span::Fit,
        guide: None,
        series,
    }
    .render()
}

/// The shares of cards over their steps: a curve for each setting, with the confidence intervals.
fn of_cards(cards: &[&ResultCard], steps: f64) -> Vec<(String, Vec<Sample>)> {
    let mut curves: Vec<(String, Vec<Sample>)> = Vec::new();
    for card in cards {
        for figure in &card.figures {
            // Top-5 is in the tables.
            let FigureValue::Share(share) = &figure.value else { continue };
            if figure.label == "top-5" {
                continue;
            }
            let [y, low, high] = [share.share, share.low_95, share.high_95].map(|share| 100.0 * share);
            let sample = Sample { x: card.step as f64 / steps, y, low, high };
            match curves.iter_mut().find(|(label, _)| *label == figure.label) {
                Some((_, samples)) => samples.push(sample),
                None => curves.push((figure.label.clone(), vec![sample])),
            }
        }
    }
    curves
}

/// The parts of the steps, stacked to 100 %.
fn shares(title: &str, run: &RunFiles, horizontal: &Horizontal, place: usize) -> Markup {
    let parts: [Vec<Sample>; 6] = std::array::from_fn(|part| {
        let at = |step: &Step| step.step as f64 / horizontal.steps[place];
        let points: Vec<(f64, f64)> =
            run.steps.iter().map(|step| (at(step), 100.0 * share(&step.seconds, part))).collect();
        thin(&points)
    });
    let mut below = vec![0.0; parts[0].len()];
    let mut series = Vec::new();
    for (part, samples) in parts.into_iter().enumerate() {
        let stacked = samples.iter().zip(&mut below).map(|(sample, below)| {
            let low = *below;
            *below += sample.y;
            Sample { x: sample.x, y: *below, low, high: *below }
        });
        let (name, samples) = (Seconds::NAMES[part].to_owned(), stacked.collect());
        series.push(Series { name, colour: PART_COLOURS[part], shape: Shape::Area, samples });
    }
    let span = Span::AtLeast(0.0, 100.0);
    let (x_name, epoch) = (horizontal.name, horizontal.epoch);
    LineChart { title, unit: " %", decimals: 1, x_name, epoch, span, guide: None, series }.render()
}

/// The same over all steps, in numbers.
fn totals(run: &RunFiles) -> Markup {
    let mut sums = [0.0; 6];
    for step in &run.steps {
        sums.iter_mut().zip(step.seconds.parts()).for_each(|(sum, part)| *sum += part);
    }
    let all = sums.iter().sum::<f64>().max(f64::MIN_POSITIVE);
    html! {
        figure.chart {
            figcaption { span.title { "In all steps together" } }
            table.totals {
                tbody {
                    @for ((name, sum), colour_number) in Seconds::NAMES.iter().zip(sums).zip(PART_COLOURS) {
                        tr class=(colour(colour_number)) {
                            th scope="row" { i.swatch {} (name) }
                            td.number { (number(100.0 * sum / all, 1)) " %" }
                            td.number { (duration(sum)) }
                        }
                    }
                }
            }
        }
    }
}

fn share(seconds: &Seconds, part: usize) -> f64 {
    let parts = seconds.parts();
    parts[part] / parts.iter().sum::<f64>().max(f64::MIN_POSITIVE)
}
