//! Random kills, stops and failing networks for as long as one likes: what they cost, as a table.
//!
//! `SIMSIAM_SOAK_MINUTES=20 cargo test --release --workspace --test programs soak -- --ignored --nocapture`

use std::collections::BTreeMap;

use super::network::Split;
use super::proxy::Fault;
use super::recovery::{count, lines};
use super::*;

/// Numbers that look random, from a seed that is printed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        // Knuth's constants for a linear congruence modulo 2^64; its upper bits are good enough to choose by.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }
}

/// What happened, how often, and how long it took to the next committed step.
#[derive(Default)]
struct Tally {
    faults: BTreeMap<&'static str, usize>,
    recoveries_s: Vec<f64>,
    steps: usize,
    recomputed: u64,
    runs: usize,
}

impl Tally {
    fn tell(&mut self) {
        self.recoveries_s.sort_by(f64::total_cmp);
        let faults: usize = self.faults.values().sum();
        let at = |part: f64| {
            let last = self.recoveries_s.len().saturating_sub(1) as f64;
            self.recoveries_s.get((part * last) as usize).copied().unwrap_or(0.0)
        };
        println!(
            "runs {}, steps {}, all with the hash of a run that nothing happened to",
            self.runs, self.steps
        );
        println!("faults {faults}: {:?}", self.faults);
        println!(
            "to the next committed step: {} times, median {:.2} s, worst {:.2} s",
            self.recoveries_s.len(),
            at(0.5),
            at(1.0)
        );
        println!("steps computed a second time: at most {}", self.recomputed);
    }
}

#[test]
#[ignore = "as long as SIMSIAM_SOAK_MINUTES says"]
fn soak() {
    let minutes: f64 =
        std::env::var("SIMSIAM_SOAK_MINUTES").map_or(1.0, |text| text.parse().expect("a number of minutes"));
    let seed = std::env::var("SIMSIAM_SEED").map_or(1, |text| text.parse().expect("a seed"));
    println!("SIMSIAM_SEED={seed}");
    let (mut dice, mut tally) = (Dice(seed), Tally::default());
    let place = Place::new();
    expect(&place.train("whole", "1", &[]).output().unwrap(), 0, &[]);
    let end = Instant::now() + Duration::from_secs_f64(60.0 * minutes);
    while Instant::now() < end {
        let run = format!("run-{}", tally.runs);
        disturbed_run(&place, &run, &mut dice, &mut tally);
        tally.runs += 1;
        // Twenty minutes of runs would fill a small disk.
        fs::remove_dir_all(place.run(&run)).unwrap();
    }
    tally.tell();
}

/// One run from its first to its last step, with a fault every few steps.
fn disturbed_run(place: &Place, run: &str, dice: &mut Dice, tally: &mut Tally) {
    let mut split = Split::start(place, run);
    let mut steps = 0;
    loop {
        steps += 8 + dice.below(16);
        if !wait_for_steps_or_end(place, run, &mut split, steps) {
            break;
        }
        let name = match dice.below(12) {
            0..3 => signal_a_worker(place, run, dice, Signal::KILL, "worker, killed"),
            3..5 => signal_a_worker(place, run, dice, Signal::TERM, "worker, told to leave"),
            5 => signal_a_worker(place, run, dice, Signal::STOP, "worker, stopped until the next step"),
            6 => split.restart_coordinator(),
            7 => strike(split.control(), Fault::Reset, "coordinator's network, reset"),
            8 => strike(split.control(), Fault::Blackhole, "coordinator's network, hole"),
            9 => strike(split.data(), Fault::Reset, "gradients' network, reset"),
            10 => strike(split.data(), Fault::Blackhole, "gradients' network, hole"),
            _ => strike(split.data(), Fault::Corrupt, "gradients' network, changed"),
        };
        *tally.faults.entry(name).or_default() += 1;
        let (begin, before) = (Instant::now(), committed(place, run));
        if !wait_for_steps_or_end(place, run, &mut split, before + 1) {
            break;
        }
        tally.recoveries_s.push(begin.elapsed().as_secs_f64());
        // Whoever was stopped wakes, and finds its place gone.
        for worker in living(place, run) {
            let _ = kill_process(worker, Signal::CONT);
        }
    }
    split.end();
    tally.steps += committed(place, run);
    // Each generation after the first computes the step in hand again, but where one left in order.
    let again = count(place, run, "started").saturating_sub(1 + count(place, run, "left"));
    tally.recomputed += again as u64;
}

fn committed(place: &Place, run: &str) -> usize {
    lines(place, run, "metrics.jsonl").len()
}

/// Whether there are so many steps before the run has ended.
fn wait_for_steps_or_end(place: &Place, run: &str, split: &mut Split, steps: usize) -> bool {
    wait_for(|| match committed(place, run) {
        made if made >= 96 => Some(false),
        made if made >= steps => Some(true),
        _ => split.has_ended().then_some(false),
    })
}

fn strike(proxy: &super::proxy::Proxy, fault: Fault, name: &'static str) -> &'static str {
    proxy.strike(fault);
    name
}

/// Workers that have joined, and whose processes live.
fn living(place: &Place, run: &str) -> Vec<Pid> {
    let journal = fs::read_to_string(place.run(run).join("journal.jsonl")).unwrap_or_default();
    journal.lines().filter_map(joined_process).filter(|process| !has_ended(*process)).collect()
}

/// To one of them.
fn signal_a_worker(
    place: &Place,
    run: &str,
    dice: &mut Dice,
    signal: Signal,
    name: &'static str,
) -> &'static str {
    let living = living(place, run);
    if let Some(victim) = living.get(dice.below(living.len().max(1))) {
        // It may end just now by itself.
        let _ = kill_process(*victim, signal);
    }
    name
}
