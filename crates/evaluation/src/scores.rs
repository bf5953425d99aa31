//! How often a classifier was right, and how sure that figure is.

use serde::{Deserialize, Serialize};

/// What a classifier said of one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// The class it holds for the likeliest.
    pub class: u8,
    /// How many classes it holds for likelier than the true one; 0 is right.
    pub rank: u8,
}

impl Answer {
    /// Reads the classes' scores; of equal scores the class of the lower number comes first.
    ///
    /// # Panics
    /// If there is no class `label`.
    pub fn from_scores(scores: &[f64], label: u8) -> Answer {
        let before = |a: usize, b: usize| scores[a] > scores[b] || (scores[a] == scores[b] && a < b);
        let best = (1..scores.len()).fold(0, |best, class| if before(class, best) { class } else { best });
        let rank = (0..scores.len()).filter(|class| before(*class, usize::from(label))).count();
        Answer { class: best as u8, rank: rank as u8 }
    }

    /// How often the true class is the likeliest.
    ///
    /// # Panics
    /// Without an answer.
    pub fn top1(answers: &[Answer]) -> Proportion {
        Answer::top(1, answers)
    }

    /// How often the true class is among the `n` likeliest.
    fn top(n: u8, answers: &[Answer]) -> Proportion {
        let correct = answers.iter().filter(|answer| answer.rank < n).count();
        Proportion::new(correct as u64, answers.len() as u64)
    }
}

/// A classifier's performance on labelled images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scores {
    /// The true class is the likeliest.
    pub top1: Proportion,
    /// The true class is among the five likeliest; absent with five classes or fewer, where it always is.
    pub top5: Option<Proportion>,
    /// Top-1 of the images of each class.
    pub per_class: Vec<ClassScore>,
    /// Images by true class (outer) and answered class (inner).
    pub confusion: Vec<Vec<u64>>,
}

/// Top-1 of one class.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassScore {
    /// Its name.
    pub class: String,
    /// How often its images were recognised.
    pub recall: Proportion,
}

/// Successes among trials, with Wilson's score interval (Wilson 1927), which holds for few trials and for
/// shares near 0 and 1, where the normal approximation fails.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proportion {
    /// Successes.
    pub correct: u64,
    /// Trials, at least one.
    pub of: u64,
    /// Their quotient.
    pub share: f64,
    /// Lower end of the 95 % confidence interval.
    pub low_95: f64,
    /// Upper end of the 95 % confidence interval.
    pub high_95: f64,
}

/// The 97.5 % quantile of the normal distribution: two-sided 95 %.
const Z: f64 = 1.959_963_984_540_054;

impl Proportion {
    /// `correct` of `of`.
    ///
    /// # Panics
    /// If `of` is 0 or less than `correct`.
    pub fn new(correct: u64, of: u64) -> Proportion {
        assert!(of > 0 && correct <= of, "a share of at least one trial");
        let (n, share) = (of as f64, correct as f64 / of as f64);
        let centre = share + Z * Z / (2.0 * n);
        let half_width = Z * (share * (1.0 - share) / n + Z * Z / (4.0 * n * n)).sqrt();
        let scale = 1.0 + Z * Z / n;
        // Rounding would leave a hair where the ends are exactly 0 and 1.
        let low_95 = if correct == 0 { 0.0 } else { (centre - half_width) / scale };
        let high_95 = if correct == of { 1.0 } else { (centre + half_width) / scale };
        Proportion { correct, of, share, low_95, high_95 }
    }
}

impl Scores {
    /// Counts the answers for images of these labels.
    ///
    /// # Panics
    /// If there is not one answer for each label, or a class without an image.
    pub fn new(answers: &[Answer], labels: &[u8], class_names: &[String]) -> Scores {
        assert_eq!(answers.len(), labels.len(), "one answer for each image");
        let classes = class_names.len();
        let mut confusion = vec![vec![0; classes]; classes];
        for (answer, label) in answers.iter().zip(labels) {
            confusion[usize::from(*label)][usize::from(answer.class)] += 1;
        }
        let recall = |class: usize| Proportion::new(confusion[class][class], confusion[class].iter().sum());
        let score =
            |(class, name): (usize, &String)| ClassScore { class: name.clone(), recall: recall(class) };
        Scores {
            top1: Answer::top1(answers),
            top5: (classes > 5).then(|| Answer::top(5, answers)),
            per_class: class_names.iter().enumerate().map(score).collect(),
            confusion,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_follow_the_scores() {
        for (scores, label, class, rank) in [
            (vec![0.1, 0.7, 0.2], 1, 1, 0),
            (vec![0.1, 0.7, 0.2], 0, 1, 2),
            (vec![0.5, 0.5], 0, 0, 0),
            (vec![0.5, 0.5], 1, 0, 1),
            (vec![0.0, 0.0, 0.0], 2, 0, 2),
            (vec![-1.0], 0, 0, 0),
        ] {
            assert_eq!(Answer::from_scores(&scores, label), Answer { class, rank }, "{scores:?} {label}");
        }
    }

    #[test]
    fn top1_top5_and_confusion_count_answers() {
        let names: Vec<String> = (0..6).map(|class| format!("class {class}")).collect();
        let labels = [0, 1, 2, 3, 4, 5, 0, 0];
        let answers = [(0, 0), (2, 3), (2, 0), (0, 4), (0, 5), (5, 0), (1, 1), (0, 0)]
            .map(|(class, rank)| Answer { class, rank });
        let scores = Scores::new(&answers, &labels, &names);
        assert_eq!((scores.top1.correct, scores.top1.of), (4, 8));
        assert_eq!(scores.top5.map(|top5| top5.correct), Some(7));
        assert_eq!(scores.confusion[0], [2, 1, 0, 0, 0, 0]);
        assert_eq!(scores.per_class[0].recall, Proportion::new(2, 3));
        assert_eq!(scores.per_class[4].class, "class 4");
        assert_eq!(Scores::new(&answers[..1], &[0], &names[..1]).top5, None, "it would always be 1");
    }
}
