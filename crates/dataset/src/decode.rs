//! One picture of a folder as a record.

use std::fs::File;
use std::io::{self, Cursor, Read};
use std::path::Path;

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use image::metadata::Orientation;
use image::{ColorType, DynamicImage, ImageDecoder, ImageFormat, ImageReader, RgbImage};

/// How much memory the pixels of one picture may take, and how much its file: every core has one of each. As RGB that is 178
/// million pixels, more than cameras make; a file of a hundred bytes can say that it has a thousand times as many.
const DECODED_BYTES: u64 = 512 << 20;

/// One picture as a square of RGB bytes, row after row; or a reason for people why what the file holds is none.
///
/// # Errors
/// The file could not be read. That says nothing of the picture: it may be read another time.
pub(crate) fn decode(path: &Path, image_px: u32) -> io::Result<Result<Vec<u8>, String>> {
    let mut content = Vec::new();
    // One byte more than is taken says that there is more.
    File::open(path)?.take(DECODED_BYTES + 1).read_to_end(&mut content)?;
    Ok(record(&content, image_px))
}

fn record(content: &[u8], image_px: u32) -> Result<Vec<u8>, String> {
    if content.len() as u64 > DECODED_BYTES {
        return Err(format!("the file has more than {DECODED_BYTES} bytes"));
    }
    // By content, as pictures often have the wrong extension.
    let reader =
        ImageReader::new(Cursor::new(content)).with_guessed_format().map_err(|error| error.to_string())?;
    if reader.format() == Some(ImageFormat::Jpeg) && !has_end_of_image(content) {
        return Err("its end is missing".to_owned());
    }
    let mut decoder = reader.into_decoder().map_err(|error| error.to_string())?;
    // A camera that was turned says so in the file; one that says nothing readable was not.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let bytes = bytes_at_once(&decoder, orientation);
    if bytes > DECODED_BYTES {
        let (width, height) = decoder.dimensions();
        return Err(format!(
            "it says that it has {width} x {height} pixels, which take {bytes} bytes, more than {DECODED_BYTES}"
        ));
    }
    let mut picture = DynamicImage::from_decoder(decoder).map_err(|error| error.to_string())?;
    picture.apply_orientation(orientation);
    square(picture.into_rgb8(), image_px)
}

/// What the pixels of a picture take at most at a time: as they are decoded, and beside them the same turned, then as RGB.
fn bytes_at_once(decoder: &impl ImageDecoder, orientation: Orientation) -> u64 {
    let (width, height) = decoder.dimensions();
    let decoded_bytes = decoder.total_bytes();
    // What is RGB already is not copied, and flips are made in place.
    let rgb_bytes = match decoder.color_type() {
        ColorType::Rgb8 => 0,
        _ => (u64::from(width) * u64::from(height)).saturating_mul(3),
    };
    let turned_bytes = match orientation {
        Orientation::NoTransforms
        | Orientation::FlipHorizontal
        | Orientation::FlipVertical
        | Orientation::Rotate180 => 0,
        Orientation::Rotate90
        | Orientation::Rotate270
        | Orientation::Rotate90FlipH
        | Orientation::Rotate270FlipH => decoded_bytes,
    };
    decoded_bytes.saturating_add(rgb_bytes.max(turned_bytes))
}

/// Whether a JPEG goes on to its end-of-image marker (ITU-T T.81, annex B). The decoder fills what a cut file lacks with grey
/// and says nothing; Pillow refuses such a file.
fn has_end_of_image(jpeg: &[u8]) -> bool {
    const END_OF_IMAGE: u8 = 0xd9;
    let mut rest = jpeg.get(2..).unwrap_or_default();
    while let Some(place) = rest.iter().position(|byte| *byte == 0xff) {
        rest = &rest[place + 1..];
        match rest.first() {
            Some(&END_OF_IMAGE) => return true,
            // Stuffed, a filler, or a marker that stands alone: compressed data go on.
            None | Some(0x00 | 0x01 | 0xff | 0xd0..=0xd8) => {}
            // A segment, whose content may hold any bytes, such as a small picture.
            Some(_) => {
                let Some(&[high, low]) = rest.get(1..3) else { return false };
                let length = usize::from(u16::from_be_bytes([high, low]));
                rest = rest.get(1 + length..).unwrap_or_default();
            }
        }
    }
    false
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
    use std::fs;

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

    /// A PNG that says that it has other sides than it has, and which way it is turned.
    fn forged_png(picture: &DynamicImage, width: u32, height: u32, exif_orientation: u8) -> Vec<u8> {
        let mut file = Cursor::new(Vec::new());
        picture.write_to(&mut file, ImageFormat::Png).unwrap();
        let mut bytes = file.into_inner();
        bytes[16..20].copy_from_slice(&width.to_be_bytes());
        bytes[20..24].copy_from_slice(&height.to_be_bytes());
        let sum = |content: &[u8]| {
            let mut checksum = flate2::Crc::new();
            checksum.update(content);
            checksum.sum().to_be_bytes()
        };
        let header_sum = sum(&bytes[12..29]);
        bytes[29..33].copy_from_slice(&header_sum);
        let mut exif = b"eXIfMM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x01\0\0\0\0\0\0".to_vec();
        exif[23] = exif_orientation;
        let length = (exif.len() as u32 - 4).to_be_bytes();
        bytes.splice(33..33, [&length[..], &exif, &sum(&exif)].concat());
        bytes
    }

    /// Each: a picture's kind, its orientation, and how many rows of 16384 pixels fit 512 MiB: one more does not.
    #[test]
    fn a_small_file_of_a_huge_picture_is_refused() {
        const UPRIGHT: u8 = 1;
        const HALF_ROUND: u8 = 3;
        const QUARTER_ROUND: u8 = 6;
        let [grey, rgb, rgba] =
            [DynamicImage::new_luma8(2, 2), DynamicImage::new_rgb8(2, 2), DynamicImage::new_rgba8(2, 2)];
        for (picture, orientation, rows) in [
            (&rgb, UPRIGHT, 10_922),
            (&rgb, HALF_ROUND, 10_922),
            (&rgb, QUARTER_ROUND, 5_461),
            (&grey, UPRIGHT, 8_192),
            (&grey, QUARTER_ROUND, 8_192),
            (&rgba, UPRIGHT, 4_681),
            (&rgba, QUARTER_ROUND, 4_096),
        ] {
            let case = format!("{:?}, orientation {orientation}", picture.color());
            for (height, fits) in [(rows, true), (rows + 1, false), (0x00ff_ffff, false)] {
                let bytes = forged_png(picture, 16_384, height, orientation);
                let mut decoder =
                    ImageReader::with_format(Cursor::new(&bytes), ImageFormat::Png).into_decoder().unwrap();
                let turned = decoder.orientation().unwrap();
                assert_eq!(bytes_at_once(&decoder, turned) <= DECODED_BYTES, fits, "{case}, {height}");
                if !fits {
                    let reason = record(&bytes, 8).unwrap_err();
                    assert!(reason.contains(&format!("16384 x {height} pixels")), "{case}: {reason}");
                }
            }
        }
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
            assert_eq!(decode(&path, 9).unwrap().unwrap(), vec![0; 243]);
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
        let record = decode(&path, 16).unwrap().unwrap();
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

    /// A JPEG that is cut anywhere is none, nor is one whose end was never written; what follows the end does not matter.
    #[test]
    fn a_cut_jpeg_is_refused() {
        let mut jpeg = whole_picture(true);
        // A camera's small picture has an end of its own.
        let small = [b"\xff\xe1\x00\x08".as_slice(), b"ab\xff\xd9cd"].concat();
        jpeg.splice(2..2, small);
        assert!(record(&jpeg, 12).is_ok());
        assert!(record(&[jpeg.as_slice(), b"\0\0more"].concat(), 12).is_ok());
        for kept in [3, 20, 50, 90, 99].map(|percent| jpeg.len() * percent / 100) {
            let mut cut = jpeg[..kept].to_vec();
            assert!(record(&cut, 12).is_err(), "{kept} of {}", jpeg.len());
            cut.resize(jpeg.len(), 0);
            assert!(record(&cut, 12).is_err(), "{kept} of {}, then zeros", jpeg.len());
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_no_broken_picture() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(decode(&folder.path().join("gone.png"), 8).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(decode(folder.path(), 8).is_err(), "a folder");
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
            if let Ok(record) = record(&content, 12) {
                prop_assert_eq!(record.len(), 3 * 12 * 12);
            }
        }
    }
}
