//! A status in plain lines, for a terminal or a log.

use coordinator::{StepSeconds, WorkerSight};

use crate::rates::Rates;
use crate::status::{Recent, Status};
use crate::words::{age, count, duration, number, scaled, time_of_end};

/// Faults that are told in lines; the page has all.
const TOLD_FAULTS: usize = 3;

/// Where a run stands, in lines for a person.
pub fn status_lines(status: &Status) -> Vec<String> {
    let mut lines = vec![headline(status)];
    if let Some(last) = &status.last_step {
        lines.push(format!(
            "loss {}  collapse level {}  learning rate {}  gradient norm {}",
            number(last.loss, 4),
            number(last.collapse_level, 2),
            number(last.learning_rate, 4),
            number(last.gradient_norm, 3)
        ));
    }
    lines.push(status.health.sentence.clone());
    lines.extend(status.recent.as_ref().map(speed));
    lines.extend(workers(status));
    for evaluated in &status.evaluations {
        let figures =
            evaluated.figures.iter().map(|(name, value)| format!("{name} {} %", number(100.0 * value, 1)));
        let figures = figures.collect::<Vec<_>>().join(", ");
        lines.push(format!("{} at step {}: {figures}", evaluated.evaluation, count(evaluated.step)));
    }
    lines.extend(status.evaluation_failure.clone());
    for fault in status.faults.iter().rev().take(TOLD_FAULTS).rev() {
        let ago = duration(status.unix_time_ms.saturating_sub(fault.unix_time_ms) as f64 / 1000.0);
        lines.push(format!("{ago} ago: {} {}", fault.event, fault.detail));
    }
    lines
}

fn headline(status: &Status) -> String {
    let mut line = format!("run {}: {}, step {}", status.run, status.state.word(), count(status.step));
    if let Some(total) = status.total_steps.filter(|total| *total > 0) {
        let percent = (100.0 * status.step as f64 / total as f64).floor();
        line += &format!(" of {} ({percent} %)", count(total));
    }
    line += &format!(", epoch {} of {}", status.epoch, status.total_epochs);
    if let Some(remaining_s) = status.remaining_s {
        let until = time_of_end(status.unix_time_ms, remaining_s);
        line += &format!(", {} left, until about {until}", duration(remaining_s));
    }
    line
}

fn speed(recent: &Recent) -> String {
    let flops = recent.model_flops_per_second.map(|flops| format!(" {},", scaled(flops, "FLOP/s")));
    format!(
        "{} images/s,{} {} s a step: data {} forward {} backward {} all-reduce {} update {}",
        number(recent.images_per_second, 0),
        flops.unwrap_or_default(),
        number(recent.step_s, 3),
        percent(recent.data_share),
        percent(recent.forward_share),
        percent(recent.backward_share),
        percent(recent.all_reduce_share),
        percent(recent.update_share)
    )
}

fn workers(status: &Status) -> Vec<String> {
    if status.workers.is_empty() {
        return Vec::new();
    }
    let (here, expected) = (status.workers.len(), status.workers_expected);
    let lost = match status.workers_lost {
        0 => String::new(),
        lost => format!(", {lost} lost so far"),
    };
    let title = format!("{here} of {expected} workers, generation {}{lost}", status.generation);
    std::iter::once(title).chain(status.workers.iter().map(|worker| line_of(worker, status))).collect()
}

fn line_of(worker: &WorkerSight, status: &Status) -> String {
    let shards = match (worker.first_shard, worker.shard_count) {
        (_, 0) => "no shards".to_string(),
        (first, 1) => format!("shard {first}"),
        // Whoever answers may say anything.
        (first, count) => format!("shards {first} to {}", first.saturating_add(count - 1)),
    };
    let doing = serde_json::to_value(worker.doing).unwrap_or_default();
    let mut line = format!(
        "  worker {} ({}): {}, {shards}, last sign of life {} ago",
        worker.worker,
        worker.description,
        doing.as_str().unwrap_or_default(),
        age(worker.silent_ms)
    );
    if let Some(pace) = worker.pace.filter(|_| worker.shard_count > 0) {
        let StepSeconds { data, forward, backward, all_reduce, update, step } = pace.seconds;
        let share = |seconds: f64| percent(seconds / step.max(f64::MIN_POSITIVE));
        let rates = status.rates.get(&worker.worker);
        line += &format!(
            "{}, data {} forward {} backward {} all-reduce {} update {}{}",
            rates.map(computed).unwrap_or_default(),
            share(data),
            share(forward),
            share(backward),
            share(all_reduce),
            share(update),
            rates.and_then(sent).unwrap_or_default()
        );
    }
    line
}

/// How fast a worker computes.
fn computed(rates: &Rates) -> String {
    let flops = scaled(rates.model_flops_per_second, "FLOP/s");
    let share = rates.peak_share.map(|share| format!(" ({} of the peak)", percent(share)));
    format!(", {} images/s, {flops}{}", number(rates.images_per_second, 0), share.unwrap_or_default())
}

/// What a worker sends to the others, if there are others.
fn sent(rates: &Rates) -> Option<String> {
    let per_step = scaled(rates.sent_bytes_per_step?, "B");
    let rate = rates.sent_bytes_per_second.map(|bytes| format!(" at {}", scaled(bytes, "B/s")));
    Some(format!(", sends {per_step} a step{}", rate.unwrap_or_default()))
}

fn percent(share: f64) -> String {
    format!("{} %", number(100.0 * share, 0))
}
