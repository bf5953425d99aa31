//! Files that appear whole or not at all: written aside, synced, then renamed.

use std::fs::{self, File, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Starts the names of what is being written, so that nobody takes it for a finished file.
const PREFIX: &str = ".aside-";

/// Whoever writes does so all the time: what was not touched for a day belongs to a process that was killed.
const ABANDONED_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// Writes `path` with `write`. When this returns an error, whatever was at `path` before is untouched.
pub(crate) fn write_file(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<&File>) -> io::Result<()>,
) -> io::Result<()> {
    let folder = folder_of(path);
    fs::create_dir_all(folder)?;
    remove_abandoned(folder, SystemTime::now());
    let aside = tempfile::Builder::new()
        .prefix(PREFIX)
        // Others may read a shared cache, as far as the umask lets them.
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(folder)?;
    let mut writer = BufWriter::with_capacity(1 << 20, aside.as_file());
    write(&mut writer)?;
    writer.flush()?;
    drop(writer);
    aside.as_file().sync_all()?;
    aside.persist(path).map_err(|error| error.error)?;
    File::open(folder)?.sync_all()
}

/// Makes the folder `path` with `fill`, which gets an empty folder to write into. If another process makes
/// the same folder meanwhile, the first one stays.
pub(crate) fn make_folder<E>(
    path: &Path,
    fill: impl FnOnce(&Path) -> Result<(), E>,
    failed: impl Fn(io::Error) -> E,
) -> Result<(), E> {
    let parent = folder_of(path);
    fs::create_dir_all(parent).map_err(&failed)?;
    remove_abandoned(parent, SystemTime::now());
    let aside = tempfile::Builder::new()
        .prefix(PREFIX)
        .permissions(Permissions::from_mode(0o777))
        .tempdir_in(parent)
        .map_err(&failed)?;
    fill(aside.path())?;
    match fs::rename(aside.path(), path) {
        Ok(()) => {
            // The name is gone, so there is nothing left to remove.
            let _ = aside.keep();
        }
        Err(_) if path.is_dir() => {}
        Err(error) => return Err(failed(error)),
    }
    File::open(parent).and_then(|folder| folder.sync_all()).map_err(failed)
}

/// The folder that `path` lies in; a bare name lies in the present one.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Removes what killed processes left half-written. Where that fails it only takes room.
fn remove_abandoned(folder: &Path, now: SystemTime) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if !entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes()) {
            continue;
        }
        let Ok(facts) = entry.metadata() else { continue };
        let age = facts.modified().ok().and_then(|modified| now.duration_since(modified).ok());
        if age.is_some_and(|age| age > ABANDONED_AFTER) {
            let remove = if facts.is_dir() { fs::remove_dir_all } else { fs::remove_file };
            let _ = remove(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        write_file(&path, |out| out.write_all(b"old")).unwrap();
        let half = write_file(&path, |out| {
            out.write_all(b"new")?;
            Err(io::Error::other("disk full"))
        });
        assert!(half.is_err());
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["a"]);
    }

    #[test]
    fn of_two_equal_folders_the_first_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("set");
        for text in ["first", "second"] {
            make_folder(&path, |aside| fs::write(aside.join("x"), text), |error| error).unwrap();
        }
        assert_eq!(fs::read(path.join("x")).unwrap(), b"first");
        assert_eq!(names(folder.path()), ["set"]);
    }

    #[test]
    fn what_a_killed_process_left_goes_after_a_day() {
        let folder = tempfile::tempdir().unwrap();
        for name in [".aside-1", "whole"] {
            fs::write(folder.path().join(name), "x").unwrap();
        }
        fs::create_dir(folder.path().join(".aside-2")).unwrap();
        fs::write(folder.path().join(".aside-2/x"), "x").unwrap();
        let now = SystemTime::now();
        remove_abandoned(folder.path(), now);
        assert_eq!(names(folder.path()).len(), 3, "someone may be writing them");
        remove_abandoned(folder.path(), now + 2 * ABANDONED_AFTER);
        assert_eq!(names(folder.path()), ["whole"]);
    }
}
