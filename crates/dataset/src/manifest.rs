//! What the coordinator tells workers of the images: numbers and hashes, no pixels.

use std::ops::Range;
use std::path::PathBuf;

use recipe::Data;
use serde::{Deserialize, Serialize};

use crate::error::DatasetError;
use crate::geometry::Geometry;
use crate::seal::ContentHash;

/// How the images are cut into shards and blocks, and the hash of every block.
///
/// A shard has `images_per_shard` images, known by their *local index*. Blocks cut a shard into runs of
/// `images_per_block`; the last one of a shard may be shorter. As JSON a manifest takes 67 bytes for each
/// block of about 4 MiB.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// For people: which data set this is.
    pub name: String,
    /// Images in the data set. `images % shards` of them belong to no shard.
    pub images: u64,
    /// Shape and byte order of every image.
    pub geometry: Geometry,
    /// The run's shards.
    pub shards: u32,
    /// Images in every shard.
    pub images_per_shard: u32,
    /// Images in every block but the last of a shard.
    pub images_per_block: u32,
    /// BLAKE3 of the pixels of every block, shard after shard.
    pub blocks: Vec<ContentHash>,
    /// Where the coordinator has the images: a worker that sees the same files need not fetch them. Empty
    /// where a path is not UTF-8.
    pub files: Vec<PathBuf>,
    /// Bytes before the pixels of each record of `files`: its label, if the format has one there.
    pub label_bytes: u32,
    /// What the files were opened from.
    pub data: Data,
}

/// No image is larger than this, so that sizes computed from a manifest cannot overflow.
const MOST_SIDE_PX: u32 = 1 << 14;

impl Manifest {
    /// Reads a manifest and checks that its numbers agree, so that nobody else needs to.
    ///
    /// # Errors
    /// Text that is not a manifest's JSON, or numbers that contradict each other.
    pub fn from_json(text: &str) -> Result<Manifest, DatasetError> {
        let manifest: Manifest =
            serde_json::from_str(text).map_err(|error| DatasetError::Manifest(error.to_string()))?;
        manifest.check()?;
        Ok(manifest)
    }

    /// The manifest as [`Manifest::from_json`] reads it.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self)
            .expect("paths that are not UTF-8 are left out, and the rest is text and numbers")
    }

    /// Identifies the images of every shard, wherever their files lie: two runs with the same digest see the
    /// same pixels under the same shard and local index.
    pub fn digest(&self) -> ContentHash {
        let geometry = &self.geometry;
        let numbers = [
            geometry.width_px,
            geometry.height_px,
            geometry.layout as u32,
            self.shards,
            self.images_per_shard,
            self.images_per_block,
        ];
        let numbers = numbers.iter().flat_map(|number| number.to_le_bytes());
        let bytes: Vec<u8> = numbers.chain(self.blocks.iter().flat_map(|block| *block.as_bytes())).collect();
        ContentHash::of(&bytes)
    }

    /// Blocks in every shard.
    pub fn blocks_per_shard(&self) -> u32 {
        self.images_per_shard.div_ceil(self.images_per_block)
    }

    /// The local indexes of a block's images.
    pub fn images_of_block(&self, block: u32) -> Range<u32> {
        let start = block.saturating_mul(self.images_per_block).min(self.images_per_shard);
        start..start.saturating_add(self.images_per_block).min(self.images_per_shard)
    }

    /// The block that holds a local index.
    pub fn block_of(&self, local_index: u32) -> u32 {
        local_index / self.images_per_block
    }

    /// The size of a block.
    pub fn block_bytes(&self, block: u32) -> usize {
        self.images_of_block(block).len() * self.geometry.record_bytes()
    }

    /// Where a block's hash stands in [`Manifest::blocks`].
    ///
    /// # Errors
    /// No such shard or block.
    pub fn block_number(&self, shard: u32, block: u32) -> Result<usize, DatasetError> {
        let (shards, limit) = (self.shards, self.blocks_per_shard());
        if shard >= shards || block >= limit {
            return Err(DatasetError::OutOfRange { what: "block", shard, number: block, shards, limit });
        }
        Ok(shard as usize * limit as usize + block as usize)
    }

    /// Refuses a local index that the shards do not have.
    pub(crate) fn check_image(&self, shard: u32, local_index: u32) -> Result<(), DatasetError> {
        let (shards, limit) = (self.shards, self.images_per_shard);
        if shard >= shards || local_index >= limit {
            return Err(DatasetError::OutOfRange {
                what: "image",
                shard,
                number: local_index,
                shards,
                limit,
            });
        }
        Ok(())
    }

    fn check(&self) -> Result<(), DatasetError> {
        let refuse = |problem: String| Err(DatasetError::Manifest(problem));
        let Geometry { width_px, height_px, .. } = self.geometry;
        if !(1..=MOST_SIDE_PX).contains(&width_px) || !(1..=MOST_SIDE_PX).contains(&height_px) {
            return refuse(format!(
                "images of {width_px}x{height_px} pixels, expected sides from 1 to {MOST_SIDE_PX}"
            ));
        }
        if self.shards == 0 || self.images_per_shard == 0 || self.images_per_block == 0 {
            return refuse("no shards, or shards or blocks without images".to_owned());
        }
        if self.images / u64::from(self.shards) != u64::from(self.images_per_shard) {
            let Manifest { images, shards, images_per_shard, .. } = self;
            return refuse(format!("{images} images do not make {shards} shards of {images_per_shard}"));
        }
        let expected = u64::from(self.shards) * u64::from(self.blocks_per_shard());
        if self.blocks.len() as u64 != expected {
            return refuse(format!("{} blocks, expected {expected}", self.blocks.len()));
        }
        if self.label_bytes > 1 {
            return refuse(format!("labels of {} bytes, expected at most 1", self.label_bytes));
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::geometry::PixelLayout;
    use proptest::prelude::*;

    /// A manifest of images that nobody has.
    pub(crate) fn numbers(shards: u32, images_per_shard: u32, images_per_block: u32) -> Manifest {
        let blocks = shards * images_per_shard.div_ceil(images_per_block);
        Manifest {
            name: "numbers".to_owned(),
            images: u64::from(shards) * u64::from(images_per_shard),
            geometry: Geometry { width_px: 4, height_px: 2, layout: PixelLayout::Interleaved },
            shards,
            images_per_shard,
            images_per_block,
            blocks: (0..blocks).map(|block| ContentHash::of(&block.to_le_bytes())).collect(),
            files: vec!["/nowhere/images.bin".into()],
            label_bytes: 0,
            data: Data::Synthetic { images: 1 },
        }
    }

    #[test]
    fn a_manifest_survives_json() {
        let manifest = numbers(4, 10, 3);
        assert_eq!(Manifest::from_json(&manifest.to_json()).unwrap(), manifest);
    }

    #[test]
    fn manifests_that_contradict_themselves_are_refused() {
        type Change = fn(&mut Manifest);
        let changes: [(Change, &str); 8] = [
            (|m| m.shards = 0, "no shards"),
            (|m| m.images_per_block = 0, "without images"),
            (|m| m.images_per_shard = 0, "without images"),
            (|m| m.images_per_shard = 11, "40 images"),
            (|m| m.images = 39, "39 images"),
            (|m| m.blocks.truncate(15), "15 blocks, expected 16"),
            (|m| m.geometry.width_px = u32::MAX, "pixels"),
            (|m| m.label_bytes = 2, "labels of 2 bytes"),
        ];
        for (change, phrase) in changes {
            let mut manifest = numbers(4, 10, 3);
            change(&mut manifest);
            let error = Manifest::from_json(&manifest.to_json()).unwrap_err().to_string();
            assert!(error.contains(phrase), "{error:?} lacks {phrase:?}");
        }
        for text in ["", "{}", "[1]", "null"] {
            assert!(Manifest::from_json(text).is_err(), "{text:?}");
        }
    }

    proptest! {
        /// Manifests come over the network. One that was changed on its way is refused, or can be worked with.
        #[test]
        fn damaged_manifests_never_panic(
            changes in prop::collection::vec((any::<prop::sample::Index>(), 32u8..127), 1..5),
            number in any::<u32>(),
        ) {
            let mut bytes = numbers(4, 10, 3).to_json().into_bytes();
            for (place, byte) in changes {
                let place = place.index(bytes.len());
                bytes[place] = byte;
            }
            if let Ok(manifest) = Manifest::from_json(&String::from_utf8(bytes).unwrap()) {
                let _ = (manifest.digest(), manifest.block_number(number, number));
                let covered: u64 =
                    (0..manifest.blocks_per_shard()).map(|block| manifest.images_of_block(block).len() as u64).sum();
                prop_assert_eq!(covered, u64::from(manifest.images_per_shard));
                prop_assert!(manifest.images_of_block(number).len() <= manifest.images_per_shard as usize);
                prop_assert!(manifest.block_bytes(number) < usize::MAX / 2);
            }
        }
    }

    #[test]
    fn the_digest_speaks_of_pixels_and_not_of_places() {
        let manifest = numbers(4, 10, 3);
        let mut moved = manifest.clone();
        moved.files = vec!["/elsewhere".into()];
        assert_eq!(manifest.digest(), moved.digest());
        type Change = fn(&mut Manifest);
        let changes: [Change; 3] = [|m| m.blocks.swap(0, 1), |m| m.geometry.width_px = 2, |m| m.shards = 2];
        for change in changes {
            let mut other = manifest.clone();
            change(&mut other);
            assert_ne!(manifest.digest(), other.digest());
        }
    }

    #[test]
    fn blocks_cut_a_shard_without_gap_or_overlap() {
        for (per_shard, per_block) in [(10, 3), (9, 3), (1, 5), (5, 1)] {
            let manifest = numbers(2, per_shard, per_block);
            let covered: Vec<u32> =
                (0..manifest.blocks_per_shard()).flat_map(|block| manifest.images_of_block(block)).collect();
            assert_eq!(covered, (0..per_shard).collect::<Vec<_>>());
            assert!(
                (0..per_shard)
                    .all(|index| manifest.images_of_block(manifest.block_of(index)).contains(&index))
            );
            assert!(manifest.images_of_block(u32::MAX).is_empty());
        }
    }
}
