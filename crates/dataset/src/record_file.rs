//! One memory-mapped file of records of equal size.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use memmap2::{Advice, Mmap};

use crate::error::DatasetError;
use crate::geometry::Geometry;

/// A mapped file: records of an optional label byte and the pixels of one image, and nothing else.
#[derive(Debug)]
pub(crate) struct RecordFile {
    path: PathBuf,
    map: Mmap,
    modified: SystemTime,
    label_bytes: usize,
    record_bytes: usize,
}

impl RecordFile {
    /// Maps `path`. Its size must be a multiple of the record, but not 0. `advice` ends the error's sentence.
    pub(crate) fn open(
        path: &Path,
        geometry: &Geometry,
        label_bytes: usize,
        advice: &str,
    ) -> Result<RecordFile, DatasetError> {
        let (file, found_bytes, modified) = open_plain(path, "a file of images", advice)?;
        let record_bytes = label_bytes + geometry.record_bytes();
        if found_bytes == 0 || found_bytes % record_bytes as u64 != 0 {
            let expected = format!("one or more records of {record_bytes} bytes");
            let found = match (found_bytes / record_bytes as u64, found_bytes % record_bytes as u64) {
                (0, 0) => "an empty file".to_owned(),
                (whole, rest) => format!("{found_bytes} bytes, which is {whole} records and {rest} bytes"),
            };
            return Err(DatasetError::content(path, expected, found, advice));
        }
        let map = map_file(&file).map_err(DatasetError::io("map", path))?;
        Ok(RecordFile { path: path.to_owned(), map, modified, label_bytes, record_bytes })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// When the file was last changed before it was opened.
    pub(crate) fn modified(&self) -> SystemTime {
        self.modified
    }

    /// Records in the file.
    pub(crate) fn len(&self) -> u64 {
        (self.map.len() / self.record_bytes) as u64
    }

    /// The pixels of a record. Panics if there is no such record.
    pub(crate) fn pixels(&self, index: u64) -> &[u8] {
        &self.record(index)[self.label_bytes..]
    }

    /// The label byte of a record. Panics if there is no such record or it has no label.
    pub(crate) fn label(&self, index: u64) -> u8 {
        self.record(index)[..self.label_bytes][0]
    }

    /// Asks the system to read the whole file ahead, in order, before it is read in a random one.
    pub(crate) fn read_ahead(&self) {
        // Only advice: where the system does not take it, reading is slower and nothing else.
        let _ = self.map.advise(Advice::WillNeed);
    }

    fn record(&self, index: u64) -> &[u8] {
        let start = index as usize * self.record_bytes;
        &self.map[start..start + self.record_bytes]
    }
}

/// Maps a file for reading.
pub(crate) fn map_file(file: &File) -> io::Result<Mmap> {
    // SAFETY: the mapping is only ever read, as bytes, for which every value is valid. What no program can
    // exclude is that someone else writes or truncates a data file during a run; the first shows as a block
    // whose hash is wrong where the block is hashed after that, and not where it was hashed before; the second
    // ends this process with SIGBUS as every mapping does. Files that this crate writes itself are never changed
    // in place: they are replaced by renaming, or removed.
    unsafe { Mmap::map(file) }
}

/// Opens a file that must exist and be a plain one; also its size in bytes and its time of change.
pub(crate) fn open_plain(
    path: &Path,
    expected: &str,
    advice: &str,
) -> Result<(File, u64, SystemTime), DatasetError> {
    let file = File::open(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => {
            let (path, expected, advice) = (path.to_owned(), expected.to_owned(), advice.to_owned());
            DatasetError::Missing { path, expected, advice }
        }
        _ => DatasetError::Io { action: "open", path: path.to_owned(), source },
    })?;
    let facts = file.metadata().map_err(DatasetError::io("examine", path))?;
    if !facts.is_file() {
        let found = if facts.is_dir() { "a folder" } else { "something that is not a plain file" };
        return Err(DatasetError::content(path, expected, found, advice));
    }
    let modified = facts.modified().map_err(DatasetError::io("examine", path))?;
    Ok((file, facts.len(), modified))
}
