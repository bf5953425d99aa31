//! Ten kinds of pictures, drawn from nothing but random numbers.
//!
//! Position, size, tilt, colours, shading and noise are random; only the figure tells the class. There is no
//! sine, exponential or other library function here, so every machine draws the same bytes.

use recipe::Draws;

use crate::geometry::CHANNELS;

/// Pictures are squares of this side, as STL-10's are.
pub(crate) const SIDE_PX: usize = 96;

/// The figures, by class.
pub(crate) const FIGURES: [Figure; 10] = [
    Figure::Disc,
    Figure::Square,
    Figure::Triangle,
    Figure::Cross,
    Figure::Ring,
    Figure::HorizontalStripes,
    Figure::VerticalStripes,
    Figure::Checkerboard,
    Figure::Glow,
    Figure::Dots,
];

/// What a picture shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Figure {
    Disc,
    Square,
    Triangle,
    Cross,
    Ring,
    HorizontalStripes,
    VerticalStripes,
    Checkerboard,
    Glow,
    Dots,
}

impl Figure {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Figure::Disc => "disc",
            Figure::Square => "square",
            Figure::Triangle => "triangle",
            Figure::Cross => "cross",
            Figure::Ring => "ring",
            Figure::HorizontalStripes => "horizontal-stripes",
            Figure::VerticalStripes => "vertical-stripes",
            Figure::Checkerboard => "checkerboard",
            Figure::Glow => "glow",
            Figure::Dots => "dots",
        }
    }

    /// Patterns fill the picture; the others stand somewhere in it.
    fn is_pattern(self) -> bool {
        use Figure::{Checkerboard, Dots, HorizontalStripes, VerticalStripes};
        matches!(self, HorizontalStripes | VerticalStripes | Checkerboard | Dots)
    }

    /// How much of the pixel at `(u, v)` the figure covers, 0 to 1. `size` is the figure's radius or the
    /// pattern's period, all in pixels from the centre.
    fn cover(self, u: f32, v: f32, size: f32) -> f32 {
        let radius = (u * u + v * v).sqrt();
        match self {
            Figure::Disc => inside(size - radius),
            Figure::Square => inside(0.85 * size - u.abs().max(v.abs())),
            // Half the radius of the corners is the distance of each side from the centre.
            Figure::Triangle => inside(0.5 * size - v.max(0.866_025_4 * u.abs() - 0.5 * v)),
            Figure::Cross => {
                let bar = |along: f32, across: f32| (size - along.abs()).min(0.3 * size - across.abs());
                inside(bar(u, v).max(bar(v, u)))
            }
            Figure::Ring => inside(0.2 * size - (radius - 0.8 * size).abs()),
            Figure::HorizontalStripes => stripe(v, size),
            Figure::VerticalStripes => stripe(u, size),
            Figure::Checkerboard => {
                let (a, b) = (stripe(u, 2.0 * size), stripe(v, 2.0 * size));
                a * (1.0 - b) + b * (1.0 - a)
            }
            Figure::Glow => {
                let rest = (1.0 - radius * radius / (1.7 * size * size)).max(0.0);
                rest * rest
            }
            Figure::Dots => {
                let from_centre = |x: f32| x - size * (x / size).round();
                let (u, v) = (from_centre(u), from_centre(v));
                inside(0.3 * size - (u * u + v * v).sqrt())
            }
        }
    }
}

/// The cover of a pixel whose centre lies `depth_px` inside an edge: an antialiased step.
fn inside(depth_px: f32) -> f32 {
    (depth_px + 0.5).clamp(0.0, 1.0)
}

/// Stripes across `x`: half of every period is covered.
fn stripe(x: f32, period: f32) -> f32 {
    let from_middle = (x - period * (x / period).round()).abs();
    inside(0.25 * period - from_middle)
}

type Color = [f32; CHANNELS];

/// A point and a direction: how a figure or a colour gradient lies in the picture.
struct Frame {
    x: f32,
    y: f32,
    cosine: f32,
    sine: f32,
}

impl Frame {
    /// Tilted by at most `2 atan(tilt)`.
    fn draw(draws: &mut Draws, margin: f32, tilt: f32) -> Frame {
        let side = SIDE_PX as f32;
        let (x, y) = (draws.between(margin, side - margin), draws.between(margin, side - margin));
        // The tangent of half the angle gives sine and cosine by arithmetic alone.
        let t = draws.between(-tilt, tilt);
        Frame { x, y, cosine: (1.0 - t * t) / (1.0 + t * t), sine: 2.0 * t / (1.0 + t * t) }
    }

    fn turn(&self, x: f32, y: f32) -> (f32, f32) {
        let (x, y) = (x - self.x, y - self.y);
        (self.cosine * x + self.sine * y, self.cosine * y - self.sine * x)
    }
}

/// A colour that changes a little from one side of the picture to the other.
struct Paint {
    frame: Frame,
    color: Color,
    change: Color,
}

impl Paint {
    fn draw(draws: &mut Draws, color: Color) -> Paint {
        let change = [(); CHANNELS].map(|()| draws.between(-35.0, 35.0));
        Paint { frame: Frame::draw(draws, 30.0, 1.0), color, change }
    }

    fn at(&self, x: f32, y: f32) -> Color {
        let along = self.frame.turn(x, y).0 / SIDE_PX as f32;
        std::array::from_fn(|channel| self.color[channel] + along * self.change[channel])
    }
}

/// Draws one picture: planes of red, green and blue, each column after column.
pub(crate) fn draw(figure: Figure, draws: &mut Draws) -> Vec<u8> {
    let (ground, ink) = contrasting_colors(draws);
    let (ground, ink) = (Paint::draw(draws, ground), Paint::draw(draws, ink));
    let (frame, size) = if figure.is_pattern() {
        (Frame::draw(draws, 0.0, 0.06), draws.between(9.0, 20.0))
    } else {
        (Frame::draw(draws, 32.0, 0.2), draws.between(18.0, 34.0))
    };
    // Faint spots behind the figure, so that a plain ground does not give the figure away.
    let spots = [(); 4].map(|()| {
        let strength = draws.between(-0.35, 0.35);
        (Frame::draw(draws, 0.0, 0.0), draws.between(8.0, 26.0), strength)
    });
    let noise = draws.between(1.5, 9.0);
    let plane = SIDE_PX * SIDE_PX;
    let mut picture = vec![0; CHANNELS * plane];
    for x in 0..SIDE_PX {
        for y in 0..SIDE_PX {
            let (px, py) = (x as f32 + 0.5, y as f32 + 0.5);
            let (u, v) = frame.turn(px, py);
            let cover = figure.cover(u, v, size);
            let (below, above) = (ground.at(px, py), ink.at(px, py));
            let shade: f32 = spots
                .iter()
                .map(|(spot, size, strength)| {
                    let (u, v) = spot.turn(px, py);
                    strength * Figure::Glow.cover(u, v, *size)
                })
                .sum();
            let grain = draws.bits().to_le_bytes();
            for channel in 0..CHANNELS {
                // The sum of two uniform numbers is noise enough and costs no logarithm.
                let sum = f32::from(grain[2 * channel]) + f32::from(grain[2 * channel + 1]);
                let base = below[channel] * (1.0 + shade);
                let value = base + cover * (above[channel] - base) + noise * (sum / 127.5 - 2.0);
                picture[channel * plane + x * SIDE_PX + y] = value.round().clamp(0.0, 255.0) as u8;
            }
        }
    }
    picture
}

/// Two colours far enough apart to see one on the other.
fn contrasting_colors(draws: &mut Draws) -> (Color, Color) {
    loop {
        let mut color = || [(); CHANNELS].map(|()| draws.between(25.0, 230.0));
        let (a, b) = (color(), color());
        // Half of all pairs are this far apart, so the loop is short.
        let square: f32 = a.iter().zip(&b).map(|(a, b)| (a - b) * (a - b)).sum();
        if square > 140.0 * 140.0 {
            return (a, b);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use recipe::Purpose;

    fn picture(class: usize, item: u64) -> Vec<u8> {
        draw(FIGURES[class], &mut Draws::new(0, Purpose::Synthetic, 0, item, 0))
    }

    #[test]
    fn a_picture_is_determined_by_class_and_number() {
        assert_eq!(picture(3, 7), picture(3, 7));
        assert_ne!(picture(3, 7), picture(3, 8));
        assert_ne!(picture(3, 7), picture(4, 7));
    }

    /// The bytes themselves: a change here needs a new version of the synthetic data.
    #[test]
    fn the_drawings_are_pinned() {
        let all: Vec<u8> = (0..10).flat_map(|class| picture(class, class as u64)).collect();
        assert_eq!(blake3::hash(&all).to_hex()[..16], *PINNED);
    }

    const PINNED: &str = "3b5f0a5a6e703c58";

    #[test]
    fn every_picture_shows_something() {
        for item in 0..100 {
            let picture = picture(item as usize % 10, item);
            let mean = picture.iter().map(|b| f64::from(*b)).sum::<f64>() / picture.len() as f64;
            let spread = (picture.iter().map(|b| (f64::from(*b) - mean).powi(2)).sum::<f64>()
                / picture.len() as f64)
                .sqrt();
            assert!(spread > 10.0, "picture {item}: spread {spread}");
        }
    }
}
