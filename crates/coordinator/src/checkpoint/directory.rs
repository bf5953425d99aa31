//! A checkpoint as it lies in a run directory: files, and a manifest that says what they must be.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::CheckpointError;

/// Written last, so that a folder without it is not a checkpoint.
pub(super) const MANIFEST: &str = "manifest.json";

/// What a checkpoint consists of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Steps committed.
    pub step: u64,
    /// The run that made it, in hexadecimal.
    pub run_id: String,
    /// Every other file of the folder.
    pub files: BTreeMap<String, FileEntry>,
}

/// What one file of a checkpoint must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Its length.
    pub bytes: u64,
    /// Its hash, in hexadecimal.
    pub blake3: String,
}

/// A checkpoint whose files were all compared with its manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointDirectory {
    path: PathBuf,
    manifest: Manifest,
}

impl CheckpointDirectory {
    /// Reads the manifest and compares every file with it.
    ///
    /// # Errors
    /// [`CheckpointError::Damaged`] names the file, what was expected and what was found.
    pub fn open(path: &Path) -> Result<CheckpointDirectory, CheckpointError> {
        let manifest_path = path.join(MANIFEST);
        let damaged = |expected: &str, found: String| CheckpointError::Damaged {
            path: manifest_path.clone(),
            expected: expected.to_string(),
            found,
        };
        let text = match fs::read(&manifest_path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(damaged("the checkpoint's manifest", "no such file".to_string()));
            }
            other => other.map_err(CheckpointError::io("read", &manifest_path))?,
        };
        let manifest: Manifest = serde_json::from_slice(&text)
            .map_err(|error| damaged("a checkpoint's manifest", format!("what is not one: {error}")))?;
        let checkpoint = CheckpointDirectory { path: path.to_path_buf(), manifest };
        checkpoint.verify()?;
        Ok(checkpoint)
    }

    /// Compares every file with the manifest.
    ///
    /// # Errors
    /// [`CheckpointError::Damaged`] names the file, what was expected and what was found.
    pub fn verify(&self) -> Result<(), CheckpointError> {
        for (name, entry) in &self.manifest.files {
            let path = self.path.join(name);
            let damaged = |expected: String, found: String| {
                Err(CheckpointError::Damaged { path: path.clone(), expected, found })
            };
            if !is_file_name(name) {
                return damaged("a plain file name in the manifest".to_string(), format!("{name:?}"));
            }
            let mut file = match File::open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return damaged(format!("{} bytes", entry.bytes), "no such file".to_string());
                }
                other => other.map_err(CheckpointError::io("open", &path))?,
            };
            let bytes = file.metadata().map_err(CheckpointError::io("read", &path))?.len();
            if bytes != entry.bytes {
                return damaged(format!("{} bytes", entry.bytes), format!("{bytes} bytes"));
            }
            let mut hasher = blake3::Hasher::new();
            io::copy(&mut file, &mut hasher).map_err(CheckpointError::io("read", &path))?;
            let blake3 = hasher.finalize().to_string();
            if blake3 != entry.blake3 {
                return damaged(format!("BLAKE3 {}", entry.blake3), format!("BLAKE3 {blake3}"));
            }
        }
        Ok(())
    }

    /// The same checkpoint, after its folder was renamed.
    pub(super) fn moved_to(self, path: PathBuf) -> CheckpointDirectory {
        CheckpointDirectory { path, ..self }
    }

    /// Its name, such as `step-000123`.
    pub fn name(&self) -> String {
        checkpoint_name(self.manifest.step)
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Steps committed in it.
    pub fn step(&self) -> u64 {
        self.manifest.step
    }

    /// What it consists of.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }
}

/// The name of the checkpoint of `step`. Names have the order of their steps up to a million of them; what
/// needs the order reads the number with [`step_of`].
pub(super) fn checkpoint_name(step: u64) -> String {
    format!("step-{step:06}")
}

/// The step in a checkpoint's name; `None` for every other name.
pub(crate) fn step_of(name: &str) -> Option<u64> {
    let step = name.strip_prefix("step-")?.parse().ok()?;
    (checkpoint_name(step) == name).then_some(step)
}

/// Whether `name` is plain: nothing hidden, no path, no manifest.
pub(super) fn is_file_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte);
    (1..=64).contains(&name.len()) && name.bytes().all(allowed) && !name.starts_with('.') && name != MANIFEST
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_and_steps_belong_together() {
        for step in [0, 1, 123, 999_999, 1_000_000, u64::MAX] {
            assert_eq!(step_of(&checkpoint_name(step)), Some(step));
        }
        for name in
            ["", "step-", "step-1", "step-0000001", "step-+00001", "step-000001.partial", ".step-000001"]
        {
            assert_eq!(step_of(name), None, "{name}");
        }
    }

    #[test]
    fn only_plain_file_names_are_taken() {
        for name in
            ["", ".", "..", "../x", "a/b", "/x", "a\\b", ".hidden", "manifest.json", "a b", "A", "a\0"]
        {
            assert!(!is_file_name(name), "{name:?}");
        }
        assert!(!is_file_name(&"x".repeat(65)));
        for name in ["model.safetensors", "progress.json", "x"] {
            assert!(is_file_name(name), "{name:?}");
        }
    }

    proptest! {
        /// Whatever a manifest has become, its checkpoint is whole or said to be damaged, and nothing outside its
        /// folder is looked at.
        #[test]
        fn damaged_manifests_never_panic(
            changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
            cut in any::<proptest::sample::Index>(),
        ) {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join("progress.json"), "{}").unwrap();
            let entry = FileEntry { bytes: 2, blake3: blake3::hash(b"{}").to_string() };
            let manifest = Manifest {
                step: 7,
                run_id: "0".repeat(32),
                files: BTreeMap::from([("progress.json".to_string(), entry)]),
            };
            let mut bytes = serde_json::to_vec(&manifest).unwrap();
            for (place, byte) in changes {
                let place = place.index(bytes.len());
                bytes[place] = byte;
            }
            bytes.truncate(bytes.len() - cut.index(8));
            fs::write(folder.path().join(MANIFEST), &bytes).unwrap();
            match CheckpointDirectory::open(folder.path()) {
                Ok(opened) => prop_assert!(opened.manifest().files.keys().all(|name| is_file_name(name))),
                Err(error) => prop_assert!(matches!(error, CheckpointError::Damaged { .. }), "{}", error),
            }
        }

        #[test]
        fn no_plain_name_leaves_its_folder(name in ".{0,70}") {
            if is_file_name(&name) {
                let path = Path::new("folder").join(&name);
                prop_assert_eq!(path.parent(), Some(Path::new("folder")));
            }
        }
    }
}
