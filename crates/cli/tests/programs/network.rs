//! Networks that fail between real processes: between a worker and the coordinator, and between two workers. What they
//! prove each time: nothing hangs, and the run ends with the bits of a run that nothing happened to.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use super::proxy::{Fault, Plan, Proxy, Way};
use super::recovery::{check_end, count, lines};
use super::*;

/// Steps are made by then, and more are to come.
const STEPS: usize = 20;

/// A worker that is started again when it ends before the run does, as containers and schedulers do it.
struct Supervised {
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Supervised {
    fn start(place: &Place, run: &str, arguments: &[String]) -> Supervised {
        let is_over = Arc::new(AtomicBool::new(false));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let mut command = place.command(env!("CARGO_BIN_EXE_worker"), &arguments);
        let log = place.0.path().join(format!("{run}-worker.log"));
        let log = fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
        command.env("SIMSIAM_TOKEN", TOKEN).stdout(Stdio::null()).stderr(log);
        let ended = Arc::clone(&is_over);
        let thread = std::thread::spawn(move || {
            let mut process = command.spawn().unwrap();
            loop {
                if ended.load(Ordering::SeqCst) {
                    // What it has to say by now is nobody's concern.
                    let _ = process.kill();
                }
                match process.try_wait().unwrap() {
                    Some(_) if ended.load(Ordering::SeqCst) => return,
                    Some(_) => process = command.spawn().unwrap(),
                    None => std::thread::sleep(Duration::from_millis(20)),
                }
            }
        });
        Supervised { is_over, thread }
    }

    fn end(self) {
        self.is_over.store(true, Ordering::SeqCst);
        self.thread.join().unwrap();
    }
}

/// A run with two workers. One of them reaches the coordinator through `control`, and is reached by the other one
/// through `data`.
pub(super) struct Split<'a> {
    place: &'a Place,
    run: &'a str,
    leader: Child,
    workers: Vec<Supervised>,
    control: Proxy,
    data: Proxy,
}

impl<'a> Split<'a> {
    pub(super) fn start(place: &'a Place, run: &'a str) -> Split<'a> {
        let leader = place
            .train(run, "0", &[])
            .args(["--remote-workers", "2", "--heartbeat-timeout-s", "4"])
            .env("SIMSIAM_TOKEN", TOKEN)
            .spawn()
            .unwrap();
        let coordinator = wait_for(|| {
            let opened =
                lines(place, run, "journal.jsonl").into_iter().find(|line| line["event"] == "opened");
            Some(opened?["address"].as_str()?.to_string())
        });
        let control = Proxy::to(&coordinator);
        // Free again by the time that the worker takes it; nobody else is told of it.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let data = Proxy::to(&format!("127.0.0.1:{port}"));
        let words = |join: &str, more: &[String]| {
            // Through memory there would be no network between them.
            let own = ["--join", join, "--collective", "tcp"].map(str::to_string);
            [&own[..], more].concat()
        };
        let behind =
            ["--listen".to_string(), format!("127.0.0.1:{port}"), "--advertise".to_string(), data.address()];
        // Whoever joins first has the lower rank, and is dialled by the others.
        let second = Supervised::start(place, run, &words(&control.address(), &behind));
        wait_for(|| (count(place, run, "joined") == 1).then_some(()));
        let first = Supervised::start(place, run, &words(&coordinator, &[]));
        Split { place, run, leader, workers: vec![first, second], control, data }
    }

    pub(super) fn control(&self) -> &Proxy {
        &self.control
    }

    pub(super) fn data(&self) -> &Proxy {
        &self.data
    }

    pub(super) fn has_ended(&mut self) -> bool {
        self.leader.try_wait().unwrap().is_some()
    }

    /// Kills the coordinator, and starts another one in its place.
    pub(super) fn restart_coordinator(&mut self) -> &'static str {
        signal(pid(&self.leader), Signal::KILL);
        self.leader.wait().unwrap();
        let resume = ["--resume", &format!("runs/{}", self.run), "--heartbeat-timeout-s", "4"];
        self.leader = self.place.coordinator(&resume).env("SIMSIAM_TOKEN", TOKEN).spawn().unwrap();
        "coordinator, killed"
    }

    pub(super) fn end(self) {
        let deadline = Instant::now() + PATIENCE;
        let mut leader = self.leader;
        while leader.try_wait().unwrap().is_none() {
            if Instant::now() > deadline {
                leader.kill().unwrap();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.workers.into_iter().for_each(Supervised::end);
        expect(&leader.wait_with_output().unwrap(), 0, &["all 96 steps are done"]);
        check_end(self.place, self.run);
    }
}

#[test]
fn a_worker_whose_way_to_the_coordinator_fails_costs_no_step() {
    let place = Place::new();
    expect(&place.train("whole", "1", &[]).output().unwrap(), 0, &[]);
    for (run, fault) in [
        ("reset", Fault::Reset),
        ("hole", Fault::Blackhole),
        ("half", Fault::HalfClose),
        ("changed", Fault::Corrupt),
        ("twice", Fault::Duplicate),
        ("slow", Fault::Delay(Duration::from_millis(20))),
    ] {
        let split = Split::start(&place, run);
        place.wait_for_steps(run, STEPS);
        split.control.strike(fault);
        split.end();
        // One from which nothing is heard loses its place. One whose connection broke is back before anyone misses it.
        let is_hole = fault == Fault::Blackhole;
        assert_eq!(count(&place, run, "lost"), usize::from(is_hole), "{run}");
        if matches!(fault, Fault::Reset | Fault::HalfClose | Fault::Corrupt) {
            let counts = ["detached", "returned", "generation"].map(|event| count(&place, run, event));
            assert_eq!(counts, [1, 1, 1], "{run}");
        }
    }
}

#[test]
fn workers_whose_way_to_each_other_fails_begin_a_new_generation() {
    let place = Place::new();
    expect(&place.train("whole", "1", &[]).output().unwrap(), 0, &[]);
    for (run, fault) in [
        ("reset", Fault::Reset),
        ("half", Fault::HalfClose),
        ("changed", Fault::Corrupt),
        ("twice", Fault::Duplicate),
        ("slow", Fault::Delay(Duration::from_millis(5))),
    ] {
        let split = Split::start(&place, run);
        // In the middle of some step's gradients.
        split.data.plan(Plan { connection: Some(0), way: Way::Up, after_bytes: 200_000, fault });
        wait_for(|| (split.data.happened() > 0).then_some(()));
        split.end();
        let is_broken = !matches!(fault, Fault::Delay(_));
        let generations = count(&place, run, "generation");
        assert!((generations > 1) == is_broken, "{run}: {generations} generations");
        assert_eq!(count(&place, run, "lost"), 0, "{run}: both live");
    }
}

#[test]
fn workers_between_which_gradients_vanish_are_told_so() {
    let place = Place::new();
    expect(&place.train("whole", "1", &[]).output().unwrap(), 0, &[]);
    let split = Split::start(&place, "vanished");
    let hole = Plan { connection: Some(0), way: Way::Up, after_bytes: 200_000, fault: Fault::Blackhole };
    split.data.plan(hole);
    wait_for(|| (split.data.happened() > 0).then_some(()));
    split.end();
    let counts = ["generation", "lost"].map(|event| count(&place, "vanished", event));
    assert_eq!(counts, [2, 0], "both live, and begin anew");
}

#[test]
fn a_checkpoint_that_is_changed_on_its_way_is_sent_again() {
    let place = Place::new();
    expect(&place.train("whole", "1", &[]).output().unwrap(), 0, &[]);
    let split = Split::start(&place, "sent");
    // The first rank publishes, and comes through the proxy.
    split.control.plan(Plan { connection: None, way: Way::Up, after_bytes: 20_000, fault: Fault::Corrupt });
    wait_for(|| (split.control.happened() > 0).then_some(()));
    split.end();
}
