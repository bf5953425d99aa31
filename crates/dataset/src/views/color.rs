//! Changes of colour on three planes of levels from 0 to 255.
//!
//! PIL cuts the fraction off after each change, which loses half a level in the mean. Nothing is cut here,
//! but that half level is taken away, for the means to agree.

use crate::views::ColorChange;

/// What cutting the fraction off costs in the mean.
const CUT: f32 = 0.5;

/// PIL's weights of red, green and blue in gray (ITU-R BT.601).
const GRAY: [f32; 3] = [0.299, 0.587, 0.114];

/// Numbers that are worked on together: enough for any vector unit.
const LANES: usize = 16;

/// Makes one change to red, green and blue. Those that change nothing are left out, as in torchvision.
pub(super) fn change([red, green, blue]: [&mut [f32]; 3], change: ColorChange) {
    match change {
        ColorChange::Brightness(1.0)
        | ColorChange::Contrast(1.0)
        | ColorChange::Saturation(1.0)
        | ColorChange::Hue(0.0) => {}
        ColorChange::Brightness(factor) => spread([red, green, blue], 0.0, factor),
        ColorChange::Contrast(factor) => {
            let mean = mean_gray(red, green, blue).round();
            spread([red, green, blue], mean, factor);
        }
        ColorChange::Saturation(factor) => saturate(red, green, blue, factor),
        ColorChange::Hue(shift) => turn_hue(red, green, blue, shift),
    }
}

/// Puts the gray of each pixel into `red`.
pub(super) fn gray_into_red(red: &mut [f32], green: &[f32], blue: &[f32]) {
    for ((red, green), blue) in red.iter_mut().zip(green).zip(blue) {
        *red = gray(*red, *green, *blue);
    }
}

/// Distances from `center` times `factor`.
fn spread(planes: [&mut [f32]; 3], center: f32, factor: f32) {
    let offset = center * (1.0 - factor) - CUT;
    for plane in planes {
        for level in plane {
            *level = (*level * factor + offset).clamp(0.0, 255.0);
        }
    }
}

fn saturate(red: &mut [f32], green: &mut [f32], blue: &mut [f32], factor: f32) {
    for ((red, green), blue) in red.iter_mut().zip(green).zip(blue) {
        let offset = gray(*red, *green, *blue) * (1.0 - factor) - CUT;
        *red = (*red * factor + offset).clamp(0.0, 255.0);
        *green = (*green * factor + offset).clamp(0.0, 255.0);
        *blue = (*blue * factor + offset).clamp(0.0, 255.0);
    }
}

/// Turns the hue and keeps each pixel's largest and smallest level, as a shift of H in HSV does.
///
/// Hue is a place on a circle of 6, with red at 0, green at 2 and blue at 4. A channel is at its pixel's
/// largest level up to a distance of 1 from its own place, at the smallest from 2 on, and linear in between.
fn turn_hue(red: &mut [f32], green: &mut [f32], blue: &mut [f32], shift: f32) {
    // PIL keeps H in a byte and torchvision adds a whole number to it; what cutting H costs is taken away.
    let turn = ((shift * 255.0).trunc() - CUT) * (6.0 / 255.0);
    let turn = if turn < 0.0 { turn + 6.0 } else { turn };
    for ((red, green), blue) in red.iter_mut().zip(green).zip(blue) {
        let (r, g, b) = (*red, *green, *blue);
        let most = larger(r, larger(g, b));
        let range = most - smaller(r, smaller(g, b));
        // Gray has no hue and no range, so that any finite hue will do.
        let scale = 1.0 / larger(range, 1e-6);
        let hue = if r == most {
            (g - b) * scale
        } else if g == most {
            (b - r) * scale + 2.0
        } else {
            (r - g) * scale + 4.0
        };
        let turned = hue + turn; // from -1 to 11
        let hue = if turned >= 5.0 { turned - 6.0 } else { turned }; // from -1 to 5
        let level = |distance: f32| most - range * (distance - 1.0).clamp(0.0, 1.0);
        *red = level(smaller(hue.abs(), 6.0 - hue));
        *green = level((hue - 2.0).abs());
        *blue = level(smaller((hue - 4.0).abs(), hue + 2.0));
    }
}

fn gray(red: f32, green: f32, blue: f32) -> f32 {
    GRAY[0] * red + GRAY[1] * green + GRAY[2] * blue
}

/// The mean gray of all pixels, added up in lanes: the order is fixed, whatever the vector unit.
fn mean_gray(red: &[f32], green: &[f32], blue: &[f32]) -> f32 {
    let mut sums = [0.0; LANES];
    let (red_blocks, red_rest) = red.as_chunks::<LANES>();
    let (green_blocks, green_rest) = green.as_chunks::<LANES>();
    let (blue_blocks, blue_rest) = blue.as_chunks::<LANES>();
    for ((red, green), blue) in red_blocks.iter().zip(green_blocks).zip(blue_blocks) {
        for lane in 0..LANES {
            sums[lane] += gray(red[lane], green[lane], blue[lane]);
        }
    }
    let rest = red_rest.iter().zip(green_rest).zip(blue_rest).map(|((r, g), b)| gray(*r, *g, *b));
    (sums.iter().sum::<f32>() + rest.sum::<f32>()) / red.len() as f32
}

/// As `f32::max` where nothing is NaN, in one instruction.
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// As `f32::min` where nothing is NaN, in one instruction.
fn smaller(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}
