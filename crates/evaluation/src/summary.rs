//! A card in one line: for a run's timeline, and for other programs.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

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
    /// The card's file.
    pub card: PathBuf,
    /// The file of the picture that goes with it, if there is one.
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
