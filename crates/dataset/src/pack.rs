//! Pictures decoded once and kept as records of one size, so that training never waits for a decoder.

use std::fmt;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use image::{DynamicImage, ImageDecoder, ImageReader, RgbImage};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::aside;
use crate::error::DatasetError;
use crate::geometry::{Geometry, PixelLayout};
use crate::images::Progress;
use crate::record_file::RecordFile;
use crate::seal::ContentHash;

/// A change to how pictures become records needs a new number, so that old packs are not used for it.
const PACK_VERSION: u32 = 1;

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
    let key = key(pictures, image_px);
    let records = cache_dir.join(format!("pictures-{key}.rgb"));
    let description = cache_dir.join(format!("pictures-{key}.json"));
    if let Some(packed) = open_existing(&records, &description, geometry) {
        return Ok(packed);
    }
    let mut skipped = Vec::new();
    aside::write_file(&records, |out| {
        skipped = write_records(folder, pictures, image_px, out, progress)?;
        Ok(())
    })
    .map_err(DatasetError::io("write", &records))?;
    if let Err(error) = refuse_too_many(folder, pictures.len(), &skipped) {
        fs::remove_file(&records).map_err(DatasetError::io("remove", &records))?;
        return Err(error);
    }
    let file = RecordFile::open(&records, &geometry, 0, "remove it and start again")?;
    let content = ContentHash::of_large(file.bytes());
    let text = serde_json::to_string(&Description { images: file.len(), skipped: skipped.clone(), content })
        .expect("numbers and strings can be written as JSON");
    aside::write_file(&description, |out| out.write_all(text.as_bytes()))
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

/// Names the pack: other pictures, other sizes or other times have another one.
fn key(pictures: &[Picture], image_px: u32) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&PACK_VERSION.to_le_bytes()).update(&image_px.to_le_bytes());
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
    progress: &mut Progress<'_>,
) -> std::io::Result<Vec<Skipped>> {
    let mut skipped = Vec::new();
    for (batch, some) in pictures.chunks(BATCH).enumerate() {
        let decoded: Vec<Result<Vec<u8>, String>> =
            some.par_iter().map(|picture| decode(&folder.join(&picture.relative), image_px)).collect();
        for (within, record) in decoded.into_iter().enumerate() {
            match record {
                Ok(bytes) => out.write_all(&bytes)?,
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

/// How much memory one picture may take. That is 178 million pixels, more than cameras make; a file of a hundred bytes can
/// say that it has a thousand times as many.
const DECODED_BYTES: u64 = 512 << 20;

/// One picture as a square of RGB bytes, row after row. The error is a reason for people.
pub(crate) fn decode(path: &Path, image_px: u32) -> Result<Vec<u8>, String> {
    // By content, as pictures often have the wrong extension.
    let mut decoder = ImageReader::open(path)
        .and_then(ImageReader::with_guessed_format)
        .map_err(|error| error.to_string())?
        .into_decoder()
        .map_err(|error| error.to_string())?;
    let bytes = decoder.total_bytes();
    if bytes > DECODED_BYTES {
        let (width, height) = decoder.dimensions();
        return Err(format!(
            "it says that it has {width} x {height} pixels, which are {bytes} bytes, more than {DECODED_BYTES}"
        ));
    }
    // A camera that was turned says so in the file; one that says nothing readable was not.
    let orientation = decoder.orientation();
    let mut picture = DynamicImage::from_decoder(decoder).map_err(|error| error.to_string())?;
    if let Ok(orientation) = orientation {
        picture.apply_orientation(orientation);
    }
    square(picture.into_rgb8(), image_px)
}

/// Scales the shorter side to `side_px` and cuts the middle out of the longer one.
fn square(picture: RgbImage, side_px: u32) -> Result<Vec<u8>, String> {
    if picture.dimensions() == (side_px, side_px) {
        return Ok(picture.into_raw());
    }
    let (width, height) = picture.dimensions();
    let source =
        ImageRef::new(width, height, &picture, PixelType::U8x3).map_err(|error| error.to_string())?;
    let mut target = Image::new(side_px, side_px, PixelType::U8x3);
    // The views scale once more, so this first scaling keeps as much detail as there is.
    let options = ResizeOptions::new()
        .resize_alg(ResizeAlg::Convolution(FilterType::Lanczos3))
        .fit_into_destination(Some((0.5, 0.5)));
    Resizer::new().resize(&source, &mut target, &options).map_err(|error| error.to_string())?;
    Ok(target.into_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Three bands of red, green and blue along the longer side: the middle is green.
    fn bands(width: u32, height: u32) -> RgbImage {
        let longer = width.max(height);
        RgbImage::from_fn(width, height, |x, y| {
            let at = if width > height { x } else { y };
            let mut pixel = [0; 3];
            pixel[(3 * at / longer) as usize] = 255;
            image::Rgb(pixel)
        })
    }

    #[test]
    fn the_middle_is_kept() {
        for (width, height, side) in [(96, 32, 32), (32, 96, 32), (300, 100, 20), (30, 10, 40)] {
            let record = square(bands(width, height), side).unwrap();
            assert_eq!(record.len(), (3 * side * side) as usize);
            let centre = 3 * (side / 2 * side + side / 2) as usize;
            assert_eq!(record[centre..centre + 3], [0, 255, 0], "{width}x{height} to {side}");
        }
    }

    #[test]
    fn a_picture_of_the_right_size_is_not_touched() {
        let picture = RgbImage::from_fn(8, 8, |x, y| image::Rgb([x as u8, y as u8, 7]));
        assert_eq!(square(picture.clone(), 8).unwrap(), picture.into_raw());
    }

    #[test]
    fn a_small_file_of_a_huge_picture_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        RgbImage::new(2, 2).save(&path).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        // The width, and the checksum of the header that holds it.
        bytes[16..20].copy_from_slice(&0x00ff_ffff_u32.to_be_bytes());
        bytes[20..24].copy_from_slice(&0x0000_ffff_u32.to_be_bytes());
        let mut checksum = flate2::Crc::new();
        checksum.update(&bytes[12..29]);
        bytes[29..33].copy_from_slice(&checksum.sum().to_be_bytes());
        std::fs::write(&path, bytes).unwrap();
        let reason = decode(&path, 8).unwrap_err();
        assert!(reason.contains("16777215 x 65535 pixels"), "{reason}");
    }

    #[test]
    fn grey_and_transparent_and_deep_pictures_become_rgb() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        for picture in [
            DynamicImage::new_luma8(9, 9),
            DynamicImage::new_luma_a8(9, 9),
            DynamicImage::new_rgba8(9, 9),
            DynamicImage::new_rgb16(9, 9),
        ] {
            picture.save(&path).unwrap();
            assert_eq!(decode(&path, 9).unwrap(), vec![0; 243]);
        }
    }

    /// An EXIF orientation of 6 (turned right) moves the picture's left to its top.
    #[test]
    fn a_turned_camera_is_turned_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jpg");
        RgbImage::from_fn(16, 16, |x, _| image::Rgb([if x < 8 { 255 } else { 0 }; 3])).save(&path).unwrap();
        let plain = fs::read(&path).unwrap();
        let exif =
            b"\xff\xe1\x00\x22Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
        fs::write(&path, [&plain[..2], exif.as_slice(), &plain[2..]].concat()).unwrap();
        let record = decode(&path, 16).unwrap();
        let at = |x: usize, y: usize| record[3 * (16 * y + x)];
        assert!(at(2, 2) > 200 && at(13, 2) > 200 && at(2, 13) < 50 && at(13, 13) < 50);
    }

    /// A picture of the tests of views, and the same as a JPEG.
    fn whole_picture(as_jpeg: bool) -> Vec<u8> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/views/source-small.png");
        if !as_jpeg {
            return fs::read(path).unwrap();
        }
        let mut jpeg = std::io::Cursor::new(Vec::new());
        image::open(path).unwrap().write_to(&mut jpeg, image::ImageFormat::Jpeg).unwrap();
        jpeg.into_inner()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]

        /// Pictures come from anywhere: one that is damaged becomes a record of its size, or a reason.
        #[test]
        fn damaged_pictures_never_panic(
            as_jpeg in any::<bool>(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
            cut in any::<prop::sample::Index>(),
            near_start in any::<bool>(),
        ) {
            let mut content = whole_picture(as_jpeg);
            let range = if near_start { content.len().min(64) } else { content.len() };
            for (place, byte) in changes {
                content[place.index(range)] = byte;
            }
            content.truncate(content.len() / 2 + cut.index(content.len()));
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("picture");
            fs::write(&path, content).unwrap();
            if let Ok(record) = decode(&path, 12) {
                prop_assert_eq!(record.len(), 3 * 12 * 12);
            }
        }

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
