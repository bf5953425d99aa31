//! Files with a JSON object in each line, which a program appends to and a crash may cut.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::error::EvaluationError;

pub(super) const ADVICE: &str = "remove that line, or repair the file";

/// One line's object.
pub(super) struct Line {
    /// From 1.
    pub(super) number: usize,
    pub(super) value: Value,
}

/// All lines. A last one without its end was cut and is passed over, and so are empty ones.
///
/// # Errors
/// A file that cannot be read, or a line that is not JSON.
pub(super) fn read(path: &Path) -> Result<Vec<Line>, EvaluationError> {
    let text = fs::read(path).map_err(EvaluationError::io("read", path))?;
    let whole = text.split_inclusive(|byte| *byte == b'\n').zip(1..);
    whole
        .filter(|(line, _)| line.ends_with(b"\n") && !line.trim_ascii().is_empty())
        .map(|(line, number)| match serde_json::from_slice(line) {
            Ok(value) => Ok(Line { number, value }),
            Err(error) => {
                let found = format!("line {number}, which is not JSON: {error}");
                Err(EvaluationError::content(path, "an object of JSON in each line", found, ADVICE))
            }
        })
        .collect()
}
