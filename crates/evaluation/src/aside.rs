//! Files that appear whole or not at all: written aside, synced, then renamed.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tempfile::NamedTempFile;

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

/// The folder that `path` lies in; a bare name lies in the present one.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
