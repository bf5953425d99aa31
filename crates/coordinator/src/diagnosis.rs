//! Whether the network learns, and if not, why not: the answer to "my loss is -1, is that good?".
//!
//! A pure function of the steps that are reported. It says a thing once, with its evidence and with what to do.

use std::collections::{BTreeSet, VecDeque};

use recipe::{Recipe, Views};

use crate::membership::{Monitors, StepReport};

/// Steps that a judgement looks at together: single ones swing.
const WINDOW_STEPS: usize = 10;

/// Below this the network says nearly the same of every image. Healthy runs stay above 0.7 from the first step on.
const COLLAPSED_LEVEL: f64 = 0.3;

/// Below this it is on the way there.
const SINKING_LEVEL: f64 = 0.6;

/// With fewer directions than this all images look alike, whatever the collapse level says of each coordinate. Small
/// healthy runs come down to two or three; without the stop-gradient it is 1.2 within twenty steps.
const FEWEST_DIMENSIONS: f64 = 1.5;

/// With so many a run that went wrong later was well on its way.
const HEALTHY_DIMENSIONS: f64 = 1.5 * FEWEST_DIMENSIONS;

/// A step of this share of the weights leaves little of what was learned. Healthy ones are below a twentieth.
const LARGEST_UPDATE_RATIO: f64 = 0.3;

/// A smaller share of the gradient than this moves nothing in a run of any length.
const LEAST_GRADIENT_SHARE: f64 = 1e-6;

/// Views that agree so well before anything was learned are nearly the same picture.
const TOO_EASY_LOSS: f64 = -0.95;

/// What ails a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Ailment {
    NoStopGradient,
    RateIsZero,
    StatisticsStandStill,
    WithoutGradient,
    PredictorIsDead,
    StepsAreTooLarge,
    FewDimensions,
    ViewsAreTooEasy,
    Sinking,
    Collapsed,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    /// What was seen, what it means, and what to do.
    pub(crate) sentence: String,
    /// Whether nothing good can come of this run any more.
    pub(crate) is_fatal: bool,
    /// Whether it might not have come to this with smaller steps.
    pub(crate) is_mended_by_smaller_steps: bool,
}

/// What is known of a run's health so far.
#[derive(Debug)]
pub(crate) struct Diagnosis {
    stop_gradient: bool,
    views: Views,
    total_steps: u64,
    steps_per_epoch: u64,
    levels: VecDeque<f64>,
    losses: VecDeque<f64>,
    last: Option<Monitors>,
    told: BTreeSet<Ailment>,
}

impl Diagnosis {
    pub(crate) fn new(recipe: &Recipe, total_steps: u64) -> Diagnosis {
        Diagnosis {
            stop_gradient: recipe.training.stop_gradient,
            views: recipe.views.clone(),
            total_steps,
            steps_per_epoch: (total_steps / u64::from(recipe.training.epochs)).max(1),
            levels: VecDeque::new(),
            losses: VecDeque::new(),
            last: None,
            told: BTreeSet::new(),
        }
    }

    /// What can be said before the first step.
    pub(crate) fn before_training(&mut self) -> Vec<Finding> {
        let mut findings = Vec::new();
        if !self.stop_gradient {
            let sentence = "training.stop_gradient is false: the network is free to say the same of every image, \
                            which is the easiest way to a loss of -1 (figure 2 of the paper). Set it to true, unless \
                            you want to watch the collapse";
            findings.extend(self.tell(Ailment::NoStopGradient, false, sentence.to_string()));
        }
        findings
    }

    /// What a committed step tells. Skipped steps tell nothing of the network.
    pub(crate) fn look(&mut self, report: &StepReport) -> Vec<Finding> {
        if report.skipped.is_some() {
            return Vec::new();
        }
        push(&mut self.levels, report.collapse_level);
        push(&mut self.losses, report.loss);
        let mut findings = self.rate_is_zero(report);
        if let Some(monitors) = &report.monitors {
            findings.extend(self.look_inside(report.step, monitors));
            self.last = Some(monitors.clone());
        }
        findings.extend(self.look_at_level(report.step));
        findings
    }

    fn rate_is_zero(&mut self, report: &StepReport) -> Vec<Finding> {
        if report.learning_rate > 0.0 || report.step >= self.total_steps {
            return Vec::new();
        }
        let sentence = format!(
            "the learning rate is 0 at step {} of {}: the schedule ends before the run, and nothing is learned from here \
             on. Let the schedule span the run, or raise optimizer.base_learning_rate",
            report.step, self.total_steps
        );
        self.tell(Ailment::RateIsZero, true, sentence).into_iter().collect()
    }

    fn look_inside(&mut self, step: u64, monitors: &Monitors) -> Vec<Finding> {
        let mut findings = Vec::new();
        if monitors.statistics_change == 0.0 {
            let sentence = format!(
                "BatchNorm's running statistics did not move in step {step}: it runs in inference mode, or is not \
                 trained, and evaluation will see a network that was never there"
            );
            findings.extend(self.tell(Ailment::StatisticsStandStill, true, sentence));
        }
        // A ResNet's blocks begin as nothing but their shortcut, so their insides get their first gradient in step 2.
        if step > 1
            && let [first, rest @ ..] = monitors.without_gradient.as_slice()
        {
            let more =
                if rest.is_empty() { String::new() } else { format!(" and {} others get", rest.len()) };
            let gets = if rest.is_empty() { " gets" } else { "" };
            let sentence = format!(
                "{first}{more}{gets} no gradient in step {step}: no path leads from the loss to it, and it stays as it \
                 was drawn"
            );
            findings.extend(self.tell(Ailment::WithoutGradient, false, sentence));
        }
        let norms = &monitors.gradient_norms;
        let whole = (norms.backbone.powi(2) + norms.projector.powi(2) + norms.predictor.powi(2)).sqrt();
        if norms.predictor < LEAST_GRADIENT_SHARE * whole {
            let sentence = format!(
                "the predictor's gradient has length {:.1e} of {whole:.1e} in step {step}: it does not learn, and \
                 without a predictor that keeps up SimSiam collapses (section 4.2 of the paper)",
                norms.predictor
            );
            findings.extend(self.tell(Ailment::PredictorIsDead, false, sentence));
        }
        let ratios = &monitors.update_ratios;
        // The first steps of a warmup are short, and the first of a network that was just drawn may be long.
        if step > self.steps_per_epoch && ratios.backbone.max(ratios.projector) > LARGEST_UPDATE_RATIO {
            let sentence = format!(
                "step {step} moved the backbone by {:.0} % of its length and the projector by {:.0} %: the learning rate \
                 is too high. Lower optimizer.base_learning_rate, or lengthen optimizer.warmup_epochs",
                100.0 * ratios.backbone,
                100.0 * ratios.projector
            );
            findings.extend(self.tell(Ailment::StepsAreTooLarge, false, sentence));
        }
        if step > self.steps_per_epoch && monitors.effective_dimensions < FEWEST_DIMENSIONS {
            let sentence = format!(
                "after step {step} the projections point in {:.1} directions: whatever the loss, they tell few images \
                 apart. {}",
                monitors.effective_dimensions,
                self.probable_cause()
            );
            findings.extend(self.tell(Ailment::FewDimensions, false, sentence));
        }
        findings
    }

    fn look_at_level(&mut self, step: u64) -> Vec<Finding> {
        if self.levels.len() < WINDOW_STEPS {
            return Vec::new();
        }
        let (level, loss) = (mean(&self.levels), mean(&self.losses));
        let mut findings = Vec::new();
        if level < COLLAPSED_LEVEL {
            let sentence = format!(
                "collapsed: after step {step} the collapse level is {level:.2}, so the network says nearly the same of \
                 every image, and a loss of {loss:.2} means nothing. {}",
                self.probable_cause()
            );
            findings.extend(self.tell(Ailment::Collapsed, true, sentence));
        } else if level < SINKING_LEVEL && !self.told.contains(&Ailment::Collapsed) {
            let sentence = format!(
                "after step {step} the collapse level is {level:.2} and sinking towards a collapse. {}",
                self.probable_cause()
            );
            findings.extend(self.tell(Ailment::Sinking, false, sentence));
        } else if loss < TOO_EASY_LOSS && step <= self.steps_per_epoch {
            let sentence = format!(
                "the loss is {loss:.2} within the first epoch while the collapse level is {level:.2}: the two views of an \
                 image are nearly the same picture, and there is nothing to learn. Strengthen [views]"
            );
            findings.extend(self.tell(Ailment::ViewsAreTooEasy, false, sentence));
        }
        findings
    }

    /// The likeliest reason of a collapse, by what else was seen.
    fn probable_cause(&self) -> String {
        let ratio = self.last.as_ref().map_or(0.0, |last| {
            last.update_ratios.backbone.max(last.update_ratios.projector).max(last.update_ratios.predictor)
        });
        if !self.stop_gradient {
            "The stop-gradient is missing: set training.stop_gradient to true".to_string()
        } else if self.told.contains(&Ailment::PredictorIsDead) {
            "The predictor does not learn: see what was said of its gradient".to_string()
        } else if ratio > LARGEST_UPDATE_RATIO / 3.0 {
            format!("Steps are {:.0} % of the weights: lower optimizer.base_learning_rate", 100.0 * ratio)
        } else if self.views.crop_scale[0] > 0.5 && self.views.color_jitter.probability < 0.5 {
            "The views are weak: lower views.crop_scale, and let views.color_jitter change more".to_string()
        } else {
            "Lower optimizer.base_learning_rate, lengthen the warmup, or go on from an earlier checkpoint"
                .to_string()
        }
    }

    /// A thing is told once.
    fn tell(&mut self, ailment: Ailment, is_fatal: bool, sentence: String) -> Option<Finding> {
        let is_collapse = matches!(ailment, Ailment::Collapsed | Ailment::FewDimensions);
        let is_mended_by_smaller_steps = is_collapse && self.stop_gradient;
        self.told.insert(ailment).then_some(Finding { sentence, is_fatal, is_mended_by_smaller_steps })
    }
}

/// Whether a run was healthy after the last of steps with these collapse levels, when z was last seen to point in so many
/// directions, if it was looked at.
pub(crate) fn was_healthy(levels: &[f64], dimensions: Option<f64>) -> bool {
    let last = &levels[levels.len().saturating_sub(WINDOW_STEPS)..];
    let is_spread = last.iter().sum::<f64>() >= SINKING_LEVEL * last.len() as f64;
    is_spread && dimensions.is_none_or(|dimensions| dimensions >= HEALTHY_DIMENSIONS)
}

fn push(window: &mut VecDeque<f64>, value: f64) {
    window.push_back(value);
    if window.len() > WINDOW_STEPS {
        window.pop_front();
    }
}

fn mean(window: &VecDeque<f64>) -> f64 {
    window.iter().sum::<f64>() / window.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::Parts;

    const TOTAL_STEPS: u64 = 480;

    fn report(step: u64) -> StepReport {
        let monitors = (step == 1 || step.is_multiple_of(10)).then(monitors);
        StepReport { loss: -0.3, collapse_level: 0.95, monitors, ..StepReport::usual(1, step) }
    }

    fn monitors() -> Monitors {
        Monitors {
            effective_dimensions: 20.0,
            gradient_norms: Parts { backbone: 1.0, projector: 0.5, predictor: 0.5 },
            update_ratios: Parts { backbone: 0.01, projector: 0.02, predictor: 0.01 },
            statistics_change: 0.05,
            without_gradient: Vec::new(),
        }
    }

    /// What is said of a run of 60 steps in which `change` makes each step.
    fn told(set: &[&str], change: impl Fn(&mut StepReport)) -> Vec<Finding> {
        let set: Vec<String> = set.iter().map(|value| (*value).to_string()).collect();
        let mut diagnosis =
            Diagnosis::new(&Recipe::from_toml(recipe::QUICKSTART, &set).unwrap(), TOTAL_STEPS);
        let mut findings = diagnosis.before_training();
        for step in 1..=60 {
            let mut report = report(step);
            change(&mut report);
            findings.extend(diagnosis.look(&report));
        }
        findings
    }

    fn inside(report: &mut StepReport, change: impl Fn(&mut Monitors)) {
        report.monitors.iter_mut().for_each(change);
    }

    #[test]
    fn a_collapse_is_mended_by_smaller_steps_if_anything_can_learn() {
        for (set, expected) in [(&[][..], true), (&["training.stop_gradient=false"], false)] {
            let collapsed = told(set, |report| report.collapse_level = 0.1);
            let few = told(set, |report| inside(report, |monitors| monitors.effective_dimensions = 1.2));
            for findings in [collapsed, few] {
                let mended = findings.last().map(|finding| finding.is_mended_by_smaller_steps);
                assert_eq!(mended, Some(expected), "{findings:?}");
            }
        }
        let zero = told(&[], |report| report.learning_rate = 0.0);
        assert!(zero.iter().all(|finding| finding.is_fatal && !finding.is_mended_by_smaller_steps));
        for (levels, dimensions, expected) in [
            (vec![], None, true),
            (vec![0.9; 20], None, true),
            (vec![0.9; 20], Some(2.5), true),
            (vec![0.9; 20], Some(2.0), false),
            (vec![0.5; 5], Some(9.0), false),
            ([vec![0.9; 20], vec![0.5; 6]].concat(), None, true),
            ([vec![0.9; 20], vec![0.4; 9]].concat(), None, false),
            (vec![f64::NAN; 10], None, false),
        ] {
            assert_eq!(was_healthy(&levels, dimensions), expected, "{levels:?} {dimensions:?}");
        }
    }

    #[test]
    fn nothing_is_said_of_a_healthy_run() {
        assert_eq!(told(&[], |_| {}), []);
        // One bad step is none, and one that was skipped has no numbers.
        assert_eq!(
            told(&[], |report| report.collapse_level = if report.step == 30 { 0.0 } else { 0.95 }),
            []
        );
        let skips = |report: &mut StepReport| {
            if report.step > 20 {
                (report.skipped, report.loss, report.collapse_level) = (Some(vec![1]), f64::NAN, f64::NAN);
            }
        };
        assert_eq!(told(&[], skips), []);
    }

    #[test]
    fn every_ailment_is_named_once_with_its_evidence() {
        type Change = fn(&mut StepReport);
        let sinks: Change = |report| report.collapse_level = 1.0 - 0.02 * report.step as f64;
        /// Changes to the recipe and to each step, and what is said: whether it is fatal, and phrases of it.
        type Case<'a> = (&'a [&'a str], Change, &'a [(bool, &'a [&'a str])]);
        let cases: [Case; 9] = [
            (&["training.stop_gradient=false"], |_| {}, &[(false, &["stop_gradient is false", "figure 2"])]),
            (
                &["training.stop_gradient=false"],
                sinks,
                &[
                    (false, &["stop_gradient is false"]),
                    (false, &["sinking", "stop-gradient is missing"]),
                    (true, &["collapsed", "step 40", "stop-gradient is missing"]),
                ],
            ),
            (
                &["views.crop_scale=[0.8, 1.0]", "views.color_jitter.probability=0"],
                sinks,
                &[(false, &["sinking", "views are weak"]), (true, &["collapsed"])],
            ),
            (
                &[],
                |report| report.learning_rate = if report.step > 24 { 0.0 } else { 0.1 },
                &[(true, &["learning rate is 0 at step 25 of 480", "schedule"])],
            ),
            (
                &[],
                |report| inside(report, |monitors| monitors.statistics_change = 0.0),
                &[(true, &["did not move in step 1", "inference mode"])],
            ),
            (
                &[],
                |report| {
                    inside(report, |monitors| {
                        monitors.without_gradient = vec!["encoder.bn1.weight".into(), "x".into()];
                    });
                },
                &[(false, &["encoder.bn1.weight and 1 others get no gradient"])],
            ),
            (
                &[],
                |report| inside(report, |monitors| monitors.gradient_norms.predictor = 1e-9),
                &[(false, &["predictor's gradient", "1.0e-9"])],
            ),
            (
                &[],
                |report| inside(report, |monitors| monitors.update_ratios.backbone = 0.5),
                &[(false, &["moved the backbone by 50 %", "learning rate is too high"])],
            ),
            (
                &[],
                |report| inside(report, |monitors| monitors.effective_dimensions = 1.25),
                &[(false, &["point in 1.2 directions"])],
            ),
        ];
        for (number, (set, change, expected)) in cases.into_iter().enumerate() {
            let found = told(set, change);
            assert_eq!(found.len(), expected.len(), "case {number}: {found:#?}");
            for (finding, (is_fatal, phrases)) in found.iter().zip(expected) {
                assert_eq!(finding.is_fatal, *is_fatal, "{finding:?}");
                for phrase in *phrases {
                    assert!(finding.sentence.contains(phrase), "{:?} lacks {phrase:?}", finding.sentence);
                }
            }
        }
        let easy = told(&[], |report| report.loss = -0.99);
        assert!(easy.len() == 1 && easy[0].sentence.contains("Strengthen [views]"), "{easy:?}");
    }
}
