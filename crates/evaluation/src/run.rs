//! A run that may still be going on.

use std::fs;
use std::io;
use std::path::Path;

use serde::Deserialize;

use crate::encoder::{self, CHECKPOINTS, MANIFEST, RECIPE, checkpoint_name};
use crate::error::EvaluationError;

pub(crate) const JOURNAL: &str = "journal.jsonl";

/// What a run's journal tells, as far as whoever evaluates it meanwhile must know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Story(Vec<Event>);

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Event {
    Checkpoint {
        step: u64,
    },
    RolledBack {
        step: u64,
    },
    Ended {
        #[serde(flatten)]
        end: End,
    },
    #[serde(other)]
    Other,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum End {
    /// Every step is done, which the last checkpoint has.
    Completed {
        /// Steps committed.
        step: u64,
    },
    /// It was stopped or failed, and may go on.
    #[serde(other)]
    Early,
}

impl Story {
    /// Reads the journal of `run`; `None` where no run has begun yet.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn read(run: &Path) -> Result<Option<Story>, EvaluationError> {
        let path = run.join(JOURNAL);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(EvaluationError::io("read", &path))?,
        };
        if !run.join(RECIPE).is_file() {
            return Ok(None);
        }
        // A line that is being written is not whole yet, may end within a letter, and says nothing.
        let lines = text.split(|byte| *byte == b'\n');
        Ok(Some(Story(lines.filter_map(|line| serde_json::from_slice(line).ok()).collect())))
    }

    /// How the run ended, if that is the journal's last word. One whose coordinator was killed has not ended: it may
    /// go on.
    pub fn end(&self) -> Option<&End> {
        match self.0.last()? {
            Event::Ended { end } => Some(end),
            _ => None,
        }
    }

    /// The checkpoints of `run`, oldest first, each by its name with what its manifest says. The journal's last one is
    /// among them even where another machine's folder is listed as it was a while ago.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn checkpoints(&self, run: &Path) -> Result<Vec<Published>, EvaluationError> {
        let folder = run.join(CHECKPOINTS);
        let told = self.0.iter().rev().find_map(|event| match event {
            Event::Checkpoint { step } => Some(*step),
            _ => None,
        });
        let mut steps = encoder::steps(&folder)?;
        steps.extend(told);
        steps.sort_unstable();
        steps.dedup();
        let published = steps.into_iter().map(|step| Published::read(&folder, step));
        published.filter_map(Result::transpose).collect()
    }
}

/// A checkpoint of a run. After a rollback, another one may have its name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Published {
    /// Steps committed in it.
    pub step: u64,
    /// BLAKE3 of its manifest, in hexadecimal.
    manifest_blake3: String,
}

impl Published {
    /// `None` where it is gone, or about to go.
    fn read(checkpoints: &Path, step: u64) -> Result<Option<Published>, EvaluationError> {
        let path = checkpoints.join(checkpoint_name(step)).join(MANIFEST);
        match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            manifest => {
                let manifest = manifest.map_err(EvaluationError::io("read", &path))?;
                Ok(Some(Published { step, manifest_blake3: blake3::hash(&manifest).to_string() }))
            }
        }
    }

    /// Its folder's name.
    pub fn name(&self) -> String {
        checkpoint_name(self.step)
    }

    /// Whether `run` has gone back to before it, or has made other weights of its step since.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn was_taken_back(&self, run: &Path) -> Result<bool, EvaluationError> {
        if let Some(there) = Published::read(&run.join(CHECKPOINTS), self.step)? {
            return Ok(there != *self);
        }
        // One that is gone was taken back, or made room for newer ones: the last word about its step says which. A run
        // writes that down before it removes anything.
        let events = Story::read(run)?.map_or(Vec::new(), |story| story.0);
        let word = events.iter().rev().find_map(|event| match event {
            Event::Checkpoint { step } if *step == self.step => Some(false),
            Event::RolledBack { step } if *step < self.step => Some(true),
            _ => None,
        });
        Ok(word.unwrap_or(false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::write_run;

    const OPENED: &str = r#"{"event":"opened","step":0}"#;
    const BACK: &str = r#"{"event":"rolled_back","generation":1,"checkpoint":"step-000005","step":5}"#;
    const STOPPED: &str = r#"{"event":"ended","outcome":"stopped","step":5}"#;
    const COMPLETED: &str = r#"{"event":"ended","outcome":"completed","step":10,"state_hash":"00"}"#;

    fn saved(step: u64) -> String {
        format!(
            r#"{{"event":"checkpoint","generation":1,"checkpoint":"{}","step":{step}}}"#,
            checkpoint_name(step)
        )
    }

    fn write_journal(run: &Path, lines: &[&str]) {
        fs::write(run.join(JOURNAL), lines.join("\n")).unwrap();
    }

    fn story(run: &Path) -> Story {
        Story::read(run).unwrap().unwrap()
    }

    #[test]
    fn a_run_has_ended_when_its_journal_says_so_last() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Story::read(&folder.path().join("nowhere")).unwrap(), None);
        let run = write_run(folder.path(), &[]);
        assert_eq!(Story::read(&run).unwrap(), None, "there is no journal yet");
        let (completed, early) = (Some(End::Completed { step: 10 }), Some(End::Early));
        for (lines, end) in [
            (&[""][..], None),
            (&[OPENED], None),
            (&[OPENED, COMPLETED], completed.clone()),
            (&[OPENED, STOPPED, ""], early.clone()),
            (&[r#"{"event":"ended","outcome":"failed","reason":"x"}"#], early.clone()),
            (&[STOPPED, OPENED], None),
            (&[COMPLETED, r#"{"event":"op"#], completed),
        ] {
            write_journal(&run, lines);
            assert_eq!(story(&run).end(), end.as_ref(), "{lines:?}");
        }
        // Cut within a letter.
        let cut = [STOPPED.as_bytes(), b"\n{\"event\":\"lost\",\"reason\":\"\xc3"].concat();
        fs::write(run.join(JOURNAL), cut).unwrap();
        assert_eq!(story(&run).end(), early.as_ref());
        fs::remove_file(run.join(RECIPE)).unwrap();
        assert_eq!(Story::read(&run).unwrap(), None, "there is no recipe yet");
    }

    #[test]
    fn checkpoints_are_known_by_their_weights() {
        let folder = tempfile::tempdir().unwrap();
        let run = write_run(folder.path(), &[10, 5]);
        write_journal(&run, &[OPENED]);
        let before = story(&run).checkpoints(&run).unwrap();
        assert_eq!(before.iter().map(Published::name).collect::<Vec<_>>(), ["step-000005", "step-000010"]);
        fs::remove_file(run.join("checkpoints/step-000005").join(MANIFEST)).unwrap();
        fs::write(run.join("checkpoints/step-000010").join(MANIFEST), "others").unwrap();
        write_journal(&run, &[&saved(10), &saved(12)]);
        let after = story(&run).checkpoints(&run).unwrap();
        assert_eq!(
            after.iter().map(Published::name).collect::<Vec<_>>(),
            ["step-000010"],
            "the others are gone"
        );
        assert_ne!(before[1], after[0]);
    }

    #[test]
    fn a_checkpoint_that_is_gone_was_taken_back_if_the_journal_says_so_last() {
        let folder = tempfile::tempdir().unwrap();
        let run = write_run(folder.path(), &[5, 10]);
        write_journal(&run, &[&saved(5), &saved(10), BACK]);
        let of = |run: &Path| story(run).checkpoints(run).unwrap();
        let [five, ten] = of(&run).try_into().unwrap();
        assert!(!ten.was_taken_back(&run).unwrap(), "it is there");
        fs::write(run.join("checkpoints/step-000010").join(MANIFEST), "others").unwrap();
        assert!(ten.was_taken_back(&run).unwrap(), "it is there with other weights");
        fs::remove_dir_all(run.join("checkpoints")).unwrap();
        let (five_again, ten_again) = (&*saved(5), &*saved(10));
        for (lines, taken_back) in [
            (&[five_again, ten_again][..], false),
            (&[five_again, ten_again, BACK], true),
            (&[BACK], true),
            (&[BACK, five_again, ten_again], false),
        ] {
            write_journal(&run, lines);
            assert_eq!(ten.was_taken_back(&run).unwrap(), taken_back, "{lines:?}");
            assert!(!five.was_taken_back(&run).unwrap(), "{lines:?}");
        }
    }
}
