//! What happens to a run whose coordinator is killed and started again.

use super::recovery_tests::{assemblies, halts, saves, shrinking, told};
use super::tests::{Course, TOTAL_STEPS, attending, candidate, holding, outcome, report};
use super::*;

/// Where a worker of generation 1 stands that has committed and may not have told these steps.
pub(super) fn training(steps: &[u64]) -> Position {
    Position {
        generation: Generation(1),
        part: Part::Trains,
        held_step: steps.last().copied(),
        steps: steps.iter().map(|step| report(1, *step)).collect(),
        is_leaving: false,
    }
}

pub(super) fn waiting(generation: u64, held_step: Option<u64>) -> Position {
    Position { generation: Generation(generation), held_step, ..Position::default() }
}

pub(super) fn assembling() -> Position {
    Position { generation: Generation(1), part: Part::Assembles, ..Position::default() }
}

impl Course {
    fn asks_to_come_back(&mut self, worker: u64, incarnation: u64) -> Vec<Action> {
        let returning = Some(WorkerId(worker));
        self.step(Event::Joined(Candidate { returning, ..candidate(incarnation) }))
    }

    pub(super) fn comes_back(&mut self, worker: u64, position: Position) -> Vec<Action> {
        let answer = self.asks_to_come_back(worker, worker);
        assert_eq!(answer, [Action::Admit { worker: WorkerId(worker) }]);
        let mut actions = self.step(Event::Attending { worker: WorkerId(worker), position });
        assert!(matches!(actions.remove(0), Action::Record(Record::Returned { .. })));
        actions
    }

    fn training_and_restarted(workers: u32) -> Course {
        let mut course = Course::training(shrinking(workers));
        course.step_done(1, 1);
        course.restart();
        course
    }
}

pub(super) fn starts(actions: &[Action]) -> Vec<u64> {
    told(actions, |order| matches!(order, Order::Start { .. }))
}

fn adopted(actions: &[Action]) -> Option<u64> {
    actions.iter().find_map(|action| match action {
        Action::Record(Record::Adopted { step, .. }) => Some(*step),
        _ => None,
    })
}

#[test]
fn a_generation_that_trains_on_is_adopted_without_a_word() {
    let mut course = Course::training_and_restarted(2);
    assert_eq!((course.membership.phase(), course.membership.workers()), (Phase::Reuniting, 0));
    assert!(course.membership.publishes(WorkerId(1), Generation(1)), "a checkpoint that broke off is taken");
    assert!(course.comes_back(2, training(&[2, 3])).is_empty());
    assert!(course.step_done(2, 4).is_empty(), "the first rank tells it");
    let actions = course.comes_back(1, training(&[2, 3, 4]));
    let steps: Vec<u64> = actions
        .iter()
        .filter_map(|action| match action {
            Action::Committed(report) => Some(report.step),
            _ => None,
        })
        .collect();
    assert_eq!((steps, adopted(&actions)), (vec![2, 3, 4], Some(4)));
    assert!(!actions.iter().any(|action| matches!(action, Action::Send { .. })), "{actions:?}");
    assert_eq!((course.membership.phase(), course.membership.generation()), (Phase::Training, Generation(1)));
    assert!(matches!(course.step_done(1, 5)[..], [Action::Committed(_)]));
    // And what follows is as ever.
    assert_eq!(halts(&course.loses(2)), [1]);
    assert_eq!(assemblies(&course.halted(1, 5)), [(1, 2, 5, 8)]);
}

#[test]
fn who_is_not_back_in_time_is_lost() {
    let mut course = Course::training_and_restarted(3);
    course.comes_back(1, training(&[2]));
    course.comes_back(3, training(&[2]));
    assert!(course.pass(5).is_empty());
    let actions = course.pass(1);
    assert_eq!(halts(&actions), [1, 3]);
    course.halted(1, 4);
    assert_eq!(assemblies(&course.halted(3, 4)), [(1, 2, 4, 4), (3, 2, 4, 4)]);
    let late = course.asks_to_come_back(2, 2);
    assert!(
        matches!(&late[..], [Action::Refuse { reason }] if reason.contains("start it again")),
        "{late:?}"
    );
    assert!(matches!(course.asks_to_come_back(1, 7)[..], [Action::Refuse { .. }]), "another process");
    assert!(matches!(course.asks_to_come_back(1, 1)[..], [Action::Postpone { .. }]), "still connected");
}

#[test]
fn who_left_meanwhile_ends_the_generation_for_all() {
    // One died with the coordinator, and the others saw it.
    let mut course = Course::training_and_restarted(3);
    assert!(course.comes_back(1, waiting(1, Some(7))).is_empty());
    assert!(course.comes_back(3, waiting(1, Some(8))).is_empty());
    let actions = course.pass(6);
    assert_eq!(saves(&actions), [3], "{actions:?}");
    assert_eq!(assemblies(&course.published(8)), [(1, 2, 8, 4), (3, 2, 8, 4)]);

    // All are there, but lost each other.
    let mut course = Course::training_and_restarted(2);
    course.comes_back(1, training(&[]));
    assert_eq!(halts(&course.comes_back(2, waiting(1, Some(1)))), [1]);
    assert_eq!(assemblies(&course.halted(1, 1)), [(1, 2, 1, 4), (2, 2, 1, 4)]);

    // One leaves while the other is still away, which is told when it is back.
    let mut course = Course::training_and_restarted(2);
    course.comes_back(2, training(&[2]));
    assert!(course.halted(2, 2).is_empty());
    assert_eq!(halts(&course.comes_back(1, training(&[2]))), [1]);
    assert_eq!(assemblies(&course.halted(1, 2)), [(1, 2, 2, 4), (2, 2, 2, 4)]);
}

#[test]
fn what_was_not_said_before_the_death_is_said_after_it() {
    // Started, but only one of them has heard.
    let mut course = Course::training(shrinking(2));
    course.restart();
    course.comes_back(1, training(&[]));
    assert_eq!(starts(&course.comes_back(2, assembling())), [2]);
    // Not yet started.
    let mut course = Course::assembling(shrinking(2));
    course.restart();
    course.comes_back(1, assembling());
    course.assembled(1, holding(1));
    course.comes_back(2, assembling());
    assert_eq!(course.membership.phase(), Phase::Assembling);
    assert_eq!(starts(&course.assembled(2, holding(1))), [1, 2]);
    // Ready, both of them, before both are back.
    let mut course = Course::assembling(shrinking(2));
    course.restart();
    course.comes_back(1, assembling());
    course.assembled(1, holding(1));
    course.comes_back(2, assembling());
    // One was never told its place: the next generation has one for it.
    let mut course = Course::assembling(shrinking(2));
    course.restart();
    course.comes_back(1, assembling());
    assert_eq!(halts(&course.comes_back(2, waiting(0, None))), [1]);
    // Nobody was.
    let mut course = Course::new(shrinking(2));
    course.step(Event::Joined(candidate(1)));
    course.step(attending(1));
    course.restart();
    assert!(course.comes_back(1, waiting(0, None)).is_empty());
    assert_eq!(assemblies(&course.joins(2)), [(1, 1, 0, 4), (2, 1, 0, 4)]);
}

#[test]
fn a_run_that_ended_without_a_coordinator_has_ended() {
    let mut course = Course::training_and_restarted(2);
    course.comes_back(2, training(&[TOTAL_STEPS]));
    course.finished(2, TOTAL_STEPS, 9);
    course.comes_back(1, training(&[TOTAL_STEPS]));
    let actions = course.finished(1, TOTAL_STEPS, 9);
    assert!(matches!(outcome(&actions), Some(Outcome::Completed { .. })), "{actions:?}");
    // A coordinator that was told so has nobody to wait for.
    course.restart();
    assert_eq!(course.membership.phase(), Phase::Gathering);
    assert!(matches!(course.asks_to_come_back(1, 1)[..], [Action::Refuse { .. }]));
}

#[test]
fn a_stop_while_they_come_back_is_told_to_those_who_train() {
    let mut course = Course::training_and_restarted(1);
    assert_eq!(outcome(&course.step(Event::Requested(Request::Stop))), None);
    let actions = course.comes_back(1, training(&[2]));
    assert_eq!(told(&actions, |order| matches!(order, Order::Stop { .. })), [1]);
    let mut course = Course::training_and_restarted(1);
    course.step(Event::Requested(Request::Stop));
    assert_eq!(outcome(&course.step(Event::Requested(Request::Stop))), Some(&Outcome::Stopped { step: 1 }));
}

#[test]
fn places_are_kept_for_those_who_may_come_back() {
    let mut course = Course::training_and_restarted(1);
    assert!(matches!(course.step(Event::Joined(candidate(5)))[..], [Action::Postpone { .. }]));
    course.pass(6);
    assert_eq!(course.membership.phase(), Phase::Gathering);
    assert_eq!(assemblies(&course.joins(2)), [(2, 2, 0, 8)]);
    // A worker that missed the answer to its first call has no id to name.
    let mut course = Course::new(shrinking(2));
    course.step(Event::Joined(candidate(1)));
    course.restart();
    assert_eq!(course.step(Event::Joined(candidate(1))), [Action::Admit { worker: WorkerId(1) }]);
}

#[test]
fn workers_that_end_with_their_coordinator_are_not_waited_for() {
    let mut course = Course::new(shrinking(2));
    for (worker, outlives_coordinator) in [(1, false), (2, true)] {
        course.step(Event::Joined(Candidate { outlives_coordinator, ..candidate(worker) }));
        course.step(attending(worker));
    }
    course.assembled(1, holding(1));
    course.assembled(2, holding(1));
    course.restart();
    assert_eq!(course.membership.phase(), Phase::Regrouping);
    assert_eq!(halts(&course.comes_back(2, training(&[1]))), [2]);
    assert_eq!(assemblies(&course.halted(2, 1)), [(2, 2, 1, 8)]);
    // The next one has it to itself; were it to end with it too, nobody would be left.
    for record in &mut course.journal {
        if let Record::Joined { outlives_coordinator, .. } = record {
            *outlives_coordinator = false;
        }
    }
    course.restart();
    assert_eq!(
        (course.membership.phase(), course.membership.generation()),
        (Phase::Gathering, Generation(2))
    );
    assert!(course.joins(3).is_empty(), "a run that is begun again waits for all");
}

#[test]
fn one_that_speaks_of_a_later_generation_shows_that_the_journal_is_an_old_one() {
    let mut course = Course::training_and_restarted(2);
    let position = Position { generation: Generation(4), ..training(&[]) };
    let actions = course.comes_back(2, position);
    let Action::Send { order: Order::Dismiss { failure: Some(failure) }, .. } = &actions[0] else {
        panic!("{actions:?}")
    };
    assert!(failure.contains("generation 4") && failure.contains("generation 1"), "{failure}");
    assert_eq!(halts(&course.comes_back(1, training(&[]))), [1]);
}
