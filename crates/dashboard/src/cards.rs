//! The result cards of a run, as far as they are shown beside it. `evaluate report` shows them in full.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// More cards than a page shows; the last ones by name of their weights are kept.
const MOST_CARDS: usize = 200;

/// More figures of one card than a page shows.
const MOST_FIGURES: usize = 6;

/// A larger file is no card, nor its picture.
const MOST_BYTES: u64 = 4 << 20;

/// Longer than the time of a file system is coarse.
const SETTLED: Duration = Duration::from_secs(2);

/// A result card.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Card {
    /// Its file's name within the run's `evaluations`.
    pub(crate) file: String,
    /// `knn`, `linear`, …
    pub(crate) evaluation: String,
    /// The checkpoint; absent for the random weights of step 0.
    pub(crate) checkpoint: Option<String>,
    /// Steps committed in the weights.
    pub(crate) step: u64,
    /// Which images.
    pub(crate) data: String,
    /// Its results: shares of right answers first.
    pub(crate) figures: Vec<CardFigure>,
    /// The name of the picture that goes with it, in the same folder.
    pub(crate) picture: Option<String>,
}

/// A figure of a card.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct CardFigure {
    /// What it is.
    pub(crate) label: String,
    /// Its value.
    pub(crate) value: f64,
    /// Whether it is a share of right answers, or how far such shares are spread.
    pub(crate) is_share: bool,
    /// The 95 % confidence interval, of a share of right answers among some images.
    pub(crate) interval: Option<[f64; 2]>,
}

/// Reads the cards of a folder again when it has changed, and of them those that it has not read before: a run may have
/// thousands.
#[derive(Debug)]
pub(crate) struct CardReader {
    folder: PathBuf,
    read_at: Option<SystemTime>,
    /// What is in each file; nothing, if that is no card.
    known: HashMap<(PathBuf, Stamp), Option<Card>>,
}

/// What another content of a file has another of: inode, time and size.
type Stamp = (u64, Option<SystemTime>, u64);

impl CardReader {
    pub(crate) fn new(folder: PathBuf) -> CardReader {
        CardReader { folder, read_at: None, known: HashMap::new() }
    }

    /// The cards, if there may be others by now. What is no card is passed over.
    pub(crate) fn read(&mut self) -> Option<Vec<Card>> {
        // Cards are renamed into the folder, which changes its own time. What was just changed may change again
        // within the same tick of the clock.
        let changed_at = fs::metadata(&self.folder).and_then(|metadata| metadata.modified()).ok();
        let is_settled = changed_at.is_some_and(|at| at.elapsed().is_ok_and(|age| age > SETTLED));
        if changed_at.is_none() || changed_at == self.read_at {
            return None;
        }
        self.read_at = changed_at.filter(|_| is_settled);
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let paths = entries.map(|entry| entry.path());
        let files = paths
            .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
            .filter_map(|path| Some((stamp(&path)?, path)));
        // What is not there any more is forgotten.
        let mut before = std::mem::take(&mut self.known);
        for (stamp, path) in files {
            let key = (path, stamp);
            let card = before.remove(&key).unwrap_or_else(|| parse(&key.0, &fs::read(&key.0).ok()?));
            self.known.insert(key, card);
        }
        let mut all: Vec<&Card> = self.known.values().flatten().collect();
        all.sort_by_key(|card| (card.step, &card.file));
        Some(all[all.len().saturating_sub(MOST_CARDS)..].iter().copied().cloned().collect())
    }
}

/// Of a file that may be a card.
fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = fs::metadata(path).ok().filter(is_small)?;
    Some((metadata.ino(), metadata.modified().ok(), metadata.len()))
}

fn is_small(metadata: &fs::Metadata) -> bool {
    metadata.is_file() && metadata.len() <= MOST_BYTES
}

fn parse(path: &Path, text: &[u8]) -> Option<Card> {
    let card: Value = serde_json::from_slice(text).ok()?;
    let measurement = &card["measurement"];
    let evaluation = measurement["evaluation"].as_str()?;
    let figures = if evaluation == "linear-folds" { folds(measurement) } else { generic(measurement) };
    // It is there before its card.
    let picture = path.with_extension("jpg");
    let name = |path: &Path| Some(path.file_name()?.to_string_lossy().into_owned());
    Some(Card {
        file: name(path)?,
        evaluation: evaluation.to_string(),
        checkpoint: card["weights"]["checkpoint"].as_str().map(str::to_string),
        step: card["weights"]["step"].as_u64()?,
        data: card["data"]["name"].as_str().unwrap_or("unknown images").to_string(),
        figures,
        picture: fs::metadata(&picture).ok().filter(is_small).and_then(|_| name(&picture)),
    })
}

/// Folds by their mean and spread: each by itself would fill the card.
fn folds(measurement: &Value) -> Vec<CardFigure> {
    let count = measurement["folds"].as_array().map_or(0, Vec::len);
    let figure = |label: String, name: &str| {
        Some(CardFigure { label, value: measurement[name].as_f64()?, is_share: true, interval: None })
    };
    let mean = figure(format!("mean of {count} folds"), "mean");
    let spread = figure("standard deviation".to_string(), "std");
    mean.into_iter().chain(spread).collect()
}

/// The first figures within a measurement: shares, then the rest.
fn generic(measurement: &Value) -> Vec<CardFigure> {
    let mut figures = Vec::new();
    collect("", measurement, &mut figures);
    figures.sort_by_key(|figure| !figure.is_share);
    figures.truncate(MOST_FIGURES);
    figures
}

/// Parts of a measurement that are how it was made, or too long to be shown.
const LEFT_OUT: [&str; 9] = [
    "evaluation",
    "settings",
    "views",
    "votes",
    "confusion",
    "per_class",
    "validation",
    "l2_at_end_of_grid",
    "losses",
];

/// Names that say nothing to a reader.
const STRUCTURAL: [&str; 4] = ["scores", "quality", "fit", "results"];

fn collect(label: &str, value: &Value, into: &mut Vec<CardFigure>) {
    let number = |name: &str| value[name].as_f64();
    if let (Some(share), Some(low), Some(high)) = (number("share"), number("low_95"), number("high_95")) {
        let interval = Some([low, high]);
        into.push(CardFigure { label: label.to_string(), value: share, is_share: true, interval });
        return;
    }
    match value {
        Value::Number(number) => {
            let value = number.as_f64().unwrap_or(f64::NAN);
            into.push(CardFigure { label: label.to_string(), value, is_share: false, interval: None });
        }
        Value::Object(fields) => {
            let votes = &fields.get("votes");
            let label = match votes.map(|votes| (&votes["k"], &votes["temperature"])) {
                Some((k, temperature)) => within(label, &format!("k {k}, T {temperature}")),
                None => label.to_string(),
            };
            for (name, value) in fields.iter().filter(|(name, _)| !LEFT_OUT.contains(&name.as_str())) {
                collect(&within(&label, name), value, into);
            }
        }
        Value::Array(values) => values.iter().for_each(|value| collect(label, value, into)),
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

fn within(label: &str, name: &str) -> String {
    let name = match name {
        "top1" => "top-1".to_string(),
        "top5" => "top-5".to_string(),
        name if STRUCTURAL.contains(&name) => return label.to_string(),
        name => name.replace('_', " "),
    };
    if label.is_empty() { name } else { format!("{label} · {name}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn share(share: f64) -> Value {
        json!({"correct": 5, "of": 10, "share": share, "low_95": share - 0.1, "high_95": share + 0.1})
    }

    #[test]
    fn cards_are_read_when_there_are_others() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(CardReader::new(folder.path().join("none")).read(), None);
        let mut reader = CardReader::new(folder.path().to_path_buf());
        let knn = json!({
            "weights": {"checkpoint": "step-000160", "step": 160},
            "data": {"name": "synthetic-2048"},
            "measurement": {"evaluation": "knn", "results": [
                {"votes": {"k": 200, "temperature": 0.1}, "scores": {"top1": share(0.5), "top5": share(0.9), "confusion": [[1]]}},
            ]},
        });
        fs::write(folder.path().join("knn.jpg"), "neighbours").unwrap();
        fs::write(folder.path().join("knn.json"), knn.to_string()).unwrap();
        fs::write(folder.path().join("other.json"), "{}").unwrap();
        fs::write(folder.path().join("broken.json"), "{").unwrap();
        let figure = |label: &str, value: f64| CardFigure {
            label: label.to_string(),
            value,
            is_share: true,
            interval: Some([value - 0.1, value + 0.1]),
        };
        assert_eq!(
            reader.read().unwrap(),
            [Card {
                file: "knn.json".to_string(),
                evaluation: "knn".to_string(),
                checkpoint: Some("step-000160".to_string()),
                step: 160,
                data: "synthetic-2048".to_string(),
                figures: vec![figure("k 200, T 0.1 · top-1", 0.5), figure("k 200, T 0.1 · top-5", 0.9)],
                picture: Some("knn.jpg".to_string()),
            }]
        );
        // Once the time of the folder says for certain what is in it.
        fs::File::open(folder.path()).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        assert!(reader.read().is_some());
        assert_eq!(reader.read(), None);
    }

    #[test]
    fn a_card_that_is_known_is_not_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let card =
            |step: u64| json!({"weights": {"step": step}, "measurement": {"evaluation": "knn"}}).to_string();
        let mut reader = CardReader::new(folder.path().to_path_buf());
        let mut steps = || -> Vec<u64> { reader.read().unwrap().iter().map(|card| card.step).collect() };
        fs::write(path("a.json"), card(10)).unwrap();
        let written_at = fs::metadata(path("a.json")).unwrap().modified().unwrap();
        assert_eq!(steps(), [10]);
        // As long and as old as before, so it is not looked into.
        fs::write(path("a.json"), card(11)).unwrap();
        fs::File::open(path("a.json")).unwrap().set_modified(written_at).unwrap();
        fs::write(path("b.json"), card(20)).unwrap();
        assert_eq!(steps(), [10, 20]);
        // Renamed into the folder, as cards are, it is another one.
        fs::write(path("aside"), card(12)).unwrap();
        fs::File::open(path("aside")).unwrap().set_modified(written_at).unwrap();
        fs::rename(path("aside"), path("a.json")).unwrap();
        assert_eq!(steps(), [12, 20]);
        fs::remove_file(path("b.json")).unwrap();
        assert_eq!(steps(), [12]);
    }

    #[test]
    fn folds_are_shown_by_their_mean_and_spread() {
        let folder = tempfile::tempdir().unwrap();
        let fold = |top1: f64| json!({"top1": share(top1), "fit": {"l2": 0.5, "iterations": 20}});
        let folds = json!({
            "weights": {"checkpoint": null, "step": 0},
            "data": {"name": "stl10"},
            "measurement": {
                "evaluation": "linear-folds", "settings": {"seed": 0}, "folds_blake3": "00",
                "folds": (0..10).map(|number| fold(0.5 + f64::from(number) / 100.0)).collect::<Vec<_>>(),
                "mean": 0.545, "std": 0.03,
            },
        });
        fs::write(folder.path().join("folds.json"), folds.to_string()).unwrap();
        let cards = CardReader::new(folder.path().to_path_buf()).read().unwrap();
        let figure = |label: &str, value: f64| CardFigure {
            label: label.to_string(),
            value,
            is_share: true,
            interval: None,
        };
        assert_eq!(cards[0].figures, [figure("mean of 10 folds", 0.545), figure("standard deviation", 0.03)]);
    }
}
