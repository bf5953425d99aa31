//! Downloads of the public data sets: `coordinator fetch stl10`.
//!
//! [`fetch`] makes one folder of one [`Archive`]. The archive is downloaded into a hidden file beside that
//! folder, which a later call resumes, is checked against its MD5 sum, and is extracted so that the folder
//! is there whole or not at all. What the network says is never trusted: the lengths and sums of the
//! [`Archive`] decide, which is also why any mirror will do, and why no ETag is kept.

mod archive;
mod download;
mod error;
mod extract;
mod partial;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use md5::{Digest, Md5};

use crate::aside;
use partial::Partial;

pub use archive::{Archive, ArchivedFile};
pub use error::FetchError;

/// Told of everything that happens during a fetch.
pub type Report<'a> = dyn FnMut(Event) + 'a;

/// What happens during a fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Work goes on: so much of a phase is done. A phase ends with all of its bytes done.
    Progress {
        /// What is being done.
        phase: Phase,
        /// How much of it is done. It starts again from 0 when a server cannot resume.
        done_bytes: u64,
        /// How much there is to do.
        total_bytes: u64,
    },
    /// The connection broke, and after a pause it is tried again.
    Interrupted {
        /// Why, as a clause.
        reason: String,
        /// Until the next attempt.
        pause: Duration,
    },
}

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Files that are already there, or the kept part of an archive, are read and hashed.
    Check,
    /// The archive is downloaded and hashed.
    Download,
    /// The files are extracted and hashed.
    Extract,
}

/// How long a server is waited for, and how often it is asked again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patience {
    /// For resolving the name, and again for connecting.
    pub connect_timeout: Duration,
    /// For the server to send anything at all.
    pub stall_timeout: Duration,
    /// Before each further attempt. When all were taken without one new byte, the fetch gives up.
    pub retry_pauses: Vec<Duration>,
}

impl Default for Patience {
    /// Bridges two minutes without a network; a longer break is for another call, which resumes.
    fn default() -> Patience {
        Patience {
            connect_timeout: Duration::from_secs(20),
            stall_timeout: Duration::from_secs(30),
            retry_pauses: [1, 2, 4, 8, 16, 30, 60].map(Duration::from_secs).to_vec(),
        }
    }
}

/// What [`fetch`] made or found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// The folder of the data set.
    pub folder: PathBuf,
    /// All files were already there, with their lengths and, where they have some, their sums: nothing was downloaded.
    pub was_there: bool,
}

/// Makes the folder of `archive` within `parent`, unless it is already there.
///
/// # Errors
/// The folder is there but differs, the disk is too small, the server cannot be reached or serves something
/// else, or another process is fetching the same. Each says what to do. Nothing is left under the folder's
/// name, and what was downloaded is kept for the next call unless it is wrong.
pub fn fetch(
    archive: &Archive,
    parent: &Path,
    patience: &Patience,
    report: &mut Report<'_>,
) -> Result<Fetched, FetchError> {
    let folder = parent.join(&archive.folder);
    let partial_path = parent.join(format!(".{}.tar.gz.partial", archive.folder));
    if is_there(archive, &folder, report)? {
        // Still there if a process was killed after the last step but this one.
        let _ = fs::remove_file(partial_path);
        return Ok(Fetched { folder, was_there: true });
    }
    fs::create_dir_all(parent).map_err(FetchError::io("make the folder", parent))?;
    // What a killed extraction left may be as large as the files.
    aside::remove_abandoned(parent, SystemTime::now());
    check_space(archive, parent, &partial_path)?;
    let mut partial = Partial::open(&partial_path, archive.bytes, report)?;
    let outcome = download::download(archive, &mut partial, patience, report)
        .and_then(|()| make_folder(archive, &partial, &folder, report));
    match outcome {
        Ok(()) => {
            partial.remove()?;
            Ok(Fetched { folder, was_there: false })
        }
        Err(error) => {
            if error.is_of_the_archive() || partial.bytes() == 0 {
                // If it stays, the next call finds the same error; this one is worth more than another.
                let _ = partial.remove();
            }
            Err(error)
        }
    }
}

/// Whether the folder is there and right, as far as lengths and sums can tell. A folder that is there but wrong is
/// an error: it may hold what someone cannot download again.
fn is_there(archive: &Archive, folder: &Path, report: &mut Report<'_>) -> Result<bool, FetchError> {
    match fs::read_dir(folder).map(|mut entries| entries.next().is_none()) {
        Ok(true) => return Ok(false),
        Ok(false) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(FetchError::io("list", folder)(error)),
    }
    check_sizes(archive, folder)?;
    let total_bytes = archive.hashed_bytes();
    let mut done_bytes = 0;
    for (file, md5) in archive.files.iter().filter_map(|file| Some((file, file.md5.as_ref()?))) {
        let path = folder.join(&file.name);
        let mut source = File::open(&path).map_err(FetchError::io("open", &path))?;
        let mut digest = Md5::new();
        let read = FetchError::io("read", &path);
        read_pieces(&mut source, read, |piece| {
            digest.update(piece);
            done_bytes += piece.len() as u64;
            report(Event::Progress { phase: Phase::Check, done_bytes, total_bytes });
            Ok(())
        })?;
        let found = hex(digest);
        if found != *md5 {
            return Err(FetchError::folder(&path, format!("MD5 {md5}"), format!("MD5 {found}")));
        }
    }
    Ok(true)
}

fn check_sizes(archive: &Archive, folder: &Path) -> Result<(), FetchError> {
    for file in &archive.files {
        let path = folder.join(&file.name);
        let found = match fs::metadata(&path) {
            Ok(facts) if facts.is_file() && facts.len() == file.bytes => continue,
            Ok(facts) if facts.is_file() => format!("{} bytes", facts.len()),
            Ok(_) => "something that is not a plain file".to_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => "nothing".to_owned(),
            Err(error) => return Err(FetchError::io("examine", &path)(error)),
        };
        return Err(FetchError::folder(&path, format!("a file of {} bytes", file.bytes), found));
    }
    Ok(())
}

/// The archive and the files made of it are on the disk at the same time.
fn check_space(archive: &Archive, parent: &Path, partial_path: &Path) -> Result<(), FetchError> {
    let kept_bytes = fs::metadata(partial_path).map_or(0, |facts| facts.len());
    let needed_bytes = archive.bytes.saturating_sub(kept_bytes).saturating_add(archive.extracted_bytes());
    let disk = rustix::fs::statvfs(parent)
        .map_err(|error| FetchError::io("ask for the free space of", parent)(error.into()))?;
    let free_bytes = disk.f_bavail.saturating_mul(disk.f_frsize);
    if needed_bytes > free_bytes {
        return Err(FetchError::NoSpace { folder: parent.to_owned(), needed_bytes, free_bytes });
    }
    Ok(())
}

fn make_folder(
    archive: &Archive,
    partial: &Partial,
    folder: &Path,
    report: &mut Report<'_>,
) -> Result<(), FetchError> {
    aside::make_folder(
        folder,
        |aside| extract::extract(archive, partial.reader()?, aside, report),
        |error| FetchError::io("make the folder", folder)(error),
    )?;
    // If someone else made the folder meanwhile, theirs stayed.
    check_sizes(archive, folder)
}

/// Reads to the end, piece by piece.
fn read_pieces<E>(
    source: &mut dyn Read,
    failed: impl FnOnce(io::Error) -> E,
    mut take: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    // Large enough that system calls do not matter, small enough to stay in a cache.
    let mut buffer = vec![0; 1 << 17];
    loop {
        match source.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(bytes) => take(&buffer[..bytes])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
}

fn hex(digest: Md5) -> String {
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
