//! Where the time of a step goes.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use protocol::v1::{self, Phase};

/// Runs during one step.
pub(crate) struct Stopwatch {
    begin: Instant,
    began: Duration,
    spans: Vec<v1::Span>,
    data: f64,
    forward: f64,
    backward: f64,
    all_reduce: f64,
    update: f64,
}

impl Stopwatch {
    pub(crate) fn start() -> Stopwatch {
        Stopwatch {
            begin: Instant::now(),
            began: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
            spans: Vec::new(),
            data: 0.0,
            forward: 0.0,
            backward: 0.0,
            all_reduce: 0.0,
            update: 0.0,
        }
    }

    /// What `work` gives, which is a part of `phase`, of one shard or of all.
    pub(crate) fn time<T>(&mut self, phase: Phase, shard: Option<u32>, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = work();
        let seconds = start.elapsed().as_secs_f64();
        self.span(phase, shard, start, seconds);
        self.add(phase, seconds);
        result
    }

    /// Notes when something was done, without counting it.
    pub(crate) fn span(&mut self, phase: Phase, shard: Option<u32>, start: Instant, seconds: f64) {
        let start_us = start.duration_since(self.begin).as_micros() as u32;
        let duration_us = (seconds * 1e6) as u32;
        self.spans.push(v1::Span { phase: phase.into(), shard, start_us, duration_us });
    }

    /// Counts time without noting when it was spent.
    pub(crate) fn add(&mut self, phase: Phase, seconds: f64) {
        match phase {
            Phase::Data => self.data += seconds,
            Phase::Forward => self.forward += seconds,
            Phase::Backward => self.backward += seconds,
            Phase::AllReduce => self.all_reduce += seconds,
            Phase::Update => self.update += seconds,
            // What is left of the step's time once the others are taken away.
            Phase::Monitor | Phase::Unknown => {}
        }
    }

    /// The step is over: its times go into `done`, and this says when each was spent.
    pub(crate) fn stop(self, done: &mut v1::StepDone) -> v1::StepSpans {
        done.data_seconds = self.data;
        done.forward_seconds = self.forward;
        done.backward_seconds = self.backward;
        done.all_reduce_seconds = self.all_reduce;
        done.update_seconds = self.update;
        done.step_seconds = self.begin.elapsed().as_secs_f64();
        v1::StepSpans {
            generation: done.generation,
            step: done.step,
            began_unix_us: self.began.as_micros() as u64,
            spans: self.spans,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_counted_and_noted() {
        let mut watch = Stopwatch::start();
        assert_eq!(watch.time(Phase::Data, Some(3), || 7), 7);
        watch.add(Phase::Forward, 0.5);
        watch.add(Phase::Forward, 0.25);
        watch.span(Phase::AllReduce, None, watch.begin + Duration::from_millis(2), 0.001);
        watch.add(Phase::Monitor, 9.0);
        let mut done = v1::StepDone { generation: 2, step: 5, ..v1::StepDone::default() };
        let spans = watch.stop(&mut done);
        assert_eq!((done.forward_seconds, done.all_reduce_seconds), (0.75, 0.0));
        assert!(done.step_seconds < 9.0 && done.data_seconds <= done.step_seconds);
        assert_eq!((spans.generation, spans.step, spans.spans.len()), (2, 5, 2));
        assert_eq!((spans.spans[0].phase(), spans.spans[0].shard), (Phase::Data, Some(3)));
        assert_eq!((spans.spans[1].start_us, spans.spans[1].duration_us), (2000, 1000));
    }
}
