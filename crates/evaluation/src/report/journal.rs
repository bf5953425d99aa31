//! The story of a run, read from its `journal.jsonl`.

use std::path::Path;

use serde_json::Value;

use super::lines;
use crate::error::EvaluationError;

/// What happened, for people.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Moment {
    /// Since the first line, in seconds.
    pub(super) seconds: f64,
    /// The event's name, as the journal has it.
    pub(super) event: String,
    /// What it was about.
    pub(super) detail: String,
}

/// A journal.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Journal {
    /// Milliseconds since 1970, of the first line.
    pub(super) start_unix_ms: Option<u64>,
    /// In order; those of one kind that follow each other closely are one.
    pub(super) moments: Vec<Moment>,
    /// The most workers of a generation.
    pub(super) workers: usize,
    /// How the run ended, if it did: `completed`, `stopped`, `failed`.
    pub(super) outcome: Option<String>,
    /// Hash of the final state, of a completed run.
    pub(super) state_hash: Option<String>,
}

/// Reads the journal. Events that this program does not know are told by their fields.
///
/// # Errors
/// A file that cannot be read, or a line that is not JSON.
pub(super) fn read(path: &Path) -> Result<Journal, EvaluationError> {
    let mut journal = Journal::default();
    for line in lines::read(path)? {
        let value = &line.value;
        let time_ms = value["unix_time_ms"].as_u64().unwrap_or(0);
        let start_ms = *journal.start_unix_ms.get_or_insert(time_ms);
        let event = value["event"].as_str().unwrap_or("note").to_owned();
        match event.as_str() {
            "generation" => {
                let workers = value["places"].as_array().map_or(0, Vec::len);
                journal.workers = journal.workers.max(workers);
            }
            "ended" => {
                journal.outcome = value["outcome"].as_str().map(str::to_owned);
                journal.state_hash = value["state_hash"].as_str().map(str::to_owned);
            }
            // Somebody took charge again.
            "opened" => journal.outcome = None,
            _ => {}
        }
        let seconds = time_ms.saturating_sub(start_ms) as f64 / 1000.0;
        let detail = describe(&event, value);
        journal.moments.push(Moment { seconds, event, detail });
    }
    journal.moments = merge(&journal.moments);
    Ok(journal)
}

fn describe(event: &str, value: &Value) -> String {
    let text = |name: &str| match &value[name] {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    };
    let short_hash = || text("state_hash").chars().take(8).collect::<String>();
    match event {
        "created" => format!("by version {}", text("program_version")),
        "opened" if value["checkpoint"].is_string() => format!("goes on from {}", text("checkpoint")),
        "opened" => format!("from step {}", text("step")),
        "joined" => text("description"),
        "returned" if value["step"].is_u64() => {
            format!("worker {} after step {}", text("worker"), text("step"))
        }
        "returned" => format!("worker {}", text("worker")),
        "adopted" => format!("generation {} goes on after step {}", text("generation"), text("step")),
        "lost" => format!("worker {}: {}", text("worker"), text("reason")),
        "generation" => {
            let workers = value["places"].as_array().map_or(0, Vec::len);
            let plural = if workers == 1 { "" } else { "s" };
            format!("generation {} of {workers} worker{plural}", text("generation"))
        }
        "started" => {
            format!("generation {} from step {}, state {}…", text("generation"), text("step"), short_hash())
        }
        "checkpoint" => text("checkpoint"),
        "predicted" => {
            let seconds_left = value["seconds_left"].as_f64().unwrap_or(f64::NAN);
            format!("{seconds_left:.0} s for the {} steps after step {}", text("steps_left"), text("step"))
        }
        "stop_requested" => format!("after step {}", text("step")),
        "ended" if value["outcome"] == "completed" => {
            format!("completed after step {}, state {}…", text("step"), short_hash())
        }
        "ended" if value["outcome"] == "failed" => format!("failed: {}", text("reason")),
        "ended" => format!("{} after step {}", text("outcome"), text("step")),
        _ => fields(value),
    }
}

/// The plain fields of an event that this program does not know.
fn fields(value: &Value) -> String {
    let known = ["unix_time_ms", "event"];
    let all = value.as_object().into_iter().flatten();
    let told = all.filter(|(name, value)| {
        !known.contains(&name.as_str()) && !value.is_array() && !value.is_object() && !value.is_null()
    });
    told.map(|(name, value)| {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        format!("{} {text}", name.replace('_', " "))
    })
    .collect::<Vec<_>>()
    .join(", ")
}

/// Joins what happened several times in a row: checkpoints by their first and last, workers by their number.
fn merge(moments: &[Moment]) -> Vec<Moment> {
    let mut merged: Vec<Moment> = Vec::new();
    for group in moments.chunk_by(|a, b| a.event == b.event) {
        match group {
            [first, .., last] if matches!(first.event.as_str(), "checkpoint" | "joined") => {
                let count = group.len();
                let detail = match first.event.as_str() {
                    "checkpoint" => format!("{count}, {} to {}", first.detail, last.detail),
                    _ => format!("{count} workers: {} … {}", first.detail, last.detail),
                };
                merged.push(Moment { seconds: first.seconds, event: first.event.clone(), detail });
            }
            _ => merged.extend_from_slice(group),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::check_damaged;
    use std::fs;

    fn read_text(text: &str) -> Journal {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.jsonl");
        fs::write(&path, text).unwrap();
        read(&path).unwrap()
    }

    /// `tests/fixtures/journal.jsonl` is that of a real run.
    #[test]
    fn a_journal_tells_a_run() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/journal.jsonl");
        let journal = read(&path).unwrap();
        assert_eq!((journal.workers, journal.outcome.as_deref()), (2, Some("completed")));
        assert_eq!(journal.start_unix_ms, Some(1_795_540_402_753));
        assert!(journal.state_hash.as_ref().is_some_and(|hash| hash.starts_with("d15d9bed")));
        let story: Vec<(&str, &str)> =
            journal.moments.iter().map(|moment| (moment.event.as_str(), moment.detail.as_str())).collect();
        assert_eq!(
            story,
            [
                ("created", "by version 0.1.0"),
                ("opened", "from step 0"),
                ("joined", "2 workers: vm, process 13837 … vm, process 13839"),
                ("generation", "generation 1 of 2 workers"),
                ("started", "generation 1 from step 0, state 5b0d9133…"),
                ("checkpoint", "4, step-000040 to step-000160"),
                ("ended", "completed after step 160, state d15d9bed…"),
            ]
        );
        assert_eq!(journal.moments.last().map(|last| last.seconds), Some(17.834));
    }

    #[test]
    fn unknown_events_are_told_by_their_fields_and_a_cut_line_is_not() {
        let journal = read_text(
            "{\"unix_time_ms\":5,\"event\":\"moved_on\",\"worker\":3,\"reason\":\"gone\",\"x\":[1]}\n\
             {\"unix_time_ms\":5,\"event\":\"returned\",\"worker\":3,\"step\":null}\n\
             {\"unix_time_ms\":5,\"event\":\"returned\",\"worker\":4,\"step\":6}\n\
             {\"unix_time_ms\":5,\"event\":\"adopted\",\"generation\":2,\"step\":6}\n\
             {\"unix_time_ms\":1005,\"event\":\"ended\",\"outcome\":\"stopped\",\"step\":7}\n\
             {\"unix_time_ms\":1005,\"event\":\"opened\",\"checkpoint\":\"step-000007\",\"step\":7}\n\
             {\"unix_time_ms\":1005,\"event\":\"predicted\",\"step\":17,\"steps_left\":80,\"seconds_left\":41.6}\n\
             {\"unix_time",
        );
        let told: Vec<&str> = journal.moments.iter().map(|moment| moment.detail.as_str()).collect();
        assert_eq!(
            told,
            [
                "reason gone, worker 3",
                "worker 3",
                "worker 4 after step 6",
                "generation 2 goes on after step 6",
                "stopped after step 7",
                "goes on from step-000007",
                "42 s for the 80 steps after step 17",
            ]
        );
        assert_eq!(journal.outcome, None, "it goes on");
        assert_eq!(journal.moments[4].seconds, 1.0);
    }

    #[test]
    fn a_damaged_file_never_panics() {
        let content = include_bytes!("../../tests/fixtures/journal.jsonl");
        check_damaged("journal.jsonl", content, read);
    }
}
