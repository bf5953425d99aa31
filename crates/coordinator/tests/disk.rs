//! A disk that is full for a while: what happens to a run, and what is left of its files.
//!
//! Everywhere, it is full by a limit on the length of this process's files, so that a write is cut in the middle of a
//! line. Where a file system can be mounted, it is full once more in earnest.

#![expect(clippy::unwrap_used, reason = "helpers of tests, where a panic is the answer")]

mod fake;

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use coordinator::checkpoint::CheckpointDirectory;
use coordinator::{OnFailure, Outcome, Progress, RunDirectory};
use fake::{Cluster, FakeWorker, TOTAL_STEPS, create, json_lines};
use protocol::v1;
use protocol::v1::order::Order;
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};
use tonic::Code;

/// The limit is the whole process's: held by every test here, from its beginning to its end.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// What makes the disk of a run full, and gives it room again.
trait Disk {
    /// Whether there is certainly no room for another line of metrics or another point of a curve.
    fn cuts_lines(&self) -> bool;
    fn fill(&mut self);
    fn free(&mut self);
}

/// No file can grow beyond the length of one of them and a few bytes: that one is cut in the middle of a line.
struct Limited {
    cut: PathBuf,
    before: Rlimit,
}

impl Limited {
    fn cutting(file: &Path) -> Limited {
        // The signal would end the process; a handler is enough for the write to fail instead, and stays.
        drop(signal(SignalKind::from_raw(Signal::XFSZ.as_raw())).unwrap());
        Limited { cut: file.to_owned(), before: getrlimit(Resource::Fsize) }
    }
}

impl Disk for Limited {
    fn cuts_lines(&self) -> bool {
        true
    }

    fn fill(&mut self) {
        // Of the curves there is one file, whose name has the time in it.
        let file = match self.cut.is_dir() {
            true => self.cut.join(&names(&self.cut)[0]),
            false => self.cut.clone(),
        };
        let length = fs::metadata(file).unwrap().len();
        setrlimit(Resource::Fsize, Rlimit { current: Some(length + 10), ..self.before }).unwrap();
    }

    fn free(&mut self) {
        setrlimit(Resource::Fsize, self.before).unwrap();
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        self.free();
    }
}

/// A file system of its own.
struct Mounted(PathBuf);

impl Mounted {
    /// `None` where that is not allowed.
    fn at(path: &Path) -> Option<Mounted> {
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", "size=8m", "tmpfs"]).arg(path);
        command.output().ok()?.status.success().then(|| Mounted(path.to_owned()))
    }
}

impl Disk for Mounted {
    /// Perhaps: small files have room to the end of their pages.
    fn cuts_lines(&self) -> bool {
        false
    }

    fn fill(&mut self) {
        let mut ballast = File::create(self.0.join("ballast")).unwrap();
        while ballast.write_all(&[0; 1000]).is_ok() {}
    }

    fn free(&mut self) {
        fs::remove_file(self.0.join("ballast")).unwrap();
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Also while files in it are still open.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

async fn wait_for(condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(30), waiting).await.expect("waited in vain");
}

async fn hear_of_step(cluster: &mut Cluster, step: u64) {
    let hearing = async {
        while let Some(progress) = cluster.progress.recv().await {
            if matches!(progress, Progress::Step(metrics) if metrics.step == step) {
                return;
            }
        }
        panic!("the run has ended before step {step}");
    };
    timeout(Duration::from_secs(30), hearing).await.expect("the step is not told");
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// How many whole records a file of curves has, with nothing after them.
fn curve_records(folder: &Path) -> usize {
    let mut bytes = fs::read(folder.join(&names(folder)[0])).unwrap();
    let mut records = 0;
    while let Some(length) = bytes.first_chunk().map(|length| u64::from_le_bytes(*length) as usize) {
        // Its length, two checksums, and the record.
        bytes.drain(..8 + 4 + length + 4);
        records += 1;
    }
    assert!(bytes.is_empty());
    records
}

/// A run whose disk is full from the third step to the fifth.
async fn check_that_the_run_goes_on(folder: &Path, disk: &mut dyn Disk) {
    let mut cluster = Cluster::start_with(create(folder), 1, |run| run.on_failure = OnFailure::Shrink).await;
    let run = folder.join("run");
    let checkpoints = run.join("checkpoints");
    let mut worker = cluster.training(1).await.remove(0);
    for step in 1..=3 {
        worker.step_done(step).await;
    }
    publish(&mut worker, 2).await.unwrap();
    hear_of_step(&mut cluster, 3).await;
    let curves = curve_records(&run.join("tensorboard"));

    disk.fill();
    worker.step_done(4).await;
    worker.step_done(5).await;
    hear_of_step(&mut cluster, 5).await;
    let refused = publish(&mut worker, 5).await.unwrap_err();
    // None of those by which a message that was changed on its way is known, which is sent again.
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("cannot write"), "{refused}");
    assert_eq!(names(&checkpoints), ["step-000002"], "nothing is left of it");
    CheckpointDirectory::open(&checkpoints.join("step-000002")).unwrap();
    let is_cut = json_lines(&run.join("metrics.jsonl")).len() < 5
        || curve_records(&run.join("tensorboard")) < curves + 2;
    assert!(is_cut || !disk.cuts_lines(), "the disk was full");

    disk.free();
    // Without a word from anyone.
    wait_for(|| json_lines(&run.join("metrics.jsonl")).len() == 5).await;
    worker.step_done(6).await;
    publish(&mut worker, 6).await.unwrap();
    worker.finished(TOTAL_STEPS).await;
    assert_eq!(worker.dismissed().await, "");
    drop(worker);
    assert!(matches!(cluster.end().await, Outcome::Completed { .. }));
    let steps: Vec<_> =
        json_lines(&run.join("metrics.jsonl")).iter().map(|line| line["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [1, 2, 3, 4, 5, 6]);
    assert_eq!(curve_records(&run.join("tensorboard")), curves + 4, "three steps and the end");
    let journal = json_lines(&run.join("journal.jsonl"));
    assert_eq!(journal.last().unwrap()["event"], "ended");
    assert_eq!(names(&checkpoints), ["step-000002", "step-000006"]);
}

async fn publish(worker: &mut FakeWorker, step: u64) -> Result<String, tonic::Status> {
    let parts = worker.checkpoint(step);
    worker.publish(parts).await
}

#[tokio::test]
async fn a_run_goes_on_while_its_disk_is_full_and_loses_nothing() {
    let _alone = ONE_AT_A_TIME.lock().await;
    for cut in ["metrics.jsonl", "journal.jsonl", "tensorboard"] {
        let folder = tempfile::tempdir().unwrap();
        let mut disk = Limited::cutting(&folder.path().join("run").join(cut));
        check_that_the_run_goes_on(folder.path(), &mut disk).await;
    }
}

#[tokio::test]
async fn a_run_goes_on_on_a_file_system_without_room() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let folder = tempfile::tempdir().unwrap();
    let Some(mut disk) = Mounted::at(folder.path()) else {
        eprintln!("skipped: this process may not mount a file system");
        return;
    };
    check_that_the_run_goes_on(folder.path(), &mut disk).await;
}

/// Two coordinators must not give the same number to two generations.
#[tokio::test]
async fn a_generation_that_cannot_be_written_down_is_not_formed() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let cluster =
        Cluster::start_with(create(folder.path()), 2, |run| run.on_failure = OnFailure::Shrink).await;
    let mut workers = cluster.training(2).await;
    workers[0].step_done(1).await;
    publish(&mut workers[0], 1).await.unwrap();

    let mut disk = Limited::cutting(&run.join("journal.jsonl"));
    disk.fill();
    drop(workers.pop());
    let Order::Halt(v1::Halt { generation: 1, .. }) = workers[0].order().await else {
        panic!("expected Halt")
    };
    workers[0].halted(1, 1).await;
    let failure = workers[0].dismissed().await;
    assert!(failure.contains("cannot write") && failure.contains("journal.jsonl"), "{failure}");
    drop(workers);
    let error = timeout(Duration::from_secs(30), cluster.task).await.unwrap().unwrap().unwrap_err();
    assert_eq!(error.to_string(), failure);

    drop(disk);
    let events: Vec<_> =
        json_lines(&run.join("journal.jsonl")).iter().map(|line| line["event"].clone()).collect();
    assert_eq!(events.last().unwrap(), "checkpoint", "no line is there in part: {events:?}");
    let directory = RunDirectory::open(&run).unwrap();
    assert_eq!(directory.past().generation.0, 1);
    assert_eq!(directory.checkpoints().latest_valid().unwrap().unwrap().step(), 1);
}
