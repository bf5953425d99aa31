//! Whether a run goes well, in one sentence. The levels are those of `evaluate report`.

use serde::{Deserialize, Serialize};

use crate::words::number;

/// A collapse level at or above this is that of figure 2 of the paper with the stop-gradient: near 1.
const HEALTHY_LEVEL: f64 = 0.7;

/// Below this, the network says nearly the same of every image, whatever the loss.
const COLLAPSED_LEVEL: f64 = 0.3;

/// How a run looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// The collapse level is near 1.
    Good,
    /// It is between, or there is nothing to judge yet.
    Doubtful,
    /// It is near 0.
    Bad,
}

/// A judgement and its reasons.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judgement {
    /// How it looks.
    pub health: Health,
    /// Why.
    pub sentence: String,
}

/// Judges by the means of the last steps: single ones swing.
pub(crate) fn judge(collapse_level: Option<f64>, loss: f64) -> Judgement {
    let Some(level) = collapse_level else {
        let sentence = "No step has been committed yet, so there is nothing to judge.".to_string();
        return Judgement { health: Health::Doubtful, sentence };
    };
    let (told, loss) = (number(level, 2), number(loss, 2));
    let (health, sentence) = if level < COLLAPSED_LEVEL {
        let meaning = "near 0, so the network says nearly the same of every image and a loss of";
        (Health::Bad, format!("Collapsed: the collapse level is {told}, {meaning} {loss} means nothing."))
    } else if level < HEALTHY_LEVEL {
        let meaning = "between collapse (0) and features that point everywhere (1)";
        (Health::Doubtful, format!("Doubtful: the collapse level is {told}, {meaning}."))
    } else {
        let meaning = "1 is spread over the whole sphere, 0 is collapse";
        (Health::Good, format!("Healthy: the collapse level is {told} ({meaning}), and the loss is {loss}."))
    };
    Judgement { health, sentence }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sentence_follows_the_level() {
        for (level, health, phrase) in [
            (None, Health::Doubtful, "No step"),
            (Some(0.05), Health::Bad, "Collapsed: the collapse level is 0.05"),
            (Some(0.5), Health::Doubtful, "Doubtful"),
            (Some(0.98), Health::Good, "the loss is \u{2212}0.40"),
        ] {
            let judgement = judge(level, -0.4);
            assert_eq!(judgement.health, health);
            assert!(judgement.sentence.contains(phrase), "{}", judgement.sentence);
        }
    }
}
