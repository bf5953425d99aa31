//! A checkpoint on its way into a run directory.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::directory::{MANIFEST, is_file_name};
use super::{CheckpointDirectory, CheckpointError, FileEntry, Manifest, checkpoint_name};

/// The file that ends a checkpoint. It is small JSON, so that a stream which broke off cannot look whole.
const LAST_FILE: &str = "progress.json";

/// A checkpoint has four files; four times as many is a mistake.
const MOST_FILES: usize = 16;

/// ResNet-50 with momentum is 0.3 GB; more than 64 GB fills a disk by mistake.
const MOST_BYTES: u64 = 64 << 30;

/// A checkpoint that is being written, in a folder of its own that is removed unless it is finished.
#[derive(Debug)]
pub struct PartialCheckpoint {
    checkpoints: PathBuf,
    path: PathBuf,
    manifest: Manifest,
    bytes: u64,
    open: Option<OpenFile>,
    is_complete: bool,
}

#[derive(Debug)]
struct OpenFile {
    name: String,
    path: PathBuf,
    file: File,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl PartialCheckpoint {
    pub(super) fn begin(checkpoints: &Path, step: u64, run_id: &str) -> Result<Self, CheckpointError> {
        let path = checkpoints.join(format!(".{}.partial", checkpoint_name(step)));
        fs::create_dir(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => {
                CheckpointError::Refused { step, problem: "it is being published already".to_string() }
            }
            _ => CheckpointError::io("create", &path)(error),
        })?;
        let manifest = Manifest { step, run_id: run_id.to_string(), files: BTreeMap::new() };
        let checkpoints = checkpoints.to_path_buf();
        Ok(PartialCheckpoint { checkpoints, path, manifest, bytes: 0, open: None, is_complete: false })
    }

    /// Appends `data` to `file`. A new name begins a new file and ends the one before.
    ///
    /// # Errors
    /// [`CheckpointError::Refused`] for names and lengths that no checkpoint has; errors of the disk.
    pub fn write(&mut self, file: &str, data: &[u8]) -> Result<(), CheckpointError> {
        if self.open.as_ref().is_none_or(|open| open.name != file) {
            self.close_file()?;
            self.open_file(file)?;
        }
        self.bytes += data.len() as u64;
        if self.bytes > MOST_BYTES {
            return Err(self.refused(format!("it is larger than {MOST_BYTES} bytes")));
        }
        let open = self.open.as_mut().expect("a file was opened above");
        open.file.write_all(data).map_err(CheckpointError::io("write", &open.path))?;
        open.hasher.update(data);
        open.bytes += data.len() as u64;
        Ok(())
    }

    fn open_file(&mut self, name: &str) -> Result<(), CheckpointError> {
        if !is_file_name(name) {
            return Err(self.refused(format!("{name:?} is not a plain file name")));
        }
        if self.manifest.files.contains_key(name) {
            return Err(self.refused(format!("{name} came in two pieces, with another file between")));
        }
        if self.manifest.files.len() >= MOST_FILES {
            return Err(self.refused(format!("it has more than {MOST_FILES} files")));
        }
        let path = self.path.join(name);
        let file = File::create_new(&path).map_err(CheckpointError::io("create", &path))?;
        let hasher = blake3::Hasher::new();
        self.open = Some(OpenFile { name: name.to_string(), path, file, hasher, bytes: 0 });
        Ok(())
    }

    fn close_file(&mut self) -> Result<(), CheckpointError> {
        if let Some(open) = self.open.take() {
            open.file.sync_all().map_err(CheckpointError::io("sync", &open.path))?;
            let blake3 = open.hasher.finalize().to_string();
            self.manifest.files.insert(open.name, FileEntry { bytes: open.bytes, blake3 });
        }
        Ok(())
    }

    /// Syncs, writes the manifest, reads everything back and only then gives the folder its name.
    pub(super) fn finish(mut self) -> Result<CheckpointDirectory, CheckpointError> {
        let last = self.open.as_ref().map(|open| (open.name.clone(), open.path.clone()));
        self.close_file()?;
        match last {
            Some((name, path)) if name == LAST_FILE => {
                let text = fs::read(&path).map_err(CheckpointError::io("read", &path))?;
                serde_json::from_slice::<serde::de::IgnoredAny>(&text)
                    .map_err(|error| self.refused(format!("{LAST_FILE} is cut or not JSON: {error}")))?;
            }
            Some((name, _)) => {
                return Err(self.refused(format!("the stream ended in {name}, expected {LAST_FILE} last")));
            }
            None => return Err(self.refused("no file was sent".to_string())),
        }
        self.write_manifest()?;
        let written = CheckpointDirectory::open(&self.path)?;
        sync_folder(&self.path)?;
        let path = self.checkpoints.join(checkpoint_name(self.manifest.step));
        match CheckpointDirectory::open(&path) {
            // The same step of the same run, published before: it stays, and the partial folder goes.
            Ok(present) if present.manifest().run_id == self.manifest.run_id => return Ok(present),
            Ok(_) | Err(CheckpointError::Damaged { .. }) if path.exists() => {
                fs::remove_dir_all(&path).map_err(CheckpointError::io("replace the damaged", &path))?;
            }
            Ok(_) | Err(CheckpointError::Damaged { .. }) => {}
            Err(error) => return Err(error),
        }
        fs::rename(&self.path, &path).map_err(CheckpointError::io("create", &path))?;
        self.is_complete = true;
        sync_folder(&self.checkpoints)?;
        Ok(written.moved_to(path))
    }

    fn write_manifest(&self) -> Result<(), CheckpointError> {
        let path = self.path.join(MANIFEST);
        let text = serde_json::to_vec_pretty(&self.manifest).expect("a manifest can be written as JSON");
        let mut file = File::create_new(&path).map_err(CheckpointError::io("create", &path))?;
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(CheckpointError::io("write", &path))
    }

    fn refused(&self, problem: String) -> CheckpointError {
        CheckpointError::Refused { step: self.manifest.step, problem }
    }
}

impl Drop for PartialCheckpoint {
    fn drop(&mut self) {
        if !self.is_complete {
            // Best effort: what stays is removed when the run directory is opened the next time.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

fn sync_folder(path: &Path) -> Result<(), CheckpointError> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(CheckpointError::io("sync", path))
}
