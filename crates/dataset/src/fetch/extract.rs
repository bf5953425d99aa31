//! The expected files of an archive, and nothing else, into an empty folder.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Component, Path};

use flate2::read::MultiGzDecoder;
use md5::{Digest, Md5};
use tar::{Entry, EntryType};

use super::{Archive, ArchivedFile, Event, FetchError, Phase, Report, hex, read_pieces};

/// For what is passed over: a readme, folders, and the headers of all. More than that is another archive.
const PASSED_OVER_BYTES: u64 = 1 << 20;

/// A header of the tar format.
const HEADER_BYTES: u64 = 512;

/// Extracts `source` into `folder`. When this returns an error, the folder holds anything.
pub(super) fn extract(
    archive: &Archive,
    source: impl Read,
    folder: &Path,
    report: &mut Report<'_>,
) -> Result<(), FetchError> {
    let total_bytes = archive.extracted_bytes();
    let limit_bytes = total_bytes.saturating_add(PASSED_OVER_BYTES);
    let (mut done_bytes, mut seen_bytes) = (0, 0_u64);
    let mut missing: Vec<&ArchivedFile> = archive.files.iter().collect();
    // The decoder is limited too: the names of entries are read before they can be judged.
    let mut tar =
        tar::Archive::new(MultiGzDecoder::new(source).take(limit_bytes.saturating_add(HEADER_BYTES)));
    for entry in tar.entries().map_err(FetchError::Damaged)? {
        let mut entry = entry.map_err(FetchError::Damaged)?;
        let path = entry.path().map_err(FetchError::Damaged)?.into_owned();
        seen_bytes = seen_bytes.saturating_add(HEADER_BYTES).saturating_add(entry.size());
        if seen_bytes > limit_bytes {
            let expected = format!("at most {limit_bytes} bytes up to here");
            return Err(FetchError::entry(&path, expected, format!("{seen_bytes} bytes")));
        }
        let Some(file) = find_expected(archive, &entry, &path)? else { continue };
        let Some(position) = missing.iter().position(|other| *other == file) else {
            return Err(FetchError::entry(&path, "each file once", "it a second time"));
        };
        missing.remove(position);
        extract_file(file, &mut entry, &path, folder, &mut |bytes| {
            done_bytes += bytes;
            report(Event::Progress { phase: Phase::Extract, done_bytes, total_bytes });
        })?;
    }
    if let Some(file) = missing.first() {
        let path = Path::new(&archive.folder).join(&file.name);
        return Err(FetchError::entry(&path, format!("a file of {} bytes", file.bytes), "nothing"));
    }
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(FetchError::io("sync", folder))
}

/// The file that an entry should be, or `None` if it is to be passed over. What an honest archive does not
/// have is refused, though nothing would be written outside the folder anyway.
fn find_expected<'a, R: Read>(
    archive: &'a Archive,
    entry: &Entry<'_, R>,
    path: &Path,
) -> Result<Option<&'a ArchivedFile>, FetchError> {
    match entry.header().entry_type() {
        EntryType::Regular => {}
        EntryType::Directory | EntryType::XGlobalHeader => return Ok(None),
        other => return Err(FetchError::entry(path, "files and folders", format!("{other:?}"))),
    }
    if path.components().any(|part| !matches!(part, Component::Normal(_) | Component::CurDir)) {
        return Err(FetchError::entry(path, "a path within the archive", "one that leads out of it"));
    }
    // Some archives begin every path with `./`.
    let plain_path = path.strip_prefix(".").unwrap_or(path);
    let is_named = |file: &&ArchivedFile| plain_path == Path::new(&archive.folder).join(&file.name);
    let Some(file) = archive.files.iter().find(is_named) else { return Ok(None) };
    if entry.size() != file.bytes {
        let (expected, found) = (format!("{} bytes", file.bytes), format!("{} bytes", entry.size()));
        return Err(FetchError::entry(path, expected, found));
    }
    Ok(Some(file))
}

fn extract_file(
    file: &ArchivedFile,
    entry: &mut dyn Read,
    path: &Path,
    folder: &Path,
    advance: &mut dyn FnMut(u64),
) -> Result<(), FetchError> {
    let target_path = folder.join(&file.name);
    let mut target = File::create_new(&target_path).map_err(FetchError::io("make", &target_path))?;
    let (mut digest, mut written_bytes) = (Md5::new(), 0);
    read_pieces(entry, FetchError::Damaged, |piece| {
        target.write_all(piece).map_err(FetchError::io("write", &target_path))?;
        digest.update(piece);
        written_bytes += piece.len() as u64;
        advance(piece.len() as u64);
        Ok(())
    })?;
    if written_bytes != file.bytes {
        return Err(FetchError::Damaged(io::ErrorKind::UnexpectedEof.into()));
    }
    target.sync_all().map_err(FetchError::io("sync", &target_path))?;
    let found = hex(digest);
    match &file.md5 {
        Some(md5) if found != *md5 => {
            Err(FetchError::entry(path, format!("MD5 {md5}"), format!("MD5 {found}")))
        }
        _ => Ok(()),
    }
}
