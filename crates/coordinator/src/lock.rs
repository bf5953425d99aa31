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
    match file.try_lock() {
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
