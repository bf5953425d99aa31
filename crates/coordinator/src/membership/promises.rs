//! What is true of every course of events, checked from outside by what was sent and answered.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use recipe::LearningRateChange;

use super::tests::{SHARDS, TOTAL_STEPS, candidate, detached, report, restarted, settings, unreachable};
use super::*;

/// A third of the workers end with their coordinator.
fn newcomer(incarnation: u64) -> Candidate {
    Candidate { outlives_coordinator: !incarnation.is_multiple_of(3), ..candidate(incarnation) }
}

/// What happens next.
#[derive(Debug, Clone)]
enum Turn {
    Event(Event),
    /// The coordinator is killed, and another one takes charge.
    Restart,
    /// A worker of the one before comes back, with its generation counted back from the present one.
    Return {
        worker: WorkerId,
        generations_back: i64,
        position: Position,
    },
}

fn any_turn() -> impl Strategy<Value = Turn> {
    let part = prop_oneof![1 => Just(Part::None), 2 => Just(Part::Assembles), 4 => Just(Part::Trains)];
    let generations_back = prop_oneof![16 => Just(0i64), 2 => Just(1), 1 => Just(2), 1 => Just(-1)];
    let steps = prop::collection::vec(0u64..5, 0..3);
    let position = (part, prop::option::of(0u64..4), steps).prop_map(|(part, held_step, steps)| {
        let steps = steps.into_iter().map(|step| report(0, step)).collect();
        Position { generation: Generation(0), part, held_step, steps, is_leaving: false }
    });
    let returns = ((1u64..6).prop_map(WorkerId), generations_back, position)
        .prop_map(|(worker, generations_back, position)| Turn::Return { worker, generations_back, position });
    prop_oneof![40 => any_event().prop_map(Turn::Event), 2 => Just(Turn::Restart), 12 => returns]
}

fn any_event() -> impl Strategy<Value = Event> {
    // Small numbers, so that chance meets what exists.
    let worker = || (1u64..6).prop_map(WorkerId);
    let generation = || (0u64..4).prop_map(Generation);
    let hash = || prop_oneof![19 => Just(Digest([1; 32])), 1 => Just(Digest([2; 32]))];
    let step = || prop_oneof![9 => 0u64..4, 1 => Just(TOTAL_STEPS)];
    let complaint = || {
        prop::option::of(prop::option::of(worker()))
            .prop_map(|suspect| suspect.map(|suspect| Complaint { reason: "reason".to_string(), suspect }))
    };
    prop_oneof![
        6 => (1u64..7).prop_map(|incarnation| Event::Joined(newcomer(incarnation))),
        6 => worker().prop_map(|worker| Event::Attending { worker, position: Position::default() }),
        2 => (worker(), generation(), prop_oneof![3 => Just(0), 1 => Just(10)]).prop_map(
            |(worker, generation, standstill_s)| {
                let standstill = Duration::from_secs(standstill_s);
                Event::Heartbeat { worker, generation, standstill }
            }
        ),
        9 => (worker(), generation(), step(), hash()).prop_map(|(worker, generation, step, state_hash)| {
            let holding = Holding { step, state_hash, layout_hash: Digest([7; 32]) };
            Event::Assembled { worker, generation, holding }
        }),
        6 => (worker(), generation(), step())
            .prop_map(|(worker, generation, step)| Event::StepDone { worker, report: report(generation.0, step) }),
        3 => (worker(), generation(), step(), hash()).prop_map(|(worker, generation, step, state_hash)| {
            Event::Finished { worker, generation, step, state_hash }
        }),
        9 => (worker(), generation(), prop::option::of(step()), complaint()).prop_map(
            |(worker, generation, held_step, complaint)| Event::Halted { worker, generation, held_step, complaint }
        ),
        1 => (worker(), generation()).prop_map(|(worker, generation)| {
            Event::Unsaved { worker, generation, reason: "reason".to_string() }
        }),
        1 => (worker(), generation(), step(), prop::option::of(worker())).prop_map(
            |(worker, generation, step, suspect)| {
                let complaint = Complaint { reason: "reason".to_string(), suspect };
                Event::WorkerFailed { worker, generation, step, complaint }
            }
        ),
        3 => (1u64..6).prop_map(detached),
        2 => (1u64..6).prop_map(unreachable),
        1 => worker().prop_map(|worker| Event::Leaving { worker }),
        1 => worker().prop_map(|worker| Event::Requested(Request::Drain(worker))),
        1 => any::<(bool, bool)>().prop_map(|(crashed, restarts)| {
            Event::ProcessEnded { reason: "reason".to_string(), crashed, restarts }
        }),
        3 => (step(), prop_oneof![3 => Just(Generation(u64::MAX)), 1 => generation()]).prop_map(
            |(step, generation)| Event::Published { generation, checkpoint: format!("step-{step}"), step }
        ),
        1 => (0u64..3).prop_map(|step| {
            let checkpoint = (step > 0).then(|| format!("step-{step}"));
            let learning_rate_changes = vec![LearningRateChange { after_step: step, factor: 0.5 }];
            Event::RolledBack(Rollback { checkpoint, step, learning_rate_changes })
        }),
        1 => prop::sample::select(&[Request::Stop, Request::Pause, Request::Save][..]).prop_map(Event::Requested),
        2 => Just(Event::Requested(Request::Continue)),
        1 => Just(Event::Hopeless),
        6 => Just(Event::Tick),
    ]
}

fn any_settings() -> impl Strategy<Value = Settings> {
    let on_failure = prop_oneof![
        6 => Just(OnFailure::Shrink),
        2 => Just(OnFailure::Wait),
        2 => Just(OnFailure::Abort)
    ];
    (1u32..5, 0u32..3, 1u32..3, any::<bool>(), on_failure).prop_map(
        |(workers, more, min_workers, workers_are_local, on_failure)| Settings {
            max_workers: workers + more,
            workers_are_local,
            on_failure,
            min_workers: min_workers.min(workers),
            ..settings(workers)
        },
    )
}

#[derive(Default)]
struct Witness {
    generation: u64,
    committed_step: u64,
    /// What was made up to this generation is void.
    taken_back: u64,
    /// Who takes part in the generation, and the step that each was told to start from.
    members: BTreeMap<WorkerId, u64>,
    assembled: BTreeMap<WorkerId, Holding>,
    has_started: bool,
    /// Who has left it by word, with the state that it held then.
    left: BTreeMap<WorkerId, Option<u64>>,
    /// What the members held when they were told their places.
    held: BTreeMap<WorkerId, Option<u64>>,
    lost: BTreeSet<WorkerId>,
    /// Who has not come back to the present coordinator.
    away: BTreeSet<WorkerId>,
    /// The generation that a worker which came back spoke of.
    claims: BTreeMap<WorkerId, Generation>,
    has_ended: bool,
    /// Whether some may have missed what they were told.
    has_returns: bool,
}

impl Witness {
    /// Another coordinator takes charge, which has heard nothing from anyone.
    fn restart(&mut self, past: &Past, membership: &Membership) {
        let gone = self.members.keys().filter(|member| !past.members.contains_key(member));
        self.lost.extend(gone.copied());
        self.away = past.members.keys().copied().collect();
        self.left.clear();
        self.assembled.clear();
        self.claims.clear();
        self.committed_step = membership.committed_step();
        self.has_returns = true;
    }

    fn see(&mut self, event: &Event, actions: &[Action]) {
        if self.has_ended {
            assert!(actions.iter().all(|action| matches!(action, Action::Refuse { .. })), "{actions:?}");
            return;
        }
        self.hear(event);
        if matches!(event, Event::Joined(_)) {
            let answers = actions.iter().filter(|a| {
                matches!(a, Action::Admit { .. } | Action::Refuse { .. } | Action::Postpone { .. })
            });
            assert_eq!(answers.count(), 1, "whoever joins is answered");
        }
        for action in actions {
            self.check(action);
        }
    }

    /// Words count only from who takes part, and of the present generation.
    fn hear(&mut self, event: &Event) {
        if let Event::Attending { worker, position } = event {
            if self.away.remove(worker) && position.generation.0 <= self.generation {
                self.claims.insert(*worker, position.generation);
                if position.part == Part::None {
                    let is_void = position.generation.0 <= self.taken_back;
                    self.left.insert(*worker, position.held_step.filter(|_| !is_void));
                }
            }
            return;
        }
        let Some((worker, Some(generation))) = event.reporter() else { return };
        let expected = self.claims.get(&worker).map_or(self.generation, |claim| claim.0);
        let is_known = self.members.contains_key(&worker) || self.claims.contains_key(&worker);
        let takes_part = is_known && !self.away.contains(&worker);
        if generation.0 != expected || !takes_part {
            return;
        }
        match event {
            Event::Assembled { holding, .. } => {
                self.assembled.entry(worker).or_insert_with(|| holding.clone());
            }
            Event::Halted { held_step, .. } => {
                self.left.entry(worker).or_insert(held_step.filter(|_| generation.0 > self.taken_back));
            }
            Event::WorkerFailed { .. } => {
                self.left.entry(worker).or_insert(None);
            }
            Event::Finished { step, .. } if self.has_started => {
                let held_step = Some(*step).filter(|_| generation.0 > self.taken_back);
                self.left.entry(worker).or_insert(held_step);
            }
            _ => {}
        }
    }

    fn check(&mut self, action: &Action) {
        match action {
            // Its words count again once it is back.
            Action::Record(Record::Detached { worker, .. }) => {
                self.away.insert(WorkerId(*worker));
                self.has_returns = true;
            }
            Action::Record(Record::Lost { worker, .. } | Record::Left { worker, .. }) => {
                self.lost.insert(WorkerId(*worker));
                self.away.remove(&WorkerId(*worker));
            }
            Action::Record(Record::RolledBack { generation, step, .. }) => {
                assert_eq!(*generation, self.generation);
                (self.taken_back, self.committed_step) = (*generation, *step);
                self.left.values_mut().for_each(|held_step| *held_step = None);
            }
            Action::Record(Record::Generation { generation, places }) => {
                self.check_generation(*generation, places);
            }
            Action::Send { worker, order: Order::Assemble { generation, step, checkpoint_step, .. } } => {
                assert_eq!(generation.0, self.generation);
                let held = self.held.get(worker).copied().flatten();
                assert!(held.is_none_or(|held| held <= *step), "no committed step is taken back");
                assert!(
                    held == Some(*step) || checkpoint_step == step,
                    "whoever lacks the state can take it from the checkpoint"
                );
                let starts = self.members.values().filter(|start| **start != u64::MAX);
                assert!(starts.into_iter().all(|start| start == step), "all start from the same step");
                self.members.insert(*worker, *step);
            }
            Action::Send { worker, order: Order::Start { generation } } => {
                assert_eq!(generation.0, self.generation);
                assert!(self.members.contains_key(worker));
                if std::mem::replace(&mut self.has_started, true) && self.has_returns {
                    // The others train already, and this one may have missed it.
                    return;
                }
                let holdings: Vec<&Holding> =
                    self.members.keys().map(|member| &self.assembled[member]).collect();
                assert!(holdings.iter().all(|holding| *holding == holdings[0]), "all hold the same");
            }
            Action::Send { worker, .. } => assert!(
                self.lost.is_empty() || !self.lost.contains(worker),
                "who is lost is told nothing more"
            ),
            Action::Committed(report) => {
                assert!(report.step > self.committed_step, "no two commits for a step");
                assert_eq!(report.generation.0, self.generation);
                assert!(self.generation > self.taken_back, "nothing is added to what was taken back");
                self.committed_step = report.step;
            }
            Action::End(_) => {
                assert!(!self.has_ended, "ended once");
                self.has_ended = true;
            }
            _ => {}
        }
    }

    fn check_generation(&mut self, generation: u64, places: &[Place]) {
        assert_eq!(generation, self.generation + 1, "generations only rise");
        let leased = places.iter().flat_map(|place| {
            assert!(place.shard_count > 0);
            place.first_shard..place.first_shard + place.shard_count
        });
        assert!(leased.eq(0..SHARDS), "every shard has one owner: {places:?}");
        for member in self.members.keys() {
            let is_out = self.left.contains_key(member) || self.lost.contains(member);
            assert!(is_out, "worker {member} was still in generation {}", self.generation);
        }
        self.held = std::mem::take(&mut self.left);
        // Who came back from another one and has no place yet is still to say how it left that.
        self.claims.retain(|worker, _| places.iter().all(|place| place.worker != *worker));
        self.has_started = false;
        self.members = places.iter().map(|place| (place.worker, u64::MAX)).collect();
        assert!(
            self.members.keys().all(|member| !self.lost.contains(member)),
            "nobody comes back from the dead"
        );
        self.assembled.clear();
        self.generation = generation;
    }
}

/// A run, who sees it, and its journal.
struct Scene {
    settings: Settings,
    membership: Membership,
    witness: Witness,
    journal: Vec<Record>,
    now: Duration,
}

impl Scene {
    fn new(settings: Settings) -> Scene {
        let membership = Membership::new(&Past::default(), settings.clone(), Duration::ZERO).unwrap();
        let (witness, journal) = (Witness::default(), Vec::new());
        Scene { settings, membership, witness, journal, now: Duration::ZERO }
    }

    fn take(&mut self, turn: Turn) {
        match turn {
            Turn::Event(Event::RolledBack(_)) if !self.membership.is_to_go_on() => {}
            Turn::Event(event) => drop(self.hear(&event)),
            Turn::Restart if self.witness.has_ended => {}
            Turn::Restart => {
                let told = self.membership.committed_step();
                let (past, membership) = restarted(&mut self.journal, &self.settings, told, self.now);
                self.witness.restart(&past, &membership);
                self.membership = membership;
            }
            Turn::Return { worker, generations_back, position } => {
                self.comes_back(worker, generations_back, position);
            }
        }
    }

    fn comes_back(&mut self, worker: WorkerId, generations_back: i64, mut position: Position) {
        let generation = self.membership.generation().0.saturating_add_signed(-generations_back);
        position.generation = Generation(generation);
        position.steps.iter_mut().for_each(|report| report.generation = Generation(generation));
        let known = self.membership.members.get(&worker).map(|member| member.candidate.clone());
        let candidate = known.unwrap_or_else(|| newcomer(worker.0));
        let actions = self.hear(&Event::Joined(Candidate { returning: Some(worker), ..candidate }));
        if actions.iter().any(|action| matches!(action, Action::Admit { .. })) {
            self.hear(&Event::Attending { worker, position });
        }
    }

    fn hear(&mut self, event: &Event) -> Vec<Action> {
        let actions = self.membership.step(event.clone(), self.now);
        self.journal.extend(actions.iter().filter_map(|action| match action {
            Action::Record(record) => Some(record.clone()),
            _ => None,
        }));
        self.witness.see(event, &actions);
        actions
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn whatever_happens_the_promises_hold(
        settings in any_settings(),
        turns in prop::collection::vec((any_turn(), 0u64..800), 0..160),
    ) {
        let workers = settings.max_workers;
        let mut scene = Scene::new(settings);
        for (turn, later_ms) in turns {
            scene.now += Duration::from_millis(later_ms);
            scene.take(turn);
            prop_assert_eq!(scene.membership.generation().0, scene.witness.generation);
        }
        // A pause lasts until a person ends it.
        scene.hear(&Event::Requested(Request::Continue));
        // Every wait ends: each tick takes at least one silent worker, then the run.
        for _ in 0..2 * workers + 2 {
            scene.now += Duration::from_secs(3600);
            scene.hear(&Event::Tick);
        }
        prop_assert!(scene.witness.has_ended, "still {:?}", scene.membership.phase());
    }
}
