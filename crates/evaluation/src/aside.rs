//! Files that appear whole or not at all: written aside, synced, then renamed.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tempfile::NamedTempFile;

use crate::error::EvaluationError;

/// A file beside `path` to write into; its folder is made if need be. Dropped, it is gone.
pub(crate) fn begin(path: &Path) -> io::Result<NamedTempFile> {
    let folder = folder_of(path);
    fs::create_dir_all(folder)?;
    tempfile::Builder::new()
        .prefix(".aside-")
        // Others may read results, as far as the umask lets them.
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(folder)
}

/// Gives it the name `path`.
pub(crate) fn publish(aside: NamedTempFile, path: &Path) -> io::Result<()> {
    aside.as_file().sync_all()?;
    aside.persist(path).map_err(|error| error.error)?;
    File::open(folder_of(path))?.sync_all()
}

/// Writes a file aside, syncs it and renames it, so that it is there whole or not at all.
pub(crate) fn write_whole(path: &Path, content: &[u8]) -> Result<(), EvaluationError> {
    let write = || {
        let mut aside = begin(path)?;
        aside.write_all(content)?;
        publish(aside, path)
    };
    write().map_err(EvaluationError::io("write", path))
}

/// The folder that `path` lies in; a bare name lies in the present one.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

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
