//! What a view is, before any pixel is computed.

use recipe::{Draws, Purpose, Views};

use crate::geometry::Geometry;

/// One view of an image: a pure function of the run's seed, the epoch, the sample and the view's number.
#[derive(Debug, Clone, PartialEq)]
pub struct ViewParameters {
    /// The part of the image that is resized to the view.
    pub crop: CropBox,
    /// Whether the view is mirrored left to right.
    pub flip: bool,
    /// The changes of colour in the order in which they are made, if any.
    pub jitter: Option<[ColorChange; 4]>,
    /// Whether the view loses its colour.
    pub grayscale: bool,
    /// The standard deviation of the Gaussian blur, if any.
    pub blur_sigma_px: Option<f32>,
}

/// A box of whole pixels inside an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CropBox {
    /// Rows above it.
    pub top_px: u32,
    /// Columns to its left.
    pub left_px: u32,
    /// Its rows, at least 1.
    pub height_px: u32,
    /// Its columns, at least 1.
    pub width_px: u32,
}

/// One change of a view's colours, with torchvision's factor; each clamps to `0..=255`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ColorChange {
    /// Levels times the factor.
    Brightness(f32),
    /// Distances from the view's mean gray times the factor.
    Contrast(f32),
    /// Distances from each pixel's own gray times the factor.
    Saturation(f32),
    /// The hue, turned by this share of the circle, from -0.5 to 0.5.
    Hue(f32),
}

impl ViewParameters {
    /// Draws the parameters of one view. The draws follow each other in the order of the pipeline; what is
    /// drawn when is part of every run's result.
    pub fn draw(
        views: &Views,
        geometry: Geometry,
        seed: u64,
        epoch: u64,
        sample: u64,
        view: u32,
    ) -> ViewParameters {
        let mut draws = Draws::new(seed, Purpose::View, epoch, sample, u64::from(view));
        ViewParameters {
            crop: CropBox::draw(views.crop_scale, geometry, &mut draws),
            jitter: draws.chance(views.color_jitter.probability).then(|| draw_jitter(views, &mut draws)),
            grayscale: draws.chance(views.grayscale_probability),
            blur_sigma_px: draws
                .chance(views.blur_probability)
                .then(|| draws.between(views.blur_sigma_px[0], views.blur_sigma_px[1])),
            flip: draws.chance(views.flip_probability),
        }
    }

    /// No randomness: the largest square in the middle of the image, nothing else changed.
    pub fn plain(geometry: Geometry) -> ViewParameters {
        let side = geometry.width_px.min(geometry.height_px);
        ViewParameters {
            crop: CropBox::centered(geometry, side, side),
            flip: false,
            jitter: None,
            grayscale: false,
            blur_sigma_px: None,
        }
    }
}

impl CropBox {
    /// torchvision's `RandomResizedCrop.get_params`: a share of the area and a shape, ten attempts to fit
    /// them in, else as much of the middle as the shape allows.
    fn draw(scale: [f32; 2], geometry: Geometry, draws: &mut Draws) -> CropBox {
        const ATTEMPTS: u32 = 10;
        const NARROWEST: f64 = 3.0 / 4.0;
        const WIDEST: f64 = 4.0 / 3.0;
        let (width, height) = (f64::from(geometry.width_px), f64::from(geometry.height_px));
        for _ in 0..ATTEMPTS {
            let area = width * height * f64::from(draws.between(scale[0], scale[1]));
            let shape = (f64::from(draws.between(NARROWEST.ln() as f32, WIDEST.ln() as f32))).exp();
            let crop_width = (area * shape).sqrt().round_ties_even();
            let crop_height = (area / shape).sqrt().round_ties_even();
            if (1.0..=width).contains(&crop_width) && (1.0..=height).contains(&crop_height) {
                let (width_px, height_px) = (crop_width as u32, crop_height as u32);
                let mut start = |room: u32| draws.below(u64::from(room) + 1) as u32;
                let top_px = start(geometry.height_px - height_px);
                let left_px = start(geometry.width_px - width_px);
                return CropBox { top_px, left_px, height_px, width_px };
            }
        }
        let narrow = |length: f64| (length.round_ties_even() as u32).max(1);
        if width / height < NARROWEST {
            CropBox::centered(geometry, geometry.width_px, narrow(width / NARROWEST))
        } else if width / height > WIDEST {
            CropBox::centered(geometry, narrow(height * WIDEST), geometry.height_px)
        } else {
            CropBox::centered(geometry, geometry.width_px, geometry.height_px)
        }
    }

    fn centered(geometry: Geometry, width_px: u32, height_px: u32) -> CropBox {
        CropBox {
            top_px: (geometry.height_px - height_px) / 2,
            left_px: (geometry.width_px - width_px) / 2,
            height_px,
            width_px,
        }
    }
}

/// torchvision's `ColorJitter.get_params`.
fn draw_jitter(views: &Views, draws: &mut Draws) -> [ColorChange; 4] {
    let jitter = &views.color_jitter;
    let mut around_one = |spread: f32| draws.between(1.0 - spread, 1.0 + spread);
    let mut changes = [
        ColorChange::Brightness(around_one(jitter.brightness)),
        ColorChange::Contrast(around_one(jitter.contrast)),
        ColorChange::Saturation(around_one(jitter.saturation)),
        ColorChange::Hue(draws.between(-jitter.hue, jitter.hue)),
    ];
    draws.shuffle(&mut changes);
    changes
}
