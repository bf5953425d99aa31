//! A card in one line: for a run's timeline, and for other programs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

use crate::card::{Card, Measurement};

/// The figures of a card, by name, and where the card is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// The kind of evaluation, as in the card: `knn`, say.
    pub evaluation: &'static str,
    /// Steps committed in the weights.
    pub step: u64,
    /// Accuracies from 0 to 1, such as `top1_k20_t0.07`, and label-free figures.
    pub figures: BTreeMap<String, f64>,
    /// The card's file; in JSON, which is text, as far as its path is.
    #[serde(serialize_with = "as_text")]
    pub card: PathBuf,
    /// The file of the picture that goes with it, if there is one; in JSON the same.
    #[serde(serialize_with = "as_text_if_any")]
    pub picture: Option<PathBuf>,
}

impl Summary {
    /// Of a card that lies at `path`, and its picture.
    pub(crate) fn new(card: &Card, path: PathBuf, picture: Option<PathBuf>) -> Summary {
        let figures: Vec<(String, f64)> = match &card.measurement {
            Measurement::Knn { results } => results
                .iter()
                .map(|result| {
                    let (k, temperature) = (result.votes.k, result.votes.temperature);
                    (format!("top1_k{k}_t{temperature}"), result.scores.top1.share)
                })
                .collect(),
            Measurement::Linear { scores, .. }
            | Measurement::LinearOfficial { scores, .. }
            | Measurement::Finetune { scores, .. } => {
                let top5 = scores.top5.map(|top5| ("top5".to_owned(), top5.share));
                [("top1".to_owned(), scores.top1.share)].into_iter().chain(top5).collect()
            }
            Measurement::LinearFolds { mean, std, .. } => {
                vec![("top1_mean".to_owned(), *mean), ("top1_std".to_owned(), *std)]
            }
            Measurement::Quality { quality, .. } => vec![
                ("effective_rank".to_owned(), quality.effective_rank),
                ("alignment".to_owned(), quality.alignment),
                ("uniformity".to_owned(), quality.uniformity),
                ("spread".to_owned(), quality.spread),
            ],
        };
        Summary {
            evaluation: card.measurement.kind(),
            step: card.weights.step,
            figures: figures.into_iter().collect(),
            card: path,
            picture,
        }
    }
}

fn as_text<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

fn as_text_if_any<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    path.as_deref().map(Path::to_string_lossy).serialize(serializer)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    /// A folder may have any name, but JSON is text.
    #[test]
    fn a_path_that_is_no_text_is_told_as_far_as_it_is() {
        for (folder, told) in [
            (&b"runs/mine"[..], "runs/mine"),
            ("runs/n\u{e9}w".as_bytes(), "runs/n\u{e9}w"),
            (b"runs/\xff\xe9w", "runs/\u{fffd}\u{fffd}w"),
        ] {
            let card = Path::new(OsStr::from_bytes(folder)).join("knn.json");
            let picture = Some(card.with_extension("jpg"));
            let summary = Summary { evaluation: "knn", step: 7, figures: BTreeMap::new(), card, picture };
            let line = serde_json::to_value(&summary).unwrap();
            assert_eq!(
                (&line["card"], &line["picture"]),
                (&format!("{told}/knn.json").into(), &format!("{told}/knn.jpg").into())
            );
            let line = serde_json::to_value(&Summary { picture: None, ..summary }).unwrap();
            assert!(line["picture"].is_null(), "{line}");
        }
    }
}
