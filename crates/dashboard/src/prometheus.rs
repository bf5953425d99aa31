//! The run in Prometheus' text format, version 0.0.4.

use std::fmt::Write;

use crate::rates::Rates;
use crate::record::{RunRecord, STEP_BOUNDS_S};
use crate::status::{State, Status};

/// What the format is called over HTTP.
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

const STATES: [State; 11] = [
    State::Gathering,
    State::Reuniting,
    State::Assembling,
    State::Training,
    State::Regrouping,
    State::Paused,
    State::Stopping,
    State::Completed,
    State::Stopped,
    State::Failed,
    State::Unattended,
];

/// A text in the making.
#[derive(Debug, Default)]
struct Exposition(String);

impl Exposition {
    /// Begins a family of samples.
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// A sample with its labels.
    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        let labels: Vec<String> =
            labels.iter().map(|(label, value)| format!("{label}=\"{}\"", escaped(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        // Rust writes infinities as `inf`, which the format reads too, and never an exponent.
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Into<Option<f64>>) {
        if let Some(value) = value.into() {
            self.family(name, "gauge", help);
            self.sample(name, &[], value);
        }
    }

    fn counter(&mut self, name: &str, help: &str, value: f64) {
        self.family(name, "counter", help);
        self.sample(name, &[], value);
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', r"\\").replace('"', r#"\""#).replace('\n', r"\n")
}

/// Where a run stands, for Prometheus to fetch now and then.
pub(crate) fn render(status: &Status, record: &RunRecord, program_version: &str) -> String {
    let mut text = Exposition::default();
    text.family("simsiam_build_info", "gauge", "The version of the coordinator, always 1.");
    text.sample("simsiam_build_info", &[("version", program_version)], 1.0);
    text.family("simsiam_run_info", "gauge", "Name and id of the run, always 1.");
    let run_id = status.run_id.as_deref().unwrap_or_default();
    text.sample("simsiam_run_info", &[("run", &status.run), ("run_id", run_id)], 1.0);
    text.family("simsiam_run_state", "gauge", "1 for the state that the run is in, 0 for the others.");
    for state in STATES {
        let name = serde_json::to_value(state).expect("a state is a word");
        let value = f64::from(u8::from(state == status.state));
        text.sample("simsiam_run_state", &[("state", name.as_str().unwrap_or_default())], value);
    }
    steps(&mut text, status, record);
    workers(&mut text, status);
    evaluations(&mut text, status);
    text.0
}

fn steps(text: &mut Exposition, status: &Status, record: &RunRecord) {
    let last = status.last_step.as_ref();
    text.gauge("simsiam_step", "Steps committed; goes back where the run does.", status.step as f64);
    let steps = record.totals.steps as f64;
    text.counter("simsiam_steps_total", "Steps committed while this coordinator looked.", steps);
    let images = steps * f64::from(status.batch);
    text.counter("simsiam_images_total", "Images of these steps; each gives two views.", images);
    text.gauge(
        "simsiam_steps_planned",
        "Steps in the whole run.",
        status.total_steps.map(|total| total as f64),
    );
    text.gauge("simsiam_epoch", "The pass over the data, from 1.", status.epoch as f64);
    text.gauge(
        "simsiam_epochs_planned",
        "Passes over the data in the whole run.",
        status.total_epochs as f64,
    );
    text.gauge(
        "simsiam_remaining_seconds",
        "How long the steps that are left take at the present pace.",
        status.remaining_s,
    );
    text.gauge(
        "simsiam_loss",
        "Loss of the last step: the mean of -cos(p, z), between -1 and 1.",
        last.map(|last| last.loss),
    );
    text.gauge(
        "simsiam_collapse_level",
        "Spread of the projections in the last step: near 1 healthy, 0 collapsed.",
        last.map(|last| last.collapse_level),
    );
    text.gauge(
        "simsiam_learning_rate",
        "Learning rate of the backbone in the last step.",
        last.map(|last| last.learning_rate),
    );
    text.gauge(
        "simsiam_gradient_norm",
        "Euclidean norm of the folded gradient in the last step.",
        last.map(|last| last.gradient_norm),
    );
    text.gauge(
        "simsiam_images_per_second",
        "Images over the time of the last steps.",
        status.recent.map(|recent| recent.images_per_second),
    );
    text.gauge(
        "simsiam_model_flops_per_second",
        "Floating-point operations of the network's convolutions and linear layers over the time of the last steps, all \
         workers together.",
        status.recent.and_then(|recent| recent.model_flops_per_second),
    );
    let skipped = record.totals.skipped as f64;
    text.counter(
        "simsiam_steps_skipped_total",
        "Steps that were left out since something was not finite.",
        skipped,
    );
    parts(text, record);
    histogram(text, record);
}

fn parts(text: &mut Exposition, record: &RunRecord) {
    let seconds = &record.totals.seconds;
    let name = "simsiam_step_part_seconds_total";
    text.family(name, "counter", "Where the first worker's time went in the steps that are counted.");
    for (part, seconds) in [
        ("data", seconds.data),
        ("forward", seconds.forward),
        ("backward", seconds.backward),
        ("all_reduce", seconds.all_reduce),
        ("update", seconds.update),
    ] {
        text.sample(name, &[("part", part)], seconds);
    }
}

fn histogram(text: &mut Exposition, record: &RunRecord) {
    let name = "simsiam_step_duration_seconds";
    let totals = &record.totals;
    text.family(name, "histogram", "How long the steps that are counted took.");
    for (bound, count) in STEP_BOUNDS_S.iter().zip(totals.within) {
        text.sample(&format!("{name}_bucket"), &[("le", &bound.to_string())], count as f64);
    }
    text.sample(&format!("{name}_bucket"), &[("le", "+Inf")], totals.steps as f64);
    text.sample(&format!("{name}_sum"), &[], totals.seconds.step);
    text.sample(&format!("{name}_count"), &[], totals.steps as f64);
}

fn workers(text: &mut Exposition, status: &Status) {
    let expected = f64::from(status.workers_expected);
    text.gauge("simsiam_workers", "Workers that take part.", status.workers.len() as f64);
    text.gauge("simsiam_workers_expected", "Workers that the run waits for.", expected);
    text.gauge("simsiam_generation", "The membership that was formed last.", status.generation as f64);
    text.counter("simsiam_workers_lost_total", "Workers that were lost.", status.workers_lost as f64);
    let mut each = |name: &str, help: &str, of: &dyn Fn(&coordinator::WorkerSight) -> Option<f64>| {
        text.family(name, "gauge", help);
        for worker in &status.workers {
            if let Some(value) = of(worker) {
                text.sample(name, &[("worker", &worker.worker.to_string())], value);
            }
        }
    };
    each("simsiam_worker_heartbeat_age_seconds", "Since the last sign of life of a worker.", &|worker| {
        Some(worker.silent_ms as f64 / 1000.0)
    });
    each("simsiam_worker_shards", "Shards that a worker trains on.", &|worker| {
        Some(f64::from(worker.shard_count))
    });
    each("simsiam_worker_step_seconds", "How long the last steps of a worker took, on average.", &|worker| {
        worker.pace.map(|pace| pace.seconds.step)
    });
    each("simsiam_worker_all_reduce_seconds", "Of these, in the fold and waiting for others.", &|worker| {
        worker.pace.map(|pace| pace.seconds.all_reduce)
    });
    each("simsiam_worker_data_seconds", "Of these, waiting for images and views.", &|worker| {
        worker.pace.map(|pace| pace.seconds.data)
    });
    rates(text, status);
}

fn rates(text: &mut Exposition, status: &Status) {
    type Of = fn(&Rates) -> Option<f64>;
    let families: [(&str, &str, Of); 4] = [
        (
            "simsiam_worker_model_flops_per_second",
            "Floating-point operations of a worker's convolutions and linear layers over the time of its last steps.",
            |rates| Some(rates.model_flops_per_second),
        ),
        (
            "simsiam_worker_peak_ratio",
            "Those over what its device computes at most, if --peak-tflops says so, from 0 to 1.",
            |rates| rates.peak_share,
        ),
        (
            "simsiam_worker_step_sent_bytes",
            "What a worker sends to the others in a step, or they read of its memory.",
            |rates| rates.sent_bytes_per_step,
        ),
        (
            "simsiam_worker_sent_bytes_per_second",
            "Those over its time in all-reduces, waiting for others included.",
            |rates| rates.sent_bytes_per_second,
        ),
    ];
    for (name, help, of) in families {
        text.family(name, "gauge", help);
        for (worker, rates) in &status.rates {
            if let Some(value) = of(rates) {
                text.sample(name, &[("worker", &worker.to_string())], value);
            }
        }
    }
}

fn evaluations(text: &mut Exposition, status: &Status) {
    let name = "simsiam_evaluation_accuracy_ratio";
    text.family(name, "gauge", "Accuracy of the last evaluation, from 0 to 1.");
    for evaluated in &status.evaluations {
        for (figure, value) in &evaluated.figures {
            text.sample(name, &[("evaluation", &evaluated.evaluation), ("figure", figure)], *value);
        }
    }
    let name = "simsiam_evaluation_step";
    text.family(name, "gauge", "Steps committed in the weights that were evaluated last.");
    for evaluated in &status.evaluations {
        text.sample(name, &[("evaluation", &evaluated.evaluation)], evaluated.step as f64);
    }
}
