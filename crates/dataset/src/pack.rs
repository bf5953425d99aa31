//! Pictures decoded once and kept as records of one size, so that training never waits for a decoder.

use std::convert::identity;
use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::aside;
use crate::decode::decode;
use crate::error::DatasetError;
use crate::geometry::{Geometry, PixelLayout};
use crate::images::Progress;
use crate::record_file::RecordFile;
use crate::seal::ContentHash;

/// A change to how pictures become records needs a new number, so that old packs are not used for it.
const PACK_VERSION: u32 = 2;

/// Pictures decoded before they are written: enough to keep all cores busy, few enough that records of some
/// hundred pixels fit in memory.
const BATCH: usize = 256;

/// A handful of broken pictures is the rule in a large collection and is skipped. Beyond both of these, the
/// folder is likely not what its user thinks.
const SKIPPED_AT_LEAST: usize = 3;
const SKIPPED_AT_MOST_PERCENT: usize = 10;

/// A picture file, before it is decoded.
#[derive(Debug)]
pub(crate) struct Picture {
    /// Below the folder.
    pub(crate) relative: PathBuf,
    pub(crate) bytes: u64,
    pub(crate) modified: SystemTime,
}

/// Mapped records, and which pictures are not among them.
pub(crate) struct Packed {
    pub(crate) file: RecordFile,
    pub(crate) geometry: Geometry,
    /// In order of `index`.
    pub(crate) skipped: Vec<Skipped>,
}

/// A picture that could not be decoded.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Skipped {
    /// Among the pictures given.
    pub(crate) index: usize,
    /// For people.
    pub(crate) path: String,
    pub(crate) reason: String,
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} is left out: {}", self.path, self.reason)
    }
}

/// The file beside the records.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    images: u64,
    skipped: Vec<Skipped>,
    content: ContentHash,
}

/// Opens the pack of these pictures, after making it if it is not there or damaged.
pub(crate) fn open_or_make(
    folder: &Path,
    pictures: &[Picture],
    image_px: u32,
    cache_dir: &Path,
    progress: &mut Progress<'_>,
) -> Result<Packed, DatasetError> {
    let geometry = Geometry { width_px: image_px, height_px: image_px, layout: PixelLayout::Interleaved };
    let key = key(folder, pictures, image_px);
    let records = cache_dir.join(format!("pictures-{key}.rgb"));
    let description = cache_dir.join(format!("pictures-{key}.json"));
    if let Some(packed) = open_existing(&records, &description, geometry) {
        return Ok(packed);
    }
    let mut skipped = Vec::new();
    let failed = |source| DatasetError::io("write", &records)(source);
    aside::write_file(
        &records,
        |out| {
            skipped = write_records(folder, pictures, image_px, out, failed, progress)?;
            refuse_too_many(folder, pictures.len(), &skipped)
        },
        failed,
    )?;
    let file = RecordFile::open(&records, &geometry, 0, "remove it and start again")?;
    let content = ContentHash::of_large(file.bytes());
    let text = serde_json::to_string(&Description { images: file.len(), skipped: skipped.clone(), content })
        .expect("numbers and strings can be written as JSON");
    aside::write_file(&description, |out| out.write_all(text.as_bytes()), identity)
        .map_err(DatasetError::io("write", &description))?;
    Ok(Packed { file, geometry, skipped })
}

/// The pack, if it is there and holds what its description says.
fn open_existing(records: &Path, description: &Path, geometry: Geometry) -> Option<Packed> {
    let text = fs::read_to_string(description).ok()?;
    let whole = serde_json::from_str::<Description>(&text).ok().and_then(|description| {
        let file = RecordFile::open(records, &geometry, 0, "").ok()?;
        let intact =
            file.len() == description.images && ContentHash::of_large(file.bytes()) == description.content;
        intact.then_some(Packed { file, geometry, skipped: description.skipped })
    });
    if whole.is_none() {
        tracing::warn!(path = %records.display(), "packed pictures are damaged and are packed again");
    }
    whole
}

/// Names the pack: another folder, other pictures, other sizes or other times have another one. Two folders may have the
/// same names, sizes and times of different pictures: `train` and `test`, say, with files of one size, out of an archive
/// that levels times. A folder that was moved is packed once more.
fn key(folder: &Path, pictures: &[Picture], image_px: u32) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&PACK_VERSION.to_le_bytes()).update(&image_px.to_le_bytes());
    let folder = fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned());
    let folder = folder.as_os_str().as_encoded_bytes();
    hasher.update(&(folder.len() as u64).to_le_bytes()).update(folder);
    for picture in pictures {
        let path = picture.relative.as_os_str().as_encoded_bytes();
        let age_ns = picture.modified.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        hasher.update(&(path.len() as u64).to_le_bytes()).update(path);
        hasher.update(&picture.bytes.to_le_bytes()).update(&age_ns.to_le_bytes());
    }
    // 128 bits are enough to never meet twice.
    hasher.finalize().to_hex()[..32].to_owned()
}

fn write_records(
    folder: &Path,
    pictures: &[Picture],
    image_px: u32,
    out: &mut impl Write,
    failed: impl Fn(io::Error) -> DatasetError,
    progress: &mut Progress<'_>,
) -> Result<Vec<Skipped>, DatasetError> {
    let mut skipped = Vec::new();
    for (batch, some) in pictures.chunks(BATCH).enumerate() {
        let decoded: Vec<_> =
            some.par_iter().map(|picture| decode(&folder.join(&picture.relative), image_px)).collect();
        for (within, record) in decoded.into_iter().enumerate() {
            // One that cannot be read today may be there tomorrow: it must not be left out for good.
            let path = folder.join(&some[within].relative);
            match record.map_err(DatasetError::io("read", &path))? {
                Ok(bytes) => out.write_all(&bytes).map_err(&failed)?,
                Err(reason) => skipped.push(Skipped {
                    index: batch * BATCH + within,
                    path: some[within].relative.display().to_string(),
                    reason,
                }),
            }
        }
        progress((batch * BATCH + some.len()) as u64, pictures.len() as u64);
    }
    Ok(skipped)
}

/// Refuses a folder once more of its pictures are broken than a collection may have.
pub(crate) fn refuse_too_many(
    folder: &Path,
    pictures: usize,
    skipped: &[Skipped],
) -> Result<(), DatasetError> {
    let tolerated =
        skipped.len() <= SKIPPED_AT_LEAST || skipped.len() * 100 <= pictures * SKIPPED_AT_MOST_PERCENT;
    if tolerated && skipped.len() < pictures {
        return Ok(());
    }
    let named: Vec<String> =
        skipped.iter().take(3).map(|one| format!("{} ({})", one.path, one.reason)).collect();
    let found = format!("{} that cannot be decoded, first {}", skipped.len(), named.join(", "));
    let expected = format!("{pictures} pictures, of which at most {SKIPPED_AT_MOST_PERCENT} % broken");
    Err(DatasetError::content(folder, expected, found, "remove or replace the broken files"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]

        /// A pack that is not what its description says is not used.
        #[test]
        fn damaged_packs_are_not_used(
            in_records in any::<bool>(),
            place in any::<prop::sample::Index>(),
            flipped in 1u8..,
        ) {
            let folder = tempfile::tempdir().unwrap();
            let [records, description] = ["a.rgb", "a.json"].map(|name| folder.path().join(name));
            let geometry = Geometry { width_px: 2, height_px: 2, layout: PixelLayout::Interleaved };
            let mut pixels = vec![7; 36];
            let content = ContentHash::of_large(&pixels);
            let mut text =
                serde_json::to_vec(&Description { images: 3, skipped: Vec::new(), content }).unwrap();
            fs::write(&records, &pixels).unwrap();
            fs::write(&description, &text).unwrap();
            prop_assert!(open_existing(&records, &description, geometry).is_some());
            let (damaged, path) = if in_records { (&mut pixels, &records) } else { (&mut text, &description) };
            let place = place.index(damaged.len());
            damaged[place] ^= flipped;
            // A hash may be written in capitals, which is the same hash.
            let is_same = !in_records && serde_json::from_slice::<Description>(damaged)
                .is_ok_and(|read| read.images == 3 && read.content == content);
            fs::write(path, damaged).unwrap();
            prop_assert_eq!(open_existing(&records, &description, geometry).is_some(), is_same);
        }
    }
}
