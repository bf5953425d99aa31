//! How two views are made of an image.

use serde::{Deserialize, Serialize};

/// The official pipeline, in this order: random resized crop, colour jitter, grayscale, blur, flip,
/// normalise. Every key left out has the official code's value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Views {
    /// Side of a view in pixels, and so of the network's input.
    pub crop_px: u32,
    /// Least and greatest share of the image's area that a crop takes.
    #[serde(default = "crop_scale")]
    pub crop_scale: [f32; 2],
    /// Brightness, contrast, saturation and hue.
    #[serde(default)]
    pub color_jitter: ColorJitter,
    /// How often a view loses its colour.
    #[serde(default = "grayscale_probability")]
    pub grayscale_probability: f32,
    /// How often a view is blurred; 0 for CIFAR-10, as in the paper.
    #[serde(default = "blur_probability")]
    pub blur_probability: f32,
    /// Least and greatest standard deviation of the Gaussian blur, in pixels.
    #[serde(default = "blur_sigma_px")]
    pub blur_sigma_px: [f32; 2],
    /// How often a view is mirrored left to right.
    #[serde(default = "flip_probability")]
    pub flip_probability: f32,
    /// Mean of red, green and blue (0 to 1), subtracted last.
    #[serde(default = "imagenet_mean")]
    pub mean: [f32; 3],
    /// Standard deviation of red, green and blue (0 to 1), divided by last.
    #[serde(default = "imagenet_std")]
    pub std: [f32; 3],
}

/// Random changes of colour, as torchvision's `ColorJitter` under `RandomApply`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ColorJitter {
    /// How often it is applied at all.
    pub probability: f32,
    /// Brightness is multiplied by 1 ± this.
    pub brightness: f32,
    /// Contrast is multiplied by 1 ± this.
    pub contrast: f32,
    /// Saturation is multiplied by 1 ± this.
    pub saturation: f32,
    /// Hue is turned by ± this share of the circle.
    pub hue: f32,
}

impl Default for ColorJitter {
    fn default() -> Self {
        ColorJitter { probability: 0.8, brightness: 0.4, contrast: 0.4, saturation: 0.4, hue: 0.1 }
    }
}

fn crop_scale() -> [f32; 2] {
    [0.2, 1.0]
}

fn grayscale_probability() -> f32 {
    0.2
}

fn blur_probability() -> f32 {
    0.5
}

fn blur_sigma_px() -> [f32; 2] {
    [0.1, 2.0]
}

fn flip_probability() -> f32 {
    0.5
}

fn imagenet_mean() -> [f32; 3] {
    [0.485, 0.456, 0.406]
}

fn imagenet_std() -> [f32; 3] {
    [0.229, 0.224, 0.225]
}
