//! Files of lines that another hand appends to, read as they grow.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// How much is read and handed on at a time: the reader's memory, and how long a lock is held.
const CHUNK_BYTES: usize = 256 << 10;

/// A longer line is not one of ours, and is passed over.
const LINE_BYTES: usize = 1 << 20;

/// A file that is read as it grows.
#[derive(Debug)]
pub(crate) struct Follower {
    path: PathBuf,
    /// Which file it was; a file that was replaced is another one.
    inode: u64,
    /// Up to where it was read.
    offset: u64,
    /// The beginning of a line whose end is not there yet.
    rest: Vec<u8>,
}

/// A whole line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    /// Where it begins in the file.
    pub(crate) offset: u64,
    /// Without its end.
    pub(crate) text: Vec<u8>,
}

/// What has come since the last time.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// The file was replaced or cut: what was read of it is void.
    Anew,
    /// Whole lines, at least one.
    Lines(Vec<Line>),
}

impl Follower {
    /// Follows `path` from its beginning. It need not exist yet.
    pub(crate) fn new(path: PathBuf) -> Follower {
        Follower { path, inode: 0, offset: 0, rest: Vec::new() }
    }

    /// Hands everything that has come since the last time to `hear`, in portions.
    ///
    /// # Errors
    /// The file is there but cannot be read.
    pub(crate) fn read(&mut self, mut hear: impl FnMut(News)) -> io::Result<()> {
        let metadata = match std::fs::metadata(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            metadata => metadata?,
        };
        if metadata.ino() == self.inode && metadata.len() == self.offset {
            return Ok(());
        }
        // The file that was opened counts, whatever lies at the path by now.
        let mut file = File::open(&self.path)?;
        let metadata = file.metadata()?;
        if metadata.ino() != self.inode || metadata.len() < self.offset {
            if self.offset > 0 {
                hear(News::Anew);
            }
            (self.inode, self.offset) = (metadata.ino(), 0);
            self.rest.clear();
        }
        file.seek(SeekFrom::Start(self.offset))?;
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let count = file.read(&mut chunk)?;
            if count == 0 {
                return Ok(());
            }
            let lines = self.take(&chunk[..count]);
            if !lines.is_empty() {
                hear(News::Lines(lines));
            }
        }
    }

    /// The lines that end within `bytes`, which follow what was read.
    fn take(&mut self, bytes: &[u8]) -> Vec<Line> {
        let mut lines = Vec::new();
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let begin = self.offset - self.rest.len() as u64;
            self.offset += part.len() as u64;
            match part.strip_suffix(b"\n") {
                Some(end) => {
                    self.rest.extend_from_slice(end);
                    let text = std::mem::take(&mut self.rest);
                    if text.len() <= LINE_BYTES && !text.trim_ascii().is_empty() {
                        lines.push(Line { offset: begin, text });
                    }
                }
                // Of a line that is too long, one byte too many is kept.
                None if self.rest.len() <= LINE_BYTES => self.rest.extend_from_slice(part),
                None => {}
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write;

    fn news(follower: &mut Follower) -> Vec<String> {
        let mut told = Vec::new();
        let hear = |news| match news {
            News::Anew => told.push("anew".to_string()),
            News::Lines(lines) => told.extend(
                lines.iter().map(|line| format!("{} {}", line.offset, String::from_utf8_lossy(&line.text))),
            ),
        };
        follower.read(hear).unwrap();
        told
    }

    #[test]
    fn lines_are_told_once_they_are_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lines");
        let mut follower = Follower::new(path.clone());
        assert!(news(&mut follower).is_empty());
        let mut file = File::create(&path).unwrap();
        for (written, expected) in [
            ("on", vec![]),
            ("e\n", vec!["0 one"]),
            ("", vec![]),
            ("\ntwo\nthr", vec!["5 two"]),
            ("ee\n", vec!["9 three"]),
        ] {
            file.write_all(written.as_bytes()).unwrap();
            assert_eq!(news(&mut follower), expected, "after {written:?}");
        }
    }

    #[test]
    fn a_file_that_was_replaced_or_cut_is_read_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lines");
        fs::write(&path, "one\ntwo\nthr").unwrap();
        let mut follower = Follower::new(path.clone());
        assert_eq!(news(&mut follower), ["0 one", "4 two"]);
        fs::write(folder.path().join("aside"), "one\nlonger than before\n").unwrap();
        fs::rename(folder.path().join("aside"), &path).unwrap();
        assert_eq!(news(&mut follower), ["anew", "0 one", "4 longer than before"]);
        File::options().write(true).open(&path).unwrap().set_len(4).unwrap();
        assert_eq!(news(&mut follower), ["anew", "0 one"]);
    }

    #[test]
    fn memory_is_bounded_whatever_the_file_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lines");
        fs::write(&path, vec![b'x'; 5 * LINE_BYTES]).unwrap();
        let mut follower = Follower::new(path.clone());
        assert!(news(&mut follower).is_empty());
        assert!(follower.rest.len() <= LINE_BYTES + CHUNK_BYTES);
        let mut file = File::options().append(true).open(&path).unwrap();
        file.write_all(b"\nafter\n").unwrap();
        assert_eq!(news(&mut follower), [format!("{} after", 5 * LINE_BYTES + 1)]);
    }
}
