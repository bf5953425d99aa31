//! Whether a run went well, in one sentence.

use super::cards::ResultCard;
use super::chart::number;
use super::metrics::Step;

/// How a run looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Health {
    Good,
    Doubtful,
    Bad,
}

/// A collapse level at or above this is that of figure 2 of the paper with the stop-gradient: near 1.
const HEALTHY_LEVEL: f64 = 0.7;

/// Below this, the network says nearly the same of every image, whatever the loss.
const COLLAPSED_LEVEL: f64 = 0.3;

/// The last steps are looked at together: single ones swing.
const LAST_STEPS: usize = 20;

/// The judgement and its reasons.
pub(super) fn judge(steps: &[Step], cards: &[ResultCard]) -> (Health, String) {
    let Some(first) = steps.first() else {
        return (
            Health::Doubtful,
            "No step has been committed yet, so there is nothing to judge.".to_owned(),
        );
    };
    let last = last_mean(steps, |step| step.collapse_level);
    let loss = last_mean(steps, |step| step.loss);
    let level = number(last, 2);
    if last < COLLAPSED_LEVEL {
        let sentence = format!(
            "Collapsed: the collapse level is {level}, near 0, so the network says nearly the same of every image and \
             a loss of {} means nothing.",
            number(loss, 2)
        );
        return (Health::Bad, sentence);
    }
    if last < HEALTHY_LEVEL {
        let sentence = format!(
            "Doubtful: the collapse level is {level}, between collapse (0) and features that point everywhere (1)."
        );
        return (Health::Doubtful, sentence);
    }
    let mut sentence = format!(
        "Healthy: the collapse level is {level} (1 is spread over the whole sphere, 0 is collapse), and the loss went \
         from {} to {}.",
        number(first.loss, 2),
        number(loss, 2)
    );
    match gain_over_random(cards) {
        Some(points) if points > 0.0 => {
            sentence += &format!(" kNN beats the random weights by {} points.", number(points, 1));
            (Health::Good, sentence)
        }
        Some(points) => {
            sentence = sentence.replacen("Healthy", "Not collapsed", 1);
            sentence += &format!(
                " But kNN does not beat the random weights yet: {} points below them.",
                number(-points, 1)
            );
            (Health::Doubtful, sentence)
        }
        None => (Health::Good, sentence),
    }
}

/// The mean of the last steps.
pub(super) fn last_mean(steps: &[Step], of: fn(&Step) -> f64) -> f64 {
    let last = &steps[steps.len().saturating_sub(LAST_STEPS)..];
    last.iter().map(of).sum::<f64>() / last.len() as f64
}

/// Percentage points between the best kNN of the newest weights and that of the random ones.
fn gain_over_random(cards: &[ResultCard]) -> Option<f64> {
    let newest = cards.iter().rfind(|card| card.kind == "knn" && card.checkpoint.is_some())?;
    let random = cards.iter().find(|card| card.checkpoint.is_none() && card.compares_with(newest))?;
    let shares = |card: &ResultCard| -> Vec<(String, f64)> {
        let shares = card.figures.iter().filter_map(|figure| match &figure.value {
            super::cards::FigureValue::Share(share) => Some((figure.label.clone(), share.share)),
            _ => None,
        });
        shares.collect()
    };
    // Settings are compared with themselves.
    let random = shares(random);
    let gains = shares(newest).into_iter().filter_map(|(label, share)| {
        let (_, before) = random.iter().find(|(other, _)| *other == label)?;
        Some(100.0 * (share - before))
    });
    gains.reduce(f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::cards::{Figure, FigureValue};
    use crate::scores::Proportion;

    fn card(step: u64, correct: u64) -> ResultCard {
        let value = FigureValue::Share(Proportion::new(correct, 100));
        ResultCard {
            file: "x.json".into(),
            kind: "knn".into(),
            checkpoint: (step > 0).then(|| format!("step-{step:06}")),
            step,
            data: "drawn".into(),
            source: serde_json::Value::Null,
            side_px: 32,
            native: false,
            command: None,
            settings: vec![],
            figures: vec![Figure { label: "k 20".into(), value }],
            scores: None,
        }
    }

    #[test]
    fn the_sentence_follows_the_figures() {
        let steps = |level: f64| -> Vec<Step> {
            let line = |step| crate::report::metrics::line(step, 1, -0.02 * step as f64, level);
            (1..=30).map(|step| serde_json::from_str(&line(step)).unwrap()).collect()
        };
        for (steps, cards, health, phrases) in [
            (vec![], vec![], Health::Doubtful, vec!["No step"]),
            (steps(0.05), vec![], Health::Bad, vec!["Collapsed", "0.05"]),
            (steps(0.5), vec![], Health::Doubtful, vec!["Doubtful", "0.50"]),
            (steps(0.98), vec![], Health::Good, vec!["Healthy", "0.98", "from \u{2212}0.02 to \u{2212}0.41"]),
            (steps(0.98), vec![card(0, 20), card(30, 45)], Health::Good, vec!["by 25.0 points"]),
            (
                steps(0.98),
                vec![card(0, 20), card(30, 15)],
                Health::Doubtful,
                vec!["Not collapsed", "5.0 points below"],
            ),
            (steps(0.98), vec![card(30, 45)], Health::Good, vec!["Healthy"]),
        ] {
            let (found, sentence) = judge(&steps, &cards);
            assert_eq!(found, health, "{sentence}");
            for phrase in phrases {
                assert!(sentence.contains(phrase), "{sentence:?} lacks {phrase:?}");
            }
        }
    }
}
