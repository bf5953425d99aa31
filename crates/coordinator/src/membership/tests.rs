//! A run without losses, and what ends one that is not to go on after them.

use super::*;

pub(super) const SHARDS: u32 = 8;
pub(super) const TOTAL_STEPS: u64 = 100;

pub(super) fn settings(workers: u32) -> Settings {
    Settings {
        workers,
        max_workers: workers,
        mixes_arithmetic: false,
        workers_are_local: false,
        on_failure: OnFailure::Abort,
        min_workers: 1,
        shards: SHARDS,
        total_steps: TOTAL_STEPS,
        first_step: 0,
        checkpoint: None,
        learning_rate_changes: Vec::new(),
        timeouts: Timeouts {
            join: Duration::from_secs(100),
            assemble: Duration::from_secs(50),
            halt: Duration::from_secs(40),
            heartbeat: Duration::from_secs(5),
            step: Duration::from_secs(60),
            stop: Duration::from_secs(30),
        },
    }
}

pub(super) fn candidate(incarnation: u64) -> Candidate {
    let description = format!("host-{incarnation}");
    let collective_address = format!("10.0.0.{incarnation}:7000");
    let arithmetic = "cpu x86-64 AVX2".to_string();
    Candidate {
        returning: None,
        incarnation,
        outlives_coordinator: true,
        collective_address,
        description,
        arithmetic,
    }
}

/// A new worker listens.
pub(super) fn attending(worker: u64) -> Event {
    Event::Attending { worker: WorkerId(worker), position: Position::default() }
}

/// A coordinator takes charge.
pub(super) fn opened() -> Record {
    Record::Opened {
        program_version: "1.0.0".to_string(),
        checkpoint: None,
        step: 0,
        address: Some("10.0.0.9:7070".to_string()),
        workers: 3,
        local_workers: 1,
        awaited: Vec::new(),
    }
}

/// As the coordinator that is started next finds them: the journal, what was told, and the newest checkpoint.
pub(super) fn restarted(
    records: &mut Vec<Record>,
    settings: &Settings,
    committed_step: u64,
    now: Duration,
) -> (Past, Membership) {
    let (mut first_step, mut checkpoint) = (0, None);
    for record in &*records {
        match record {
            Record::Checkpoint { checkpoint: name, step, .. } if *step >= first_step => {
                (first_step, checkpoint) = (*step, Some(name.clone()));
            }
            Record::RolledBack { checkpoint: left, step, .. } => {
                (first_step, checkpoint) = (*step, left.clone());
            }
            _ => {}
        }
    }
    let mut past = Past::replay(&*records);
    if past.has_left_workers() {
        past.committed_step = committed_step;
    }
    records.push(opened());
    let settings = Settings { first_step, checkpoint, ..settings.clone() };
    let membership = Membership::new(&past, settings, now).unwrap();
    (past, membership)
}

pub(super) fn holding(state: u8) -> Holding {
    Holding { step: 0, state_hash: Digest([state; 32]), layout_hash: Digest([7; 32]) }
}

pub(super) fn report(generation: u64, step: u64) -> StepReport {
    StepReport::usual(generation, step)
}

/// A run in the making, with a clock that tests move.
pub(super) struct Course {
    pub(super) membership: Membership,
    settings: Settings,
    workers: u64,
    pub(super) now: Duration,
    pub(super) journal: Vec<Record>,
}

impl Course {
    pub(super) fn new(settings: Settings) -> Course {
        let workers = u64::from(settings.workers);
        Course {
            membership: Membership::new(&Past::default(), settings.clone(), Duration::ZERO).unwrap(),
            settings,
            workers,
            now: Duration::ZERO,
            journal: Vec::new(),
        }
    }

    /// Everyone has joined and attends.
    pub(super) fn assembling(settings: Settings) -> Course {
        let mut course = Course::new(settings);
        for worker in 1..=course.workers {
            course.step(Event::Joined(candidate(worker)));
            course.step(attending(worker));
        }
        assert_eq!(course.membership.phase(), Phase::Assembling);
        course
    }

    pub(super) fn training(settings: Settings) -> Course {
        let mut course = Course::assembling(settings);
        for worker in 1..=course.workers {
            course.assembled(worker, holding(1));
        }
        assert_eq!(course.membership.phase(), Phase::Training);
        course
    }

    pub(super) fn step(&mut self, event: Event) -> Vec<Action> {
        let actions = self.membership.step(event, self.now);
        self.journal.extend(actions.iter().filter_map(|action| match action {
            Action::Record(record) => Some(record.clone()),
            _ => None,
        }));
        actions
    }

    /// So many workers send heartbeats, once they are there.
    pub(super) fn watch(&mut self, workers: u64) {
        self.workers = workers;
    }

    /// The coordinator is killed, and another one takes charge.
    pub(super) fn restart(&mut self) {
        let told = self.membership.committed_step();
        let (_, membership) = restarted(&mut self.journal, &self.settings, told, self.now);
        self.membership = membership;
    }

    pub(super) fn assembled(&mut self, worker: u64, holding: Holding) -> Vec<Action> {
        let generation = self.membership.generation();
        self.step(Event::Assembled { worker: WorkerId(worker), generation, holding })
    }

    pub(super) fn finished(&mut self, worker: u64, step: u64, state: u8) -> Vec<Action> {
        let (worker, generation) = (WorkerId(worker), self.membership.generation());
        self.step(Event::Finished { worker, generation, step, state_hash: Digest([state; 32]) })
    }

    /// The process of a worker is gone, and so are its connection and whoever would answer at its address.
    pub(super) fn loses(&mut self, worker: u64) -> Vec<Action> {
        let mut actions = self.step(detached(worker));
        actions.extend(self.step(unreachable(worker)));
        let is_consequence = |action: &Action| {
            !matches!(action, Action::Record(Record::Detached { .. }) | Action::LookFor { .. })
        };
        actions.into_iter().filter(is_consequence).collect()
    }

    fn heartbeat(&mut self, worker: u64) {
        let worker = WorkerId(worker);
        let Some(member) = self.membership.members.get(&worker) else { return };
        let generation = member.generation;
        self.step(Event::Heartbeat { worker, generation, standstill: Duration::ZERO });
    }

    /// `seconds` pass, in which the workers that are left send heartbeats as they should.
    pub(super) fn pass(&mut self, seconds: u64) -> Vec<Action> {
        let mut actions = Vec::new();
        for _ in 0..seconds {
            self.now += Duration::from_secs(1);
            for worker in 1..=self.workers {
                self.heartbeat(worker);
            }
            actions.extend(self.step(Event::Tick));
        }
        actions
    }
}

pub(super) fn detached(worker: u64) -> Event {
    Event::Detached { worker: WorkerId(worker), reason: "its connection broke".to_string() }
}

pub(super) fn unreachable(worker: u64) -> Event {
    Event::Unreachable { worker: WorkerId(worker), reason: "connection refused".to_string() }
}

pub(super) fn outcome(actions: &[Action]) -> Option<&Outcome> {
    actions.iter().find_map(|action| match action {
        Action::End(outcome) => Some(outcome),
        _ => None,
    })
}

/// The failure in `actions` holds all of `phrases`, and everyone else who listens is told the same.
pub(super) fn check_failure(actions: &[Action], phrases: &[&str]) {
    let Some(Outcome::Failed { reason }) = outcome(actions) else { panic!("no failure in {actions:?}") };
    for phrase in phrases {
        assert!(reason.contains(phrase), "{reason:?} lacks {phrase:?}");
    }
    let failure = Some(reason.clone());
    for action in actions {
        if let Action::Send { order, .. } = action {
            assert_eq!(order, &Order::Dismiss { failure: failure.clone() });
        }
    }
}

#[test]
fn a_run_from_the_first_join_to_the_last_step() {
    let mut course = Course::new(settings(3));
    for worker in 1..=3 {
        let actions = course.step(Event::Joined(candidate(worker)));
        assert_eq!(actions[0], Action::Admit { worker: WorkerId(worker) });
    }
    assert!(course.step(attending(3)).is_empty());
    assert!(course.step(attending(1)).is_empty());
    let actions = course.step(attending(2));
    let orders: Vec<_> = actions
        .iter()
        .filter_map(|action| match action {
            Action::Send { worker, order: Order::Assemble { generation, places, rank, publishes, .. } } => {
                assert_eq!(*generation, Generation(1));
                let shards: Vec<u32> = places.iter().map(|place| place.shard_count).collect();
                assert_eq!(shards, [3, 3, 2]);
                assert_eq!(places[rank.0 as usize].worker, *worker);
                Some((worker.0, rank.0, *publishes))
            }
            _ => None,
        })
        .collect();
    assert_eq!(orders, [(1, 0, true), (2, 1, false), (3, 2, false)]);

    assert!(course.assembled(2, holding(1)).is_empty());
    assert!(course.assembled(2, holding(1)).is_empty(), "twice changes nothing");
    assert!(course.assembled(1, holding(1)).is_empty());
    let starts = course.assembled(3, holding(1));
    let start = Order::Start { generation: Generation(1) };
    assert_eq!(
        starts
            .iter()
            .filter(|action| matches!(action, Action::Send { order, .. } if *order == start))
            .count(),
        3
    );

    for worker in [2, 1, 3] {
        let actions = course.step(Event::StepDone { worker: WorkerId(worker), report: report(1, 1) });
        assert_eq!(actions.len(), usize::from(worker == 1), "a step is told once, by the first rank");
    }
    assert!(course.step(Event::StepDone { worker: WorkerId(1), report: report(1, 1) }).is_empty());
    assert!(course.step(Event::StepDone { worker: WorkerId(1), report: report(0, 2) }).is_empty());
    assert!(course.membership.publishes(WorkerId(1), Generation(1)));
    assert!(!course.membership.publishes(WorkerId(2), Generation(1)));
    assert!(!course.membership.publishes(WorkerId(1), Generation(0)));

    course.finished(1, TOTAL_STEPS, 9);
    course.finished(3, TOTAL_STEPS, 9);
    let actions = course.finished(2, TOTAL_STEPS, 9);
    let expected = Outcome::Completed { step: TOTAL_STEPS, state_hash: Digest([9; 32]) };
    assert_eq!(outcome(&actions), Some(&expected));
    let dismiss = Order::Dismiss { failure: None };
    assert_eq!(
        actions
            .iter()
            .filter(|action| matches!(action, Action::Send { order, .. } if *order == dismiss))
            .count(),
        3
    );
    assert_eq!(course.membership.phase(), Phase::Finished);
    assert!(course.step(Event::Requested(Request::Stop)).is_empty());
    assert!(matches!(course.step(Event::Joined(candidate(9)))[..], [Action::Refuse { .. }]));
}

#[test]
fn unfit_numbers_of_workers_are_refused_before_anything_starts() {
    for (workers, expected) in [(0, "at least 1"), (9, "at most 8")] {
        let error =
            Membership::new(&Past::default(), settings(workers), Duration::ZERO).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    settings(8).check().unwrap();
}

#[test]
fn joins_are_counted_and_repeated_ones_recognised() {
    let mut course = Course::new(settings(2));
    course.step(Event::Joined(candidate(11)));
    assert_eq!(course.step(Event::Joined(candidate(11))), [Action::Admit { worker: WorkerId(1) }]);
    course.step(Event::Joined(candidate(12)));
    let [Action::Refuse { reason }] = &course.step(Event::Joined(candidate(13)))[..] else { panic!() };
    assert!(reason.contains("2 workers already"), "{reason}");
    // One that leaves before the run begins makes room, and its id is never given again.
    course.loses(1);
    assert_eq!(course.step(Event::Joined(candidate(13)))[0], Action::Admit { worker: WorkerId(3) });
}

#[test]
fn differing_states_do_not_start() {
    for (odd, phrases) in [
        (holding(2), ["state hash", "worker 2 has 0202", "worker 1, worker 3 has 0101"]),
        (Holding { step: 5, ..holding(1) }, ["next step", "worker 2 has 5", "worker 1, worker 3 has 0"]),
        (
            Holding { layout_hash: Digest([8; 32]), ..holding(1) },
            ["layout", "worker 2 has 0808", "same version"],
        ),
    ] {
        let mut course = Course::assembling(settings(3));
        course.assembled(1, holding(1));
        course.assembled(2, odd);
        check_failure(&course.assembled(3, holding(1)), &phrases);
    }
}

#[test]
fn differing_ends_are_a_failure() {
    let mut course = Course::training(settings(3));
    course.finished(1, TOTAL_STEPS, 9);
    course.finished(2, TOTAL_STEPS, 8);
    check_failure(&course.finished(3, TOTAL_STEPS, 9), &["final state hash", "worker 2 has 0808"]);

    let mut course = Course::training(settings(2));
    course.finished(1, 50, 9);
    check_failure(&course.finished(2, 51, 9), &["last step", "worker 1 has 50", "worker 2 has 51"]);

    // They stopped together, though nobody is known to have asked them to.
    let mut course = Course::training(settings(2));
    course.finished(1, 50, 9);
    let actions = course.finished(2, 50, 9);
    assert!(actions.contains(&Action::End(Outcome::Stopped { step: 50 })), "{actions:?}");
}

#[test]
fn a_lost_worker_ends_the_run_and_the_sentence_says_how_to_go_on() {
    let mut course = Course::training(settings(2));
    course.step(Event::StepDone { worker: WorkerId(1), report: report(1, 57) });
    course.step(Event::Published {
        generation: Generation(1),
        checkpoint: "step-000040".to_string(),
        step: 40,
    });
    let actions = course.loses(2);
    check_failure(
        &actions,
        &["worker 2 (host-2)", "connection refused", "57 steps", "step-000040", "--resume"],
    );

    let mut course = Course::assembling(settings(2));
    check_failure(&course.loses(1), &["worker 1 (host-1)", "no checkpoint"]);
}

#[test]
fn the_cause_is_named_and_not_its_consequence() {
    let failed = |worker, suspect: Option<u64>| Event::WorkerFailed {
        worker: WorkerId(worker),
        generation: Generation(1),
        step: 3,
        complaint: Complaint { reason: format!("words of {worker}"), suspect: suspect.map(WorkerId) },
    };
    // The one that others suspect speaks for itself, ...
    let mut course = Course::training(settings(3));
    assert!(course.step(failed(1, Some(2))).is_empty());
    assert!(course.loses(1).is_empty(), "who has failed may go");
    check_failure(&course.step(failed(2, None)), &["worker 2 (host-2) failed after step 3: words of 2"]);
    // ... or is gone, ...
    let mut course = Course::training(settings(3));
    course.step(failed(1, Some(2)));
    check_failure(&course.loses(2), &["worker 2 (host-2) was lost"]);
    // ... or says nothing: then the suspicion is all there is.
    let mut course = Course::training(settings(3));
    course.step(failed(1, Some(2)));
    check_failure(&course.pass(2), &["words of 1", "suspects worker 2 (host-2)"]);
    // Nobody can be suspected who does not take part.
    for suspect in [1, 77] {
        let mut course = Course::training(settings(3));
        check_failure(&course.step(failed(1, Some(suspect))), &["words of 1"]);
    }
}

#[test]
fn a_local_process_tells_more_than_its_connection() {
    let local = || Settings { workers_are_local: true, ..settings(2) };
    let ended =
        |crashed| Event::ProcessEnded { reason: "worker-1 panicked".to_string(), crashed, restarts: false };
    let mut course = Course::training(local());
    assert!(course.loses(2).is_empty());
    check_failure(&course.step(ended(true)), &["worker-1 panicked"]);
    let mut course = Course::training(local());
    course.loses(2);
    check_failure(&course.pass(2), &["worker 2 (host-2) was lost"]);
    // One that ends by itself has most often been told by another, whose word is waited for.
    let mut course = Course::training(local());
    assert!(course.step(ended(false)).is_empty());
    check_failure(&course.pass(2), &["worker-1 panicked"]);
    // Before it joined there is nobody else to ask.
    let mut course = Course::new(local());
    check_failure(&course.step(ended(false)), &["worker-1 panicked"]);
}

#[test]
fn a_stop_is_passed_on_and_the_second_ends_at_once() {
    let mut course = Course::training(settings(2));
    let actions = course.step(Event::Requested(Request::Stop));
    assert_eq!(
        actions
            .iter()
            .filter(|action| matches!(action, Action::Send { order: Order::Stop { .. }, .. }))
            .count(),
        2
    );
    course.finished(1, 42, 9);
    assert_eq!(outcome(&course.finished(2, 42, 9)), Some(&Outcome::Stopped { step: 42 }));

    let mut course = Course::training(settings(2));
    course.step(Event::StepDone { worker: WorkerId(1), report: report(1, 41) });
    course.step(Event::Requested(Request::Stop));
    assert_eq!(outcome(&course.step(Event::Requested(Request::Stop))), Some(&Outcome::Stopped { step: 41 }));

    // A stop that comes while the last step is made changes nothing.
    let mut course = Course::training(settings(1));
    course.step(Event::Requested(Request::Stop));
    let actions = course.finished(1, TOTAL_STEPS, 9);
    assert!(matches!(outcome(&actions), Some(Outcome::Completed { step: TOTAL_STEPS, .. })));

    for mut course in [Course::new(settings(2)), Course::assembling(settings(2))] {
        assert_eq!(
            outcome(&course.step(Event::Requested(Request::Stop))),
            Some(&Outcome::Stopped { step: 0 })
        );
    }
}

#[test]
fn every_wait_has_its_limit_and_its_sentence() {
    let mut course = Course::new(settings(2));
    course.step(Event::Joined(candidate(1)));
    assert!(course.pass(100).is_empty());
    check_failure(&course.pass(1), &["1 of 2 workers joined within 100.0 s"]);

    let mut course = Course::assembling(settings(2));
    course.assembled(1, holding(1));
    assert!(course.pass(50).is_empty());
    check_failure(&course.pass(1), &["not all workers were assembled within 50.0 s", "worker 2 (host-2)"]);

    let mut course = Course::training(settings(2));
    assert!(course.pass(50).is_empty());
    course.step(Event::StepDone { worker: WorkerId(1), report: report(1, 1) });
    assert!(course.pass(60).is_empty(), "a step begins the wait anew");
    check_failure(&course.pass(1), &["no step was committed for 60.0 s"]);

    let mut course = Course::training(settings(2));
    course.step(Event::Requested(Request::Stop));
    course.finished(1, 5, 9);
    assert!(course.pass(30).is_empty());
    check_failure(&course.pass(1), &["within 30.0 s these did not finish: worker 2 (host-2)"]);
}

#[test]
fn a_silent_worker_is_lost() {
    let mut course = Course::training(settings(2));
    for _ in 0..5 {
        course.now += Duration::from_secs(1);
        course.heartbeat(2);
        assert!(course.step(Event::Tick).is_empty());
    }
    course.now += Duration::from_secs(1);
    check_failure(
        &course.step(Event::Tick),
        &["worker 1 (host-1) was lost: nothing was heard of it for 5.0 s"],
    );

    // Before the run begins only its place is free again, and it is told so in case it only slept.
    let mut course = Course::new(settings(2));
    course.step(Event::Joined(candidate(1)));
    course.now += Duration::from_secs(6);
    let actions = course.step(Event::Tick);
    let [Action::Send { worker: WorkerId(1), order }, Action::Record(Record::Lost { worker: 1, .. })] =
        &actions[..]
    else {
        panic!("{actions:?}")
    };
    assert!(matches!(order, Order::Dismiss { failure: Some(_) }));
    assert_eq!(course.membership.workers(), 0);
}

#[test]
fn a_resumed_run_counts_on_from_its_checkpoint() {
    let checkpoint = Some("step-000040".to_string());
    let mut course = Course::training(Settings { first_step: 40, checkpoint, ..settings(1) });
    check_failure(&course.loses(1), &["40 steps are committed", "step-000040"]);
}
