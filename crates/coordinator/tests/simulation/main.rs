//! The whole control plane in simulated time and on a simulated network: the real service, control loop, membership
//! and run directory, and workers that only pretend to compute. Whatever crashes, is cut off or delayed, there is one
//! chain of commits, it ends, and it ends in the state of a run that nothing happened to.
//!
//! `SIMSIAM_SEEDS=5000` tries more courses than a test does, `SIMSIAM_SEED=17` repeats one and prints what happened.

#![expect(clippy::unwrap_used, reason = "helpers of tests, where a panic is the answer")]

mod course;
mod dice;
mod history;
mod link;
mod network;
mod peers;
mod reports;
mod state;
mod worker;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use coordinator::{OnFailure, Outcome, Progress, Request, Run, RunDirectory, serve};
use recipe::{QUICKSTART, Recipe};
use tokio::sync::mpsc;
use tokio::time::sleep;
use turmoil::{Builder, Sim};

use course::{Course, TIMEOUTS};
use dice::Dice;
use history::History;
use network::{COORDINATOR, PORT, Simulated};
use state::{SHARDS, TOTAL_STEPS};

/// Courses that the test tries.
const SEEDS: u64 = 200;

/// The network and all timers move on by this much at once.
const TICK: Duration = Duration::from_millis(5);

/// A run that has not ended by then hangs: all faults are over after half a minute, and every wait is shorter.
const LIMIT: Duration = Duration::from_secs(600);

/// How long the workers may take to end once the run has ended: those that do not hear of it look for a coordinator.
const WORKERS_END_LIMIT: Duration = Duration::from_secs(240);

/// The variable that names the only seed to try.
const ONE_SEED: &str = "SIMSIAM_SEED";

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap())
}

#[test]
fn whatever_happens_there_is_one_chain_of_commits_and_an_end() {
    let seeds = match number(ONE_SEED) {
        Some(seed) => seed..seed + 1,
        None => 0..number("SIMSIAM_SEEDS").unwrap_or(SEEDS),
    };
    let (next, failed) = (AtomicU64::new(seeds.start), AtomicU64::new(0));
    let try_all = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return;
            }
            if std::panic::catch_unwind(|| simulate(seed)).is_err() {
                failed.fetch_add(1, Ordering::Relaxed);
                eprintln!(
                    "seed {seed} failed; to see what happens: {ONE_SEED}={seed} cargo test --release -p coordinator \
                     --test simulation -- --nocapture"
                );
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(try_all);
        }
    });
    let failed = failed.into_inner();
    assert_eq!(failed, 0, "of the seeds {seeds:?}, {failed} failed: the commands that show them are above");
}

#[test]
fn a_seed_tells_all_that_happens() {
    for seed in 0..8 {
        assert_eq!(simulate(seed), simulate(seed), "seed {seed}");
    }
}

/// One course from its beginning to its end. Gives what happened, line by line, and says it if it must not happen.
fn simulate(seed: u64) -> Vec<String> {
    let mut dice = Dice::new(seed);
    let course = Course::drawn(&mut dice);
    let folder = folder();
    let history = History::default();
    let run = folder.path().join("run");
    let _tell = Tell(&course, &history);
    let mut sim =
        Builder::new().tick_duration(TICK).simulation_duration(Duration::MAX).tcp_capacity(1 << 12).build();
    for host in &course.hosts {
        match host.as_str() {
            COORDINATOR => coordinate(&mut sim, &run, &course, &history),
            worker => supervise(&mut sim, worker, dice.split(), &history),
        }
    }
    follow(&mut sim, &course, &history);
    drop(sim);
    history.check(&run, course.on_failure == OnFailure::Abort);
    history.lines()
}

/// Says what happened before a panic, where one course is looked at.
struct Tell<'a>(&'a Course, &'a History);

impl Drop for Tell<'_> {
    fn drop(&mut self) {
        if std::env::var_os(ONE_SEED).is_some() {
            println!("{:#?}", self.0);
            self.1.lines().iter().for_each(|line| println!("{line}"));
        }
    }
}

/// In memory, where the system has a place for that: the journal is synced line by line.
fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    tempfile::tempdir_in(memory).or_else(|_| tempfile::tempdir()).unwrap()
}

/// The coordinator's host. Whoever starts it resumes the run, if there is one.
fn coordinate(sim: &mut Sim<'_>, run: &Path, course: &Course, history: &History) {
    let (run, history) = (run.to_path_buf(), history.clone());
    let (workers, on_failure) = (course.workers as u32, course.on_failure);
    let requests = Rc::new(RefCell::new(VecDeque::from(course.requests.clone())));
    sim.host(COORDINATOR, move || {
        let (run, history, requests) = (run.clone(), history.clone(), Rc::clone(&requests));
        async move {
            history.note("the coordinator starts");
            loop {
                let prepared = Run {
                    directory: open(&run),
                    manifest_json: "{}".to_string(),
                    total_steps: TOTAL_STEPS,
                    workers,
                    max_workers: workers,
                    mixes_arithmetic: false,
                    on_failure,
                    min_workers: 1,
                    timeouts: TIMEOUTS,
                    program_version: worker::VERSION.to_string(),
                    token: network::token(),
                    tls: None,
                    remote_workers: 0,
                    local_workers: None,
                    evaluations: None,
                    views_png: None,
                };
                let (asking, asked) = mpsc::channel(1);
                tokio::task::spawn_local(ask(Rc::clone(&requests), asking));
                let observer = {
                    let history = history.clone();
                    move |progress: &Progress| match progress {
                        Progress::Step(_) => {}
                        progress => history.note(&format!("{progress:?}")),
                    }
                };
                let blocks = Arc::new(|_: u32, _: u32| Err("there are no blocks".to_string()));
                let listener = Simulated::bind(PORT).await?;
                match serve(listener, prepared, blocks, observer, asked).await? {
                    // A person goes on with it later.
                    Outcome::Stopped { .. } => sleep(Duration::from_secs(1)).await,
                    outcome => {
                        history.end(outcome);
                        return Ok(());
                    }
                }
            }
        }
    });
}

/// Asks for what is to be asked for, each once. What came due while there was no coordinator is asked of the next one.
async fn ask(requests: Rc<RefCell<VecDeque<(Duration, Request)>>>, asking: mpsc::Sender<Request>) {
    loop {
        let next = requests.borrow().front().copied();
        // Whoever could ask stays there.
        let Some((at, request)) = next else { return asking.closed().await };
        sleep(at.saturating_sub(turmoil::sim_elapsed().unwrap())).await;
        if asking.send(request).await.is_err() {
            return;
        }
        requests.borrow_mut().pop_front();
    }
}

fn open(run: &Path) -> RunDirectory {
    if run.exists() {
        return RunDirectory::open(run).unwrap();
    }
    let shards = format!("training.shards={SHARDS}");
    let recipe = Recipe::from_toml(QUICKSTART, &[shards]).unwrap();
    RunDirectory::create(run, &recipe, worker::VERSION).unwrap()
}

/// A worker's host, where a process is started again when it ends before the run does.
fn supervise(sim: &mut Sim<'_>, name: &str, dice: Dice, history: &History) {
    let (own_name, dice, history) = (name.to_owned(), Rc::new(RefCell::new(dice)), history.clone());
    sim.host(name, move || {
        let (name, dice, history) = (own_name.clone(), Rc::clone(&dice), history.clone());
        async move {
            while history.outcome().is_none() {
                history.note(&format!("{name} starts"));
                let process = dice.borrow_mut().split();
                let end = tokio::task::spawn_local({
                    let (name, history) = (name.clone(), history.clone());
                    async move { worker::run(&name, process, history).await }
                });
                history.note(&format!("{name} ends: {:?}", end.await?));
                let pause = dice.borrow_mut().millis(200..2000);
                sleep(pause).await;
            }
            Ok(())
        }
    });
}

/// Lets time pass and things happen until all have ended.
fn follow(sim: &mut Sim<'_>, course: &Course, history: &History) {
    let mut changes = course.changes.iter().peekable();
    let mut ended_at = None;
    loop {
        let now = sim.elapsed();
        while let Some((_, change)) = changes.next_if(|(at, _)| *at <= now) {
            // Nobody begins a run once more that has ended.
            if ended_at.is_none() || !change.is_of_the_coordinator() {
                history.note_at(now, &format!("{change:?}"));
                change.apply(sim);
            }
        }
        sim.step().unwrap();
        match (history.outcome(), ended_at) {
            (None, _) => assert!(now < LIMIT, "the run hangs"),
            (Some(_), None) => ended_at = Some(now),
            (Some(_), Some(ended_at)) => {
                let is_running = (0..course.workers).any(|index| sim.is_host_running(course::worker(index)));
                if !is_running {
                    return;
                }
                assert!(now < ended_at + WORKERS_END_LIMIT, "workers hang after the end of the run");
            }
        }
    }
}
