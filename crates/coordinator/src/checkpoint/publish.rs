//! A checkpoint on its way into a run directory.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::directory::{MANIFEST, is_file_name};
use super::{CheckpointDirectory, CheckpointError, FileEntry, Manifest, checkpoint_name};

/// The file that ends a checkpoint. It is small JSON, so that a stream which broke off cannot look whole.
const LAST_FILE: &str = "progress.json";

/// A checkpoint has four files; four times as many is a mistake.
const MOST_FILES: usize = 16;

/// ResNet-50 with momentum is 0.3 GB; more than 64 GB fills a disk by mistake.
const MOST_BYTES: u64 = 64 << 30;

/// The end of the names of folders in which checkpoints are written.
pub(super) const PARTIAL: &str = ".partial";

/// A checkpoint that is being written, in a folder of its own that is removed unless it is published.
#[derive(Debug)]
pub struct PartialCheckpoint {
    checkpoints: PathBuf,
    folder: TempDir,
    manifest: Manifest,
    bytes: u64,
    open: Option<OpenFile>,
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
        // Each attempt has its own: that of a worker that is lost may wait for the disk for long, while another one sends
        // the same state.
        let folder = tempfile::Builder::new()
            .prefix(&format!(".{}-", checkpoint_name(step)))
            .suffix(PARTIAL)
            // Others may read a run, as far as the umask lets them.
            .permissions(Permissions::from_mode(0o777))
            .tempdir_in(checkpoints)
            .map_err(CheckpointError::io("create a folder in", checkpoints))?;
        let manifest = Manifest { step, run_id: run_id.to_string(), files: BTreeMap::new() };
        let checkpoints = checkpoints.to_path_buf();
        Ok(PartialCheckpoint { checkpoints, folder, manifest, bytes: 0, open: None })
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
        let path = self.folder.path().join(name);
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

    /// Syncs, writes the manifest and reads everything back.
    pub(super) fn complete(&mut self) -> Result<CheckpointDirectory, CheckpointError> {
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
        let written = CheckpointDirectory::open(self.folder.path())?;
        sync_folder(self.folder.path())?;
        Ok(written)
    }

    /// Gives the folder its name, with what was `written` into it. Not while another one takes the same name.
    pub(super) fn take_name(
        self,
        written: CheckpointDirectory,
    ) -> Result<CheckpointDirectory, CheckpointError> {
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
        fs::rename(self.folder.path(), &path).map_err(CheckpointError::io("create", &path))?;
        // Nothing of that name is left to be removed.
        drop(self.folder.keep());
        sync_folder(&self.checkpoints)?;
        Ok(written.moved_to(path))
    }

    fn write_manifest(&self) -> Result<(), CheckpointError> {
        let path = self.folder.path().join(MANIFEST);
        let text = serde_json::to_vec_pretty(&self.manifest).expect("a manifest can be written as JSON");
        let mut file = File::create_new(&path).map_err(CheckpointError::io("create", &path))?;
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(CheckpointError::io("write", &path))
    }

    fn refused(&self, problem: String) -> CheckpointError {
        CheckpointError::Refused { step: self.manifest.step, problem }
    }
}

fn sync_folder(path: &Path) -> Result<(), CheckpointError> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(CheckpointError::io("sync", path))
}
