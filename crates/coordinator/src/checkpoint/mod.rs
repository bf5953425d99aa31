//! Checkpoints in a run directory: published whole or not at all, verified when read, the last few kept.

mod directory;
mod error;
mod publish;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

pub use directory::{CheckpointDirectory, FileEntry, Manifest};
pub use error::CheckpointError;
pub use publish::PartialCheckpoint;

use directory::checkpoint_name;
pub(crate) use directory::step_of;
use publish::PARTIAL;

/// The folder `checkpoints` of a run directory.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    path: PathBuf,
    run_id: String,
    /// Held while one takes its name, which several attempts may want at once.
    naming: Arc<Mutex<()>>,
}

impl Checkpoints {
    /// Opens the folder, and creates it if need be. What an interrupted coordinator left half-written is
    /// removed; the caller holds the run directory's lock, so nobody is writing it any more.
    ///
    /// # Errors
    /// Those of the disk.
    pub(crate) fn open(path: &Path, run_id: &str) -> Result<Checkpoints, CheckpointError> {
        fs::create_dir_all(path).map_err(CheckpointError::io("create", path))?;
        for name in names(path)? {
            if name.starts_with('.') && name.ends_with(PARTIAL) {
                let leftover = path.join(name);
                fs::remove_dir_all(&leftover).map_err(CheckpointError::io("remove", &leftover))?;
            }
        }
        Ok(Checkpoints { path: path.to_path_buf(), run_id: run_id.to_string(), naming: Arc::default() })
    }

    /// Begins an attempt at the checkpoint of `step`; there may be others.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn begin(&self, step: u64) -> Result<PartialCheckpoint, CheckpointError> {
        PartialCheckpoint::begin(&self.path, step, &self.run_id)
    }

    /// Publishes `partial`. Where the same step was published before, the first one stays.
    ///
    /// # Errors
    /// [`CheckpointError::Refused`] if it is not whole, or those of the disk; nothing of it is left then.
    pub fn publish(&self, mut partial: PartialCheckpoint) -> Result<CheckpointDirectory, CheckpointError> {
        let written = partial.complete()?;
        // Who panicked meanwhile has left nothing in it that could be damaged.
        let _alone = self.naming.lock().unwrap_or_else(PoisonError::into_inner);
        partial.take_name(written)
    }

    /// Deletes all but the last `keep` checkpoints up to `step`, which is to be the run's own: one that was published while
    /// the run went back is not, and must not push out what the run went back to. One that `is_needed`, by its name, is
    /// deleted by a later call, once it is not.
    pub(crate) fn keep_last(&self, keep: u32, step: u64, is_needed: impl Fn(&str) -> bool) {
        let steps = self.steps().unwrap_or_else(|error| {
            tracing::warn!("old checkpoints are kept: {error}");
            Vec::new()
        });
        // Newer ones are none of this run's: only a damaged one is passed over when a run is resumed.
        let older = steps.into_iter().filter(|older| *older < step);
        let too_many = older.skip(keep.saturating_sub(1) as usize).map(checkpoint_name);
        for name in too_many.filter(|name| !is_needed(name)) {
            let path = self.path.join(name);
            if let Err(error) = fs::remove_dir_all(&path) {
                // The new one is safe; an old one too many is no reason to end a run.
                tracing::warn!("cannot remove the old checkpoint {}: {error}", path.display());
            }
        }
    }

    /// The newest checkpoint whose files are what its manifest says, with a warning for each one that is
    /// passed over; `None` if there are none at all.
    ///
    /// # Errors
    /// [`CheckpointError::Damaged`] if there are some and none of them is whole: to begin anew would throw away
    /// what a person may still save. Those of the disk, which say nothing of the checkpoint.
    pub fn latest_valid(&self) -> Result<Option<CheckpointDirectory>, CheckpointError> {
        let mut passed_over = None;
        for step in self.steps()? {
            match self.open_own(step) {
                Ok(checkpoint) => return Ok(Some(checkpoint)),
                Err(error @ CheckpointError::Damaged { .. }) => {
                    tracing::warn!(step, "checkpoint passed over: {error}");
                    passed_over.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        passed_over.map_or(Ok(None), Err)
    }

    /// Where the weights of the checkpoint called `name` lie.
    pub(crate) fn model_of(&self, name: &str) -> PathBuf {
        self.path.join(name).join("model.safetensors")
    }

    /// The checkpoint of `step`; `None` if it is damaged.
    ///
    /// # Errors
    /// Those of the disk.
    pub(crate) fn find_valid(&self, step: u64) -> Result<Option<CheckpointDirectory>, CheckpointError> {
        match self.open_own(step) {
            Err(CheckpointError::Damaged { .. }) => Ok(None),
            checkpoint => checkpoint.map(Some),
        }
    }

    /// Removes the checkpoints of later steps, the last ones first: those that are left are always the newest.
    ///
    /// # Errors
    /// Those of the disk.
    pub(crate) fn forget_after(&self, step: u64) -> Result<(), CheckpointError> {
        for later in self.steps()?.into_iter().filter(|later| *later > step) {
            let path = self.path.join(checkpoint_name(later));
            fs::remove_dir_all(&path).map_err(CheckpointError::io("remove", &path))?;
        }
        Ok(())
    }

    /// The checkpoint of `step`, if it is one of this run's.
    fn open_own(&self, step: u64) -> Result<CheckpointDirectory, CheckpointError> {
        let path = self.path.join(checkpoint_name(step));
        let checkpoint = CheckpointDirectory::open(&path)?;
        let manifest = checkpoint.manifest();
        if (manifest.step, &manifest.run_id) != (step, &self.run_id) {
            let expected = format!("step {step} of run {}", self.run_id);
            let found = format!("step {} of run {}", manifest.step, manifest.run_id);
            return Err(CheckpointError::Damaged { path, expected, found });
        }
        Ok(checkpoint)
    }

    /// The checkpoint called `name`, verified; `None` if there is none of that name.
    ///
    /// # Errors
    /// [`CheckpointError::Damaged`].
    pub fn find(&self, name: &str) -> Result<Option<CheckpointDirectory>, CheckpointError> {
        // The name comes from outside: only what is a checkpoint's name becomes part of a path.
        match step_of(name) {
            Some(step) if self.path.join(name).is_dir() => self.open_own(step).map(Some),
            _ => Ok(None),
        }
    }

    /// The steps of all checkpoints, whole or not, newest first.
    pub(crate) fn steps(&self) -> Result<Vec<u64>, CheckpointError> {
        let mut steps: Vec<u64> = names(&self.path)?.iter().filter_map(|name| step_of(name)).collect();
        steps.sort_unstable_by(|a, b| b.cmp(a));
        Ok(steps)
    }
}

fn names(path: &Path) -> Result<Vec<String>, CheckpointError> {
    let read = |error| CheckpointError::io("read", path)(error);
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(read)? {
        names.extend(entry.map_err(read)?.file_name().into_string());
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn open(folder: &Path) -> Checkpoints {
        Checkpoints::open(folder, "00ff").unwrap()
    }

    fn write(checkpoints: &Checkpoints, step: u64) -> PartialCheckpoint {
        let mut partial = checkpoints.begin(step).unwrap();
        for part in [b"weights of ".as_slice(), step.to_string().as_bytes()] {
            partial.write("model.safetensors", part).unwrap();
        }
        partial.write("optimizer.safetensors", b"momentum").unwrap();
        partial.write("progress.json", br#"{"step": 1}"#).unwrap();
        partial
    }

    fn publish(checkpoints: &Checkpoints, step: u64) -> CheckpointDirectory {
        checkpoints.publish(write(checkpoints, step)).unwrap()
    }

    #[test]
    fn what_was_published_is_found_and_verified() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = open(folder.path());
        assert_eq!(checkpoints.latest_valid().unwrap(), None);
        let published = publish(&checkpoints, 123);
        assert_eq!(published.path(), folder.path().join("step-000123"));
        assert_eq!(fs::read(published.path().join("model.safetensors")).unwrap(), b"weights of 123");
        assert_eq!(published.manifest().files.len(), 3);
        assert_eq!(published.manifest().run_id, "00ff");
        assert_eq!(open(folder.path()).latest_valid().unwrap().as_ref(), Some(&published));
        assert_eq!(checkpoints.find("step-000123").unwrap(), Some(published));
        assert_eq!(checkpoints.find("step-000124").unwrap(), None);
        assert_eq!(checkpoints.find("../checkpoints/step-000123").unwrap(), None);
        assert_eq!(names(folder.path()).unwrap(), ["step-000123"], "nothing else is left");
    }

    #[test]
    fn the_last_few_are_kept_and_never_the_newest_deleted() {
        for (keep, expected) in [(1, vec![50]), (2, vec![50, 40]), (9, vec![50, 40, 30, 20, 10])] {
            let folder = tempfile::tempdir().unwrap();
            let checkpoints = open(folder.path());
            for step in [10, 20, 30, 40, 50] {
                publish(&checkpoints, step);
                checkpoints.keep_last(keep, step, |_| false);
            }
            assert_eq!(checkpoints.steps().unwrap(), expected, "keep {keep}");
        }
        // One that an evaluation waits for stays until that is over.
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = open(folder.path());
        for (step, needed, expected) in
            [(10, 10, vec![10]), (20, 10, vec![20, 10]), (30, 10, vec![30, 10]), (40, 40, vec![40])]
        {
            publish(&checkpoints, step);
            checkpoints.keep_last(1, step, |name| name == checkpoint_name(needed));
            assert_eq!(checkpoints.steps().unwrap(), expected, "{needed} is needed");
        }
        // A damaged newer one, passed over by the resume, does not push the valid one out.
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = open(folder.path());
        fs::create_dir(folder.path().join("step-000099")).unwrap();
        publish(&checkpoints, 10);
        checkpoints.keep_last(1, 10, |_| false);
        assert_eq!(checkpoints.latest_valid().unwrap().unwrap().step(), 10);
    }

    #[test]
    fn what_is_published_while_a_run_goes_back_pushes_nothing_out() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = open(folder.path());
        publish(&checkpoints, 10);
        publish(&checkpoints, 20);
        checkpoints.forget_after(10).unwrap();
        assert_eq!(checkpoints.latest_valid().unwrap().unwrap().step(), 10);
    }

    #[test]
    fn damage_is_named_and_the_one_before_is_used() {
        type Damage = fn(&Path);
        let damages: [(Damage, &str); 6] = [
            (|path| fs::write(path.join("model.safetensors"), b"Weights of 20").unwrap(), "BLAKE3"),
            (|path| fs::write(path.join("model.safetensors"), b"weights of ").unwrap(), "11 bytes"),
            (|path| fs::remove_file(path.join("optimizer.safetensors")).unwrap(), "no such file"),
            (|path| fs::remove_file(path.join("manifest.json")).unwrap(), "no such file"),
            (|path| fs::write(path.join("manifest.json"), b"{\"step\":").unwrap(), "not one"),
            (
                |path| {
                    let text = r#"{"step":20,"run_id":"","files":{"../x":{"bytes":1,"blake3":""}}}"#;
                    fs::write(path.join("manifest.json"), text).unwrap();
                },
                "plain file name",
            ),
        ];
        for (damage, expected) in damages {
            let folder = tempfile::tempdir().unwrap();
            let checkpoints = open(folder.path());
            publish(&checkpoints, 10);
            let newest = publish(&checkpoints, 20);
            damage(newest.path());
            let error = CheckpointDirectory::open(newest.path()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error:?} lacks {expected:?}");
            assert_eq!(checkpoints.latest_valid().unwrap().unwrap().step(), 10, "{expected}");
            // The run comes by the same step again.
            publish(&checkpoints, 20);
            assert_eq!(checkpoints.latest_valid().unwrap().unwrap().step(), 20, "{expected}");
        }
    }

    #[test]
    fn a_folder_under_another_steps_name_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = open(folder.path());
        let published = publish(&checkpoints, 10);
        publish(&checkpoints, 5);
        fs::rename(published.path(), folder.path().join("step-000030")).unwrap();
        assert_eq!(checkpoints.latest_valid().unwrap().unwrap().step(), 5);
        // And so is one of another run; where there is no other, that is said.
        let others = Checkpoints::open(folder.path(), "11ff").unwrap();
        let error = others.latest_valid().unwrap_err().to_string();
        assert!(error.contains("step 30 of run 11ff") && error.contains("step 10 of run 00ff"), "{error}");
    }

    #[test]
    fn a_broken_stream_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = open(folder.path());
        drop(write(&checkpoints, 10));
        assert!(names(folder.path()).unwrap().is_empty());

        type Stream = &'static [(&'static str, &'static [u8])];
        let streams: [(Stream, &str); 7] = [
            (&[], "no file"),
            (&[("model.safetensors", b"x")], "expected progress.json last"),
            (&[("model.safetensors", b"x"), ("progress.json", b"{\"step\"")], "cut"),
            (&[("progress.json", b"{}"), ("model.safetensors", b"x")], "expected progress.json last"),
            (&[("../model", b"x")], "not a plain file name"),
            (&[("manifest.json", b"{}")], "not a plain file name"),
            (&[("a", b"1"), ("b", b"2"), ("a", b"3")], "two pieces"),
        ];
        for (stream, expected) in streams {
            let mut partial = checkpoints.begin(10).unwrap();
            let written: Result<(), _> = stream.iter().try_for_each(|(file, data)| partial.write(file, data));
            let error = match written {
                Ok(()) => checkpoints.publish(partial).unwrap_err(),
                Err(error) => error,
            };
            assert!(error.to_string().contains(expected), "{error} lacks {expected:?}");
        }
        assert!(names(folder.path()).unwrap().is_empty());
    }

    /// That of a worker that is lost may still wait for the disk when another one sends the same state.
    #[test]
    fn attempts_at_the_same_checkpoint_do_not_meet() {
        for attempts in [2, 3, 8] {
            let folder = tempfile::tempdir().unwrap();
            let checkpoints = open(folder.path());
            let partials: Vec<_> = (0..attempts).map(|_| write(&checkpoints, 10)).collect();
            let abandoned = write(&checkpoints, 10);
            let published: Vec<_> = thread::scope(|scope| {
                let publish = |partial| scope.spawn(|| checkpoints.publish(partial).unwrap());
                let publishing: Vec<_> = partials.into_iter().map(publish).collect();
                publishing.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            assert!(published.iter().all(|checkpoint| *checkpoint == published[0]), "{published:?}");
            published[0].verify().unwrap();
            // And again after it is there: the first stays.
            publish(&checkpoints, 10);
            drop(abandoned);
            assert_eq!(names(folder.path()).unwrap(), ["step-000010"]);
        }
    }

    #[test]
    fn leftovers_are_removed_when_the_folder_is_opened() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = open(folder.path());
        std::mem::forget([write(&checkpoints, 10), write(&checkpoints, 10)]);
        let left = names(folder.path()).unwrap();
        assert!(left.len() == 2 && left.iter().all(|name| name.starts_with(".step-000010-")), "{left:?}");
        open(folder.path());
        assert!(names(folder.path()).unwrap().is_empty());
    }
}
