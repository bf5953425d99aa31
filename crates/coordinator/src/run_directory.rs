//! What a run leaves behind: its recipe, journal, metrics, checkpoints and logs.

mod error;
mod rollback;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions, Permissions};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use recipe::Recipe;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use self::error::RunDirectoryError;
pub(crate) use self::error::failed;
use crate::checkpoint::{CheckpointError, Checkpoints};
use crate::flight_recorder::FlightRecorder;
use crate::growing::GrowingFile;
use crate::journal::{Created, Dealt, Record};
use crate::lock;
use crate::membership::{Outcome, Past};
use crate::tensorboard::TensorBoard;

const RECIPE: &str = "recipe.toml";
const JOURNAL: &str = "journal.jsonl";
const METRICS: &str = "metrics.jsonl";
const CHECKPOINTS: &str = "checkpoints";
const LOGS: &str = "logs";
const TENSORBOARD: &str = "tensorboard";

/// The folder of one run, held by one coordinator at a time.
#[derive(Debug)]
pub struct RunDirectory {
    path: PathBuf,
    recipe: Recipe,
    run_id: [u8; 16],
    past: Past,
    journal: GrowingFile,
    metrics: GrowingFile,
    flight_recorder: FlightRecorder,
    checkpoints: Checkpoints,
    _lock: File,
}

impl RunDirectory {
    /// Creates the folder of a new run.
    ///
    /// # Errors
    /// [`RunDirectoryError::NotEmpty`], [`RunDirectoryError::Locked`], or those of the disk.
    pub fn create(
        path: &Path,
        recipe: &Recipe,
        program_version: &str,
    ) -> Result<RunDirectory, RunDirectoryError> {
        fs::create_dir_all(path).map_err(failed("create", path))?;
        // Looked at before the lock, so that nothing is put into a folder of someone else's; and after it,
        // because another coordinator may have been faster.
        refuse_unless_empty(path)?;
        let lock = lock::take(path)?;
        refuse_unless_empty(path)?;

        let run_id = draw_run_id(path);
        let created = Record::Created(Created {
            run_id: hexadecimal(&run_id),
            program_version: program_version.to_string(),
        });
        write_whole(&path.join(RECIPE), recipe.to_toml().as_bytes())?;
        write_whole(&path.join(JOURNAL), &line(&created))?;
        Self::with_lock(path, lock)
    }

    /// Refuses a folder that holds something, before anything is prepared for a new run in it.
    ///
    /// # Errors
    /// [`RunDirectoryError::NotEmpty`], or those of the disk.
    pub fn refuse_unless_free(path: &Path) -> Result<(), RunDirectoryError> {
        if path.exists() { refuse_unless_empty(path) } else { Ok(()) }
    }

    /// The process that leads the run in a folder, if this machine can tell that one does.
    pub fn holder(path: &Path) -> Option<String> {
        lock::holder(path)
    }

    /// Opens the folder of a run to go on with it.
    ///
    /// # Errors
    /// [`RunDirectoryError::NotARun`], [`RunDirectoryError::Locked`], damaged files, or those of the disk.
    pub fn open(path: &Path) -> Result<RunDirectory, RunDirectoryError> {
        for expected in [RECIPE, JOURNAL] {
            if !path.join(expected).is_file() {
                return Err(RunDirectoryError::NotARun { path: path.to_path_buf(), expected });
            }
        }
        Self::with_lock(path, lock::take(path)?)
    }

    fn with_lock(path: &Path, lock: File) -> Result<RunDirectory, RunDirectoryError> {
        let recipe_path = path.join(RECIPE);
        let text = fs::read_to_string(&recipe_path).map_err(failed("read", &recipe_path))?;
        let recipe = Recipe::from_toml(&text, &[])
            .map_err(|source| RunDirectoryError::Recipe { path: recipe_path, source })?;
        let run_id = read_run_id(&path.join(JOURNAL))?;
        let journal = append_to(&path.join(JOURNAL))?;
        let logs = path.join(LOGS);
        fs::create_dir_all(&logs).map_err(failed("create", &logs))?;
        Ok(RunDirectory {
            recipe,
            run_id,
            past: read_past(&path.join(JOURNAL))?,
            journal,
            metrics: append_to(&path.join(METRICS))?,
            flight_recorder: FlightRecorder::open(path).map_err(failed("open", path))?,
            checkpoints: Checkpoints::open(&path.join(CHECKPOINTS), &hexadecimal(&run_id))?,
            path: path.to_path_buf(),
            _lock: lock,
        })
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The recipe of the run, complete.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// 16 bytes that no other run has.
    pub fn run_id(&self) -> [u8; 16] {
        self.run_id
    }

    /// The same in hexadecimal digits, as people and other programs are told.
    pub fn run_id_digits(&self) -> String {
        self.run_id.map(|byte| format!("{byte:02x}")).concat()
    }

    /// What the journal tells of the coordinators before.
    pub fn past(&self) -> &Past {
        &self.past
    }

    /// How the run of `total_steps` ended, if nothing is left to be done: it was completed, its last checkpoint is whole, and
    /// no worker is looking for a coordinator.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn completed(&self, total_steps: u64) -> Result<Option<Outcome>, CheckpointError> {
        let completed = self.past.completed.filter(|_| !self.past.has_left_workers());
        match completed.filter(|(step, _)| *step == total_steps) {
            Some((step, state_hash)) => {
                let last = self.checkpoints.find_valid(step)?;
                Ok(last.map(|_| Outcome::Completed { step, state_hash }))
            }
            None => Ok(None),
        }
    }

    /// The run's checkpoints.
    pub fn checkpoints(&self) -> &Checkpoints {
        &self.checkpoints
    }

    /// The folder for `coordinator.log` and `worker-N.log`.
    pub fn logs(&self) -> PathBuf {
        self.path.join(LOGS)
    }

    /// Begins the curves for TensorBoard, of steps after `first_step`.
    pub(crate) fn begin_curves(&self, first_step: u64) -> Result<TensorBoard, RunDirectoryError> {
        let folder = self.path.join(TENSORBOARD);
        TensorBoard::begin(&folder, &self.recipe, first_step, unix_time()).map_err(failed("write", &folder))
    }

    /// What keeps the last steps of all workers, piece by piece.
    pub(crate) fn flight_recorder(&mut self) -> &mut FlightRecorder {
        &mut self.flight_recorder
    }

    /// Holds the run to the images that it was begun with: the first time they are told to the journal.
    ///
    /// # Errors
    /// [`RunDirectoryError::OtherImages`], or those of the disk.
    pub fn hold_to(&mut self, images: Dealt) -> Result<(), RunDirectoryError> {
        match &self.past.images {
            Some(then) => refuse_others(&self.path, then, &images),
            None => {
                self.record(&Record::Dealt(images.clone()))?;
                self.past.images = Some(images);
                Ok(())
            }
        }
    }

    /// Whether the journal in a folder says that its run was begun with these images; `false` if there is no journal, or
    /// one that does not say with which. The folder is neither locked nor changed: a coordinator may be at work in it.
    ///
    /// # Errors
    /// [`RunDirectoryError::OtherImages`], or those of the disk.
    pub fn confirms(path: &Path, images: &Dealt) -> Result<bool, RunDirectoryError> {
        let journal = path.join(JOURNAL);
        if !journal.is_file() {
            return Ok(false);
        }
        let then = read_past(&journal)?.images;
        then.map_or(Ok(false), |then| refuse_others(path, &then, images).map(|()| true))
    }

    /// From now on the recipe is this one, which says where the images lie by now.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn keep_recipe(&mut self, recipe: Recipe) -> Result<(), RunDirectoryError> {
        self.recipe = recipe;
        write_whole(&self.path.join(RECIPE), self.recipe.to_toml().as_bytes())
    }

    /// Writes a line into the journal, with the time, and syncs it. A line that can wait does so while the disk is
    /// full, and that is said.
    ///
    /// # Errors
    /// One that cannot wait could not be written.
    pub(crate) fn record(&mut self, record: &Record) -> Result<(), RunDirectoryError> {
        match self.journal.append(&line(record)).and_then(|()| self.journal.sync()) {
            Err(_) if record.can_wait() => Ok(()),
            written => written.map_err(failed("write", &self.path.join(JOURNAL))),
        }
    }

    /// Writes a line into the metrics; while the disk is full, it waits, and that is said. What a power cut takes of it is
    /// computed again, unless a checkpoint has the step: before that, it is synced.
    pub(crate) fn metric(&mut self, metric: &impl Serialize) {
        let mut text = serde_json::to_vec(metric).expect("a metric can be written as JSON");
        text.push(b'\n');
        // The step counts all the same if it cannot be written down.
        let _ = self.metrics.append(&text);
    }

    /// Sees to it that the metrics written so far survive a power cut.
    pub(crate) fn sync_metrics(&self) {
        if let Err(error) = self.metrics.sync() {
            // What was learnt is worth more than the lines.
            tracing::warn!("cannot sync {}: {error}", self.path.join(METRICS).display());
        }
    }

    /// Writes what had to wait, if there is room again.
    pub(crate) fn catch_up(&mut self) {
        self.journal.catch_up();
        self.metrics.catch_up();
    }

    /// The lines of the metrics that have what a `T` is made of.
    pub(crate) fn metrics<T: DeserializeOwned>(&self) -> Result<Vec<T>, RunDirectoryError> {
        let path = self.path.join(METRICS);
        let text = fs::read(&path).map_err(failed("read", &path))?;
        let lines = text.split(|byte| *byte == b'\n');
        Ok(lines.filter_map(|line| serde_json::from_slice(line).ok()).collect())
    }

    /// What the metrics tell so far.
    pub(crate) fn told(&self) -> Result<Told, RunDirectoryError> {
        #[derive(Deserialize)]
        struct Line {
            step: u64,
            evaluation: Option<String>,
        }
        let mut told = Told::default();
        for line in self.metrics::<Line>()? {
            match line.evaluation {
                Some(_) => drop(told.evaluated.insert(line.step)),
                None => told.last_step = told.last_step.max(line.step),
            }
        }
        Ok(told)
    }

    /// Removes the metrics of steps after `step`: they are made again, and are not to be there twice. From step
    /// 0 on, everything is.
    pub(crate) fn forget_metrics_after(&mut self, step: u64) -> Result<(), RunDirectoryError> {
        #[derive(Deserialize)]
        struct Line {
            step: Option<u64>,
        }
        let path = self.path.join(METRICS);
        let text = fs::read(&path).map_err(failed("read", &path))?;
        let kept = text.split_inclusive(|byte| *byte == b'\n').filter(|line| {
            let is_kept = |line: Line| step > 0 && line.step.is_none_or(|line_step| line_step <= step);
            line.ends_with(b"\n") && serde_json::from_slice(line).is_ok_and(is_kept)
        });
        write_whole(&path, &kept.collect::<Vec<_>>().concat())?;
        self.metrics = append_to(&path)?;
        Ok(())
    }
}

/// Refuses images that are not those of the run in a folder. A name is for people, and the images may have been moved.
fn refuse_others(path: &Path, then: &Dealt, now: &Dealt) -> Result<(), RunDirectoryError> {
    if (then.images, &then.digest) == (now.images, &now.digest) {
        return Ok(());
    }
    let (path, then, now) = (path.to_path_buf(), Box::new(then.clone()), Box::new(now.clone()));
    Err(RunDirectoryError::OtherImages { path, then, now })
}

/// What `metrics.jsonl` tells.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Told {
    /// Steps committed; 0 if there is none.
    pub(crate) last_step: u64,
    /// The steps whose weights were evaluated.
    pub(crate) evaluated: BTreeSet<u64>,
}

fn refuse_unless_empty(path: &Path) -> Result<(), RunDirectoryError> {
    for entry in fs::read_dir(path).map_err(failed("read", path))? {
        if entry.map_err(failed("read", path))?.file_name() != lock::FILE {
            return Err(RunDirectoryError::NotEmpty { path: path.to_path_buf() });
        }
    }
    Ok(())
}

/// Opens a file of lines. A last line that a crash cut is removed, so that the next one begins a line.
fn append_to(path: &Path) -> Result<GrowingFile, RunDirectoryError> {
    let file =
        OpenOptions::new().create(true).append(true).read(true).open(path).map_err(failed("open", path))?;
    let text = fs::read(path).map_err(failed("read", path))?;
    let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |position| position + 1);
    if whole < text.len() {
        tracing::warn!("{}: the last line was cut and is removed", path.display());
        file.set_len(whole as u64).map_err(failed("cut", path))?;
    }
    GrowingFile::open(path).map_err(failed("open", path))
}

/// Writes a file aside, syncs it and renames it, so that it is there whole or not at all.
fn write_whole(path: &Path, content: &[u8]) -> Result<(), RunDirectoryError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let write = || -> io::Result<()> {
        let mut aside = tempfile::Builder::new()
            .prefix(".aside-")
            // Others may read a run, as far as the umask lets them: evaluations of another user, say.
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(folder)?;
        aside.write_all(content)?;
        aside.as_file().sync_all()?;
        aside.persist(path).map_err(|error| error.error)?;
        File::open(folder)?.sync_all()
    };
    write().map_err(failed("write", path))
}

/// The time since 1970.
pub(crate) fn unix_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// A record as a line of JSON, with the time in milliseconds since 1970.
fn line(record: &Record) -> Vec<u8> {
    #[derive(Serialize)]
    struct Line<'a> {
        unix_time_ms: u64,
        #[serde(flatten)]
        record: &'a Record,
    }
    let line = Line { unix_time_ms: unix_time().as_millis() as u64, record };
    let mut text = serde_json::to_vec(&line).expect("a record can be written as JSON");
    text.push(b'\n');
    text
}

fn read_run_id(path: &Path) -> Result<[u8; 16], RunDirectoryError> {
    let damaged = |found: String| RunDirectoryError::Journal { path: path.to_path_buf(), found };
    let mut first = Vec::new();
    File::open(path)
        .and_then(|file| BufReader::new(file).read_until(b'\n', &mut first))
        .map_err(failed("read", path))?;
    let created: Created =
        serde_json::from_slice(&first).map_err(|error| damaged(format!("what is not one: {error}")))?;
    run_id_from(&created.run_id).ok_or_else(|| {
        damaged(format!("{:?} as run_id, which has not 32 hexadecimal digits", created.run_id))
    })
}

/// No run counts this far, so nobody who goes on from a journal's numbers comes to the end of what a number holds.
const MOST_COUNTED: u64 = u64::MAX / 2;

/// What the journal tells. A line that this version does not know is one that a later version knows what to do with.
fn read_past(path: &Path) -> Result<Past, RunDirectoryError> {
    let text = fs::read(path).map_err(failed("read", path))?;
    let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let records: Vec<Record> = lines
        .filter_map(|line| {
            serde_json::from_slice(line)
                .inspect_err(|error| tracing::warn!("{}: a line is passed over: {error}", path.display()))
                .ok()
        })
        .collect();
    let past = Past::replay(&records);
    for (what, number) in [("generation", past.generation.0), ("worker", past.workers_admitted)] {
        if number > MOST_COUNTED {
            let found = format!("{what} {number}");
            return Err(RunDirectoryError::Numbers { path: path.to_path_buf(), found });
        }
    }
    Ok(past)
}

fn run_id_from(text: &str) -> Option<[u8; 16]> {
    let number = u128::from_str_radix(text, 16).ok()?;
    (text.len() == 32 && !text.starts_with('+')).then_some(number.to_be_bytes())
}

fn hexadecimal(run_id: &[u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(*run_id))
}

/// Sixteen bytes from the system's randomness (which seeds `RandomState`), the time, the process and place.
fn draw_run_id(path: &Path) -> [u8; 16] {
    let random = RandomState::new().hash_one(path);
    let seed = format!("{random} {:?} {} {}", SystemTime::now(), std::process::id(), path.display());
    let hash = blake3::hash(seed.as_bytes());
    *hash.as_bytes().first_chunk().expect("a BLAKE3 hash has 32 bytes")
}
