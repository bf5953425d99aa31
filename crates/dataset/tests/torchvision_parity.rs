//! Views against those that torchvision makes of PIL images, which `fixtures/make_views.py` has written.

use std::path::PathBuf;

use dataset::views::{ColorChange, CropBox, Scratch, ViewMaker, ViewParameters};
use dataset::{Geometry, PixelLayout};
use image::RgbImage;
use recipe::{ColorJitter, Views};
use serde::Deserialize;

/// The mean over all pixels, and the worst of them, in levels of 255.
const MEAN_TOLERANCE: f32 = 1.0;
const WORST_TOLERANCE: f32 = 12.0;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    source: String,
    crop: [u32; 4],
    #[serde(default = "default_crop_px")]
    crop_px: u32,
    #[serde(default)]
    jitter: Vec<(String, f32)>,
    #[serde(default)]
    grayscale: bool,
    blur_sigma_px: Option<f32>,
    #[serde(default)]
    flip: bool,
}

fn default_crop_px() -> u32 {
    96
}

impl Case {
    /// The case's changes, filled up with such as change nothing.
    fn parameters(&self) -> ViewParameters {
        let [top_px, left_px, height_px, width_px] = self.crop;
        let mut jitter = [ColorChange::Brightness(1.0); 4];
        for (place, (change, amount)) in jitter.iter_mut().zip(&self.jitter) {
            *place = match change.as_str() {
                "brightness" => ColorChange::Brightness(*amount),
                "contrast" => ColorChange::Contrast(*amount),
                "saturation" => ColorChange::Saturation(*amount),
                "hue" => ColorChange::Hue(*amount),
                other => panic!("{other} is no change of colour"),
            };
        }
        ViewParameters {
            crop: CropBox { top_px, left_px, height_px, width_px },
            flip: self.flip,
            jitter: Some(jitter),
            grayscale: self.grayscale,
            blur_sigma_px: self.blur_sigma_px,
        }
    }

    /// The view in levels from 0 to 255, three planes.
    fn render(&self) -> Vec<f32> {
        let source = read(&format!("source-{}", self.source));
        let (width_px, height_px) = source.dimensions();
        let geometry = Geometry { width_px, height_px, layout: PixelLayout::Interleaved };
        let views = Views {
            crop_px: self.crop_px,
            crop_scale: [0.2, 1.0],
            color_jitter: ColorJitter::default(),
            grayscale_probability: 0.0,
            blur_probability: 0.0,
            blur_sigma_px: [0.1, 2.0],
            flip_probability: 0.0,
            mean: [0.0; 3],
            std: [1.0 / 255.0; 3],
        };
        let maker = ViewMaker::new(&views, geometry);
        let mut out = vec![0.0; maker.view_len()];
        maker.render(source.as_raw(), &self.parameters(), &mut Scratch::default(), &mut out);
        out
    }
}

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/views").join(name)
}

fn read(name: &str) -> RgbImage {
    image::open(fixture(&format!("{name}.png"))).expect("make_views.py has written it").to_rgb8()
}

#[test]
fn every_case_agrees_with_torchvision() {
    let cases: Vec<Case> = serde_json::from_slice(&std::fs::read(fixture("cases.json")).unwrap()).unwrap();
    assert!(cases.len() >= 12);
    let mut disagreeing = Vec::new();
    for case in &cases {
        let (found, expected) = (case.render(), read(&case.name));
        let area = (case.crop_px * case.crop_px) as usize;
        let differences: Vec<f32> = (expected.as_raw().iter().enumerate())
            .map(|(place, level)| found[place % 3 * area + place / 3] - f32::from(*level))
            .collect();
        let mean =
            differences.iter().map(|difference| difference.abs()).sum::<f32>() / differences.len() as f32;
        let bias = differences.iter().sum::<f32>() / differences.len() as f32;
        let worst = differences.iter().fold(0.0, |worst: f32, difference| worst.max(difference.abs()));
        let line = format!("{:28} mean {mean:.3}, worst {worst:.1}, bias {bias:.3}", case.name);
        println!("{line}");
        if !(mean <= MEAN_TOLERANCE && worst <= WORST_TOLERANCE) {
            disagreeing.push(line);
        }
    }
    assert!(disagreeing.is_empty(), "{}", disagreeing.join("\n"));
}
