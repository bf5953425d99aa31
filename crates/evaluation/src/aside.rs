//! Files that appear whole or not at all: written aside, synced, then renamed.

use std::io::Write;
use std::path::Path;

pub(crate) use dataset::aside::{begin, publish};

use crate::error::EvaluationError;

/// Writes a file aside, syncs it and renames it, so that it is there whole or not at all.
pub(crate) fn write_whole(path: &Path, content: &[u8]) -> Result<(), EvaluationError> {
    let write = || {
        let mut aside = begin(path)?;
        aside.write_all(content)?;
        publish(aside, path)
    };
    write().map_err(EvaluationError::io("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_failed_write_leaves_what_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        write_whole(&path, b"old").unwrap();
        let error = write_whole(&path.join("below-a-file"), b"new").unwrap_err().to_string();
        assert!(error.contains("cannot write"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
