//! What happens when a run goes back to an earlier state.

use recipe::LearningRateChange;

use super::recovery_tests::{assemblies, halts, shrinking};
use super::reunion_tests::{training, waiting};
use super::tests::{Course, detached, report};
use super::*;

const CHANGE: LearningRateChange = LearningRateChange { after_step: 4, factor: 0.5 };

fn to_step_4() -> Event {
    let checkpoint = Some("step-4".to_string());
    Event::RolledBack(Rollback { checkpoint, step: 4, learning_rate_changes: vec![CHANGE] })
}

/// Two workers, which have made seven steps.
fn after_step_7() -> Course {
    let mut course = Course::training(shrinking(2));
    course.step_done(1, 4);
    course.published(4);
    course.step_done(1, 7);
    course.published(7);
    course
}

/// What all are told to begin the next generation with: step, checkpoint, and its step.
fn beginning(actions: &[Action]) -> Vec<(u64, Option<&str>, u64)> {
    let of = |action| match action {
        &Action::Send {
            order: Order::Assemble { step, ref checkpoint, checkpoint_step, ref learning_rate_changes, .. },
            ..
        } => {
            assert_eq!(*learning_rate_changes, [CHANGE]);
            Some((step, checkpoint.as_deref(), checkpoint_step))
        }
        _ => None,
    };
    actions.iter().filter_map(of).collect()
}

#[test]
fn the_steps_after_it_are_made_again_from_the_disk() {
    let mut course = after_step_7();
    let actions = course.step(to_step_4());
    assert!(matches!(actions[0], Action::Record(Record::RolledBack { generation: 1, step: 4, .. })));
    assert_eq!(halts(&actions), [1, 2]);
    assert_eq!(course.membership.committed_step(), 4);
    assert!(!course.membership.publishes(WorkerId(1), Generation(1)), "its state is not the run's any more");
    // What was under way counts no more.
    assert!(course.step_done(1, 8).is_empty());
    assert!(course.published(8).is_empty());
    course.halted(1, 8);
    let actions = course.halted(2, 7);
    assert_eq!(beginning(&actions), [(4, Some("step-4"), 4); 2]);
    for worker in [1, 2] {
        course.assembled_at(worker, 4);
    }
    let again = course.step(Event::StepDone { worker: WorkerId(1), report: report(2, 5) });
    assert!(matches!(again[..], [Action::Committed(_)]), "{again:?}");
}

#[test]
fn who_was_away_meanwhile_brings_nothing_back() {
    for position in [training(&[7, 8]), waiting(1, Some(8))] {
        let mut course = after_step_7();
        course.step(detached(2));
        assert_eq!(halts(&course.step(to_step_4())), [1]);
        course.halted(1, 8);
        let mut actions = course.comes_back(2, position);
        if !halts(&actions).is_empty() {
            actions = course.halted(2, 8);
        }
        assert_eq!(beginning(&actions), [(4, Some("step-4"), 4); 2]);
    }
}

#[test]
fn the_next_coordinator_knows_of_it() {
    let mut course = after_step_7();
    course.step(to_step_4());
    course.restart();
    assert_eq!(course.membership.phase(), Phase::Regrouping, "nobody goes on with what was made before");
    assert_eq!(halts(&course.comes_back(1, training(&[8]))), [1]);
    course.comes_back(2, waiting(1, Some(7)));
    let actions = course.halted(1, 8);
    assert_eq!(assemblies(&actions).iter().map(|(.., step, _)| *step).collect::<Vec<_>>(), [4, 4]);
}

#[test]
fn a_run_that_rests_goes_on_from_there_and_one_that_ends_does_not_go_back() {
    let mut course = after_step_7();
    course.step(Event::Requested(Request::Pause));
    course.halted(1, 7);
    course.halted(2, 7);
    assert!(matches!(course.step(to_step_4())[..], [Action::Record(_)]));
    assert_eq!(beginning(&course.step(Event::Requested(Request::Continue))), [(4, Some("step-4"), 4); 2]);
    assert!(course.membership.is_to_go_on());
    course.step(Event::Requested(Request::Stop));
    assert!(!course.membership.is_to_go_on());
}
