//! The result cards of a run, read generously: kinds that this file does not know are shown by their fields.

use std::fs;
use std::io;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::card::VotesScores;
use crate::error::EvaluationError;
use crate::finetune::FinetuneSettings;
use crate::official::OfficialSettings;
use crate::probe::Optimizer;
use crate::scores::{Proportion, Scores};

/// Figures of a card that has more are cut: the card itself has all.
const MOST_FIGURES: usize = 12;

/// A result card, as far as a report shows it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ResultCard {
    /// Its file's name within the run's `evaluations`.
    pub(super) file: String,
    /// The evaluation: `knn`, `linear`, …
    pub(super) kind: String,
    /// The checkpoint; absent for the random weights of step 0.
    pub(super) checkpoint: Option<String>,
    /// Steps committed in the weights.
    pub(super) step: u64,
    /// Which data set.
    pub(super) data: String,
    /// Where that was, as the card says it.
    pub(super) source: Value,
    /// Side of the square that the network saw.
    pub(super) side_px: u64,
    /// Whether images were left at their own size.
    pub(super) native: bool,
    /// The subcommand of `evaluate` that makes such a card, if this program knows it.
    pub(super) command: Option<String>,
    /// How its classifier was trained, where cards of one kind differ in it.
    pub(super) settings: Vec<Figure>,
    /// Its results.
    pub(super) figures: Vec<Figure>,
    /// The classifier's performance in detail, of the first setting if there are several.
    pub(super) scores: Option<Scores>,
}

/// One result, or a setting that it came with.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Figure {
    pub(super) label: String,
    pub(super) value: FigureValue,
}

/// What a result is.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum FigureValue {
    /// Successes among trials.
    Share(Proportion),
    /// Mean and standard deviation of shares.
    Spread(f64, f64),
    Number(f64),
    Text(String),
}

/// What every card has.
#[derive(Deserialize)]
struct Frame {
    weights: FrameWeights,
    data: FrameData,
    #[serde(default)]
    input: Value,
    measurement: Value,
}

#[derive(Deserialize)]
struct FrameWeights {
    checkpoint: Option<String>,
    step: u64,
}

#[derive(Deserialize)]
struct FrameData {
    name: String,
    #[serde(default)]
    source: Value,
}

/// The cards in `folder`, oldest weights first, and a sentence for each file that is none. No folder, no cards.
///
/// # Errors
/// A folder or file that cannot be read.
pub(super) fn read_all(folder: &Path) -> Result<(Vec<ResultCard>, Vec<String>), EvaluationError> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Default::default()),
        other => other.map_err(EvaluationError::io("list", folder))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(EvaluationError::io("list", folder))?.file_name();
        names.extend(name.to_str().filter(|name| name.ends_with(".json")).map(str::to_owned));
    }
    names.sort_unstable();
    let (mut cards, mut passed_over) = (Vec::new(), Vec::new());
    for name in names {
        let path = folder.join(&name);
        let text = fs::read(&path).map_err(EvaluationError::io("read", &path))?;
        match parse(&name, &text) {
            Ok(card) => cards.push(card),
            Err(error) => passed_over.push(format!("{name} is no result card: {error}.")),
        }
    }
    cards.sort_by(|a, b| (a.step, &a.file).cmp(&(b.step, &b.file)));
    Ok((cards, passed_over))
}

fn parse(file: &str, text: &[u8]) -> serde_json::Result<ResultCard> {
    let Frame { weights, data, input, measurement } = serde_json::from_slice(text)?;
    let kind = measurement["evaluation"].as_str().unwrap_or("unknown").to_owned();
    let (figures, scores) = match kind.as_str() {
        "knn" => neighbours(&measurement["results"])?,
        "linear-folds" => (folds(&measurement), None),
        _ => (generic(&measurement), find_scores(&measurement)),
    };
    Ok(ResultCard {
        file: file.to_owned(),
        checkpoint: weights.checkpoint,
        step: weights.step,
        data: data.name,
        source: data.source,
        side_px: input["side_px"].as_u64().unwrap_or(0),
        native: input["input"] == "native",
        command: command(&kind, &measurement),
        settings: settings(&measurement["settings"]),
        kind,
        figures,
        scores: scores.filter(names_its_cells),
    })
}

/// A card is a file that anyone may have changed: a matrix of another size has no names for its cells.
fn names_its_cells(scores: &Scores) -> bool {
    let (classes, confusion) = (scores.per_class.len(), &scores.confusion);
    classes > 0 && confusion.len() == classes && confusion.iter().all(|row| row.len() == classes)
}

fn command(kind: &str, measurement: &Value) -> Option<String> {
    match (kind, measurement["results"].as_array().map(Vec::as_slice)) {
        ("knn", Some([one])) => {
            let votes = &one["votes"];
            Some(format!("knn --k {} --temperature {}", votes["k"], votes["temperature"]))
        }
        ("linear-folds", _) => Some("linear --folds".to_owned()),
        ("linear-official", _) => {
            serde_json::from_value(measurement["settings"].clone()).ok().map(|settings| official(&settings))
        }
        ("finetune", _) => {
            serde_json::from_value(measurement["settings"].clone()).ok().map(|settings| finetune(&settings))
        }
        ("knn" | "linear" | "quality", _) => Some(kind.to_owned()),
        _ => None,
    }
}

fn official(settings: &OfficialSettings) -> String {
    let OfficialSettings { optimizer, epochs, batch, base_learning_rate, seed, .. } = settings;
    let optimizer = match optimizer {
        Optimizer::Sgd => "sgd",
        Optimizer::Lars => "lars",
    };
    format!(
        "linear --protocol official --optimizer {optimizer} --epochs {epochs} --batch {batch} --learning-rate \
         {base_learning_rate} --seed {seed}"
    )
}

fn finetune(settings: &FinetuneSettings) -> String {
    let FinetuneSettings { labels_percent, epochs, batch, seed, .. } = settings;
    let (backbone, classifier) = (settings.backbone_learning_rate, settings.classifier_learning_rate);
    format!(
        "finetune --labels {labels_percent} --epochs {epochs} --batch {batch} --learning-rate {backbone} \
         --classifier-learning-rate {classifier} --seed {seed}"
    )
}

const LABELS: &str = "% of labels";
const EPOCHS: &str = "epochs";

/// Those that change a figure most: all are in the command.
fn settings(settings: &Value) -> Vec<Figure> {
    let number = |name: &str| settings[name].as_f64().map(FigureValue::Number);
    let optimizer = settings["optimizer"].as_str().map(|name| FigureValue::Text(name.to_uppercase()));
    [(LABELS, number("labels_percent")), ("optimizer", optimizer), (EPOCHS, number("epochs"))]
        .into_iter()
        .filter_map(|(label, value)| Some(Figure { label: label.to_owned(), value: value? }))
        .collect()
}

impl ResultCard {
    /// How it was made and what came of it, for a table.
    pub(super) fn columns(&self) -> impl Iterator<Item = &Figure> {
        self.settings.iter().chain(&self.figures)
    }

    /// How much it learned from: the share of the labels, and passes over their images.
    pub(super) fn effort(&self) -> [f64; 2] {
        [LABELS, EPOCHS].map(|label| match self.settings.iter().find(|setting| setting.label == label) {
            Some(Figure { value: FigureValue::Number(value), .. }) => *value,
            _ => 0.0,
        })
    }

    /// For people: the checkpoint's name, or what step 0 is.
    pub(super) fn weights(&self) -> &str {
        self.checkpoint.as_deref().unwrap_or("random")
    }

    /// The share of right answers that stands for the card, if it has one.
    pub(super) fn top1(&self) -> Option<&Proportion> {
        self.figures.iter().find_map(|figure| match &figure.value {
            FigureValue::Share(share) => Some(share),
            _ => None,
        })
    }

    /// Whether two cards measured in the same way, so that their figures can be compared.
    pub(super) fn compares_with(&self, other: &ResultCard) -> bool {
        (&self.kind, &self.data, self.side_px) == (&other.kind, &other.data, other.side_px)
    }
}

/// kNN: a figure for each setting.
fn neighbours(results: &Value) -> serde_json::Result<(Vec<Figure>, Option<Scores>)> {
    let results: Vec<VotesScores> = serde_json::from_value(results.clone())?;
    let figure = |result: &VotesScores| Figure {
        label: format!("k {}, T {}", result.votes.k, result.votes.temperature),
        value: FigureValue::Share(result.scores.top1),
    };
    let figures = results.iter().map(figure).collect();
    Ok((figures, results.into_iter().next().map(|result| result.scores)))
}

/// Folds: their mean and spread.
fn folds(measurement: &Value) -> Vec<Figure> {
    let count = measurement["folds"].as_array().map_or(0, Vec::len);
    let number = |name: &str| measurement[name].as_f64().unwrap_or(f64::NAN);
    let value = FigureValue::Spread(number("mean"), number("std"));
    vec![Figure { label: format!("mean of {count} folds"), value }]
}

/// The shallowest scores of a measurement.
fn find_scores(value: &Value) -> Option<Scores> {
    if let Ok(scores) = serde_json::from_value(value.clone()) {
        return Some(scores);
    }
    match value {
        Value::Object(fields) => fields.values().find_map(find_scores),
        Value::Array(values) => values.iter().find_map(find_scores),
        _ => None,
    }
}

/// All figures within a measurement: shares first, then the rest, without what is a setting.
fn generic(measurement: &Value) -> Vec<Figure> {
    let mut figures = Vec::new();
    collect("", measurement, &mut figures);
    figures.sort_by_key(|figure| !matches!(figure.value, FigureValue::Share(_)));
    figures.truncate(MOST_FIGURES);
    figures
}

/// Parts of a measurement that are how it was made, or too long for a table.
const LEFT_OUT: [&str; 8] = [
    "evaluation",
    "settings",
    "views",
    "confusion",
    "per_class",
    "validation",
    "l2_at_end_of_grid",
    "losses",
];

/// Names that say nothing to a reader of a table.
const STRUCTURAL: [&str; 4] = ["scores", "quality", "fit", "results"];

fn collect(label: &str, value: &Value, into: &mut Vec<Figure>) {
    let mut push = |value| into.push(Figure { label: label.to_owned(), value });
    if let Ok(share) = serde_json::from_value::<Proportion>(value.clone()) {
        return push(FigureValue::Share(share));
    }
    match value {
        Value::Number(number) => push(FigureValue::Number(number.as_f64().unwrap_or(f64::NAN))),
        Value::Bool(is) => push(FigureValue::Text(if *is { "yes" } else { "no" }.to_owned())),
        // Hashes belong to the card.
        Value::String(text) if text.len() < 40 => push(FigureValue::Text(text.clone())),
        Value::String(_) | Value::Null => {}
        Value::Object(fields) => {
            for (name, value) in fields.iter().filter(|(name, _)| !LEFT_OUT.contains(&name.as_str())) {
                collect(&within(label, name), value, into);
            }
        }
        Value::Array(values) => {
            for (place, value) in values.iter().enumerate() {
                collect(&within(label, &(place + 1).to_string()), value, into);
            }
        }
    }
}

fn within(label: &str, name: &str) -> String {
    let name = match name {
        "top1" => "top-1",
        "top5" => "top-5",
        name if STRUCTURAL.contains(&name) => return label.to_owned(),
        name => &name.replace('_', " "),
    };
    if label.is_empty() { name.to_owned() } else { format!("{label} · {name}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn card(measurement: &Value) -> String {
        let weights = json!({"run": "a", "checkpoint": "step-000005", "step": 5, "other": 1});
        let data = json!({"name": "drawn", "source": {"source": "synthetic", "images": 8}});
        json!({"weights": weights, "data": data, "input": {"side_px": 32}, "measurement": measurement})
            .to_string()
    }

    fn labels(card: &ResultCard) -> Vec<&str> {
        card.columns().map(|figure| figure.label.as_str()).collect()
    }

    #[test]
    fn known_kinds_give_their_figures() {
        let top1 = Proportion::new(3, 4);
        let class = |name: &str| json!({"class": name, "recall": top1});
        let scores = json!({
            "top1": top1, "top5": null, "per_class": [class("cat"), class("dog")], "confusion": [[3, 1], [0, 4]],
        });
        let knn = json!({"evaluation": "knn", "results": [{"votes": {"k": 20, "temperature": 0.07}, "scores": scores}]});
        let linear = json!({"evaluation": "linear", "settings": {"a": 1}, "fit": {"l2": 0.5, "converged": true}, "scores": scores});
        let folds = json!({"evaluation": "linear-folds", "folds": [1, 2], "mean": 0.5, "std": 0.25});
        let quality = json!({"evaluation": "quality", "views": {}, "quality": {"effective_rank": 7.5}});
        let official = OfficialSettings::usual(Optimizer::Lars);
        let official = json!({"evaluation": "linear-official", "settings": official, "fit": {"losses": [2, 1]}, "scores": scores});
        let finetune = FinetuneSettings { labels_percent: 10.0, ..FinetuneSettings::default() };
        let finetune =
            json!({"evaluation": "finetune", "settings": finetune, "fit": {"steps": 7}, "scores": scores});
        let lars = "linear --protocol official --optimizer lars --epochs 90 --batch 4096 --learning-rate 0.1 --seed 0";
        let tuned =
            super::finetune(&FinetuneSettings { labels_percent: 10.0, ..FinetuneSettings::default() });
        assert!(tuned.starts_with("finetune --labels 10 --epochs "), "{tuned}");
        for (measurement, expected, share, command) in [
            (&official, vec!["optimizer", "epochs", "top-1"], Some(0.75), lars),
            (&finetune, vec!["% of labels", "epochs", "top-1", "steps"], Some(0.75), tuned.as_str()),
            (&knn, vec!["k 20, T 0.07"], Some(0.75), "knn --k 20 --temperature 0.07"),
            (&linear, vec!["top-1", "converged", "l2"], Some(0.75), "linear"),
            (&folds, vec!["mean of 2 folds"], None, "linear --folds"),
            (&quality, vec!["effective rank"], None, "quality"),
        ] {
            let card = parse("x.json", card(measurement).as_bytes()).unwrap();
            assert_eq!(labels(&card), expected);
            assert_eq!(card.top1().map(|top1| top1.share), share);
            assert_eq!((card.scores.is_some(), card.command.as_deref()), (share.is_some(), Some(command)));
            assert_eq!((card.weights(), card.step, card.side_px), ("step-000005", 5, 32));
            let effort = match card.kind.as_str() {
                "finetune" => [10.0, FinetuneSettings::default().epochs as f64],
                "linear-official" => [0.0, 90.0],
                _ => [0.0, 0.0],
            };
            assert_eq!(card.effort(), effort);
        }
    }

    #[test]
    fn a_matrix_without_names_for_its_cells_is_left_out() {
        let top1 = Proportion::new(3, 4);
        let class = json!({"class": "cat", "recall": top1});
        for (per_class, confusion) in [
            (json!([]), json!([])),
            (json!([class]), json!([[1, 2], [3, 4]])),
            (json!([class, class]), json!([[1, 2, 3], [4, 5]])),
        ] {
            let scores = json!({"top1": top1, "top5": null, "per_class": per_class, "confusion": confusion});
            let card =
                parse("x.json", card(&json!({"evaluation": "linear", "scores": scores})).as_bytes()).unwrap();
            assert_eq!((card.scores.is_none(), card.top1()), (true, Some(&top1)));
        }
    }

    #[test]
    fn a_kind_of_tomorrow_shows_its_fields() {
        let measurement = json!({
            "evaluation": "telepathy", "settings": {"rate": 0.1}, "blake3": "0".repeat(64), "epochs_run": 90,
            "scores": {"top1": Proportion::new(1, 2), "confusion": [[1]]}, "note": "fine",
        });
        let card = parse("x.json", card(&measurement).as_bytes()).unwrap();
        assert_eq!((card.kind.as_str(), labels(&card)), ("telepathy", vec!["top-1", "epochs run", "note"]));
        assert_eq!(card.command, None);
        let many: Vec<u32> = (0..100).collect();
        let card = parse("x.json", self::card(&json!({"evaluation": "x", "list": many})).as_bytes()).unwrap();
        assert_eq!(card.figures.len(), MOST_FIGURES);
    }

    #[test]
    fn files_are_read_in_the_order_of_their_weights_and_others_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        let measurement = json!({"evaluation": "quality", "quality": {"spread": 1.0}});
        write("b.json", &card(&measurement));
        write("a.json", &card(&measurement).replace("\"step\":5", "\"step\":9"));
        write("broken.json", "{");
        write("notes.txt", "{");
        let (cards, passed_over) = read_all(folder.path()).unwrap();
        assert_eq!(cards.iter().map(|card| card.file.as_str()).collect::<Vec<_>>(), ["b.json", "a.json"]);
        assert_eq!(passed_over.len(), 1);
        assert!(passed_over[0].starts_with("broken.json is no result card"), "{passed_over:?}");
        assert_eq!(read_all(&folder.path().join("nowhere")).unwrap(), Default::default());
    }
}
