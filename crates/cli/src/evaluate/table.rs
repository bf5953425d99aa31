//! A result card for people: the figures, with what it takes to compare them.

use evaluation::{Card, Measurement, Optimizer, Proportion, Scores, Seconds};

/// The figures of a card.
pub(super) fn of(card: &Card) -> String {
    let weights = card.weights.checkpoint.as_deref().unwrap_or("random weights");
    let mut lines = vec![format!("{weights} on {}, images at {} px", card.data.name, card.input.side_px)];
    if let Some(start) = &card.weights.start {
        lines.push(format!("of a run that starts from {}", start.weights.display()));
    }
    match &card.measurement {
        Measurement::Knn { results } => lines.extend(results.iter().map(|result| {
            let votes = &result.votes;
            format!("kNN, k {} temperature {}: {}", votes.k, votes.temperature, scores(&result.scores))
        })),
        Measurement::Linear { fit, scores: result, .. } => {
            lines.push(format!("linear probe, l2 {}: {}", fit.l2, scores(result)));
            if !fit.converged {
                lines.push(format!("the probe did not converge in {} steps", fit.iterations));
            }
        }
        Measurement::LinearFolds { folds, mean, std, .. } => {
            let (mean, std) = (100.0 * mean, 100.0 * std);
            lines.push(format!("linear probe, {} folds: top-1 {mean:.2} % ± {std:.2}", folds.len()));
        }
        Measurement::LinearOfficial { settings, fit, scores: result } => {
            let optimizer = match settings.optimizer {
                Optimizer::Sgd => "SGD",
                Optimizer::Lars => "LARS",
            };
            lines.push(format!("linear layer, official protocol, {optimizer}: {}", scores(result)));
            lines.push(training(settings.epochs, fit.steps, fit.images_per_step, &fit.losses));
        }
        Measurement::Finetune { settings, fit, scores: result } => {
            let (percent, images) =
                (settings.labels_percent, card.data.parts.get("train").map_or(0, |part| part.images));
            lines.push(format!(
                "fine-tuned (not frozen) on {percent} % of the labels, {images} images: {}",
                scores(result)
            ));
            lines.push(training(settings.epochs, fit.steps, fit.images_per_step, &fit.losses));
        }
        Measurement::Quality { quality, .. } => lines.push(format!(
            "effective rank {:.1}, alignment {:.3}, uniformity {:.3}, spread {:.3}",
            quality.effective_rank, quality.alignment, quality.uniformity, quality.spread
        )),
    }
    let Seconds { features, rest } = card.seconds;
    lines.push(match &card.measurement {
        Measurement::Finetune { .. } => format!("{rest:.1} s"),
        _ => format!("{features:.1} s for features, {rest:.1} s for the rest"),
    });
    lines.join("\n")
}

fn training(epochs: u64, steps: u64, images_per_step: usize, losses: &[f64]) -> String {
    let loss = |loss: Option<&f64>| loss.map_or(String::new(), |loss| format!("{loss:.3}"));
    let (first, last) = (loss(losses.first()), loss(losses.last()));
    format!("{epochs} epochs, {steps} steps of {images_per_step} images, loss {first} to {last}")
}

fn scores(scores: &Scores) -> String {
    let top5 = scores.top5.map_or(String::new(), |top5| format!(", top-5 {:.2} %", 100.0 * top5.share));
    format!("top-1 {}{top5}", proportion(&scores.top1))
}

fn proportion(proportion: &Proportion) -> String {
    let Proportion { share, low_95, high_95, of, .. } = proportion;
    format!("{:.2} % (95 %: {:.2} to {:.2}, of {of})", 100.0 * share, 100.0 * low_95, 100.0 * high_95)
}
