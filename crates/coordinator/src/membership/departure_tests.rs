//! What happens to a run that a worker leaves in order.

use super::recovery_tests::{assemblies, halts, saves, shrinking, told};
use super::tests::{Course, attending, candidate, outcome, settings};
use super::*;

fn leaving(course: &mut Course, worker: u64) -> Vec<Action> {
    course.step(Event::Leaving { worker: WorkerId(worker) })
}

/// Who has left, with the step of the state that went with it.
fn left(actions: &[Action]) -> Vec<(u64, Option<u64>)> {
    let record = |action: &Action| match action {
        Action::Record(Record::Left { worker, step }) => Some((*worker, *step)),
        _ => None,
    };
    actions.iter().filter_map(record).collect()
}

fn dismissed(actions: &[Action]) -> Vec<u64> {
    told(actions, |order| matches!(order, Order::Dismiss { failure: None }))
}

#[test]
fn the_others_go_on_after_the_step_in_hand() {
    // Whatever the loss of a worker means: this is none.
    for on_failure in [OnFailure::Shrink, OnFailure::Wait, OnFailure::Abort] {
        let mut course = Course::training(Settings { on_failure, ..settings(3) });
        let actions = course.step(Event::Requested(Request::Drain(WorkerId(2))));
        assert_eq!(told(&actions, |order| *order == Order::Leave), [2]);
        assert!(leaving(&mut course, 2).is_empty(), "it makes its step first");
        for worker in 1..=3 {
            course.step_done(worker, 1);
        }
        course.published(1);
        assert!(course.finished(1, 1, 1).is_empty());
        assert!(course.finished(2, 1, 1).is_empty());
        let actions = course.finished(3, 1, 1);
        assert_eq!((left(&actions), dismissed(&actions)), (vec![(2, Some(1))], vec![2]), "{on_failure:?}");
        assert_eq!(outcome(&actions), None);
        match on_failure {
            OnFailure::Shrink => {
                assert_eq!(assemblies(&actions), [(1, 2, 1, 4), (3, 2, 1, 4)], "no step is made again");
            }
            OnFailure::Wait | OnFailure::Abort => {
                assert_eq!(course.membership.phase(), Phase::Gathering, "{on_failure:?}");
                course.step(Event::Joined(candidate(4)));
                assert_eq!(assemblies(&course.step(attending(4))).len(), 3);
            }
        }
        assert!(course.step(super::tests::detached(2)).is_empty(), "its end is no loss");
    }
}

#[test]
fn who_waits_leaves_at_once() {
    let mut course = Course::new(shrinking(2));
    course.joins(1);
    assert_eq!(left(&leaving(&mut course, 1)), [(1, None)]);
    assert_eq!((course.membership.phase(), course.membership.workers()), (Phase::Gathering, 0));
    assert!(leaving(&mut course, 1).is_empty(), "it has left");
}

#[test]
fn what_only_those_hold_who_leave_is_saved_first() {
    let mut course = Course::training(shrinking(2));
    course.step_done(1, 7);
    course.step(Event::Requested(Request::Pause));
    course.halted(1, 7);
    course.halted(2, 6);
    let actions = leaving(&mut course, 1);
    assert_eq!((saves(&actions), left(&actions)), (vec![1], Vec::new()), "{actions:?}");
    let actions = course.published(7);
    assert_eq!(left(&actions), [(1, Some(7))]);
    assert_eq!(course.membership.phase(), Phase::Paused);
    assert_eq!(assemblies(&course.step(Event::Requested(Request::Continue))), [(2, 2, 7, 8)]);
}

#[test]
fn a_stop_or_a_loss_meanwhile_goes_on_as_ever() {
    let mut course = Course::training(shrinking(2));
    leaving(&mut course, 2);
    course.step(Event::Requested(Request::Stop));
    course.finished(1, 3, 1);
    assert_eq!(outcome(&course.finished(2, 3, 1)), Some(&Outcome::Stopped { step: 3 }));

    let mut course = Course::training(shrinking(3));
    leaving(&mut course, 2);
    assert_eq!(halts(&course.loses(3)), [1, 2]);
    course.halted(1, 3);
    let actions = course.halted(2, 3);
    assert_eq!(left(&actions), [(2, Some(3))]);
    assert_eq!(assemblies(&actions), [(1, 2, 3, 8)]);
}

#[test]
fn who_leaves_and_is_lost_before_the_others_have_finished_ends_nothing() {
    let mut course = Course::training(shrinking(3));
    leaving(&mut course, 2);
    course.finished(2, 3, 1);
    assert!(matches!(course.loses(2)[..], [Action::Record(Record::Lost { worker: 2, .. })]));
    course.finished(3, 3, 1);
    let actions = course.finished(1, 3, 1);
    assert_eq!((outcome(&actions), assemblies(&actions)), (None, vec![(1, 2, 3, 4), (3, 2, 3, 4)]));
}

#[test]
fn the_last_one_leaves_a_run_that_waits_for_others() {
    let mut course = Course::training(shrinking(1));
    leaving(&mut course, 1);
    course.step_done(1, 1);
    course.published(1);
    assert_eq!(left(&course.finished(1, 1, 1)), [(1, Some(1))]);
    assert_eq!(course.membership.phase(), Phase::Gathering);
    course.step(Event::Joined(candidate(2)));
    assert_eq!(assemblies(&course.step(attending(2))), [(2, 2, 1, 8)]);
}
