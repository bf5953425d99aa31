//! What happens when a connection to the coordinator breaks and its worker does not.

use super::recovery_tests::{assemblies, halts, saves, shrinking, told};
use super::reunion_tests::{assembling, starts, training, waiting};
use super::tests::{Course, detached, outcome, unreachable};
use super::*;

/// Who is looked for.
fn looked_for(actions: &[Action]) -> Vec<u64> {
    let worker = |action: &Action| match action {
        Action::LookFor { worker, .. } => Some(worker.0),
        _ => None,
    };
    actions.iter().filter_map(worker).collect()
}

fn stops(actions: &[Action]) -> Vec<u64> {
    told(actions, |order| matches!(order, Order::Stop { .. }))
}

/// Worker 2 of three is away, and the others train on.
fn one_is_away() -> Course {
    let mut course = Course::training(shrinking(3));
    course.step_done(1, 1);
    let actions = course.step(detached(2));
    assert_eq!((looked_for(&actions), halts(&actions)), (vec![2], Vec::new()), "{actions:?}");
    course
}

#[test]
fn who_is_back_in_time_has_missed_nothing() {
    let mut course = one_is_away();
    assert!(matches!(course.step_done(1, 2)[..], [Action::Committed(_)]), "the generation goes on");
    assert!(course.pass(4).is_empty());
    assert!(course.comes_back(2, training(&[2])).is_empty());
    assert!(course.step(unreachable(2)).is_empty(), "what was seen before it came back counts no longer");
    assert_eq!(course.membership.phase(), Phase::Training);
    // And the steps of a first rank that was away are told when it is back.
    course.step(detached(1));
    assert!(course.step_done(2, 3).is_empty());
    assert!(matches!(course.comes_back(1, training(&[3]))[..], [Action::Committed(_)]));
}

#[test]
fn who_is_gone_is_not_waited_for() {
    for noticed_by_a_peer in [false, true] {
        let mut course = one_is_away();
        let generation = Generation(1);
        let actions = match noticed_by_a_peer {
            false => course.step(unreachable(2)),
            true => {
                let complaint =
                    Some(Complaint { reason: "rank 1 broke off".to_string(), suspect: Some(WorkerId(2)) });
                course.step(Event::Halted { worker: WorkerId(3), generation, held_step: Some(1), complaint })
            }
        };
        assert!(halts(&actions).contains(&1), "{actions:?}");
        course.halted(3, 1);
        assert_eq!(course.halted(1, 1).len(), 3, "the next generation, and two who are told their places");
    }
}

#[test]
fn who_does_not_come_back_is_lost_once_it_is_silent_for_too_long() {
    let mut course = one_is_away();
    assert!(course.pass(4).is_empty());
    assert_eq!(halts(&course.pass(3)), [1, 3]);
}

#[test]
fn who_comes_back_to_what_is_over_leaves_it() {
    let mut course = one_is_away();
    course.halted(3, 1);
    course.halted(1, 1);
    assert_eq!(course.membership.phase(), Phase::Regrouping, "it may still be training");
    assert_eq!(halts(&course.comes_back(2, training(&[]))), [2]);
    assert_eq!(assemblies(&course.halted(2, 1)).len(), 3);
}

#[test]
fn what_was_missed_is_told_again() {
    // The order to start.
    let mut course = Course::assembling(shrinking(2));
    course.step(detached(2));
    course.assembled_at(1, 0);
    assert!(course.comes_back(2, assembling()).is_empty());
    assert_eq!(starts(&course.assembled_at(2, 0)), [1, 2]);
    course.step(detached(2));
    assert_eq!(starts(&course.comes_back(2, assembling())), [2]);
    // The order to stop.
    course.step(detached(2));
    course.step(Event::Requested(Request::Stop));
    assert_eq!(stops(&course.comes_back(2, training(&[]))), [2]);
    // The order to take a place: a new generation is formed.
    let mut course = Course::assembling(shrinking(2));
    course.step(detached(2));
    assert_eq!(halts(&course.comes_back(2, waiting(0, None))), [1]);
    assert_eq!(assemblies(&course.halted(1, 0)).len(), 2);
}

#[test]
fn who_waits_keeps_its_place_and_what_it_holds() {
    let mut course = Course::training(shrinking(2));
    course.step_done(1, 7);
    course.step(Event::Requested(Request::Pause));
    course.halted(1, 7);
    assert_eq!(looked_for(&course.step(detached(1))), [1]);
    course.halted(2, 6);
    assert_eq!(course.membership.phase(), Phase::Regrouping, "what it holds is still to be heard");
    course.comes_back(1, waiting(1, Some(7)));
    assert_eq!(course.membership.phase(), Phase::Paused);
    course.step(detached(1));
    assert!(assemblies(&course.step(Event::Requested(Request::Continue))).is_empty());
    // An order to save is given again, if it may not have been heard.
    for _ in 0..2 {
        assert_eq!(saves(&course.comes_back(1, waiting(1, Some(7)))), [1]);
        course.step(detached(1));
    }
    course.published(7);
    assert_eq!(assemblies(&course.comes_back(1, waiting(1, Some(7)))), [(1, 2, 7, 4), (2, 2, 7, 4)]);
}

#[test]
fn those_who_gather_wait_for_one_who_is_away_with_the_state() {
    for is_back in [true, false] {
        let mut course = Course::training(Settings { min_workers: 2, ..shrinking(3) });
        course.loses(2);
        course.loses(3);
        course.halted(1, 5);
        assert_eq!(course.membership.phase(), Phase::Gathering);
        course.step(detached(1));
        course.joins(4);
        assert!(course.joins(5).is_empty(), "they are enough, but one may hold a newer state");
        match is_back {
            true => assert_eq!(saves(&course.comes_back(1, waiting(1, Some(5)))), [1]),
            false => assert_eq!(assemblies(&course.step(unreachable(1))), [(4, 2, 0, 4), (5, 2, 0, 4)]),
        }
    }
}

#[test]
fn only_who_goes_on_without_a_coordinator_is_waited_for() {
    let mut course = Course::new(shrinking(2));
    for worker in 1..=2 {
        let candidate = Candidate { outlives_coordinator: false, ..super::tests::candidate(worker) };
        course.step(Event::Joined(candidate));
        course.step(super::tests::attending(worker));
    }
    let actions = course.step(detached(2));
    assert_eq!((looked_for(&actions), halts(&actions)), (Vec::new(), vec![1]));
}

#[test]
fn a_fold_in_which_nothing_moves_ends_the_generation() {
    let mut course = Course::training(shrinking(2));
    let beat = |course: &mut Course, worker, standstill_s| {
        let (generation, standstill) = (Generation(1), Duration::from_secs(standstill_s));
        course.step(Event::Heartbeat { worker: WorkerId(worker), generation, standstill })
    };
    assert!(beat(&mut course, 1, 60).is_empty(), "the other one computes");
    assert!(beat(&mut course, 2, 4).is_empty(), "a network may be slow");
    assert_eq!(halts(&beat(&mut course, 2, 5)), [1, 2]);
    // Without recovery the run ends, with a sentence.
    let mut course = Course::training(super::tests::settings(2));
    beat(&mut course, 1, 6);
    let actions = beat(&mut course, 2, 6);
    assert!(matches!(outcome(&actions), Some(Outcome::Failed { reason }) if reason.contains("no gradient")));
}
