//! A run that may still be going on.

use std::fs;
use std::io;
use std::path::Path;

use serde::Deserialize;

use crate::encoder;
use crate::error::EvaluationError;

pub(crate) const JOURNAL: &str = "journal.jsonl";

/// The names of a run's checkpoints, oldest first.
///
/// # Errors
/// Those of the disk.
pub fn checkpoints(run: &Path) -> Result<Vec<String>, EvaluationError> {
    let steps = encoder::steps(&run.join(encoder::CHECKPOINTS))?;
    Ok(steps.into_iter().map(encoder::checkpoint_name).collect())
}

/// Whether the last word of a run's journal is that it has ended. One whose coordinator was killed has not:
/// it may go on.
///
/// # Errors
/// A folder that is no run, and those of the disk.
pub fn has_ended(run: &Path) -> Result<bool, EvaluationError> {
    #[derive(Deserialize)]
    struct Line {
        event: String,
    }
    let path = run.join(JOURNAL);
    let text = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let advice = "name the folder of a run that was begun";
            return Err(EvaluationError::content(&path, "a run's journal", "no such file", advice));
        }
        other => other.map_err(EvaluationError::io("read", &path))?,
    };
    // A line that is being written is not whole yet, may end within a letter, and says nothing.
    let lines = text.split(|byte| *byte == b'\n');
    let last = lines.filter_map(|line| serde_json::from_slice::<Line>(line).ok()).next_back();
    Ok(last.is_some_and(|line| line.event == "ended"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::write_run;

    #[test]
    fn a_run_has_ended_when_its_journal_says_so_last() {
        let folder = tempfile::tempdir().unwrap();
        let run = write_run(folder.path(), &[10, 5]);
        assert_eq!(checkpoints(&run).unwrap(), ["step-000005", "step-000010"]);
        assert!(has_ended(&run).unwrap_err().to_string().contains("no such file"));
        for (journal, ended) in [
            (&b""[..], false),
            (b"{\"event\":\"created\"}\n", false),
            (b"{\"event\":\"created\"}\n{\"event\":\"ended\",\"outcome\":\"completed\"}\n", true),
            (b"{\"event\":\"ended\"}\n{\"event\":\"opened\"}\n", false),
            (b"{\"event\":\"ended\"}\n{\"event\":\"op", true),
            // Cut within a letter.
            (b"{\"event\":\"ended\"}\n{\"event\":\"lost\",\"reason\":\"\xc3", true),
        ] {
            fs::write(run.join(JOURNAL), journal).unwrap();
            assert_eq!(has_ended(&run).unwrap(), ended, "{}", String::from_utf8_lossy(journal));
        }
    }
}
