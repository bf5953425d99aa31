//! What happens to a run whose workers come and go.

use super::tests::{
    Course, TOTAL_STEPS, attending, candidate, check_failure, holding, outcome, report, settings,
};
use super::*;

pub(super) fn shrinking(workers: u32) -> Settings {
    Settings { on_failure: OnFailure::Shrink, ..settings(workers) }
}

impl Course {
    pub(super) fn step_done(&mut self, worker: u64, step: u64) -> Vec<Action> {
        let report = report(self.membership.generation().0, step);
        self.step(Event::StepDone { worker: WorkerId(worker), report })
    }

    /// As a worker answers the order to halt, or the loss of a peer.
    pub(super) fn halted(&mut self, worker: u64, held_step: u64) -> Vec<Action> {
        let (worker, generation) = (WorkerId(worker), self.membership.generation());
        self.step(Event::Halted { worker, generation, held_step: Some(held_step), complaint: None })
    }

    pub(super) fn joins(&mut self, worker: u64) -> Vec<Action> {
        let actions = self.step(Event::Joined(candidate(worker)));
        assert_eq!(actions[0], Action::Admit { worker: WorkerId(worker) });
        self.step(attending(worker))
    }

    pub(super) fn published(&mut self, step: u64) -> Vec<Action> {
        self.step(Event::Published { generation: Generation(1), checkpoint: format!("step-{step}"), step })
    }

    pub(super) fn assembled_at(&mut self, worker: u64, step: u64) -> Vec<Action> {
        self.assembled(worker, Holding { step, ..holding(1) })
    }
}

/// Who is told to assemble which generation, from which step, and with how many shards.
pub(super) fn assemblies(actions: &[Action]) -> Vec<(u64, u64, u64, u32)> {
    actions
        .iter()
        .filter_map(|action| match action {
            Action::Send { worker, order: Order::Assemble { generation, step, rank, places, .. } } => {
                Some((worker.0, generation.0, *step, places[rank.0 as usize].shard_count))
            }
            _ => None,
        })
        .collect()
}

pub(super) fn told(actions: &[Action], is_wanted: fn(&Order) -> bool) -> Vec<u64> {
    actions
        .iter()
        .filter_map(|action| match action {
            Action::Send { worker, order } if is_wanted(order) => Some(worker.0),
            _ => None,
        })
        .collect()
}

pub(super) fn halts(actions: &[Action]) -> Vec<u64> {
    told(actions, |order| matches!(order, Order::Halt { .. }))
}

pub(super) fn saves(actions: &[Action]) -> Vec<u64> {
    told(actions, |order| matches!(order, Order::Save { .. }))
}

#[test]
fn survivors_take_over_the_shards_of_a_lost_worker() {
    let mut course = Course::training(shrinking(3));
    course.step_done(1, 1);
    let actions = course.loses(2);
    assert!(matches!(actions[0], Action::Record(Record::Lost { worker: 2, .. })), "{actions:?}");
    assert_eq!(halts(&actions), [1, 3]);
    assert_eq!(course.membership.phase(), Phase::Regrouping);
    assert!(course.halted(1, 1).is_empty(), "the other may still be in the old generation");
    assert_eq!(assemblies(&course.halted(3, 1)), [(1, 2, 1, 4), (3, 2, 1, 4)]);
    let again =
        Event::Halted { worker: WorkerId(3), generation: Generation(1), held_step: Some(1), complaint: None };
    assert!(course.step(again).is_empty(), "what is said of an older generation changes nothing");
    course.assembled_at(1, 1);
    assert_eq!(told(&course.assembled_at(3, 1), |order| matches!(order, Order::Start { .. })), [1, 3]);
    assert!(matches!(course.step_done(1, 2)[..], [Action::Committed(_)]));
}

#[test]
fn who_is_slow_gets_fewer_shards_in_the_next_generation() {
    let mut course = Course::training(shrinking(3));
    for step in 1..=25 {
        for (worker, seconds) in [(1, 0.3), (2, 0.9), (3, 0.2)] {
            let seconds = StepSeconds { forward: seconds, ..StepSeconds::default() };
            let report = StepReport { seconds, ..report(1, step) };
            course.step(Event::StepDone { worker: WorkerId(worker), report });
        }
    }
    // They had 3, 3 and 2 shards.
    course.loses(3);
    course.halted(1, 25);
    assert_eq!(assemblies(&course.halted(2, 25)), [(1, 2, 25, 6), (2, 2, 25, 2)]);
    // It is known also in a generation that breaks before anyone has been watched for long.
    course.loses(1);
    assert_eq!(assemblies(&course.halted(2, 25)), [(2, 3, 25, 8)]);
}

#[test]
fn peers_may_notice_before_the_coordinator_does() {
    let mut course = Course::training(shrinking(3));
    let complaint = Some(Complaint { reason: "rank 1 broke off".to_string(), suspect: Some(WorkerId(2)) });
    let generation = Generation(1);
    let actions =
        course.step(Event::Halted { worker: WorkerId(3), generation, held_step: Some(0), complaint });
    assert_eq!(halts(&actions), [1, 2]);
    course.halted(1, 0);
    assert_eq!(assemblies(&course.loses(2)), [(1, 2, 0, 4), (3, 2, 0, 4)]);
}

#[test]
fn who_is_one_step_behind_gets_the_step_from_one_who_has_it() {
    let mut course = Course::training(shrinking(3));
    course.loses(1);
    course.halted(2, 7);
    let actions = course.halted(3, 8);
    assert_eq!(saves(&actions), [3], "nothing is formed before the state is there: {actions:?}");
    assert!(course.membership.publishes(WorkerId(3), Generation(1)));
    assert!(!course.membership.publishes(WorkerId(2), Generation(1)));
    // One of an earlier step, that was long under way, is not waited for.
    assert!(assemblies(&course.published(4)).is_empty());
    let actions = course.published(8);
    assert_eq!(assemblies(&actions), [(2, 2, 8, 4), (3, 2, 8, 4)]);
    for action in &actions {
        if let Action::Send { order: Order::Assemble { checkpoint, checkpoint_step, .. }, .. } = action {
            assert_eq!((checkpoint.as_deref(), *checkpoint_step), (Some("step-8"), 8));
        }
    }

    // If it is lost too, the step is gone, and the next one to hold the newest state goes on.
    let mut course = Course::training(shrinking(3));
    course.loses(1);
    course.halted(2, 7);
    course.halted(3, 8);
    assert_eq!(assemblies(&course.loses(3)), [(2, 2, 7, 8)]);

    // What lies on the disk may be newer than what the survivors hold.
    let mut course = Course::training(shrinking(3));
    course.published(8);
    course.loses(1);
    course.halted(2, 7);
    assert_eq!(assemblies(&course.halted(3, 7)), [(2, 2, 8, 4), (3, 2, 8, 4)]);
}

#[test]
fn a_step_is_told_once_even_if_its_first_rank_died_with_it() {
    // Only the second rank lived to report step 2, ...
    let mut course = Course::training(shrinking(3));
    course.step_done(1, 1);
    assert!(course.step_done(2, 2).is_empty());
    course.loses(1);
    course.halted(2, 2);
    let actions = course.halted(3, 2);
    assert!(matches!(&actions[0], Action::Committed(report) if report.step == 2), "{actions:?}");
    // ... or only the first rank, and the others make it again.
    let mut course = Course::training(shrinking(3));
    course.step_done(1, 1);
    course.step_done(1, 2);
    course.loses(1);
    course.halted(2, 1);
    assert_eq!(assemblies(&course.halted(3, 1)), [(2, 2, 1, 4), (3, 2, 1, 4)]);
    course.assembled_at(2, 1);
    course.assembled_at(3, 1);
    assert!(course.step_done(2, 2).is_empty(), "told before");
    assert!(matches!(course.step_done(2, 3)[..], [Action::Committed(_)]));
}

#[test]
fn a_late_worker_gets_state_and_shards_at_a_step_boundary() {
    let mut course = Course::training(shrinking(2));
    course.step_done(1, 1);
    course.loses(2);
    course.halted(1, 1);
    course.assembled_at(1, 1);
    // The new generation is left its first step.
    assert!(course.joins(3).is_empty());
    let actions = course.step_done(1, 2);
    assert_eq!(halts(&actions), [1]);
    assert_eq!(saves(&course.halted(1, 2)), [1]);
    assert_eq!(assemblies(&course.published(2)), [(1, 3, 2, 4), (3, 3, 2, 4)]);
    // There is no room for more than were asked for.
    assert!(matches!(course.step(Event::Joined(candidate(9)))[..], [Action::Refuse { .. }]));
}

#[test]
fn when_nobody_is_left_the_run_goes_on_from_the_disk() {
    for (saved, expected) in [(None, 0), (Some(40), 40)] {
        let mut course = Course::training(shrinking(2));
        course.step_done(1, 57);
        saved.map(|step| course.published(step));
        course.loses(1);
        course.loses(2);
        assert_eq!(course.membership.phase(), Phase::Gathering);
        assert_eq!(assemblies(&course.joins(3)), [(3, 2, expected, 8)]);
        course.assembled_at(3, expected);
        assert!(course.step_done(3, expected + 1).is_empty(), "told before");
        assert_eq!(course.step_done(3, 58).len(), 1);
    }
}

#[test]
fn fewer_than_wanted_wait_for_more_and_not_for_ever() {
    for (on_failure, min_workers) in [(OnFailure::Shrink, 2), (OnFailure::Wait, 1)] {
        let mut course = Course::training(Settings { on_failure, min_workers, ..settings(2) });
        course.step_done(1, 1);
        course.loses(2);
        assert!(course.halted(1, 1).is_empty());
        assert_eq!(course.membership.phase(), Phase::Gathering);
        assert!(course.pass(100).is_empty());
        check_failure(&course.pass(1), &["1 of 2 workers", "1 steps are committed"]);

        let mut course = Course::training(Settings { on_failure, min_workers, ..settings(2) });
        course.loses(2);
        course.halted(1, 0);
        assert_eq!(assemblies(&course.joins(3)), [(1, 2, 0, 4), (3, 2, 0, 4)]);
    }
    let error = Settings { min_workers: 3, ..settings(2) }.check().unwrap_err().to_string();
    assert!(error.contains("give 1 to 2 as --min-workers"), "{error}");
}

#[test]
fn a_silent_worker_loses_its_place_and_its_words_count_no_longer() {
    let mut course = Course::training(shrinking(2));
    course.now += Duration::from_secs(4);
    for (worker, generation) in [(1, 1), (2, 0)] {
        let (worker, generation) = (WorkerId(worker), Generation(generation));
        course.step(Event::Heartbeat { worker, generation, standstill: Duration::ZERO });
    }
    course.now += Duration::from_secs(2);
    let actions = course.step(Event::Tick);
    assert_eq!(told(&actions, |order| matches!(order, Order::Dismiss { failure: Some(_) })), [2]);
    assert_eq!(halts(&actions), [1]);
    assert_eq!(assemblies(&course.halted(1, 0)), [(1, 2, 0, 8)]);
    assert!(!course.membership.publishes(WorkerId(2), Generation(1)));
    let late = Event::Assembled { worker: WorkerId(2), generation: Generation(2), holding: holding(1) };
    assert!(course.step(late).is_empty());
    assert_eq!(course.membership.workers(), 1);
}

#[test]
fn who_keeps_the_others_waiting_is_lost() {
    // It does not halt, ...
    let mut course = Course::training(shrinking(3));
    course.loses(1);
    course.halted(2, 0);
    assert!(course.pass(40).is_empty());
    assert_eq!(assemblies(&course.pass(1)), [(2, 2, 0, 8)]);
    // ... or does not save, ...
    let mut course = Course::training(shrinking(3));
    course.loses(1);
    course.halted(2, 0);
    assert_eq!(saves(&course.halted(3, 1)), [3]);
    assert!(course.pass(40).is_empty());
    assert_eq!(assemblies(&course.pass(1)), [(2, 2, 0, 8)]);
    // ... or does not assemble.
    let mut course = Course::assembling(shrinking(2));
    course.assembled(1, holding(1));
    assert!(course.pass(50).is_empty());
    assert_eq!(halts(&course.pass(1)), [1]);
    assert_eq!(assemblies(&course.halted(1, 0)), [(1, 2, 0, 8)]);
}

#[test]
fn a_stop_while_others_are_waited_for_saves_what_is_held() {
    let mut course = Course::training(Settings { on_failure: OnFailure::Wait, ..settings(2) });
    course.step_done(1, 1);
    course.loses(2);
    course.halted(1, 1);
    assert_eq!(course.membership.phase(), Phase::Gathering);
    assert_eq!(assemblies(&course.step(Event::Requested(Request::Stop))), [(1, 2, 1, 8)]);
    assert_eq!(told(&course.assembled_at(1, 1), |order| matches!(order, Order::Stop { .. })), [1]);
}

#[test]
fn who_is_to_save_may_do_so_while_others_are_waited_for() {
    let mut course = Course::training(Settings { min_workers: 3, ..shrinking(4) });
    course.loses(1);
    course.halted(2, 7);
    course.halted(3, 8);
    assert_eq!(saves(&course.halted(4, 8)), [3]);
    course.loses(2);
    assert_eq!(course.membership.phase(), Phase::Gathering);
    assert!(course.membership.publishes(WorkerId(3), Generation(1)));
}

#[test]
fn generations_that_come_to_nothing_end_the_run() {
    let mut course = Course::training(shrinking(2));
    for generation in 1..=5 {
        assert_eq!(course.membership.generation(), Generation(generation));
        course.halted(1, 0);
        let actions = course.halted(2, 0);
        if generation == 5 {
            check_failure(
                &actions,
                &["5 generations in a row", "worker 1 (host-1) left", "start again with --resume"],
            );
            return;
        }
        course.assembled(1, holding(1));
        course.assembled(2, holding(1));
    }
}

#[test]
fn a_stop_outlives_the_generation_that_was_told() {
    let mut course = Course::training(shrinking(2));
    course.step_done(1, 1);
    course.step(Event::Requested(Request::Stop));
    course.loses(2);
    course.halted(1, 1);
    let actions = course.assembled_at(1, 1);
    assert_eq!(told(&actions, |order| matches!(order, Order::Stop { .. })), [1]);
    assert_eq!(outcome(&course.finished(1, 2, 9)), Some(&Outcome::Stopped { step: 2 }));

    // Nobody is waited for who would only be told to stop.
    let mut course = Course::training(Settings { on_failure: OnFailure::Wait, ..settings(2) });
    course.step(Event::Requested(Request::Stop));
    course.loses(2);
    assert_eq!(assemblies(&course.halted(1, 0)), [(1, 2, 0, 8)]);
    assert_eq!(outcome(&course.loses(1)), Some(&Outcome::Stopped { step: 0 }));

    // Asked for in between, it ends at once what has nothing to save, and only the second one all the rest.
    let mut course = Course::training(shrinking(2));
    course.step_done(1, 1);
    course.loses(2);
    assert_eq!(outcome(&course.step(Event::Requested(Request::Stop))), None);
    assert_eq!(outcome(&course.step(Event::Requested(Request::Stop))), Some(&Outcome::Stopped { step: 1 }));
}

#[test]
fn a_loss_after_the_last_step_loses_nothing() {
    // Who has finished may go: it has saved.
    let mut course = Course::training(shrinking(2));
    course.finished(1, TOTAL_STEPS, 9);
    course.loses(1);
    let actions = course.finished(2, TOTAL_STEPS, 9);
    assert!(matches!(outcome(&actions), Some(Outcome::Completed { .. })), "{actions:?}");
    // The one that publishes is lost before it has: another one does.
    let mut course = Course::training(shrinking(2));
    course.finished(2, TOTAL_STEPS, 9);
    let actions = course.loses(1);
    assert_eq!(assemblies(&actions), [(2, 2, TOTAL_STEPS, 8)]);
    course.assembled_at(2, TOTAL_STEPS);
    let actions = course.finished(2, TOTAL_STEPS, 9);
    assert!(matches!(outcome(&actions), Some(Outcome::Completed { .. })), "{actions:?}");
}

#[test]
fn a_process_that_cannot_live_is_given_up() {
    let ended = |restarts| Event::ProcessEnded {
        reason: "the process of worker-1 ended".to_string(),
        crashed: true,
        restarts,
    };
    let mut course = Course::training(shrinking(2));
    assert!(course.step(ended(true)).is_empty());
    assert!(course.step(ended(false)).is_empty(), "one is enough to go on");
    check_failure(&course.step(ended(false)), &["worker-1", "too often"]);
    // Before the first generation its last words are true of all.
    let mut course = Course::new(shrinking(2));
    check_failure(&course.step(ended(true)), &["the process of worker-1 ended"]);
}
