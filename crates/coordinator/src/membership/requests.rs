//! What a person may ask of a run while it is under way.

use std::iter::once;
use std::time::Duration;

use super::{Action, Membership, Order, Outcome, Phase, Request};
use crate::journal::Record;

impl Membership {
    pub(super) fn requested(&mut self, request: Request, now: Duration) -> Vec<Action> {
        match request {
            Request::Stop => self.stop(now),
            Request::Pause => self.pause(now),
            Request::Continue => self.go_on_after_pause(now),
            Request::Save => self.save_now(now),
            Request::Drain(worker) => self.drain(worker),
        }
    }

    /// The first request begins the stop, unless the run stops already because it is hopeless. The second ends the run at
    /// once.
    fn stop(&mut self, now: Duration) -> Vec<Action> {
        let is_first = !std::mem::replace(&mut self.stop_requested_by_person, true);
        if !self.stop_requested {
            return self.begin_to_stop(now);
        }
        let step = self.committed_step;
        let record = Action::Record(Record::StopRequested { step });
        let consequences = if is_first { Vec::new() } else { self.end(Outcome::Stopped { step }) };
        once(record).chain(consequences).collect()
    }

    /// A stop is passed on to the workers, which stop together after a step; while a generation is being replaced, the
    /// next one is told when it starts. Where no step was made yet, the run ends at once.
    pub(super) fn begin_to_stop(&mut self, now: Duration) -> Vec<Action> {
        let step = self.committed_step;
        let record = Action::Record(Record::StopRequested { step });
        (self.stop_requested, self.is_paused) = (true, false);
        let consequences = match self.phase {
            Phase::Training => self.order_stop(now),
            Phase::Reuniting | Phase::Regrouping => Vec::new(),
            // Those who wait for another one, or rest, save what they hold.
            Phase::Gathering | Phase::Paused if self.has_begun => self.regroup_from_rest(now),
            Phase::Assembling if !self.is_first_generation => Vec::new(),
            _ => self.end(Outcome::Stopped { step }),
        };
        once(record).chain(consequences).collect()
    }

    pub(super) fn order_stop(&mut self, now: Duration) -> Vec<Action> {
        self.phase = Phase::Stopping;
        self.waiting_since = now;
        let order = self.stop_order();
        self.ranks.iter().map(|&worker| Action::Send { worker, order: order.clone() }).collect()
    }

    pub(super) fn stop_order(&self) -> Order {
        Order::Stop { generation: self.generation, reason: "a stop was requested".to_string() }
    }

    /// The generation is over, and the next one is not formed before [`Request::Continue`]. The step in hand is
    /// computed again then.
    fn pause(&mut self, now: Duration) -> Vec<Action> {
        if self.is_paused || self.stop_requested {
            return Vec::new();
        }
        self.is_paused = true;
        let record = Action::Record(Record::Paused { step: self.committed_step });
        let consequences = match self.phase {
            Phase::Training | Phase::Assembling => self.break_off("the run is paused".to_string(), now),
            Phase::Gathering => {
                self.phase = Phase::Paused;
                Vec::new()
            }
            // What comes of these ends in the pause, or in one of the phases above.
            _ => Vec::new(),
        };
        once(record).chain(consequences).collect()
    }

    fn go_on_after_pause(&mut self, now: Duration) -> Vec<Action> {
        if !std::mem::take(&mut self.is_paused) {
            return Vec::new();
        }
        let record = Action::Record(Record::Continued { step: self.committed_step });
        let consequences = match self.phase {
            Phase::Paused => self.regroup_from_rest(now),
            _ => Vec::new(),
        };
        once(record).chain(consequences).collect()
    }

    /// Someone may still have to halt, which is a wait with a limit.
    pub(super) fn regroup_from_rest(&mut self, now: Duration) -> Vec<Action> {
        (self.phase, self.waiting_since) = (Phase::Regrouping, now);
        self.regroup(now)
    }

    /// While steps are made, the worker that publishes does so after the next one. In a pause, one that holds the
    /// newest state does, if it is not on the disk.
    fn save_now(&mut self, now: Duration) -> Vec<Action> {
        match self.phase {
            Phase::Training => {
                let order = Order::Save { generation: self.generation };
                self.ranks.first().map(|&worker| Action::Send { worker, order }).into_iter().collect()
            }
            Phase::Paused => match self.newest_held() {
                Some(step) if step > self.saved.step => self.save_first(step, now),
                _ => Vec::new(),
            },
            _ => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{
        Course, TOTAL_STEPS, attending, candidate, check_failure, outcome, report, settings,
    };
    use super::super::*;

    fn shrinking(workers: u32) -> Settings {
        Settings { on_failure: OnFailure::Shrink, ..settings(workers) }
    }

    fn halted(course: &mut Course, worker: u64, step: u64) -> Vec<Action> {
        let generation = course.membership.generation();
        course.step(Event::Halted {
            worker: WorkerId(worker),
            generation,
            held_step: Some(step),
            complaint: None,
        })
    }

    fn committed(course: &mut Course, step: u64) {
        let generation = course.membership.generation().0;
        for worker in [1, 2] {
            course.step(Event::StepDone { worker: WorkerId(worker), report: report(generation, step) });
        }
    }

    fn orders(actions: &[Action]) -> Vec<(u64, &Order)> {
        let order = |action| match action {
            &Action::Send { worker, ref order } => Some((worker.0, order)),
            _ => None,
        };
        actions.iter().filter_map(order).collect()
    }

    /// A run of two workers that rest after step 5.
    fn paused() -> Course {
        let mut course = Course::training(shrinking(2));
        committed(&mut course, 5);
        let actions = course.step(Event::Requested(Request::Pause));
        assert!(orders(&actions).iter().all(|(_, order)| matches!(order, Order::Halt { .. })));
        assert_eq!(orders(&actions).len(), 2);
        halted(&mut course, 1, 5);
        halted(&mut course, 2, 5);
        assert_eq!(course.membership.phase(), Phase::Paused);
        course
    }

    #[test]
    fn a_pause_lasts_until_it_is_ended() {
        let mut course = paused();
        assert!(course.step(Event::Requested(Request::Pause)).is_empty(), "it is paused already");
        // Longer than any wait, but for the signs of life.
        for _ in 0..1000 {
            for worker in [1, 2] {
                let generation = course.membership.generation();
                let standstill = Duration::ZERO;
                course.step(Event::Heartbeat { worker: WorkerId(worker), generation, standstill });
            }
            assert!(course.pass(1).is_empty());
        }
        let actions = course.step(Event::Requested(Request::Continue));
        assert!(actions.contains(&Action::Record(Record::Continued { step: 5 })));
        let assembled = orders(&actions)
            .into_iter()
            .filter(|(_, order)| matches!(order, Order::Assemble { step: 5, .. }));
        assert_eq!(assembled.count(), 2);
        assert!(course.step(Event::Requested(Request::Continue)).is_empty(), "it goes on already");
    }

    #[test]
    fn who_comes_or_goes_in_a_pause_is_taken_account_of_after_it() {
        let mut course = paused();
        course.loses(1);
        course.step(Event::Joined(candidate(3)));
        course.step(attending(3));
        assert_eq!(course.membership.phase(), Phase::Paused);
        // The newcomer lacks the state, so the other saves it first.
        let actions = course.step(Event::Requested(Request::Continue));
        assert!(matches!(orders(&actions)[..], [(2, Order::Save { .. })]), "{actions:?}");
        let actions = course.step(Event::Published {
            generation: Generation(1),
            checkpoint: "step-000005".to_string(),
            step: 5,
        });
        assert_eq!(orders(&actions).len(), 2);
        assert_eq!(course.membership.phase(), Phase::Assembling);
    }

    #[test]
    fn a_stop_ends_a_pause_and_saves() {
        let mut course = paused();
        let actions = course.step(Event::Requested(Request::Stop));
        assert_eq!(outcome(&actions), None);
        assert_eq!(orders(&actions).len(), 2, "they assemble once more, to save: {actions:?}");
        assert!(course.step(Event::Requested(Request::Pause)).is_empty(), "it ends");
        assert_eq!(
            outcome(&course.step(Event::Requested(Request::Stop))),
            Some(&Outcome::Stopped { step: 5 })
        );
    }

    #[test]
    fn who_stops_a_hopeless_run_or_one_that_turns_hopeless_still_has_it_saved() {
        let stop = || Event::Requested(Request::Stop);
        for (first, meanwhile) in
            [(Event::Hopeless, vec![Event::Hopeless, stop()]), (stop(), vec![Event::Hopeless])]
        {
            let mut course = Course::training(shrinking(2));
            committed(&mut course, 5);
            let actions = course.step(first);
            assert!(matches!(orders(&actions)[..], [(1, Order::Stop { .. }), (2, Order::Stop { .. })]));
            for event in meanwhile {
                let actions = course.step(event.clone());
                assert_eq!((outcome(&actions), orders(&actions)), (None, Vec::new()), "{event:?}");
            }
            assert_eq!(outcome(&course.step(stop())), Some(&Outcome::Stopped { step: 5 }));
        }
    }

    #[test]
    fn a_save_is_asked_of_one_who_can() {
        let mut course = Course::training(shrinking(2));
        let actions = course.step(Event::Requested(Request::Save));
        assert!(matches!(orders(&actions)[..], [(1, Order::Save { .. })]), "{actions:?}");
        let mut course = paused();
        let actions = course.step(Event::Requested(Request::Save));
        assert!(matches!(orders(&actions)[..], [(1, Order::Save { .. })]), "{actions:?}");
        course.step(Event::Published {
            generation: Generation(1),
            checkpoint: "step-000005".to_string(),
            step: 5,
        });
        assert_eq!(course.membership.phase(), Phase::Paused);
        assert!(course.step(Event::Requested(Request::Save)).is_empty(), "that is on the disk");
        let mut course = Course::assembling(shrinking(2));
        assert!(course.step(Event::Requested(Request::Save)).is_empty(), "there is nothing yet");
    }

    fn unsaved(course: &mut Course, worker: u64) -> Vec<Action> {
        let reason = "no space left".to_string();
        course.step(Event::Unsaved { worker: WorkerId(worker), generation: Generation(1), reason })
    }

    #[test]
    fn a_save_in_a_pause_that_fails_costs_nothing() {
        for goes_on_meanwhile in [false, true] {
            let mut course = paused();
            course.step(Event::Requested(Request::Save));
            assert!(unsaved(&mut course, 2).is_empty(), "it was not asked");
            if goes_on_meanwhile {
                assert!(orders(&course.step(Event::Requested(Request::Continue))).is_empty());
            }
            let mut actions = unsaved(&mut course, 1);
            if !goes_on_meanwhile {
                assert!(actions.is_empty(), "{actions:?}");
                assert_eq!(course.membership.phase(), Phase::Paused);
                let again = course.step(Event::Requested(Request::Save));
                assert!(matches!(orders(&again)[..], [(1, Order::Save { .. })]), "{again:?}");
                unsaved(&mut course, 1);
                actions = course.step(Event::Requested(Request::Continue));
            }
            let assembled = |order: &Order| matches!(order, Order::Assemble { step: 5, .. });
            let orders = orders(&actions);
            assert!(orders.len() == 2 && orders.iter().all(|(_, order)| assembled(order)), "{actions:?}");
        }
    }

    #[test]
    fn a_save_that_fails_ends_the_run_if_others_wait_for_it() {
        let mut course = paused();
        course.loses(1);
        course.step(Event::Joined(candidate(3)));
        course.step(attending(3));
        course.step(Event::Requested(Request::Continue));
        let actions = unsaved(&mut course, 2);
        check_failure(&actions, &["worker 2 (host-2) cannot save", "no space left", "5 steps are committed"]);
        assert!(orders(&actions).iter().all(|(_, order)| matches!(order, Order::Dismiss { .. })));
    }

    #[test]
    fn a_run_that_gathers_can_be_paused_before_it_begins() {
        let mut course = Course::new(settings(2));
        course.step(Event::Requested(Request::Pause));
        for worker in [1, 2] {
            course.step(Event::Joined(candidate(worker)));
            assert!(course.step(attending(worker)).is_empty());
        }
        let actions = course.step(Event::Requested(Request::Continue));
        assert_eq!(orders(&actions).len(), 2);
    }

    #[test]
    fn a_step_that_is_left_out_is_told_and_counts() {
        let mut course = Course::training(settings(2));
        let skipped = StepReport { skipped: Some(vec![3]), ..report(1, 1) };
        let actions = course.step(Event::StepDone { worker: WorkerId(1), report: skipped });
        assert_eq!(actions[0], Action::Record(Record::Skipped { step: 1, shards: vec![3] }));
        assert!(matches!(actions[1], Action::Committed(_)));
        assert_eq!(course.membership.committed_step(), 1);
    }

    #[test]
    fn replicas_that_differ_end_the_run() {
        let mut course = Course::training(settings(2));
        let mut tell = |worker, step, state| {
            let report = StepReport { state_hash: Some(Digest([state; 32])), ..report(1, step) };
            course.step(Event::StepDone { worker: WorkerId(worker), report })
        };
        assert_eq!(outcome(&tell(1, 50, 1)), None);
        assert_eq!(outcome(&tell(2, 50, 1)), None);
        assert_eq!(outcome(&tell(2, TOTAL_STEPS, 1)), None);
        check_failure(
            &tell(1, TOTAL_STEPS, 2),
            &["state hash after step 100", "worker 1 has", "worker 2 has"],
        );
    }

    #[test]
    fn the_worker_that_others_wait_for_is_named() {
        let mut course = Course::training(settings(2));
        let mut named = Vec::new();
        for step in 1..=40 {
            for worker in [1, 2] {
                let forward = if worker == 2 { 0.3 } else { 0.1 };
                let seconds = StepSeconds { forward, ..StepSeconds::default() };
                let report = StepReport { seconds, ..report(1, step) };
                named.extend(
                    course.step(Event::StepDone { worker: WorkerId(worker), report }).into_iter().filter_map(
                        |action| match action {
                            Action::Record(Record::Straggler {
                                worker, description, times_slower, ..
                            }) => Some((worker, description, times_slower.round())),
                            _ => None,
                        },
                    ),
                );
            }
        }
        assert_eq!(named, [(2, "host-2".to_string(), 3.0)]);
    }

    #[test]
    fn more_may_join_than_are_waited_for_if_there_are_places() {
        let mut course = Course::training(Settings { max_workers: 3, ..shrinking(2) });
        committed(&mut course, 1);
        assert!(matches!(course.step(Event::Joined(candidate(3)))[0], Action::Admit { worker: WorkerId(3) }));
        let actions = course.step(attending(3));
        assert!(orders(&actions).iter().all(|(_, order)| matches!(order, Order::Halt { .. })), "{actions:?}");
        assert!(matches!(course.step(Event::Joined(candidate(4)))[..], [Action::Refuse { .. }]));
        for (max_workers, phrase) in [(1, "--max-workers"), (9, "9 workers cannot share 8 shards")] {
            let error = Settings { max_workers, ..settings(2) }.check().unwrap_err().to_string();
            assert!(error.contains(phrase), "{error:?} lacks {phrase:?}");
        }
    }

    #[test]
    fn who_rounds_otherwise_is_refused_with_both_values() {
        let (avx2, avx512) = ("cpu x86-64 AVX2", "cpu x86-64 AVX-512");
        for (mixes_arithmetic, ours, theirs, refused_with) in [
            (false, avx2, avx2, None),
            (false, avx2, avx512, Some("--mixed-devices")),
            (false, "cuda 9.0", "cuda 8.6", Some("--mixed-devices")),
            (true, avx2, avx512, None),
            (true, "cuda 9.0", "cuda 8.6", None),
            // They would not keep the same weights.
            (false, avx2, "cuda 9.0", Some("all with --device cpu")),
            (true, avx2, "cuda 9.0", Some("all with --device cpu")),
            (true, "cuda 9.0", avx2, Some("all with --device cpu")),
            (false, avx2, "", None),
        ] {
            let of = |number, arithmetic: &str| Candidate {
                arithmetic: arithmetic.to_string(),
                ..candidate(number)
            };
            let mut course = Course::new(Settings { mixes_arithmetic, ..settings(2) });
            course.step(Event::Joined(of(1, ours)));
            let actions = course.step(Event::Joined(of(2, theirs)));
            let reason = match &actions[0] {
                Action::Refuse { reason } => Some(reason),
                _ => None,
            };
            assert_eq!(reason.is_some(), refused_with.is_some(), "{ours}, {theirs}: {actions:?}");
            let Some((reason, phrase)) = reason.zip(refused_with) else { continue };
            for phrase in [phrase, &format!("on {ours}"), &format!("on {theirs}")] {
                assert!(reason.contains(phrase), "{reason:?} lacks {phrase:?}");
            }
        }
    }
}
