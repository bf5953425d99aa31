//! Workers that die, hang and come back, as real processes with real signals. What they prove each time: the run
//! goes on by itself, tells each step once, and ends with the bits of a run that nothing happened to.

use super::*;

/// Runs `SMALL`, sends `with` to the `victims` once 20 steps are committed, and waits for the end. Gives how
/// long it took from the signal to the next committed step, and what was written meanwhile.
fn disturb(
    place: &Place,
    run: &str,
    workers: usize,
    victims: &[usize],
    with: Signal,
    extra: &[&str],
) -> String {
    let child = place.train(run, &workers.to_string(), &[]).args(extra).spawn().unwrap();
    place.wait_for_steps(run, 20);
    let processes = place.workers(run, workers);
    for victim in victims {
        signal(processes[*victim], with);
    }
    let begin = Instant::now();
    wait_for(|| {
        let steps = lines(place, run, "metrics.jsonl");
        steps.iter().any(|line| line["generation"].as_u64() >= Some(2)).then_some(())
    });
    eprintln!(
        "{run}: {:.0} ms from the signal to the next committed step",
        begin.elapsed().as_secs_f64() * 1e3
    );
    if with == Signal::STOP {
        // It wakes in a run that goes on without it, is told so, and ends; another process takes its place.
        for victim in victims {
            signal(processes[*victim], Signal::CONT);
            wait_for(|| has_ended(processes[*victim]).then_some(()));
        }
    }
    let output = child.wait_with_output().unwrap();
    expect(&output, 0, &["all 96 steps are done"]);
    words(&output)
}

pub(super) fn lines(place: &Place, run: &str, file: &str) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(place.run(run).join(file)).unwrap_or_default();
    // The last line may still be on its way.
    text.split_inclusive('\n').filter_map(|line| serde_json::from_str(line).ok()).collect()
}

pub(super) fn count(place: &Place, run: &str, event: &str) -> usize {
    lines(place, run, "journal.jsonl").iter().filter(|line| line["event"] == event).count()
}

pub(super) fn check_end(place: &Place, run: &str) {
    assert_eq!(place.state_hash(run), place.state_hash("whole"), "{run}");
    let steps: Vec<u64> =
        lines(place, run, "metrics.jsonl").iter().map(|line| line["step"].as_u64().unwrap()).collect();
    assert!(steps.iter().copied().eq(1..=96), "{run}: each step once: {steps:?}");
}

#[test]
fn whoever_is_killed_the_run_ends_with_the_same_bits() {
    let place = Place::new();
    expect(&place.train("whole", "1", &[]).output().unwrap(), 0, &[]);
    let cases: [(&str, usize, &[usize]); 4] = [
        ("one", 4, &[2]),
        ("publisher", 4, &[0]),
        ("two", 4, &[1, 3]),
        // Nobody is left: it goes on from the last checkpoint, once someone was started again.
        ("only", 1, &[0]),
    ];
    for (run, workers, victims) in cases {
        let words = disturb(&place, run, workers, victims, Signal::KILL, &[]);
        check_end(&place, run);
        assert!(count(&place, run, "lost") >= victims.len(), "{run}");
        for phrase in ["a worker left", "signal: 9", "is started again in"] {
            assert!(words.contains(phrase), "{run}: {words:?} lacks {phrase:?}");
        }
    }
}

#[test]
fn a_worker_that_was_started_again_gets_state_and_shards_back() {
    let place = Place::new();
    expect(&place.train("whole", "1", &[]).output().unwrap(), 0, &[]);
    // The others wait for it, so the rest of the run is proof that it came.
    disturb(&place, "waited", 2, &[1], Signal::KILL, &["--on-failure", "wait"]);
    check_end(&place, "waited");
    for generation in
        lines(&place, "waited", "journal.jsonl").iter().filter(|line| line["event"] == "generation")
    {
        assert_eq!(generation["places"].as_array().unwrap().len(), 2, "{generation}");
    }
    assert!(count(&place, "waited", "joined") > 2);
}

#[test]
fn a_worker_that_hangs_loses_its_place_and_is_told_when_it_wakes() {
    let place = Place::new();
    expect(&place.train("whole", "1", &[]).output().unwrap(), 0, &[]);
    let words = disturb(&place, "hung", 3, &[1], Signal::STOP, &["--heartbeat-timeout-s", "4"]);
    check_end(&place, "hung");
    assert!(words.contains("nothing was heard of it for 4.0 s"), "{words}");
}
