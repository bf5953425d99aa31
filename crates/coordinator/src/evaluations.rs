//! Evaluations while a run trains: one at a time, each a process of its own that gives way to the workers.
//!
//! A checkpoint that is published while another is being evaluated waits; a newer one takes its place, so that
//! evaluations never fall behind the run. What comes of them is a line of `metrics.jsonl`. One that fails is
//! told of and costs the run nothing.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};

use serde::{Deserialize, Serialize};

use protocol::{TOKEN_FILE_VARIABLE, TOKEN_VARIABLE};

use crate::checkpoint::step_of;
use crate::supervisor::tail;

/// How evaluations are started.
#[derive(Debug, Clone)]
pub struct EvaluationSettings {
    /// The program.
    pub executable: PathBuf,
    /// Its arguments, before those that name the weights: `evaluate knn RUN`, say. It must print its
    /// [`Evaluated`] as JSON on standard output, and end when its standard input closes.
    pub arguments: Vec<OsString>,
    /// Every so many checkpoints.
    pub every_checkpoints: u32,
    /// Where its other words go.
    pub log: PathBuf,
}

/// The result of an evaluation: a line of `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluated {
    /// The kind: `knn`, say.
    pub evaluation: String,
    /// Steps committed in the weights.
    pub step: u64,
    /// Accuracies from 0 to 1, by name.
    pub figures: BTreeMap<String, f64>,
    /// The result card.
    pub card: PathBuf,
    /// A picture that goes with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub picture: Option<PathBuf>,
}

/// The evaluations of one run.
#[derive(Debug)]
pub struct Evaluations {
    settings: EvaluationSettings,
    /// At most the random weights and one checkpoint.
    waiting: Vec<Weights>,
    running: Option<Running>,
    checkpoints_seen: u64,
}

/// What is evaluated.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Weights {
    /// Those of step 0, which training must beat.
    Random,
    /// Those of a checkpoint.
    Checkpoint(String),
}

/// The one under way. When dropped, it is ended.
#[derive(Debug)]
struct Running {
    weights: Weights,
    child: Child,
    /// Held open as long as it is to live.
    _stdin: Option<ChildStdin>,
    log: PathBuf,
    /// Where this process began in a log that goes on from an earlier one.
    log_start: u64,
}

impl Evaluations {
    /// Those of a run that begins, or goes on from a checkpoint.
    pub fn new(settings: EvaluationSettings) -> Evaluations {
        Evaluations { settings, waiting: Vec::new(), running: None, checkpoints_seen: 0 }
    }

    /// The run begins: the random weights are what all else is compared with.
    pub(crate) fn begin(&mut self) {
        self.waiting.push(Weights::Random);
    }

    /// The run goes on after `checkpoints_seen`, the last of which was not evaluated if its name is given.
    pub(crate) fn go_on(&mut self, checkpoints_seen: u64, not_evaluated: Option<(&str, bool)>) {
        // One that is counted again below.
        self.checkpoints_seen = checkpoints_seen.saturating_sub(u64::from(not_evaluated.is_some()));
        if let Some((checkpoint, is_last)) = not_evaluated {
            self.published(checkpoint, is_last);
        }
    }

    /// A checkpoint was published; the last one of a run is always evaluated. One that is sent twice counts once.
    pub(crate) fn published(&mut self, checkpoint: &str, is_last: bool) {
        if self.need(checkpoint) {
            return;
        }
        self.checkpoints_seen += 1;
        if is_last || self.checkpoints_seen.is_multiple_of(u64::from(self.settings.every_checkpoints)) {
            self.waiting.retain(|weights| *weights == Weights::Random);
            self.waiting.push(Weights::Checkpoint(checkpoint.to_owned()));
        }
    }

    /// The run went back to the state after `step`: later weights are its own no more.
    pub(crate) fn forget_after(&mut self, step: u64) {
        let is_later = |weights: &Weights| match weights {
            Weights::Random => false,
            Weights::Checkpoint(name) => step_of(name).is_some_and(|later| later > step),
        };
        self.waiting.retain(|weights| !is_later(weights));
        self.running.take_if(|running| is_later(&running.weights));
    }

    /// Whether there is one under way or to come.
    pub(crate) fn are_left(&self) -> bool {
        self.running.is_some() || !self.waiting.is_empty()
    }

    /// Whether one that is under way or to come reads the checkpoint called `name`.
    pub(crate) fn need(&self, name: &str) -> bool {
        let under_way = self.running.iter().map(|running| &running.weights);
        under_way
            .chain(&self.waiting)
            .any(|weights| matches!(weights, Weights::Checkpoint(own) if own == name))
    }

    /// The process of the one under way.
    pub(crate) fn under_way(&self) -> Option<u32> {
        self.running.as_ref().map(|running| running.child.id())
    }

    /// What has ended or failed since; then the next is begun. An error is a sentence for a person.
    pub(crate) fn look(&mut self) -> Vec<Result<Evaluated, String>> {
        let mut told = Vec::new();
        if let Some(result) = self.running.as_mut().and_then(Running::ended) {
            self.running = None;
            told.push(result);
        }
        if self.running.is_none() && !self.waiting.is_empty() {
            let weights = self.waiting.remove(0);
            match self.start(&weights) {
                Ok(running) => self.running = Some(running),
                Err(error) => told.push(Err(weights.failed(&error.to_string()))),
            }
        }
        told
    }

    fn start(&self, weights: &Weights) -> io::Result<Running> {
        let log = OpenOptions::new().create(true).append(true).open(&self.settings.log)?;
        let log_start = log.metadata()?.len();
        let mut child = self.command(weights, log).spawn()?;
        let stdin = child.stdin.take();
        Ok(Running {
            weights: weights.clone(),
            child,
            _stdin: stdin,
            log: self.settings.log.clone(),
            log_start,
        })
    }

    fn command(&self, weights: &Weights, log: File) -> Command {
        let mut command = Command::new(&self.settings.executable);
        command.args(&self.settings.arguments);
        match weights {
            Weights::Random => command.arg("--random"),
            Weights::Checkpoint(name) => command.args(["--checkpoint", name]),
        };
        // It connects to nobody.
        command.env_remove(TOKEN_VARIABLE).env_remove(TOKEN_FILE_VARIABLE);
        // Its own group: a Ctrl-C at the terminal is for the coordinator, which knows what to do.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log).process_group(0);
        command
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Errors mean that it has ended meanwhile, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Running {
    /// How it ended, once it has.
    fn ended(&mut self) -> Option<Result<Evaluated, String>> {
        // An error tells nothing of its end, so it is asked again.
        let status = self.child.try_wait().ok().flatten()?;
        let mut output = String::new();
        if let Some(mut stdout) = self.child.stdout.take() {
            // One line, which a pipe holds; what cannot be read is no result.
            let _ = stdout.read_to_string(&mut output);
        }
        Some(match serde_json::from_str(&output) {
            Ok(evaluated) if status.success() => Ok(evaluated),
            Err(error) if status.success() => {
                Err(self.weights.failed(&format!("it printed what is no result: {error}")))
            }
            _ => {
                let words = tail(&self.log, self.log_start).unwrap_or_default();
                let nothing = || format!("it wrote nothing into {}", self.log.display());
                let last = words.lines().last().map_or_else(nothing, str::to_owned);
                Err(self.weights.failed(&format!("{status}: {last}")))
            }
        })
    }
}

impl Weights {
    fn failed(&self, reason: &str) -> String {
        let weights = match self {
            Weights::Random => "the random weights",
            Weights::Checkpoint(name) => name,
        };
        format!("the evaluation of {weights} failed: {reason}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use std::time::{Duration, Instant};

    /// An evaluation that answers with its last argument, unless the script says otherwise.
    fn evaluations(folder: &Path, every_checkpoints: u32, script: &str) -> Evaluations {
        Evaluations::new(EvaluationSettings {
            executable: PathBuf::from("/bin/sh"),
            arguments: vec!["-c".into(), script.into()],
            every_checkpoints,
            log: folder.join("evaluation.log"),
        })
    }

    const ANSWER: &str =
        r#"printf '{"evaluation":"knn","step":7,"figures":{"top1":0.5},"card":"%s"}' "$1$0""#;

    fn until_all_ended(evaluations: &mut Evaluations) -> Vec<Result<Evaluated, String>> {
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut told = Vec::new();
        while evaluations.are_left() {
            assert!(Instant::now() < deadline, "only {told:?}");
            told.extend(evaluations.look());
            std::thread::yield_now();
        }
        told
    }

    fn subjects(told: Vec<Result<Evaluated, String>>) -> Vec<String> {
        told.into_iter().map(|result| result.unwrap().card.display().to_string()).collect()
    }

    #[test]
    fn a_newer_checkpoint_takes_the_place_of_one_that_waits() {
        let folder = tempfile::tempdir().unwrap();
        let mut evaluations = evaluations(folder.path(), 1, ANSWER);
        evaluations.begin();
        for name in ["step-1", "step-2", "step-3"] {
            evaluations.published(name, false);
        }
        assert_eq!(["step-2", "step-3"].map(|name| evaluations.need(name)), [false, true]);
        assert_eq!(subjects(until_all_ended(&mut evaluations)), ["--random", "step-3--checkpoint"]);
    }

    /// Two workers may have sent it, one of them before it was lost.
    #[test]
    fn what_is_published_twice_is_evaluated_once() {
        let folder = tempfile::tempdir().unwrap();
        for looks in [0, 1] {
            let mut evaluations = evaluations(folder.path(), 1, ANSWER);
            evaluations.published("step-1", true);
            for _ in 0..looks {
                assert!(evaluations.look().is_empty());
            }
            evaluations.published("step-1", true);
            assert_eq!(subjects(until_all_ended(&mut evaluations)), ["step-1--checkpoint"], "{looks}");
        }
    }

    #[test]
    fn every_so_many_checkpoints_and_the_last_one_are_evaluated() {
        let folder = tempfile::tempdir().unwrap();
        let mut evaluations = evaluations(folder.path(), 2, ANSWER);
        let mut told = Vec::new();
        for (name, is_last) in [("1", false), ("2", false), ("3", false), ("4", false), ("5", true)] {
            evaluations.published(name, is_last);
            told.extend(subjects(until_all_ended(&mut evaluations)));
        }
        assert_eq!(told, ["2--checkpoint", "4--checkpoint", "5--checkpoint"]);
    }

    #[test]
    fn what_died_with_a_coordinator_is_made_by_the_next_and_the_count_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        for (seen, missed, expected) in [
            // The fourth was under way, the third is none of those that are evaluated.
            (4, Some(("4", false)), vec!["4--checkpoint", "6--checkpoint"]),
            (3, Some(("3", false)), vec!["4--checkpoint", "6--checkpoint"]),
            (3, Some(("3", true)), vec!["3--checkpoint", "4--checkpoint", "6--checkpoint"]),
            (4, None, vec!["6--checkpoint"]),
        ] {
            let mut evaluations = evaluations(folder.path(), 2, ANSWER);
            evaluations.go_on(seen, missed);
            let mut told = subjects(until_all_ended(&mut evaluations));
            for number in seen + 1..=6 {
                evaluations.published(&number.to_string(), false);
                told.extend(subjects(until_all_ended(&mut evaluations)));
            }
            assert_eq!(told, expected, "{seen} {missed:?}");
        }
    }

    #[test]
    fn of_what_was_taken_back_nothing_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let mut evaluations = evaluations(folder.path(), 1, ANSWER);
        for (taken_back_to, expected) in [
            (9, &[][..]),
            (10, &["step-000010--checkpoint"]),
            (20, &["step-000010--checkpoint", "step-000020--checkpoint"]),
        ] {
            // The first is under way, and the second waits.
            evaluations.published("step-000010", false);
            assert!(evaluations.look().is_empty());
            evaluations.published("step-000020", false);
            evaluations.forget_after(taken_back_to);
            assert_eq!(subjects(until_all_ended(&mut evaluations)), expected, "{taken_back_to}");
        }
    }

    #[test]
    fn a_failure_is_told_with_the_last_words() {
        let folder = tempfile::tempdir().unwrap();
        for (script, phrase) in [
            ("echo warming up >&2; echo no labels >&2; exit 1", "exit status: 1: no labels"),
            ("exit 3", "exit status: 3: it wrote nothing"),
            ("echo 12", "what is no result"),
            ("kill -9 $$", "signal: 9"),
        ] {
            let mut evaluations = evaluations(folder.path(), 1, script);
            evaluations.begin();
            let told = until_all_ended(&mut evaluations);
            let error = told[0].as_ref().unwrap_err();
            assert!(error.contains(phrase) && error.contains("random weights"), "{error:?} lacks {phrase:?}");
        }
        let mut evaluations = evaluations(&folder.path().join("no/such"), 1, ANSWER);
        evaluations.begin();
        assert!(until_all_ended(&mut evaluations)[0].is_err());
    }

    #[test]
    fn the_one_under_way_ends_with_its_coordinator() {
        let folder = tempfile::tempdir().unwrap();
        let mut evaluations = evaluations(folder.path(), 1, "exec cat");
        evaluations.begin();
        assert!(evaluations.look().is_empty());
        let process = evaluations.running.as_ref().map(|running| running.child.id()).unwrap();
        drop(evaluations);
        assert!(!Path::new(&format!("/proc/{process}")).exists());
    }
}
