//! Worker processes on this machine: started, watched, started again and never left behind.
//!
//! Each child's standard input is a pipe that nobody writes to. A worker ends when it closes, so a worker
//! cannot outlive its coordinator, however that ends: the system closes the pipe even after `kill -9`.

use std::ffi::OsString;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use protocol::{TOKEN_FILE_VARIABLE, TOKEN_VARIABLE, Token};

use crate::restarts::Restarts;

/// How long workers have to end by themselves once their standard input is closed.
const GRACE: Duration = Duration::from_secs(3);

/// How often the end of a process is looked for while waiting for it.
const LOOK: Duration = Duration::from_millis(10);

/// As much of a log as fits a message: a panic with its backtrace hint, or an error with its causes.
const TAIL_BYTES: u64 = 2048;

/// The exit code of a Rust program that panicked.
const PANIC: i32 = 101;

/// What to start.
#[derive(Debug, Clone)]
pub struct LocalWorkerSettings {
    /// The program.
    pub executable: PathBuf,
    /// Its arguments, the same for all: `worker --join ADDRESS`, say.
    pub arguments: Vec<OsString>,
    /// What each of them is told beside that: as many workers as there are arguments here.
    pub own_arguments: Vec<OsString>,
    /// `RAYON_NUM_THREADS` of each, so that together they do not ask for more than the machine has.
    pub threads_per_worker: usize,
    /// What they show the coordinator, handed to them in their environment.
    pub token: Token,
    /// The folder for `worker-0.log`, `worker-1.log`, ...
    pub logs: PathBuf,
    /// Whether those that end are started again, unless it was in order: those were asked to leave.
    pub restart: bool,
}

/// Why workers cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// The log cannot be written.
    #[error("cannot write the log {path}: {source}")]
    Log {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The process cannot be started.
    #[error("cannot start {executable} as a worker: {source}")]
    Spawn {
        /// The program.
        executable: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

/// Worker processes of this coordinator. When dropped, they are asked to end, and killed if they do not.
#[derive(Debug)]
pub struct LocalWorkers {
    settings: LocalWorkerSettings,
    workers: Vec<LocalWorker>,
}

#[derive(Debug)]
struct LocalWorker {
    index: usize,
    name: String,
    child: Child,
    /// Held open as long as the worker is to live.
    stdin: Option<ChildStdin>,
    log: PathBuf,
    /// Where this process began in a log that goes on from an earlier one.
    log_start: u64,
    is_reported: bool,
    restarts: Restarts,
    /// When it is started again.
    restart_at: Option<Instant>,
}

/// A worker process that ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessEnd {
    /// `worker-0`.
    pub name: String,
    /// How.
    pub status: ExitStatus,
    /// Where its output is.
    pub log: PathBuf,
    /// The last of its output.
    pub tail: String,
    /// After which pause it is started again; `None` if it is not.
    pub restarts_in: Option<Duration>,
}

impl ProcessEnd {
    /// Whether it ended by a signal or a panic, and so could not report why.
    pub fn crashed(&self) -> bool {
        self.status.signal().is_some() || self.status.code() == Some(PANIC)
    }
}

impl fmt::Display for ProcessEnd {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ProcessEnd { name, status, log, tail, restarts_in: _ } = self;
        write!(formatter, "the process of {name} ended ({status}); ")?;
        match tail.is_empty() {
            true => write!(formatter, "it wrote nothing into {}", log.display()),
            false => write!(formatter, "the last of {}:\n{tail}\n", log.display()),
        }
    }
}

impl LocalWorkers {
    /// Starts the workers, each in a process group of its own, so that Ctrl-C in a terminal reaches only the
    /// coordinator, which then stops them in order.
    ///
    /// # Errors
    /// Those of the system; workers that were started by then are ended.
    pub fn spawn(settings: &LocalWorkerSettings) -> Result<LocalWorkers, SupervisorError> {
        let mut started = LocalWorkers { settings: settings.clone(), workers: Vec::new() };
        for index in 0..settings.own_arguments.len() {
            started.workers.push(LocalWorker::spawn(settings, index)?);
        }
        Ok(started)
    }

    /// How many there are.
    pub fn count(&self) -> u32 {
        self.workers.len() as u32
    }

    /// Starts again those whose pause is over at `now`, and tells which ended since this was called last.
    pub fn look_after(&mut self, now: Instant) -> Vec<ProcessEnd> {
        let LocalWorkers { settings, workers } = self;
        for worker in &mut *workers {
            if worker.restart_at.take_if(|at| *at <= now).is_some() {
                worker.start_again(settings);
            }
        }
        workers.iter_mut().filter_map(|worker| worker.ended(settings.restart, now)).collect()
    }
}

impl LocalWorker {
    fn spawn(settings: &LocalWorkerSettings, index: usize) -> Result<LocalWorker, SupervisorError> {
        let name = format!("worker-{index}");
        let log = settings.logs.join(format!("{name}.log"));
        let open = || -> io::Result<(File, File, u64)> {
            let file = OpenOptions::new().create(true).append(true).open(&log)?;
            let length = file.metadata()?.len();
            Ok((file.try_clone()?, file, length))
        };
        let (output, errors, log_start) =
            open().map_err(|source| SupervisorError::Log { path: log.clone(), source })?;
        let mut child = Command::new(&settings.executable)
            .args(&settings.arguments)
            .arg(&settings.own_arguments[index])
            .env("RAYON_NUM_THREADS", settings.threads_per_worker.to_string())
            .env(TOKEN_VARIABLE, settings.token.secret())
            .env_remove(TOKEN_FILE_VARIABLE)
            .stdin(Stdio::piped())
            .stdout(output)
            .stderr(errors)
            .process_group(0)
            .spawn()
            .map_err(|source| SupervisorError::Spawn { executable: settings.executable.clone(), source })?;
        let stdin = child.stdin.take();
        Ok(LocalWorker {
            index,
            name,
            child,
            stdin,
            log,
            log_start,
            is_reported: false,
            restarts: Restarts::default(),
            restart_at: None,
        })
    }

    /// A new process in the place of one that ended. What keeps it from being started may pass, so that is tried
    /// again after a longer pause.
    fn start_again(&mut self, settings: &LocalWorkerSettings) {
        match LocalWorker::spawn(settings, self.index) {
            Ok(started) => {
                let restarts = std::mem::take(&mut self.restarts);
                *self = LocalWorker { restarts, ..started };
            }
            Err(error) => {
                tracing::warn!("{error}");
                // Counts as one more end, which is told.
                self.is_reported = false;
            }
        }
    }

    /// How it ended, told once.
    fn ended(&mut self, restart: bool, now: Instant) -> Option<ProcessEnd> {
        if self.is_reported {
            return None;
        }
        // An error tells nothing of its end, so it is asked again.
        let status = self.child.try_wait().ok().flatten()?;
        self.is_reported = true;
        if status.success() {
            return None;
        }
        let tail = tail(&self.log, self.log_start).unwrap_or_default();
        let restarts_in = if restart { self.restarts.after_end(now) } else { None };
        self.restart_at = restarts_in.map(|pause| now + pause);
        Some(ProcessEnd { name: self.name.clone(), status, log: self.log.clone(), tail, restarts_in })
    }

    fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for LocalWorkers {
    fn drop(&mut self) {
        for worker in &mut self.workers {
            drop(worker.stdin.take());
        }
        let deadline = Instant::now() + GRACE;
        while self.workers.iter_mut().any(LocalWorker::is_running) && Instant::now() < deadline {
            sleep(LOOK);
        }
        for worker in self.workers.iter_mut().filter_map(|worker| worker.is_running().then_some(worker)) {
            tracing::warn!(worker = worker.name, "did not end by itself and is killed");
            // Errors mean that it has ended meanwhile, which is what is wanted.
            let _ = worker.child.kill();
            let _ = worker.child.wait();
        }
    }
}

/// The last of a log, from `start` on.
pub(crate) fn tail(path: &Path, start: u64) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(start.max(length.saturating_sub(TAIL_BYTES))))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).trim().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn shell(folder: &Path, script: &str) -> LocalWorkerSettings {
        LocalWorkerSettings {
            executable: PathBuf::from("/bin/sh"),
            arguments: vec!["-c".into(), script.into()],
            own_arguments: vec!["first".into(), "second".into()],
            threads_per_worker: 3,
            token: Token::random().unwrap(),
            logs: folder.to_path_buf(),
            restart: false,
        }
    }

    fn wait_for_ends(workers: &mut LocalWorkers, count: usize) -> Vec<ProcessEnd> {
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut ends = Vec::new();
        while ends.len() < count {
            assert!(Instant::now() < deadline, "only {} of {count} processes ended", ends.len());
            ends.extend(workers.look_after(Instant::now()));
            std::thread::yield_now();
        }
        ends
    }

    #[test]
    fn an_end_is_told_once_with_the_last_words() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("worker-1.log"), "from an earlier run\n").unwrap();
        let script = "echo $0, threads $RAYON_NUM_THREADS; echo no such recipe >&2; exit 3";
        let mut workers = LocalWorkers::spawn(&shell(folder.path(), script)).unwrap();
        let mut ends = wait_for_ends(&mut workers, 2);
        ends.sort_by(|a, b| a.name.cmp(&b.name));
        assert_eq!(ends[1].name, "worker-1");
        assert_eq!(ends[1].tail, "second, threads 3\nno such recipe");
        assert!(!ends[1].crashed());
        let sentence = ends[1].to_string();
        for part in ["worker-1", "exit status: 3", "no such recipe"] {
            assert!(sentence.contains(part), "{sentence}");
        }
        assert!(workers.look_after(Instant::now()).is_empty());
    }

    #[test]
    fn signals_and_panics_are_crashes() {
        let folder = tempfile::tempdir().unwrap();
        for (script, crashed) in [("kill -9 $$", true), ("exit 101", true), ("exit 1", false)] {
            let mut workers = LocalWorkers::spawn(&shell(folder.path(), script)).unwrap();
            assert!(wait_for_ends(&mut workers, 2).iter().all(|end| end.crashed() == crashed), "{script}");
        }
    }

    #[test]
    fn workers_end_when_their_standard_input_closes() {
        let folder = tempfile::tempdir().unwrap();
        // `cat` ends when its input does, so the line below is written only then.
        let workers = LocalWorkers::spawn(&shell(folder.path(), "cat; echo ended in order")).unwrap();
        drop(workers);
        for index in 0..2 {
            let log = fs::read_to_string(folder.path().join(format!("worker-{index}.log"))).unwrap();
            assert_eq!(log, "ended in order\n");
        }
    }

    #[test]
    fn a_process_is_started_again_after_its_pause_until_it_is_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = shell(folder.path(), "echo tried; exit 7");
        settings.own_arguments.truncate(1);
        settings.restart = true;
        let mut workers = LocalWorkers::spawn(&settings).unwrap();
        // A clock that runs ahead, so that nothing is waited for but the processes.
        let mut now = Instant::now();
        let deadline = now + Duration::from_secs(30);
        let mut pauses = Vec::new();
        while pauses.last() != Some(&None) {
            assert!(Instant::now() < deadline, "{pauses:?}");
            for ended in workers.look_after(now) {
                pauses.push(ended.restarts_in);
                now += ended.restarts_in.unwrap_or_default();
            }
            std::thread::yield_now();
        }
        assert_eq!(pauses.len(), 6);
        let log = fs::read_to_string(folder.path().join("worker-0.log")).unwrap();
        assert_eq!(log, "tried\n".repeat(6));
    }

    #[test]
    fn what_cannot_be_started_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = shell(folder.path(), "");
        assert!(!format!("{settings:?}").contains(settings.token.secret()));
        settings.executable = folder.path().join("nothing-here");
        assert!(LocalWorkers::spawn(&settings).unwrap_err().to_string().contains("nothing-here"));
        settings.logs = folder.path().join("no/such/folder");
        assert!(LocalWorkers::spawn(&settings).unwrap_err().to_string().contains("worker-0.log"));
    }
}
