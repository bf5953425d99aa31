//! Coordinators that are killed and started again, as real processes: their workers train on, come back and lose
//! nothing.

use super::recovery::{check_end, count, lines};
use super::*;

/// Workers of this test, their words in files, so that nobody has to read along.
struct Workers(Vec<Child>);

impl Workers {
    fn start(place: &Place, run: &str, count: usize, extra: &[&str]) -> Workers {
        let address = wait_for(|| {
            let opened =
                lines(place, run, "journal.jsonl").into_iter().find(|line| line["event"] == "opened");
            Some(opened?["address"].as_str()?.to_string())
        });
        let worker = |index| {
            let mut command = place.command(env!("CARGO_BIN_EXE_worker"), &["--join", &address]);
            let log = fs::File::create(words_of(place, run, index)).unwrap();
            command.args(extra).env("SIMSIAM_TOKEN", TOKEN).stdout(Stdio::null()).stderr(log).spawn().unwrap()
        };
        Workers((0..count).map(worker).collect())
    }

    fn end_well(self) {
        for mut worker in self.0 {
            assert!(worker.wait().unwrap().success());
        }
    }
}

fn words_of(place: &Place, run: &str, worker: usize) -> PathBuf {
    place.0.path().join(format!("{run}-worker-{worker}.log"))
}

fn lead(place: &Place, run: &str, workers: &str) -> Child {
    place
        .train(run, "0", &[])
        .args(["--remote-workers", workers])
        .env("SIMSIAM_TOKEN", TOKEN)
        .spawn()
        .unwrap()
}

fn kill(mut child: Child) {
    signal(pid(&child), Signal::KILL);
    child.wait().unwrap();
}

fn resume(place: &Place, run: &str) -> Command {
    let mut command = place.coordinator(&["--resume", &format!("runs/{run}"), "--heartbeat-timeout-s", "4"]);
    command.env("SIMSIAM_TOKEN", TOKEN);
    command
}

/// The times of an event in the journal, in milliseconds.
fn times_ms(place: &Place, run: &str, event: &str) -> Vec<u64> {
    let journal = lines(place, run, "journal.jsonl");
    journal
        .iter()
        .filter(|line| line["event"] == event)
        .map(|line| line["unix_time_ms"].as_u64().unwrap())
        .collect()
}

#[test]
fn a_coordinator_that_is_killed_again_and_again_is_replaced_and_nobody_else_is() {
    let place = Place::new();
    expect(&place.train("whole", "1", &[]).output().unwrap(), 0, &[]);
    let mut leader = lead(&place, "led", "2");
    let workers = Workers::start(&place, "led", 2, &[]);
    for steps in [15, 40, 65] {
        place.wait_for_steps("led", steps);
        if steps == 15 {
            // While it lives, nobody can take its place.
            let holder = format!("another coordinator (process {})", leader.id());
            expect(&resume(&place, "led").output().unwrap(), 1, &[&holder, "wait until it ends"]);
        }
        kill(leader);
        leader = resume(&place, "led").spawn().unwrap();
    }
    let output = leader.wait_with_output().unwrap();
    expect(&output, 0, &["waits for the 2 workers", "worker 2 of 2 is back", "all 96 steps are done"]);
    workers.end_well();
    check_end(&place, "led");
    assert_eq!((count(&place, "led", "joined"), count(&place, "led", "generation")), (2, 1));
    // One that is killed soon may not have seen all of them come back.
    let adopted = times_ms(&place, "led", "adopted");
    assert_eq!((count(&place, "led", "lost"), (1..=3).contains(&adopted.len())), (0, true));
    for adopted in adopted {
        let opened = times_ms(&place, "led", "opened").into_iter().rfind(|opened| *opened <= adopted);
        eprintln!("led: adopted {} ms after the run was opened again", adopted - opened.unwrap());
    }
}

#[test]
fn a_run_is_made_to_its_end_without_a_coordinator_and_told_to_the_next() {
    let place = Place::new();
    expect(&place.train("whole", "1", &[]).output().unwrap(), 0, &[]);
    let leader = lead(&place, "alone", "2");
    let workers = Workers::start(&place, "alone", 2, &[]);
    place.wait_for_steps("alone", 10);
    kill(leader);
    // The one that publishes waits for somebody to take the last checkpoint; the other one has done all it can.
    wait_for(|| {
        (0..2)
            .any(|worker| fs::read_to_string(words_of(&place, "alone", worker)).unwrap().contains("finished"))
            .then_some(())
    });
    assert!(!place.run("alone").join("checkpoints").join(LAST).exists());
    expect(&resume(&place, "alone").output().unwrap(), 0, &["all 96 steps are done"]);
    workers.end_well();
    check_end(&place, "alone");
    assert_eq!(count(&place, "alone", "generation"), 1);
}

#[test]
fn who_dies_with_the_coordinator_is_missed_and_the_others_go_on() {
    let place = Place::new();
    expect(&place.train("whole", "1", &[]).output().unwrap(), 0, &[]);
    let leader = lead(&place, "both", "3");
    let mut workers = Workers::start(&place, "both", 3, &[]);
    place.wait_for_steps("both", 20);
    kill(leader);
    kill(workers.0.remove(1));
    let output = resume(&place, "both").output().unwrap();
    expect(&output, 0, &["2 of 3 are here", "generation 2 trains from step", "all 96 steps are done"]);
    workers.end_well();
    check_end(&place, "both");
    assert_eq!((count(&place, "both", "joined"), count(&place, "both", "lost")), (3, 1));
}

#[test]
fn a_worker_whose_coordinator_stays_away_ends_with_a_sentence() {
    let place = Place::new();
    let leader = place
        .train("left", "0", &["training.epochs=1000"])
        .args(["--remote-workers", "1"])
        .env("SIMSIAM_TOKEN", TOKEN)
        .spawn()
        .unwrap();
    let mut workers = Workers::start(&place, "left", 1, &["--coordinator-timeout-s", "1"]);
    place.wait_for_steps("left", 5);
    kill(leader);
    assert_eq!(workers.0[0].wait().unwrap().code(), Some(1));
    let words = fs::read_to_string(words_of(&place, "left", 0)).unwrap();
    for phrase in ["the coordinator is lost", "it did not come back within 1 s", "start the worker again"] {
        assert!(words.contains(phrase), "{words:?} lacks {phrase:?}");
    }
}
