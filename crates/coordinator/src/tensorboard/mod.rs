//! A run for TensorBoard: `tensorboard --logdir runs` shows the curves of all runs beside each other, their recipes as
//! hyperparameters to compare them by, the first views, nearest neighbours, and how the weights of every checkpoint are
//! spread.

mod event;
mod histogram;

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use recipe::Recipe;

use self::event::{Event, Setting, Value};
pub(crate) use self::histogram::{Histogram, of_weights};
use crate::evaluations::Evaluated;
use crate::growing::GrowingFile;
use crate::progress::StepMetrics;

/// How the names of event files begin.
const FILES: &str = "events.out.tfevents.";

/// An event file, begun each time a coordinator takes charge of the run.
#[derive(Debug)]
pub(crate) struct TensorBoard {
    file: GrowingFile,
    /// As the recipe counts them.
    flops_per_image: f64,
}

impl TensorBoard {
    /// Begins a file in `folder`. `now` is the time since 1970, and `first_step` the steps committed so far:
    /// TensorBoard forgets what an earlier file says of later ones.
    pub(crate) fn begin(
        folder: &Path,
        recipe: &Recipe,
        first_step: u64,
        now: Duration,
    ) -> io::Result<TensorBoard> {
        fs::create_dir_all(folder)?;
        let time = time_of_next_file(folder, now)?;
        let name = format!("{FILES}{:010}.{:09}", time.as_secs(), time.subsec_nanos());
        let file = GrowingFile::open(&folder.join(name))?;
        let mut board = TensorBoard { file, flops_per_image: recipe.flops_per_image() };
        board.write(&Event::version(now));
        board.write(&Event::start(now, first_step + 1));
        if first_step == 0 {
            // Indented by four: TensorBoard renders Markdown.
            let text = recipe.to_toml().lines().map(|line| format!("    {line}\n")).collect();
            let settings = recipe.values().into_iter().map(|(key, value)| (key, setting(&value)));
            let values = vec![Value::text("recipe", text), Value::settings(settings, &recipe.name, now)];
            board.write(&Event::summary(now, 0, values));
        }
        Ok(board)
    }

    /// What the views look like, as PNG.
    pub(crate) fn views(&mut self, png: Vec<u8>, step: u64, now: Duration) {
        self.write(&Event::summary(now, step, Value::picture("views", png).into_iter().collect()));
    }

    /// How the weights of a checkpoint are spread.
    pub(crate) fn weights(&mut self, histograms: Vec<(String, Histogram)>, step: u64, now: Duration) {
        let value = |(name, histogram)| Value::histogram(format!("weights/{name}"), histogram);
        self.write(&Event::summary(now, step, histograms.into_iter().map(value).collect()));
    }

    /// The run is over.
    pub(crate) fn end(&mut self, succeeded: bool, step: u64, now: Duration) {
        self.write(&Event::summary(now, step, vec![Value::end(succeeded, now)]));
    }

    /// A committed step.
    pub(crate) fn step(&mut self, metrics: &StepMetrics, now: Duration) {
        let seconds = &metrics.seconds;
        let values = [
            ("train/loss", metrics.loss),
            ("train/collapse_level", metrics.collapse_level),
            ("train/learning_rate", metrics.learning_rate),
            ("train/gradient_norm", metrics.gradient_norm),
            ("train/epoch", metrics.epoch as f64),
            ("speed/images_per_second", metrics.images_per_second),
            ("speed/model_flops_per_second", metrics.images_per_second * self.flops_per_image),
            ("speed/step_seconds", seconds.step),
            ("speed/data_seconds", seconds.data),
            ("speed/forward_seconds", seconds.forward),
            ("speed/backward_seconds", seconds.backward),
            ("speed/all_reduce_seconds", seconds.all_reduce),
            ("speed/update_seconds", seconds.update),
        ];
        let monitored = metrics.monitors.iter().flat_map(|monitors| {
            let (norms, ratios) = (&monitors.gradient_norms, &monitors.update_ratios);
            [
                ("health/effective_dimensions", monitors.effective_dimensions),
                ("health/statistics_change", monitors.statistics_change),
                ("health/gradient_norm_backbone", norms.backbone),
                ("health/gradient_norm_projector", norms.projector),
                ("health/gradient_norm_predictor", norms.predictor),
                ("health/update_ratio_backbone", ratios.backbone),
                ("health/update_ratio_projector", ratios.projector),
                ("health/update_ratio_predictor", ratios.predictor),
            ]
        });
        // A curve has no place for what is not a number.
        let values = values.into_iter().chain(monitored).filter(|(_, value)| value.is_finite());
        let values = values.map(|(tag, value)| Value::scalar(tag.to_owned(), value)).collect();
        self.write(&Event::summary(now, metrics.step, values));
    }

    /// The result of an evaluation.
    pub(crate) fn evaluated(&mut self, evaluated: &Evaluated, now: Duration) {
        let scalar = |(name, value): (&String, &f64)| {
            Value::scalar(format!("evaluation/{}_{name}", evaluated.evaluation), *value)
        };
        let picture = evaluated.picture.as_ref().and_then(|path| fs::read(path).ok());
        let picture = picture.and_then(|encoded| Value::picture("neighbours", encoded));
        let values = evaluated.figures.iter().map(scalar).chain(picture).collect();
        self.write(&Event::summary(now, evaluated.step, values));
    }

    /// Writes what had to wait while the disk was full, if there is room again.
    pub(crate) fn catch_up(&mut self) {
        self.file.catch_up();
    }

    fn write(&mut self, event: &Event) {
        // One write for one record, so that a reader never waits for its end. Where it fails, that is said, and the run
        // goes on without it.
        let _ = self.file.append(&event::record(event));
    }
}

/// Readers take the files of a folder in the order of their names, which have the time. Where the clock was set back, a new
/// one comes a moment after the last.
fn time_of_next_file(folder: &Path, now: Duration) -> io::Result<Duration> {
    let mut time = now;
    for entry in fs::read_dir(folder)? {
        if let Some(before) = entry?.file_name().to_str().and_then(time_in_name) {
            time = time.max(before + Duration::from_nanos(1));
        }
    }
    Ok(time)
}

/// The time in the name of a file that a coordinator began; other programs have other names.
fn time_in_name(name: &str) -> Option<Duration> {
    let (seconds, nanoseconds) = name.strip_prefix(FILES)?.split_once('.')?;
    let is_ours = (seconds.len(), nanoseconds.len()) == (10, 9);
    is_ours.then(|| Some(Duration::new(seconds.parse().ok()?, nanoseconds.parse().ok()?)))?
}

/// A value of a recipe, as TOML writes it.
fn setting(value: &str) -> Setting {
    match (value.parse(), value.parse()) {
        (Ok(number), _) => Setting::Number(number),
        (_, Ok(switch)) => Setting::Switch(switch),
        _ => Setting::Text(value.trim_matches('"').to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::event::tests::events;
    use super::*;
    use crate::StepSeconds;

    fn metrics(step: u64) -> StepMetrics {
        let seconds =
            StepSeconds { data: 0.1, forward: 0.2, backward: 0.5, all_reduce: 0.2, update: 0.0, step: 1.0 };
        StepMetrics {
            step,
            total_steps: 200,
            epoch: 2,
            total_epochs: 10,
            loss: -0.5,
            collapse_level: 0.951,
            learning_rate: 0.05,
            gradient_norm: 1.0,
            skipped: false,
            monitors: None,
            images_per_second: 128.0,
            seconds,
            generation: 1,
        }
    }

    #[test]
    fn a_resumed_run_has_a_second_file_that_overrules_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let now = |seconds: u64| Duration::from_secs(1_700_000_000 + seconds);
        let recipe = Recipe::from_toml(recipe::QUICKSTART, &[]).unwrap();
        let mut board = TensorBoard::begin(folder.path(), &recipe, 0, now(0)).unwrap();
        board.step(&metrics(1), now(1));
        let figures = [("top1_k20_t0.07".to_owned(), 0.25)].into();
        let evaluated =
            Evaluated { evaluation: "knn".into(), step: 1, figures, card: "a.json".into(), picture: None };
        board.evaluated(&evaluated, now(2));
        board.weights(vec![("fc.0.weight".to_owned(), Histogram::default())], 1, now(2));
        board.end(true, 1, now(3));
        TensorBoard::begin(folder.path(), &recipe, 7, now(3)).unwrap();

        let mut files: Vec<_> =
            fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        let first = events(&fs::read(&files[0]).unwrap());
        let values = |event: &Event| event.summary.clone().unwrap().values;
        assert_eq!(first[0], Event::version(now(0)));
        let text = String::from_utf8(values(&first[2])[0].tensor.clone().unwrap().strings.remove(0)).unwrap();
        assert!(text.starts_with("    name = \"quickstart\"\n"), "{text}");
        assert_eq!((first[3].step, first[3].wall_time), (1, 1_700_000_001.0));
        assert_eq!(values(&first[3])[0], Value::scalar("train/loss".to_owned(), -0.5));
        let flops =
            Value::scalar("speed/model_flops_per_second".to_owned(), 128.0 * recipe.flops_per_image());
        assert!(values(&first[3]).contains(&flops));
        assert_eq!(values(&first[4]), [Value::scalar("evaluation/knn_top1_k20_t0.07".to_owned(), 0.25)]);
        assert_eq!(values(&first[5])[0].tag, "weights/fc.0.weight");
        assert_eq!(values(&first[6])[0].tag, "_hparams_/session_end_info");
        let second = events(&fs::read(&files[1]).unwrap());
        assert_eq!(second, [Event::version(now(3)), Event::start(now(3), 8)]);
    }

    #[test]
    fn what_a_resumed_run_writes_comes_last_though_the_clock_was_set_back() {
        let folder = tempfile::tempdir().unwrap();
        let now = |seconds: u64| Duration::from_secs(1_700_000_000 + seconds);
        let recipe = Recipe::from_toml(recipe::QUICKSTART, &[]).unwrap();
        fs::write(folder.path().join("events.out.tfevents.1800000000.host.1.0"), b"of another program")
            .unwrap();
        let beginnings = [(0, 7), (1, 3), (2, 3), (3, 9)];
        for (first_step, seconds) in beginnings {
            TensorBoard::begin(folder.path(), &recipe, first_step, now(seconds)).unwrap();
        }
        let mut files: Vec<_> =
            fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        for (path, (first_step, seconds)) in files.iter().zip(beginnings) {
            assert_eq!(events(&fs::read(path).unwrap())[1], Event::start(now(seconds), first_step + 1));
        }
    }

    #[test]
    fn settings_have_the_types_that_they_have_in_the_recipe() {
        for (text, expected) in [
            ("0.05", Setting::Number(0.05)),
            ("480", Setting::Number(480.0)),
            ("true", Setting::Switch(true)),
            ("\"resnet18\"", Setting::Text("resnet18".to_owned())),
            ("[0.2, 1.0]", Setting::Text("[0.2, 1.0]".to_owned())),
        ] {
            assert_eq!(setting(text), expected, "{text}");
        }
    }
}
