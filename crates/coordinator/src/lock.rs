//! One coordinator at a time for a run directory.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::Path;

use crate::run_directory::{RunDirectoryError, failed};

/// Held as long as the coordinator lives; the system lets go of it, however the process ends.
pub(crate) const FILE: &str = "coordinator.lock";

/// Takes the run directory `path` for this process, as long as the file is open.
///
/// # Errors
/// [`RunDirectoryError::Locked`], with the process that holds it; those of the system.
pub(crate) fn take(path: &Path) -> Result<File, RunDirectoryError> {
    let lock_path = path.join(FILE);
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .read(true)
        .open(&lock_path)
        .map_err(failed("open", &lock_path))?;
    let mut taken = file.try_lock();
    // Whoever only looks holds it for a moment, and does not keep others from looking.
    while matches!(taken, Err(TryLockError::WouldBlock)) && file.try_lock_shared().is_ok() {
        taken = file.try_lock();
    }
    match taken {
        Ok(()) => {
            sign(&mut file).map_err(failed("write", &lock_path))?;
            Ok(file)
        }
        Err(TryLockError::WouldBlock) => {
            Err(RunDirectoryError::Locked { path: path.to_path_buf(), holder: signature(file) })
        }
        Err(TryLockError::Error(error)) => Err(failed("lock", &lock_path)(error)),
    }
}

/// The process that holds the run directory `path`, if one does and this machine can tell.
pub(crate) fn holder(path: &Path) -> Option<String> {
    let file = File::open(path.join(FILE)).ok()?;
    // Shared, so that several may look, and given back at once.
    match file.try_lock_shared() {
        Err(TryLockError::WouldBlock) => Some(signature(file)),
        Ok(()) | Err(TryLockError::Error(_)) => None,
    }
}

/// Says in the lock who holds it.
fn sign(lock: &mut File) -> io::Result<()> {
    lock.set_len(0)?;
    lock.rewind()?;
    write!(lock, "process {}", std::process::id())
}

fn signature(lock: File) -> String {
    let mut text = String::new();
    // More than a line is not what was written.
    match lock.take(64).read_to_string(&mut text) {
        Ok(_) if !text.trim().is_empty() => text.trim().to_string(),
        // It has not signed yet.
        Ok(_) | Err(_) => "process unknown".to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
    use std::thread;

    #[test]
    fn a_run_is_taken_by_one_whoever_else_looks() {
        let folder = tempfile::tempdir().unwrap();
        let own = format!("process {}", std::process::id());
        let is_done = AtomicBool::new(false);
        let taken = thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while !is_done.load(Relaxed) {
                        holder(folder.path());
                    }
                });
            }
            let taken = (0..500).all(|_| take(folder.path()).is_ok());
            is_done.store(true, Relaxed);
            taken
        });
        assert!(taken, "whoever looks is taken for a coordinator");
        let lock = take(folder.path()).unwrap();
        assert_eq!(holder(folder.path()), Some(own.clone()));
        let refused = take(folder.path()).unwrap_err();
        assert!(matches!(&refused, RunDirectoryError::Locked { holder, .. } if *holder == own), "{refused}");
        drop(lock);
        assert_eq!(holder(folder.path()), None);
    }
}
