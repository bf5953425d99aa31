//! Workers that leave in order, as real processes: a rolling restart, and one that a person sends away. What they prove
//! each time: no step is computed twice, and the run ends with the bits of a run that nothing happened to.

use std::net::TcpListener;

use super::network::Split;
use super::recovery::{check_end, count, lines};
use super::*;

/// The first step of each generation.
fn starts(place: &Place, run: &str) -> Vec<u64> {
    let started = lines(place, run, "journal.jsonl").into_iter().filter(|line| line["event"] == "started");
    started.map(|line| line["step"].as_u64().unwrap()).collect()
}

/// The last step of each generation but the last is the one that the next one starts from.
fn check_that_nothing_was_computed_twice(place: &Place, run: &str) {
    let mut last = std::collections::BTreeMap::new();
    for line in lines(place, run, "metrics.jsonl") {
        last.insert(line["generation"].as_u64().unwrap(), line["step"].as_u64().unwrap());
    }
    let starts = starts(place, run);
    assert!(last.into_values().zip(&starts[1..]).all(|(last, start)| last == *start), "{run}: {starts:?}");
}

#[test]
fn a_worker_that_is_told_to_end_is_replaced_without_a_step_lost() {
    let place = Place::new();
    // Long enough for a process to come in the place of each.
    let (long, last) = (["training.epochs=100"], "step-000800");
    expect(&place.train("long", "1", &long).output().unwrap(), 0, &[]);
    let child = place.train("rolling", "3", &long).spawn().unwrap();
    // Each of them once, and the next one when the one before is back.
    for index in 0..3 {
        place.wait_for_steps("rolling", 8 * (index + 1));
        let processes = place.workers("rolling", 3 + index);
        signal(processes[index], Signal::TERM);
        wait_for(|| (count(&place, "rolling", "left") > index).then_some(()));
        place.workers("rolling", 4 + index);
    }
    let output = child.wait_with_output().unwrap();
    expect(&output, 0, &["has left in order", "is started again in", "all 800 steps are done"]);
    assert_eq!((count(&place, "rolling", "left"), count(&place, "rolling", "lost")), (3, 0));
    assert_eq!(place.state_hash_at("rolling", last), place.state_hash_at("long", last));
    assert_eq!(lines(&place, "rolling", "metrics.jsonl").len(), 800, "each step once");
}

#[test]
fn a_worker_that_still_looks_for_its_coordinator_ends_when_it_is_told_to() {
    let place = Place::new();
    // It takes the call and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let mut worker = place.command(env!("CARGO_BIN_EXE_worker"), &["--join", &address]);
    let worker = worker.env("SIMSIAM_TOKEN", TOKEN).spawn().unwrap();
    let _called = silent.accept().unwrap();
    signal(pid(&worker), Signal::TERM);
    expect(&worker.wait_with_output().unwrap(), 143, &["before it had joined"]);
}

#[test]
fn who_is_sent_away_stays_away() {
    let place = Place::new();
    expect(&place.train("whole", "1", &[]).output().unwrap(), 0, &[]);
    let child = place.train("drained", "3", &[]).spawn().unwrap();
    place.wait_for_steps("drained", 10);
    let ask = |worker: &str| {
        let arguments = ["ask", "drain", "--worker", worker, "runs/drained"];
        place.coordinator(&arguments).output().unwrap()
    };
    expect(&ask("9"), 1, &["no such worker"]);
    // The page reads the journal a little later than it is written.
    let asked = wait_for(|| Some(ask("2")).filter(|output| output.status.success()));
    expect(&asked, 0, &["leaves after the step in hand"]);
    expect(
        &child.wait_with_output().unwrap(),
        0,
        &["worker 2 has left in order, 2 of 3", "all 96 steps are done"],
    );
    for (event, expected) in [("left", 1), ("lost", 0), ("joined", 3), ("generation", 2)] {
        assert_eq!(count(&place, "drained", event), expected, "{event}");
    }
    check_that_nothing_was_computed_twice(&place, "drained");
    check_end(&place, "drained");
}

#[test]
fn a_run_waits_for_others_when_the_last_worker_leaves() {
    let place = Place::new();
    expect(&place.train("whole", "1", &[]).output().unwrap(), 0, &[]);
    let split = Split::start(&place, "emptied");
    place.wait_for_steps("emptied", 10);
    for process in place.workers("emptied", 2) {
        signal(process, Signal::TERM);
    }
    // Whatever started them starts them again.
    split.end();
    assert_eq!((count(&place, "emptied", "left"), count(&place, "emptied", "lost")), (2, 0));
}
