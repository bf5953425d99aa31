//! Files that appear whole or not at all: written aside, synced, then renamed.

use std::fs::{self, File, Permissions, TryLockError};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use tempfile::NamedTempFile;

/// Starts the names of what is being written, so that nobody takes it for a finished file.
const PREFIX: &str = ".aside-";

/// Where locks are not supported, as on some network file systems: whoever writes does so all the time, and what was not
/// touched for a day belongs to a process that was killed.
const ABANDONED_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// Writes `path` with `write`. When this returns an error, whatever was at `path` before is untouched.
///
/// # Errors
/// That of `write`, or what `failed` makes of the system's.
pub(crate) fn write_file<E>(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<&File>) -> Result<(), E>,
    failed: impl Fn(io::Error) -> E,
) -> Result<(), E> {
    let aside = begin(path).map_err(&failed)?;
    let mut writer = BufWriter::with_capacity(1 << 20, aside.as_file());
    write(&mut writer)?;
    writer.flush().map_err(&failed)?;
    drop(writer);
    publish(aside, path).map_err(failed)
}

/// A file beside `path` to write into; its folder is made if need be, and rid of what killed processes left. Dropped, it
/// is gone.
///
/// # Errors
/// Those of the system.
pub fn begin(path: &Path) -> io::Result<NamedTempFile> {
    claimed(path, |folder| {
        let aside = tempfile::Builder::new()
            .prefix(PREFIX)
            // Others may read it, as far as the umask lets them.
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(folder)?;
        let is_claimed = claim(aside.as_file(), aside.path())?;
        Ok((aside, is_claimed))
    })
}

/// Syncs such a file and gives it the name `path`.
///
/// # Errors
/// Those of the system; whatever was at `path` is untouched then.
pub fn publish(aside: NamedTempFile, path: &Path) -> io::Result<()> {
    aside.as_file().sync_all()?;
    aside.persist(path).map_err(|error| error.error)?;
    File::open(folder_of(path))?.sync_all()
}

/// Makes the folder `path` with `fill`, which gets an empty folder to write into. If another process makes
/// the same folder meanwhile, the first one stays.
pub(crate) fn make_folder<E>(
    path: &Path,
    fill: impl FnOnce(&Path) -> Result<(), E>,
    failed: impl Fn(io::Error) -> E,
) -> Result<(), E> {
    let (aside, _lock) = claimed(path, |parent| {
        let aside = tempfile::Builder::new()
            .prefix(PREFIX)
            .permissions(Permissions::from_mode(0o777))
            .tempdir_in(parent)?;
        let lock = File::open(aside.path())?;
        let is_claimed = claim(&lock, aside.path())?;
        Ok(((aside, lock), is_claimed))
    })
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
    File::open(folder_of(path)).and_then(|folder| folder.sync_all()).map_err(failed)
}

/// What `begin` makes in the folder of `path`, which is made and tidied first. In the moment between an aside's making and
/// its lock, another process may have taken it for an abandoned one: then it says that it is not claimed, and is made again.
fn claimed<T>(path: &Path, begin: impl Fn(&Path) -> io::Result<(T, bool)>) -> io::Result<T> {
    let folder = folder_of(path);
    fs::create_dir_all(folder)?;
    remove_abandoned(folder, SystemTime::now());
    loop {
        let (aside, is_claimed) = begin(folder)?;
        if is_claimed {
            return Ok(aside);
        }
    }
}

/// Locks what is at `path` and was just made, so that nobody takes it for abandoned; says whether nobody has.
fn claim(aside: &File, path: &Path) -> io::Result<bool> {
    match aside.try_lock() {
        // It is about to be removed.
        Err(TryLockError::WouldBlock) => Ok(false),
        // Where locks are not supported its age speaks for it.
        Ok(()) | Err(TryLockError::Error(_)) => path.try_exists(),
    }
}

/// The folder that `path` lies in; a bare name lies in the present one.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Removes what killed processes left half-written in a folder. Where that fails it only takes room.
pub(crate) fn remove_abandoned(folder: &Path, now: SystemTime) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if !entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes()) {
            continue;
        }
        let (Ok(facts), Ok(aside)) = (entry.metadata(), File::open(entry.path())) else { continue };
        let is_abandoned = match aside.try_lock() {
            Ok(()) => true,
            Err(TryLockError::WouldBlock) => false,
            Err(TryLockError::Error(_)) => {
                let age = facts.modified().ok().and_then(|modified| now.duration_since(modified).ok());
                age.is_some_and(|age| age > ABANDONED_AFTER)
            }
        };
        if is_abandoned {
            let remove = if facts.is_dir() { fs::remove_dir_all } else { fs::remove_file };
            let _ = remove(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::identity;

    fn names(folder: &Path) -> Vec<String> {
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        write_file(&path, |out| out.write_all(b"old"), identity).unwrap();
        let half = write_file(
            &path,
            |out| {
                out.write_all(b"new")?;
                Err(io::Error::other("disk full"))
            },
            identity,
        );
        assert!(half.is_err());
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["a"]);
    }

    #[test]
    fn of_two_equal_folders_the_first_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("set");
        for text in ["first", "second"] {
            make_folder(&path, |aside| fs::write(aside.join("x"), text), identity).unwrap();
        }
        assert_eq!(fs::read(path.join("x")).unwrap(), b"first");
        assert_eq!(names(folder.path()), ["set"]);
    }

    #[test]
    fn what_is_taken_for_abandoned_is_not_claimed() {
        let folder = tempfile::tempdir().unwrap();
        let aside = tempfile::NamedTempFile::new_in(folder.path()).unwrap();
        let claim = || claim(aside.as_file(), aside.path()).unwrap();
        let remover = File::open(aside.path()).unwrap();
        remover.try_lock().unwrap();
        assert!(!claim(), "it is being removed");
        drop(remover);
        assert!(claim());
        fs::remove_file(aside.path()).unwrap();
        assert!(!claim(), "it is removed");
    }

    #[test]
    fn what_a_killed_process_left_goes_and_what_is_written_stays() {
        let folder = tempfile::tempdir().unwrap();
        for name in [".aside-1", "whole"] {
            fs::write(folder.path().join(name), "x").unwrap();
        }
        fs::create_dir(folder.path().join(".aside-2")).unwrap();
        fs::write(folder.path().join(".aside-2/x"), "x").unwrap();
        let [file, set] = ["file", "set"].map(|name| folder.path().join(name));
        let fill = |aside: &Path| {
            // While a folder is filled, somebody else writes a file, and while that is written tidies up.
            fs::write(aside.join("x"), "x")?;
            write_file(
                &file,
                |out| {
                    remove_abandoned(folder.path(), SystemTime::now() + 2 * ABANDONED_AFTER);
                    assert_eq!(names(folder.path()).len(), 3, "{:?}", names(folder.path()));
                    out.write_all(b"x")
                },
                identity,
            )
        };
        make_folder(&set, fill, identity).unwrap();
        let mut left = names(folder.path());
        left.sort();
        assert_eq!(left, ["file", "set", "whole"]);
        assert!(set.join("x").is_file());
    }
}
