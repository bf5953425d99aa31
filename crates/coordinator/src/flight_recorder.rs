//! The last steps of all workers, piece by piece, in a file that does not grow for ever: what is looked at when a run is
//! slow, or after it failed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::growing::GrowingFile;

/// The steps that were written last, and those before them.
pub const FILES: [&str; 2] = ["spans.before.jsonl", "spans.jsonl"];

/// After how much another file is begun, and the one before the last forgotten: two thousand steps of four workers.
const FILE_BYTES: u64 = 8 << 20;

/// Where the time of one step went on one worker: a line of `spans.jsonl`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepSpans {
    /// Its id.
    pub worker: u64,
    /// In which generation.
    pub generation: u64,
    /// Steps committed, this one included.
    pub step: u64,
    /// When the step began by the worker's clock, in microseconds since 1970.
    pub began_unix_us: u64,
    /// In the order in which they ended.
    pub spans: Vec<Span>,
}

/// A piece of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// What was done.
    pub phase: StepPhase,
    /// For which shard, if not for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<u32>,
    /// From the beginning of the step.
    pub start_us: u32,
    /// How long it took.
    pub duration_us: u32,
}

/// What a worker does in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepPhase {
    /// Something that this version does not know.
    Unknown,
    /// Waits for views.
    Data,
    /// From views to loss.
    Forward,
    /// From loss to gradient.
    Backward,
    /// Adds up with the others, and waits for them.
    AllReduce,
    /// Changes weights and momentum.
    Update,
    /// Looks at the network's health.
    Monitor,
}

/// Writes what comes, and forgets what was long ago.
#[derive(Debug)]
pub(crate) struct FlightRecorder {
    folder: PathBuf,
    file: GrowingFile,
    file_bytes: u64,
}

impl FlightRecorder {
    /// Goes on with the files in `folder`.
    pub(crate) fn open(folder: &Path) -> io::Result<FlightRecorder> {
        let file = GrowingFile::open(&folder.join(FILES[1]))?;
        Ok(FlightRecorder { folder: folder.to_path_buf(), file, file_bytes: FILE_BYTES })
    }

    /// Notes a step of a worker. Where that fails, the run goes on without it.
    pub(crate) fn note(&mut self, spans: &StepSpans) {
        if self.file.length() >= self.file_bytes {
            let [before, present] = FILES.map(|name| self.folder.join(name));
            match fs::rename(&present, before).and_then(|()| GrowingFile::open(&present)) {
                Ok(file) => self.file = file,
                Err(error) => tracing::warn!("cannot begin another {}: {error}", present.display()),
            }
        }
        let mut line = serde_json::to_vec(spans).expect("numbers can be written as JSON");
        line.push(b'\n');
        // What waits for room on the disk is said by the file.
        let _ = self.file.append(&line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_files_hold_the_last_steps() {
        let folder = tempfile::tempdir().unwrap();
        let mut recorder = FlightRecorder::open(folder.path()).unwrap();
        recorder.file_bytes = 1000;
        let span = |shard| Span { phase: StepPhase::AllReduce, shard, start_us: 5, duration_us: 7 };
        for step in 1..=100 {
            let spans = vec![span(None), span(Some(2))];
            recorder.note(&StepSpans { worker: 1, generation: 1, step, began_unix_us: 3, spans });
        }
        let lines: Vec<StepSpans> = FILES
            .iter()
            .flat_map(|name| {
                let text = fs::read_to_string(folder.path().join(name)).unwrap();
                assert!(text.len() < 1300, "{name} has {} bytes", text.len());
                let lines: Vec<_> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
                lines
            })
            .collect();
        let steps: Vec<u64> = lines.iter().map(|line| line.step).collect();
        assert!(steps.len() > 5 && steps.iter().copied().eq(101 - steps.len() as u64..=100), "{steps:?}");
        assert_eq!(lines[0].spans, [span(None), span(Some(2))]);
    }
}
