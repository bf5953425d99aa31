//! What becomes of workers that do not come together.

use super::recovery_tests::{assemblies, halts, shrinking, told};
use super::tests::{Course, holding, settings};
use super::*;

impl Course {
    /// A worker gives up an assembly, because it misses another one.
    fn misses(&mut self, worker: u64, suspect: u64) -> Vec<Action> {
        let (worker, generation) = (WorkerId(worker), self.membership.generation());
        let suspect = Some(WorkerId(suspect));
        let complaint = Some(Complaint { reason: "it was late".to_string(), suspect });
        self.step(Event::Halted { worker, generation, held_step: Some(7), complaint })
    }

    /// `workers` that have made steps, and as many newcomers, are told to assemble for step 7.
    fn taking_in(workers: u32, newcomers: u32) -> Course {
        let max_workers = workers + newcomers;
        let mut course = Course::training(Settings { max_workers, ..shrinking(workers) });
        course.watch(u64::from(max_workers));
        course.step_done(1, 7);
        for newcomer in workers + 1..=max_workers {
            course.joins(u64::from(newcomer));
        }
        if newcomers == 0 {
            course.step(Event::Requested(Request::Pause));
            course.step(Event::Requested(Request::Continue));
        }
        for worker in 1..=u64::from(workers) {
            course.halted(worker, 7);
        }
        course.published(7);
        assert_eq!(course.membership.phase(), Phase::Assembling);
        course
    }
}

fn dismissed(actions: &[Action]) -> Vec<u64> {
    told(actions, |order| matches!(order, Order::Dismiss { failure: Some(_) }))
}

#[test]
fn workers_have_less_time_than_the_coordinator() {
    let course = Course::assembling(shrinking(2));
    assert_eq!(course.membership.assembly_limit(), Duration::from_secs(40));
    assert!(course.membership.assembly_limit() < settings(2).timeouts.assemble);
}

#[test]
fn a_newcomer_that_does_not_come_together_with_the_others_is_given_up_at_once() {
    for (worker, suspect) in [(1, 3), (2, 3), (3, 1), (3, 2)] {
        let mut course = Course::taking_in(2, 1);
        assert!(course.pass(40).is_empty());
        let mut actions = course.misses(worker, suspect);
        assert_eq!(dismissed(&actions), [3], "{worker} misses {suspect}: {actions:?}");
        // It is not waited for, and the others go on from the step that they hold.
        for survivor in (1..=2).filter(|survivor| *survivor != worker) {
            actions = course.halted(survivor, 7);
        }
        assert_eq!(assemblies(&actions), [(1, 3, 7, 4), (2, 3, 7, 4)], "{worker} misses {suspect}");
    }
}

#[test]
fn who_comes_after_one_that_came_in_vain_waits_as_long_as_that_was_waited_for() {
    let mut course = Course::taking_in(2, 1);
    course.pass(40);
    course.misses(1, 3);
    course.halted(2, 7);
    course.watch(4);
    course.joins(4);
    for worker in [1, 2] {
        course.assembled_at(worker, 7);
    }
    course.pass(39);
    assert_eq!(halts(&course.step_done(1, 8)), [0; 0]);
    course.pass(1);
    assert_eq!(halts(&course.step_done(1, 9)), [1, 2]);
}

#[test]
fn of_equals_the_one_that_most_of_them_miss_is_given_up() {
    for (ways, expected) in [
        (&[(1, 3)][..], 3),
        (&[(3, 1)], 1),
        // Of two that miss each other, the later.
        (&[(2, 3), (3, 2)], 3),
        (&[(1, 2), (3, 2), (2, 3)], 2),
        // Who has left before is missed for that.
        (&[(1, 2), (3, 1)], 2),
    ] {
        let mut course = Course::taking_in(3, 0);
        let generation = course.membership.generation().0;
        course.pass(40);
        let mut actions = Vec::new();
        for &(worker, suspect) in ways {
            actions = course.misses(worker, suspect);
        }
        for worker in (1..=3).filter(|worker| ways.iter().all(|(one, _)| one != worker)) {
            assert_eq!(dismissed(&actions), [0; 0], "not all have spoken: {ways:?}");
            actions = course.halted(worker, 7);
        }
        assert_eq!(dismissed(&actions), [expected], "{ways:?}");
        let formed: Vec<u64> = assemblies(&actions).iter().map(|(worker, ..)| *worker).collect();
        let others: Vec<u64> = (1..=3).filter(|worker| *worker != expected).collect();
        assert_eq!((formed, course.membership.generation().0), (others, generation + 1), "{ways:?}");
    }
}

#[test]
fn an_assembly_that_breaks_sooner_is_made_again_of_the_same() {
    let mut course = Course::taking_in(2, 1);
    course.pass(39);
    course.misses(1, 3);
    course.misses(2, 3);
    assert_eq!(assemblies(&course.halted(3, 7)).len(), 3);
    // What was said of it says nothing of the next one.
    course.pass(40);
    let generation = course.membership.generation();
    let complaint = Some(Complaint { reason: "the system refused".to_string(), suspect: None });
    let actions =
        course.step(Event::Halted { worker: WorkerId(1), generation, held_step: Some(7), complaint });
    assert_eq!((halts(&actions), dismissed(&actions)), (vec![2, 3], vec![]));
}

#[test]
fn the_coordinators_clock_takes_no_place_from_those_who_trained_together() {
    // Nobody is there: only who is new loses its place.
    let mut course = Course::taking_in(2, 1);
    let actions = course.pass(51);
    assert_eq!(dismissed(&actions), [3]);
    course.halted(1, 7);
    assert_eq!(assemblies(&course.halted(2, 7)), [(1, 3, 7, 4), (2, 3, 7, 4)]);
    // Or nobody, where all are new or none is: what they hold may lie on no disk.
    for mut course in [Course::taking_in(2, 0), Course::assembling(shrinking(2))] {
        let actions = course.pass(51);
        assert_eq!((halts(&actions), dismissed(&actions)), (vec![1, 2], vec![]));
        course.halted(1, 7);
        assert_eq!(assemblies(&course.halted(2, 7)).len(), 2);
    }
    // Whoever keeps those waiting who are there loses it, new or not.
    let mut course = Course::taking_in(2, 0);
    course.assembled(1, holding(1));
    assert_eq!(dismissed(&course.pass(51)), [2]);
}

#[test]
fn those_who_trained_under_the_last_coordinator_are_not_new() {
    let mut course = Course::taking_in(2, 0);
    for worker in [1, 2] {
        course.assembled_at(worker, 7);
    }
    course.restart();
    assert!([1, 2].iter().all(|worker| course.membership.members[&WorkerId(*worker)].has_stepped));
}
