//! `coordinator trace`: where the time of some steps went, on all workers.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use dashboard::Trace;

use super::TraceArguments;
use super::status::newest;
use crate::exit::{Ending, answer};

/// Writes the trace, and says who the others waited for.
pub(super) fn run(arguments: &TraceArguments) -> Result<Ending> {
    let run = match &arguments.run {
        Some(run) => run.clone(),
        None => newest(&arguments.out)?,
    };
    let read = Trace::read(&run, arguments.from, arguments.steps);
    let trace = read.with_context(|| format!("read the steps of {}", run.display()))?;
    let Some((first, last)) = trace.steps() else {
        ensure!(run.join("journal.jsonl").exists(), "{} is no run: correct the path", run.display());
        let asked = arguments.from.map_or_else(String::new, |from| format!(" from step {from} on"));
        bail!(
            "{} has no steps{asked}: a run keeps its last few thousand; leave out --from for the newest",
            run.display()
        );
    };
    let to = arguments.to.clone().unwrap_or_else(|| run.join("trace.json"));
    write(&to, &trace)?;
    answer(&format!(
        "steps {first} to {last}: {}; open it at https://ui.perfetto.dev, which reads it without sending it anywhere, or \
         in chrome://tracing",
        to.display()
    ));
    answer("worker  steps  came last  later by  own work  where");
    for late in trace.lateness() {
        answer(&format!(
            "{:6} {:6} {:10} {:6.1} ms {:6.1} ms  {}",
            late.worker, late.steps, late.last, late.late_ms, late.work_ms, late.name
        ));
    }
    Ok(Ending::Done)
}

fn write(to: &Path, trace: &Trace) -> Result<()> {
    let text = serde_json::to_vec(&trace.to_chrome()).expect("a trace can be written as JSON");
    fs::write(to, text).with_context(|| format!("write {}", to.display()))
}
