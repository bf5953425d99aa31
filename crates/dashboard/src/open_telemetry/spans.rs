//! What happens in a run, as spans.
//!
//! The run is one trace under its own id, with its generations, checkpoints and evaluations. Each step is another one,
//! which names its generation by a link: what shows traces takes some thousand spans in one, and a run has millions.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use coordinator::flight_recorder::StepSpans;
use coordinator::journal::Record;
use coordinator::{Evaluated, Outcome, Progress};
use opentelemetry::trace::{
    Event, Link, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator, SpanData, SpanEvents, SpanLinks};
use serde_json::Value;

use crate::clocks::{Clocks, interval_us};
use crate::trace::phase;

/// Steps that not all workers have told of at most: who has made so many more lost the words of this one.
const MOST_OPEN_STEPS: usize = 8;

/// Over how many steps clocks are compared: few enough to notice one that is set.
const STEPS_COMPARED: usize = 64;

/// Steps whose commits are remembered, for the checkpoints that are still being published.
const COMMITS_KEPT: usize = 4096;

/// Events of a span, as many as OpenTelemetry's own programs have. The last ones are kept.
const MOST_EVENTS: usize = 128;

/// Spans that wait to be sent. Beyond these, whole steps are left out.
const MOST_WAITING: usize = 1 << 15;

/// The spans of a run that goes on.
#[derive(Debug)]
pub(super) struct Spans {
    ids: RandomIdGenerator,
    scope: InstrumentationScope,
    run: Open,
    generation: Option<Generation>,
    /// By generation and step.
    steps: BTreeMap<(u64, u64), OpenStep>,
    clocks: Clocks,
    /// What the clocks are compared over.
    compared: VecDeque<(u64, u64)>,
    commits: BTreeMap<u64, SystemTime>,
    evaluation_began: Option<SystemTime>,
    ended: Vec<SpanData>,
    steps_left_out: u64,
}

/// A span that has not ended.
#[derive(Debug, Clone)]
struct Open {
    context: SpanContext,
    began: SystemTime,
    attributes: Vec<KeyValue>,
    events: SpanEvents,
    status: Status,
}

#[derive(Debug)]
struct Generation {
    number: u64,
    workers: usize,
    open: Open,
}

/// A step that not all workers have told of.
#[derive(Debug)]
struct OpenStep {
    /// The span of its generation, if that is known.
    generation: Option<SpanContext>,
    /// How many there are.
    workers: usize,
    /// What they have told.
    told: Vec<StepSpans>,
}

impl Spans {
    /// A coordinator takes charge of the run at `now`.
    pub(super) fn new(run_id: [u8; 16], now: SystemTime) -> Spans {
        let ids = RandomIdGenerator::default();
        let context = context(TraceId::from_bytes(run_id), ids.new_span_id());
        Spans {
            ids,
            scope: InstrumentationScope::builder("simsiam").build(),
            run: Open::new(context, now, Vec::new()),
            generation: None,
            steps: BTreeMap::new(),
            clocks: Clocks::default(),
            compared: VecDeque::new(),
            commits: BTreeMap::new(),
            evaluation_began: None,
            ended: Vec::new(),
            steps_left_out: 0,
        }
    }

    /// What the control loop told at `now`.
    pub(super) fn hear(&mut self, progress: Progress, now: SystemTime) {
        match progress {
            Progress::Noted { record, workers, .. } => self.record(&record, workers as usize, now),
            Progress::Step(metrics) => {
                self.commits.insert(metrics.step, now);
                if self.commits.len() > COMMITS_KEPT {
                    self.commits.pop_first();
                }
            }
            Progress::Spans(told) => self.told(told),
            Progress::EvaluationBegan => self.evaluation_began = Some(now),
            Progress::Evaluated(evaluated) => self.evaluated(figures(evaluated), Status::Unset, now),
            Progress::EvaluationFailed(reason) => self.evaluated(Vec::new(), Status::error(reason), now),
            Progress::Seen(_) => {}
        }
    }

    /// The coordinator has nothing more to do. What is still open ends.
    pub(super) fn finish(&mut self, now: SystemTime) {
        while let Some((key, step)) = self.steps.pop_first() {
            self.end_step(key, step);
        }
        self.end_generation(now);
        let Open { context, began, attributes, events, status } = self.run.clone();
        let span = self.span("run", context, SpanId::INVALID, (began, now));
        self.ended.push(SpanData { attributes, events, status, ..span });
    }

    /// The spans that have ended since the last time.
    pub(super) fn take(&mut self) -> Vec<SpanData> {
        std::mem::take(&mut self.ended)
    }

    /// Steps that are in no span, because too many waited.
    pub(super) fn steps_left_out(&self) -> u64 {
        self.steps_left_out
    }

    fn record(&mut self, record: &Record, workers: usize, now: SystemTime) {
        let (event, attributes) = fields(record);
        match record {
            Record::Generation { generation, places } => {
                self.begin_generation(*generation, places.len(), attributes, now);
            }
            // Formed under the coordinator before this one.
            Record::Adopted { generation, .. } if self.number() != Some(*generation) => {
                self.begin_generation(*generation, workers, attributes, now);
            }
            Record::Checkpoint { step, .. } => {
                self.published(*step, attributes, now);
            }
            Record::Ended(outcome) => {
                self.end_generation(now);
                self.run.attributes.extend(attributes);
                if let Outcome::Failed { reason } = outcome {
                    self.run.status = Status::error(reason.clone());
                }
            }
            _ => self.innermost().note(Event::new(event, now, attributes, 0)),
        }
    }

    fn begin_generation(
        &mut self,
        number: u64,
        workers: usize,
        mut attributes: Vec<KeyValue>,
        now: SystemTime,
    ) {
        self.end_generation(now);
        attributes.push(count("simsiam.workers", workers as u64));
        let context = context(self.run.context.trace_id(), self.ids.new_span_id());
        self.generation = Some(Generation { number, workers, open: Open::new(context, now, attributes) });
    }

    fn end_generation(&mut self, now: SystemTime) {
        let Some(Generation { open, .. }) = self.generation.take() else { return };
        let Open { context, began, attributes, events, status } = open;
        let span = self.span("generation", context, self.run.context.span_id(), (began, now));
        self.ended.push(SpanData { attributes, events, status, ..span });
    }

    fn number(&self) -> Option<u64> {
        self.generation.as_ref().map(|generation| generation.number)
    }

    fn innermost(&mut self) -> &mut Open {
        self.generation.as_mut().map_or(&mut self.run, |generation| &mut generation.open)
    }

    /// A checkpoint of a step that the generation has committed.
    fn published(&mut self, step: u64, attributes: Vec<KeyValue>, now: SystemTime) {
        let began = self.commits.get(&step).copied().unwrap_or(now);
        let parent = self.innermost().context.span_id();
        let context = context(self.run.context.trace_id(), self.ids.new_span_id());
        let span = self.span("checkpoint", context, parent, (began, now));
        self.ended.push(SpanData { attributes, ..span });
    }

    /// An evaluation has ended, which goes on beside the generations, whichever there are.
    fn evaluated(&mut self, attributes: Vec<KeyValue>, status: Status, now: SystemTime) {
        let began = self.evaluation_began.take().unwrap_or(now);
        let context = context(self.run.context.trace_id(), self.ids.new_span_id());
        let span = self.span("evaluation", context, self.run.context.span_id(), (began, now));
        self.ended.push(SpanData { attributes, status, ..span });
    }

    /// A worker has told where the time of a step went.
    fn told(&mut self, told: StepSpans) {
        let key = (told.generation, told.step);
        let generation = self.generation.as_ref().filter(|generation| generation.number == told.generation);
        let step = self.steps.entry(key).or_insert_with(|| OpenStep {
            generation: generation.map(|generation| generation.open.context.clone()),
            workers: generation.map_or(usize::MAX, |generation| generation.workers),
            told: Vec::new(),
        });
        step.told.push(told);
        let ended = match step.told.len() >= step.workers {
            true => self.steps.remove_entry(&key),
            false if self.steps.len() > MOST_OPEN_STEPS => self.steps.pop_first(),
            false => None,
        };
        if let Some((key, step)) = ended {
            self.end_step(key, step);
        }
    }

    /// All have told of a step, or nobody else will.
    fn end_step(&mut self, key: (u64, u64), step: OpenStep) {
        step.told.iter().for_each(|told| self.clocks.hear(told));
        self.compared.push_back(key);
        if self.compared.len() > STEPS_COMPARED {
            self.compared.pop_front();
            self.clocks.forget_before(self.compared[0]);
        }
        if self.ended.len() >= MOST_WAITING {
            self.steps_left_out += 1;
            return;
        }
        let corrections_us = self.clocks.corrections_us();
        let whole = context(self.ids.new_trace_id(), self.ids.new_span_id());
        let (mut first_us, mut last_us) = (i64::MAX, 0);
        for told in &step.told {
            let correction_us = corrections_us.get(&told.worker).copied().unwrap_or(0);
            let (begin_us, end_us) = interval_us(told, correction_us);
            (first_us, last_us) = (first_us.min(begin_us), last_us.max(end_us));
            self.worker_step(&whole, told, (begin_us, end_us));
        }
        let span = self.span("step", whole, SpanId::INVALID, (time(first_us), time(last_us)));
        let mut links = SpanLinks::default();
        links.links.extend(step.generation.map(Link::with_context));
        let attributes = vec![
            count("simsiam.generation", key.0),
            count("simsiam.step", key.1),
            count("simsiam.workers", step.told.len() as u64),
        ];
        self.ended.push(SpanData { attributes, links, ..span });
    }

    /// The part of a worker in the step `whole`, and the pieces of that.
    fn worker_step(&mut self, whole: &SpanContext, told: &StepSpans, (begin_us, end_us): (i64, i64)) {
        let whose = [
            count("simsiam.generation", told.generation),
            count("simsiam.step", told.step),
            count("simsiam.worker", told.worker),
        ];
        let part = context(whole.trace_id(), self.ids.new_span_id());
        let parent = part.span_id();
        let span = self.span("worker step", part, whole.span_id(), (time(begin_us), time(end_us)));
        self.ended.push(SpanData { attributes: whose.to_vec(), ..span });
        for piece in &told.spans {
            let from_us = begin_us.saturating_add(piece.start_us.into());
            let to_us = from_us.saturating_add(piece.duration_us.into());
            let context = context(whole.trace_id(), self.ids.new_span_id());
            let span = self.span(phase(piece.phase), context, parent, (time(from_us), time(to_us)));
            let shard = piece.shard.map(|shard| count("simsiam.shard", shard.into()));
            let attributes = whose.iter().cloned().chain(shard).collect();
            self.ended.push(SpanData { attributes, ..span });
        }
    }

    /// A span that tells only what, where and when.
    fn span(
        &self,
        name: &'static str,
        span_context: SpanContext,
        parent_span_id: SpanId,
        (began, ended): (SystemTime, SystemTime),
    ) -> SpanData {
        SpanData {
            span_context,
            parent_span_id,
            parent_span_is_remote: false,
            span_kind: SpanKind::Internal,
            name: name.into(),
            start_time: began,
            // A clock may have been set back.
            end_time: ended.max(began),
            attributes: Vec::new(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: self.scope.clone(),
        }
    }
}

impl Open {
    fn new(context: SpanContext, began: SystemTime, attributes: Vec<KeyValue>) -> Open {
        Open { context, began, attributes, events: SpanEvents::default(), status: Status::Unset }
    }

    fn note(&mut self, event: Event) {
        let SpanEvents { events, dropped_count, .. } = &mut self.events;
        if events.len() == MOST_EVENTS {
            events.remove(0);
            *dropped_count += 1;
        }
        events.push(event);
    }
}

fn context(trace: TraceId, span: SpanId) -> SpanContext {
    SpanContext::new(trace, span, TraceFlags::SAMPLED, false, TraceState::default())
}

fn count(name: &'static str, value: u64) -> KeyValue {
    KeyValue::new(name, value as i64)
}

fn time(unix_us: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_micros(unix_us.max(0) as u64)
}

/// The name of an event, and what the journal has of it but for lists.
fn fields(record: &Record) -> (String, Vec<KeyValue>) {
    let Ok(Value::Object(mut fields)) = serde_json::to_value(record) else { return Default::default() };
    let event = fields.remove("event").and_then(|event| Some(event.as_str()?.replace('_', " ")));
    let attributes = fields.into_iter().filter_map(|(name, value)| attribute(&name, value)).collect();
    (event.unwrap_or_default(), attributes)
}

fn attribute(name: &str, value: Value) -> Option<KeyValue> {
    let key = format!("simsiam.{name}");
    match value {
        Value::String(text) => Some(KeyValue::new(key, text)),
        Value::Bool(is_so) => Some(KeyValue::new(key, is_so)),
        Value::Number(number) => match number.as_i64() {
            Some(number) => Some(KeyValue::new(key, number)),
            // A number that was drawn may be larger, and is a name more than a number.
            None if number.is_u64() => Some(KeyValue::new(key, number.to_string())),
            None => number.as_f64().map(|number| KeyValue::new(key, number)),
        },
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

fn figures(Evaluated { evaluation, step, figures, .. }: Evaluated) -> Vec<KeyValue> {
    let mut attributes = vec![KeyValue::new("simsiam.evaluation", evaluation), count("simsiam.step", step)];
    attributes
        .extend(figures.into_iter().map(|(name, value)| KeyValue::new(format!("simsiam.{name}"), value)));
    attributes
}

#[cfg(test)]
mod tests {
    use coordinator::flight_recorder::{Span, StepPhase};
    use coordinator::{StepMetrics, StepSeconds};
    use serde_json::json;

    use super::*;

    const RUN_ID: [u8; 16] = [7; 16];

    /// So many milliseconds after the beginning.
    fn at(ms: u64) -> SystemTime {
        time(1_000_000_000_000_000) + Duration::from_millis(ms)
    }

    fn noted(record: Value) -> Progress {
        Progress::Noted { record: serde_json::from_value(record).unwrap(), workers: 2, expected: 2 }
    }

    fn formed(generation: u64, workers: u64) -> Progress {
        let place = |worker: u64| json!({ "worker": worker, "collective_address": "a:1", "first_shard": 0, "shard_count": 1 });
        let places: Vec<Value> = (1..=workers).map(place).collect();
        noted(json!({ "event": "generation", "generation": generation, "places": places }))
    }

    /// A step that took 100 ms, of which the worker waited for the others all that it did not compute. The clock of worker
    /// 2 is an hour ahead.
    fn made(worker: u64, generation: u64, step: u64, begin: SystemTime) -> Progress {
        let begin_us = begin.duration_since(UNIX_EPOCH).unwrap().as_micros() as u64;
        let clock_us = if worker == 2 { 3_600_000_000 } else { 0 };
        let work_us = 20_000 * worker as u32;
        let span = |phase, shard, start_us, duration_us| Span { phase, shard, start_us, duration_us };
        let spans = vec![
            span(StepPhase::Forward, Some(3), 0, work_us),
            span(StepPhase::AllReduce, None, work_us, 90_000 - work_us),
            span(StepPhase::Update, None, 90_000, 10_000),
        ];
        Progress::Spans(StepSpans { worker, generation, step, began_unix_us: begin_us + clock_us, spans })
    }

    fn told(story: Vec<(u64, Progress)>, end_ms: u64) -> Vec<SpanData> {
        let mut spans = Spans::new(RUN_ID, at(0));
        story.into_iter().for_each(|(ms, progress)| spans.hear(progress, at(ms)));
        spans.finish(at(end_ms));
        assert_eq!(spans.steps_left_out(), 0);
        spans.take()
    }

    fn named<'a>(spans: &'a [SpanData], name: &str) -> Vec<&'a SpanData> {
        spans.iter().filter(|span| span.name == name).collect()
    }

    fn interval(span: &SpanData) -> (SystemTime, SystemTime) {
        (span.start_time, span.end_time)
    }

    fn has(attributes: &[KeyValue], name: &str, value: impl Into<opentelemetry::Value>) -> bool {
        attributes.contains(&KeyValue::new(name.to_string(), value))
    }

    fn is_child(child: &SpanData, parent: &SpanData) -> bool {
        child.parent_span_id == parent.span_context.span_id()
            && child.span_context.trace_id() == parent.span_context.trace_id()
    }

    #[test]
    fn a_step_is_a_trace_with_the_parts_and_pieces_of_all_workers_on_one_clock() {
        let story = vec![(10, formed(4, 2)), (130, made(1, 4, 9, at(20))), (140, made(2, 4, 9, at(20)))];
        let spans = told(story, 1000);
        let (step, generation) = (named(&spans, "step")[0], named(&spans, "generation")[0]);
        assert_eq!((step.parent_span_id, interval(step)), (SpanId::INVALID, (at(20), at(120))));
        assert_eq!(step.links[0].span_context, generation.span_context);
        assert!(
            has(&step.attributes, "simsiam.step", 9_i64)
                && has(&step.attributes, "simsiam.generation", 4_i64)
        );
        assert!(has(&step.attributes, "simsiam.workers", 2_i64));
        let parts = named(&spans, "worker step");
        assert_eq!(parts.len(), 2);
        for (part, worker) in parts.iter().zip([1_u64, 2]) {
            assert!(
                is_child(part, step) && has(&part.attributes, "simsiam.worker", worker as i64),
                "{part:?}"
            );
            assert_eq!(interval(part), (at(20), at(120)), "worker {worker}");
            for (piece, begin_ms, end_ms) in [
                ("forward", 20, 20 + 20 * worker),
                ("all-reduce", 20 + 20 * worker, 110),
                ("update", 110, 120),
            ] {
                let pieces = named(&spans, piece);
                let piece = pieces.iter().find(|piece| is_child(piece, part)).unwrap();
                assert_eq!(interval(piece), (at(begin_ms), at(end_ms)), "{piece:?}");
                assert_eq!(has(&piece.attributes, "simsiam.shard", 3_i64), piece.name == "forward");
            }
        }
        assert_eq!(
            spans.len(),
            1 + 2 * (1 + 3) + 2,
            "the step, its parts with three pieces each, generation and run"
        );
    }

    #[test]
    fn a_run_is_a_trace_with_its_generations_checkpoints_and_evaluations() {
        let evaluated =
            json!({ "evaluation": "knn", "step": 4, "figures": { "top1": 0.5 }, "card": "knn.json" });
        let story = vec![
            (
                0,
                noted(
                    json!({ "event": "opened", "program_version": "1.2.3", "checkpoint": null, "step": 0 }),
                ),
            ),
            (10, formed(1, 2)),
            (20, noted(json!({ "event": "started", "generation": 1, "step": 0, "state_hash": "5b" }))),
            (30, Progress::EvaluationBegan),
            (40, committed(4)),
            (
                70,
                noted(
                    json!({ "event": "checkpoint", "generation": 1, "checkpoint": "step-000004", "step": 4 }),
                ),
            ),
            (80, Progress::Evaluated(serde_json::from_value(evaluated).unwrap())),
            (90, noted(json!({ "event": "lost", "worker": 2, "reason": "its connection broke" }))),
            (95, formed(2, 1)),
            (96, Progress::EvaluationFailed("no labels".to_string())),
            (99, noted(json!({ "event": "ended", "outcome": "failed", "reason": "nobody is left" }))),
        ];
        let spans = told(story, 120);
        let run = named(&spans, "run")[0];
        assert_eq!(run.span_context.trace_id().to_bytes(), RUN_ID);
        assert_eq!((run.parent_span_id, interval(run)), (SpanId::INVALID, (at(0), at(120))));
        assert_eq!((run.status.clone(), &*run.events[0].name), (Status::error("nobody is left"), "opened"));
        assert!(has(&run.attributes, "simsiam.outcome", "failed"));
        let generations = named(&spans, "generation");
        let intervals: Vec<_> = generations.iter().map(|generation| interval(generation)).collect();
        assert_eq!(intervals, [(at(10), at(95)), (at(95), at(99))]);
        assert!(generations.iter().all(|generation| is_child(generation, run)));
        assert!(has(&generations[1].attributes, "simsiam.workers", 1_i64));
        let events: Vec<(&str, SystemTime)> =
            generations[0].events.iter().map(|event| (&*event.name, event.timestamp)).collect();
        assert_eq!(events, [("started", at(20)), ("lost", at(90))]);
        assert!(has(&generations[0].events[1].attributes, "simsiam.reason", "its connection broke"));
        let checkpoint = named(&spans, "checkpoint")[0];
        assert!(is_child(checkpoint, generations[0]));
        assert_eq!(interval(checkpoint), (at(40), at(70)), "from its commit to its publication");
        assert!(has(&checkpoint.attributes, "simsiam.checkpoint", "step-000004"));
        let evaluations = named(&spans, "evaluation");
        assert!(evaluations.iter().all(|evaluation| is_child(evaluation, run)));
        assert_eq!(interval(evaluations[0]), (at(30), at(80)));
        assert!(has(&evaluations[0].attributes, "simsiam.top1", 0.5));
        assert_eq!(
            (interval(evaluations[1]), &evaluations[1].status),
            ((at(96), at(96)), &Status::error("no labels"))
        );
    }

    /// The commit of a step, as far as it counts here.
    fn committed(step: u64) -> Progress {
        Progress::Step(StepMetrics {
            step,
            total_steps: 8,
            epoch: 1,
            total_epochs: 1,
            loss: -0.5,
            collapse_level: 1.0,
            learning_rate: 0.1,
            gradient_norm: 1.0,
            skipped: false,
            monitors: None,
            images_per_second: 1.0,
            seconds: StepSeconds::default(),
            generation: 1,
        })
    }

    #[test]
    fn a_step_whose_last_words_are_lost_waits_only_for_a_while() {
        let mut spans = Spans::new(RUN_ID, at(0));
        spans.hear(formed(1, 2), at(0));
        for step in 1..=MOST_OPEN_STEPS as u64 {
            spans.hear(made(1, 1, step, at(100 * step)), at(100 * step));
        }
        assert!(spans.take().is_empty(), "worker 2 may still tell");
        spans.hear(made(1, 1, 9, at(900)), at(900));
        let ended = spans.take();
        assert_eq!(named(&ended, "step").len(), 1);
        assert!(has(&named(&ended, "step")[0].attributes, "simsiam.step", 1_i64));
        spans.finish(at(1000));
        assert_eq!(named(&spans.take(), "step").len(), MOST_OPEN_STEPS);
    }

    #[test]
    fn workers_of_a_generation_that_another_coordinator_formed_are_known_by_their_return() {
        let adopted = noted(json!({ "event": "adopted", "generation": 3, "step": 7 }));
        let mut spans = Spans::new(RUN_ID, at(0));
        spans.hear(adopted, at(5));
        [1, 2].into_iter().for_each(|worker| spans.hear(made(worker, 3, 8, at(10)), at(200)));
        assert_eq!(named(&spans.take(), "step")[0].links.len(), 1, "both have told");
    }

    #[test]
    fn what_nobody_takes_is_bounded_and_counted() {
        let mut spans = Spans::new(RUN_ID, at(0));
        spans.hear(formed(1, 1), at(0));
        // Five spans each.
        let steps = MOST_WAITING as u64 / 5 + 11;
        (1..=steps).for_each(|step| spans.hear(made(1, 1, step, at(step)), at(step)));
        assert_eq!(spans.steps_left_out(), 10);
        assert!(spans.take().len() < MOST_WAITING + 5);
        let note = |spans: &mut Spans, step: u64| {
            spans.hear(noted(json!({ "event": "paused", "step": step })), at(step));
        };
        (1..=1000).for_each(|step| note(&mut spans, step));
        spans.finish(at(steps));
        let ended = spans.take();
        let events = &named(&ended, "generation")[0].events;
        assert_eq!((events.len(), events.dropped_count), (MOST_EVENTS, 1000 - MOST_EVENTS as u32));
        assert!(has(&events[MOST_EVENTS - 1].attributes, "simsiam.step", 1000_i64));
        assert!(spans.clocks.corrections_us().len() == 1 && spans.compared.len() == STEPS_COMPARED);
    }
}
