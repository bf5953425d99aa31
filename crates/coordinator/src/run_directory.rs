//! What a run leaves behind: its recipe, journal, metrics, checkpoints and logs.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions, Permissions};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use recipe::{LearningRateChange, Recipe, RecipeError};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::checkpoint::{CheckpointError, Checkpoints};
use crate::flight_recorder::FlightRecorder;
use crate::growing::GrowingFile;
use crate::journal::{Created, Record};
use crate::lock;
use crate::membership::Past;
use crate::tensorboard::TensorBoard;

const RECIPE: &str = "recipe.toml";
const JOURNAL: &str = "journal.jsonl";
const METRICS: &str = "metrics.jsonl";
const CHECKPOINTS: &str = "checkpoints";
const LOGS: &str = "logs";
const TENSORBOARD: &str = "tensorboard";

/// Why a run directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RunDirectoryError {
    /// A new run would mix with something else.
    #[error("{path} is not empty: choose another --name or --out, or go on with that run by --resume")]
    NotEmpty {
        /// The folder.
        path: PathBuf,
    },
    /// Two coordinators would write the same files.
    #[error(
        "another coordinator ({holder}) is at work in {path}: wait until it ends, or choose another --name"
    )]
    Locked {
        /// The folder.
        path: PathBuf,
        /// Which one, for people.
        holder: String,
    },
    /// There is nothing to go on with.
    #[error(
        "{path} is not a run directory, expected {expected} in it: correct the path, or leave out --resume"
    )]
    NotARun {
        /// The folder.
        path: PathBuf,
        /// What was looked for.
        expected: &'static str,
    },
    /// The journal does not begin as a journal does.
    #[error("{path}: expected the record of the run's creation in the first line, found {found}")]
    Journal {
        /// The journal.
        path: PathBuf,
        /// What is there.
        found: String,
    },
    /// The journal speaks of more generations or workers than there can have been.
    #[error(
        "{path}: expected numbers to which a run has counted, found {found}: the journal is damaged; correct that line"
    )]
    Numbers {
        /// The journal.
        path: PathBuf,
        /// What is there.
        found: String,
    },
    /// The saved recipe is not one.
    #[error("{path}: {source}")]
    Recipe {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: RecipeError,
    },
    /// The checkpoints cannot be used.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The operating system refused.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// The verb.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

pub(crate) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RunDirectoryError {
    move |source| RunDirectoryError::Io { action, path: path.to_path_buf(), source }
}

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

    /// Writes a line into the metrics; while the disk is full, it waits, and that is said. Not synced: what a power cut
    /// takes from it is computed again.
    pub(crate) fn metric(&mut self, metric: &impl Serialize) {
        let mut text = serde_json::to_vec(metric).expect("a metric can be written as JSON");
        text.push(b'\n');
        // The step counts all the same if it cannot be written down.
        let _ = self.metrics.append(&text);
    }

    /// Writes what had to wait, if there is room again.
    pub(crate) fn catch_up(&mut self) {
        self.journal.catch_up();
        self.metrics.catch_up();
    }

    /// Goes back to the state after `step`: what came after it is removed, and the recipe says how the run goes on.
    pub(crate) fn roll_back(
        &mut self,
        step: u64,
        change: LearningRateChange,
    ) -> Result<(), RunDirectoryError> {
        self.recipe.optimizer.learning_rate_changes.push(change);
        write_whole(&self.path.join(RECIPE), self.recipe.to_toml().as_bytes())?;
        self.checkpoints.forget_after(step)?;
        self.forget_metrics_after(step)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::{Digest, Outcome, Place};
    use proptest::prelude::*;
    use protocol::WorkerId;

    fn quickstart() -> Recipe {
        Recipe::from_toml(recipe::QUICKSTART, &[]).unwrap()
    }

    fn create(path: &Path) -> Result<RunDirectory, RunDirectoryError> {
        RunDirectory::create(path, &quickstart(), "1.0.0")
    }

    #[test]
    fn a_run_is_created_and_opened_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("runs/first");
        let mut created = create(&path).unwrap();
        let run_id = created.run_id();
        created.record(&Record::Ended(Outcome::Stopped { step: 5 })).unwrap();
        drop(created);

        let opened = RunDirectory::open(&path).unwrap();
        assert_eq!(opened.run_id(), run_id);
        assert_eq!(opened.recipe(), &quickstart());
        assert!(opened.logs().is_dir());
        // Whoever may read an ordinary file here may read the run.
        fs::write(path.join("ordinary"), "").unwrap();
        let mode = |name: &str| fs::metadata(path.join(name)).unwrap().permissions().mode();
        assert_eq!(mode(RECIPE), mode("ordinary"));
        let journal = fs::read_to_string(path.join(JOURNAL)).unwrap();
        let lines: Vec<serde_json::Value> =
            journal.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines[0]["event"], "created");
        assert_eq!(lines[1]["event"], "ended");
        assert_eq!(lines[1]["outcome"], "stopped");
        assert!(lines[1]["unix_time_ms"].as_u64().unwrap() > 0);
    }

    #[test]
    fn a_journal_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run");
        let mut run = create(&path).unwrap();
        let place = Place {
            worker: WorkerId(7),
            collective_address: "10.0.0.1:7000".to_string(),
            first_shard: 0,
            shard_count: 4,
        };
        let records = [
            Record::Opened {
                program_version: "1.0.0".to_string(),
                checkpoint: Some("step-000003".to_string()),
                step: 3,
                address: Some("10.0.0.9:7070".to_string()),
                workers: 2,
                local_workers: 0,
                awaited: vec![3, 4],
            },
            Record::Joined {
                worker: 7,
                incarnation: u64::MAX,
                collective_address: "10.0.0.1:7000".to_string(),
                description: "host".to_string(),
                outlives_coordinator: true,
                arithmetic: String::new(),
            },
            Record::Returned { worker: 3, step: None },
            Record::Generation { generation: 2, places: vec![place] },
            Record::Started { generation: 2, step: 3, state_hash: "00".to_string() },
            Record::Adopted { generation: 2, step: 3 },
            Record::Checkpoint { generation: 2, checkpoint: "step-000005".to_string(), step: 5 },
            Record::Predicted { step: 5, steps_left: 4, seconds_left: 0.7 },
            Record::StopRequested { step: 5 },
            Record::Lost { worker: 3, reason: "gone".to_string() },
            Record::Ended(Outcome::Failed { reason: "disk".to_string() }),
            Record::Ended(Outcome::Completed { step: 9, state_hash: Digest([0xab; 32]) }),
        ];
        for record in &records {
            run.record(record).unwrap();
        }
        drop(run);
        let text = fs::read_to_string(path.join(JOURNAL)).unwrap();
        let read: Vec<Record> =
            text.lines().skip(1).map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(read, records);
        assert!(!RunDirectory::open(&path).unwrap().past().has_left_workers(), "the run has ended");

        // Without its end, and with lines of other versions, cut as a crash cuts them.
        let whole: Vec<&str> = text.lines().take(5).collect();
        let earlier = r#"{"event":"opened","program_version":"0.9.0","checkpoint":null,"step":0}"#;
        let later = r#"{"event":"moved","worker":7}"#;
        let cut = format!("{}\n{earlier}\n{later}\n{}\n{{\"event\":\"lo", whole[0], whole[1..].join("\n"));
        fs::write(path.join(JOURNAL), cut).unwrap();
        let run = RunDirectory::open(&path).unwrap();
        let past = run.past();
        assert_eq!((past.workers_admitted, past.generation.0, past.workers), (7, 2, 2));
        assert_eq!((past.ranks.as_slice(), past.has_started), (&[WorkerId(7)][..], false));
        assert_eq!(past.members[&WorkerId(7)].incarnation, u64::MAX);
        assert_eq!(past.address.as_deref(), Some("10.0.0.9:7070"));
    }

    #[test]
    fn two_runs_have_different_ids() {
        let folder = tempfile::tempdir().unwrap();
        let ids = ["a", "b"].map(|name| create(&folder.path().join(name)).unwrap().run_id());
        assert_ne!(ids[0], ids[1]);
    }

    #[test]
    fn folders_that_cannot_be_used_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let check = |result: Result<RunDirectory, RunDirectoryError>, expected: &str| {
            let error = result.expect_err(expected).to_string();
            assert!(error.contains(expected), "{error:?} lacks {expected:?}");
        };
        let path = folder.path();
        check(RunDirectory::open(&path.join("nowhere")), "not a run directory");
        fs::write(path.join("notes.txt"), "mine").unwrap();
        check(create(path), "--resume");
        assert_eq!(fs::read_dir(path).unwrap().count(), 1, "nothing was put there");
        check(create(&path.join("notes.txt/run")), "cannot create");

        let run = path.join("run");
        let held = create(&run).unwrap();
        check(create(&run), "--resume");
        let ours = format!("another coordinator (process {})", std::process::id());
        check(RunDirectory::open(&run), &ours);
        drop(held);
        RunDirectory::open(&run).unwrap();

        fs::write(run.join(JOURNAL), "{}\n").unwrap();
        check(RunDirectory::open(&run), "run's creation");
        fs::write(run.join(JOURNAL), "{\"run_id\":\"+0\",\"program_version\":\"1\"}\n").unwrap();
        check(RunDirectory::open(&run), "32 hexadecimal digits");
        fs::write(run.join(RECIPE), "seed = -1").unwrap();
        check(RunDirectory::open(&run), "recipe.toml");
    }

    #[test]
    fn numbers_from_which_nobody_can_count_on_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run");
        let mut run = create(&path).unwrap();
        run.record(&Record::Generation { generation: u64::MAX, places: Vec::new() }).unwrap();
        drop(run);
        let error = RunDirectory::open(&path).unwrap_err().to_string();
        assert!(
            error.contains("journal.jsonl") && error.contains("generation 18446744073709551615"),
            "{error}"
        );
    }

    #[test]
    fn metrics_after_the_checkpoint_are_forgotten() {
        #[derive(Serialize)]
        struct Metric {
            step: u64,
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run");
        let mut run = create(&path).unwrap();
        for step in 1..=5 {
            run.metric(&Metric { step });
        }
        run.metrics.append(b"{\"step\":1").unwrap();
        drop(run);

        let mut run = RunDirectory::open(&path).unwrap();
        run.forget_metrics_after(3).unwrap();
        run.metric(&Metric { step: 4 });
        let text = fs::read_to_string(path.join(METRICS)).unwrap();
        assert_eq!(text, "{\"step\":1}\n{\"step\":2}\n{\"step\":3}\n{\"step\":4}\n");
    }

    #[test]
    fn a_cut_line_of_the_journal_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run");
        let mut run = create(&path).unwrap();
        run.record(&Record::StopRequested { step: 7 }).unwrap();
        run.journal.append(b"{\"event\":\"st").unwrap();
        drop(run);

        let mut run = RunDirectory::open(&path).unwrap();
        run.record(&Record::StopRequested { step: 8 }).unwrap();
        let journal = fs::read_to_string(path.join(JOURNAL)).unwrap();
        assert_eq!(journal.lines().count(), 3, "{journal}");
        assert!(journal.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// A journal, a recipe or metrics with some bytes changed: the run opens, or is refused with a sentence; and
        /// what is opened can be gone on with.
        #[test]
        fn damaged_files_never_panic(
            name in proptest::sample::select(vec![JOURNAL, RECIPE, METRICS]),
            changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4),
            cut in any::<proptest::sample::Index>(),
        ) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("run");
            let mut run = create(&path).unwrap();
            run.record(&Record::StopRequested { step: 7 }).unwrap();
            run.metric(&serde_json::json!({ "step": 1 }));
            drop(run);
            let mut bytes = fs::read(path.join(name)).unwrap();
            for (place, byte) in changes {
                let place = place.index(bytes.len());
                bytes[place] = byte;
            }
            bytes.truncate(bytes.len() - cut.index(8));
            fs::write(path.join(name), bytes).unwrap();
            match RunDirectory::open(&path) {
                Ok(mut run) => {
                    run.record(&Record::StopRequested { step: 8 }).unwrap();
                    let _ = run.forget_metrics_after(0);
                }
                Err(error) => prop_assert!(error.to_string().len() > 20, "{}", error),
            }
        }
    }
}
