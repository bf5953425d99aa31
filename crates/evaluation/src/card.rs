//! Result cards: a figure with everything that it takes to believe it and to compute it again.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use recipe::{Data, Votes};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::aside::write_whole;
use crate::encoder::WeightsIdentity;
use crate::error::EvaluationError;
use crate::features::{Frozen, InputIdentity};
use crate::finetune::{FinetuneFit, FinetuneSettings};
use crate::job::QualitySettings;
use crate::labelled::ImagesIdentity;
use crate::official::{OfficialFit, OfficialSettings};
use crate::probe::{Fit, ProbeSettings};
use crate::quality::Quality;
use crate::scores::{Proportion, Scores};

/// Grows when the meaning of a card's fields changes.
pub(crate) const FORMAT: u32 = 1;

/// The result of one evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Card {
    /// The version of this layout.
    pub format: u32,
    /// The program that made it.
    pub program_version: String,
    /// What was evaluated.
    pub weights: WeightsIdentity,
    /// On what.
    pub data: DataIdentity,
    /// How images entered the network. Features are those after global average pooling, with BatchNorm in
    /// evaluation mode.
    pub input: InputIdentity,
    /// How it was measured, and what came of it.
    pub measurement: Measurement,
    /// For each part of the data, the proof that the network did not move meanwhile.
    pub frozen: BTreeMap<String, Frozen>,
    /// How long it took.
    pub seconds: Seconds,
}

/// The data of an evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataIdentity {
    /// Where it was; that it was the same is proved by the hashes.
    pub source: Data,
    /// For people: which data set.
    pub name: String,
    /// What each part held.
    pub parts: BTreeMap<String, ImagesIdentity>,
}

/// An evaluation's protocol and its results.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "evaluation", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Measurement {
    /// k nearest neighbours by cosine, exact, with votes weighted by `exp(similarity / temperature)`.
    Knn {
        /// One for each setting.
        results: Vec<VotesScores>,
    },
    /// Logistic regression on frozen features, solved by L-BFGS; the test part was looked at once.
    Linear {
        /// How it was fitted.
        settings: ProbeSettings,
        /// How that went.
        fit: Fit,
        /// Its performance on the test part.
        scores: Scores,
    },
    /// The same for each of STL-10's folds of the training part, always on the whole test part.
    LinearFolds {
        /// How each was fitted.
        settings: ProbeSettings,
        /// BLAKE3 of `fold_indices.txt`, in hexadecimal.
        folds_blake3: String,
        /// The folds' results, in order.
        folds: Vec<FoldResult>,
        /// Mean of their top-1.
        mean: f64,
        /// Standard deviation of their top-1, as of a sample.
        std: f64,
    },
    /// A linear layer on frozen features of augmented images, trained as the authors of SimSiam do it; the test
    /// part was looked at once.
    LinearOfficial {
        /// How it was trained.
        settings: OfficialSettings,
        /// How that went.
        fit: OfficialFit,
        /// Its performance on the test part.
        scores: Scores,
    },
    /// The whole network trained with labels, from these weights on; the test part was looked at once. Not
    /// comparable with the others: this network is not frozen, and its proof is about the tuned one.
    Finetune {
        /// How it was trained.
        settings: FinetuneSettings,
        /// How that went.
        fit: FinetuneFit,
        /// Its performance on the test part.
        scores: Scores,
    },
    /// Figures that need no labels.
    Quality {
        /// How they were measured.
        settings: QualitySettings,
        /// How the views of the alignment were made, but for their size, which is the input's.
        views: recipe::Views,
        /// The figures.
        quality: Quality,
    },
}

/// A result of the nearest neighbours.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VotesScores {
    /// How they voted.
    pub votes: Votes,
    /// Their performance on the test part.
    pub scores: Scores,
}

/// A result of one fold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FoldResult {
    /// The true class is the likeliest.
    pub top1: Proportion,
    /// How the fit went.
    pub fit: Fit,
}

/// How long an evaluation took, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seconds {
    /// From images to features.
    pub features: f64,
    /// From features to results.
    pub rest: f64,
}

/// A field that is not what a card says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Its place in the card, such as `measurement.scores.top1.correct`.
    pub field: String,
    /// By the card.
    pub expected: String,
    /// When it was computed again.
    pub found: String,
}

impl Measurement {
    /// Its name, as in the card's `evaluation`.
    pub fn kind(&self) -> &'static str {
        match self {
            Measurement::Knn { .. } => "knn",
            Measurement::Linear { .. } => "linear",
            Measurement::LinearFolds { .. } => "linear-folds",
            Measurement::LinearOfficial { .. } => "linear-official",
            Measurement::Finetune { .. } => "finetune",
            Measurement::Quality { .. } => "quality",
        }
    }
}

impl Card {
    /// A file name that says what the card is about. Its last part is a hash over weights, data and protocol:
    /// the same evaluation has the same name, and another one never takes its place.
    pub fn file_name(&self) -> String {
        let kind = self.measurement.kind();
        let protocol = match &self.measurement {
            Measurement::Knn { results } => {
                to_json(&results.iter().map(|result| result.votes).collect::<Vec<_>>())
            }
            Measurement::Linear { settings, .. } => to_json(settings),
            Measurement::LinearFolds { settings, folds_blake3, .. } => to_json(&(settings, folds_blake3)),
            Measurement::LinearOfficial { settings, .. } => to_json(settings),
            Measurement::Finetune { settings, .. } => to_json(settings),
            Measurement::Quality { settings, views, .. } => to_json(&(settings, views)),
        };
        let key = [to_json(&self.weights), to_json(&self.data.parts), to_json(&self.input), protocol];
        let hash = blake3::hash(Value::from(key.to_vec()).to_string().as_bytes()).to_hex();
        let plain = |character: char| if character.is_ascii_alphanumeric() { character } else { '-' };
        let data: String = self.data.name.chars().map(plain).take(40).collect();
        let weights = self.weights.short_name();
        format!("{kind}-{weights}-{data}-{}.json", &hash[..8])
    }

    /// Writes the card into `folder`, which is made if need be: aside, synced, then renamed. Gives its path.
    ///
    /// # Errors
    /// Those of the disk; whatever was there is untouched then.
    pub fn write(&self, folder: &Path) -> Result<PathBuf, EvaluationError> {
        let path = folder.join(self.file_name());
        let mut text = serde_json::to_vec_pretty(self).expect("a card can be written as JSON");
        text.push(b'\n');
        write_whole(&path, &text)?;
        Ok(path)
    }

    /// Reads a card.
    ///
    /// # Errors
    /// A file that is missing or no card, or one of a later version.
    pub fn read(path: &Path) -> Result<Card, EvaluationError> {
        let expected = "a result card";
        let advice = "name a file of a run's evaluations/";
        let refuse = |found: String| EvaluationError::content(path, expected, found, advice);
        let text = match fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(refuse("no such file".into()));
            }
            other => other.map_err(EvaluationError::io("read", path))?,
        };
        let value: Value =
            serde_json::from_slice(&text).map_err(|error| refuse(format!("what is not JSON: {error}")))?;
        match value.get("format").and_then(Value::as_u64) {
            Some(format) if format == u64::from(FORMAT) => {}
            Some(format) => {
                let expected = format!("a result card of format {FORMAT}");
                let advice = "use the version of the program that wrote it";
                return Err(EvaluationError::content(path, expected, format!("format {format}"), advice));
            }
            None => return Err(refuse("JSON without a format".into())),
        }
        serde_json::from_value(value).map_err(|error| refuse(format!("what is not one: {error}")))
    }

    /// Where `again`, the same evaluation computed once more, differs from this card. Times, the program's
    /// version and the place of the images are not compared.
    pub fn differences(&self, again: &Card) -> Vec<Difference> {
        let result = |card: &Card| {
            let Card { weights, data, input, measurement, frozen, .. } = card;
            let [weights, parts, input] = [to_json(weights), to_json(&data.parts), to_json(input)];
            let [measurement, frozen] = [to_json(measurement), to_json(frozen)];
            serde_json::json!({
                "weights": weights, "data": { "parts": parts }, "input": input,
                "measurement": measurement, "frozen": frozen,
            })
        };
        differences("", &result(self), &result(again))
    }
}

fn to_json(value: &impl Serialize) -> Value {
    serde_json::to_value(value).expect("a card can be written as JSON")
}

/// Where `found` differs from `expected`, field by field; `field` is their own place.
pub(crate) fn differences(field: &str, expected: &impl Serialize, found: &impl Serialize) -> Vec<Difference> {
    let mut differences = Vec::new();
    compare(field, &to_json(expected), &to_json(found), &mut differences);
    differences
}

fn compare(field: &str, expected: &Value, found: &Value, differences: &mut Vec<Difference>) {
    let within = |name: &str| if field.is_empty() { name.to_owned() } else { format!("{field}.{name}") };
    match (expected, found) {
        (Value::Object(expected), Value::Object(found)) => {
            let names: std::collections::BTreeSet<&String> = expected.keys().chain(found.keys()).collect();
            for name in names {
                let of =
                    |object: &serde_json::Map<String, Value>| object.get(name).cloned().unwrap_or_default();
                compare(&within(name), &of(expected), &of(found), differences);
            }
        }
        (Value::Array(expected), Value::Array(found)) if expected.len() == found.len() => {
            for (index, (expected, found)) in expected.iter().zip(found).enumerate() {
                compare(&within(&index.to_string()), expected, found, differences);
            }
        }
        _ if expected == found => {}
        _ => {
            let (expected, found) = (expected.to_string(), found.to_string());
            differences.push(Difference { field: field.to_owned(), expected, found });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_card_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("card.json");
        for (content, phrase) in [
            (None, "no such file"),
            (Some("{\"format\": 1"), "not JSON"),
            (Some("{}"), "without a format"),
            (Some("{\"format\": 2}"), "expected a result card of format 1, found format 2"),
            (Some("{\"format\": 1}"), "missing field"),
        ] {
            if let Some(content) = content {
                fs::write(&path, content).unwrap();
            }
            let error = Card::read(&path).unwrap_err().to_string();
            assert!(error.contains("card.json") && error.contains(phrase), "{error:?} lacks {phrase:?}");
        }
    }

    #[test]
    fn differences_are_named_by_their_place() {
        let expected = serde_json::json!({"a": {"b": [1, 2.5]}, "c": null, "d": [1], "e": "x"});
        let found = serde_json::json!({"a": {"b": [1, 2.6]}, "c": null, "d": [1, 2], "f": "x"});
        let differences: Vec<(String, String, String)> = differences("", &expected, &found)
            .into_iter()
            .map(|difference| (difference.field, difference.expected, difference.found))
            .collect();
        let expected =
            [("a.b.1", "2.5", "2.6"), ("d", "[1]", "[1,2]"), ("e", "\"x\"", "null"), ("f", "null", "\"x\"")];
        assert_eq!(differences, expected.map(|(a, b, c)| (a.to_owned(), b.to_owned(), c.to_owned())));
    }
}
