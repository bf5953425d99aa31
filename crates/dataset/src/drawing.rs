//! Ten kinds of pictures, drawn from nothing but random numbers.
//!
//! What two views of a picture share is what a network without labels can learn, so that is what a class must
//! be: the figure. It stands in the picture many times or fills it, and every crop shows it. All else says
//! nothing about the class: hue, saturation and brightness, which differ much between the pictures of a class
//! and which views change at random; position, tilt and size of the figures, the fall of light, the grain.
//! These last ones differ little from picture to picture, because views do not change them: if they told
//! pictures apart, the network could learn them instead.
//!
//! There is no sine, exponential or other library function here, so every machine draws the same bytes.

use recipe::Draws;

use crate::geometry::CHANNELS;

/// Pictures are squares of this side, as STL-10's are.
pub(crate) const SIDE_PX: usize = 96;

/// Strength of the grain, in levels.
const NOISE: f32 = 4.5;

/// Weights of red, green and blue in gray (ITU-R BT.601), as views make it.
const GRAY: [f32; CHANNELS] = [0.299, 0.587, 0.114];

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
    Figure::Zigzag,
    Figure::Grid,
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
    Zigzag,
    Grid,
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
            Figure::Zigzag => "zigzag",
            Figure::Grid => "grid",
        }
    }

    /// Patterns fill the picture; the others stand in it many times.
    fn is_pattern(self) -> bool {
        use Figure::{Checkerboard, Grid, HorizontalStripes, VerticalStripes, Zigzag};
        matches!(self, HorizontalStripes | VerticalStripes | Checkerboard | Zigzag | Grid)
    }

    /// How much of the pixel at `(u, v)` the figure covers, 0 to 1. `size` is the figure's radius or the
    /// pattern's period, all in pixels from the centre.
    fn cover(self, u: f32, v: f32, size: f32) -> f32 {
        let radius = (u * u + v * v).sqrt();
        match self {
            Figure::Disc => inside(0.9 * size - radius),
            Figure::Square => inside(0.8 * size - u.abs().max(v.abs())),
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
                let (a, b) = (stripe(u, 1.4 * size), stripe(v, 1.4 * size));
                a * (1.0 - b) + b * (1.0 - a)
            }
            Figure::Zigzag => {
                let bend = from_nearest(u, 1.4 * size).abs();
                stripe(v + bend, size)
            }
            Figure::Grid => {
                let line = |x: f32| inside(0.16 * size - from_nearest(x, size).abs());
                line(u).max(line(v))
            }
        }
    }
}

/// A soft spot's strength at `(u, v)` from its centre, 1 there.
fn glow(u: f32, v: f32, size: f32) -> f32 {
    let rest = (1.0 - (u * u + v * v) / (1.7 * size * size)).max(0.0);
    rest * rest
}

/// The cover of a pixel whose centre lies `depth_px` inside an edge: an antialiased step.
fn inside(depth_px: f32) -> f32 {
    (depth_px + 0.5).clamp(0.0, 1.0)
}

/// Stripes across `x`: half of every period is covered.
fn stripe(x: f32, period: f32) -> f32 {
    inside(0.25 * period - from_nearest(x, period).abs())
}

/// The distance from the nearest multiple of `period`, negative before it.
fn from_nearest(x: f32, period: f32) -> f32 {
    x - period * (x / period).round()
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
        let change = [(); CHANNELS].map(|()| draws.between(-20.0, 20.0));
        Paint { frame: Frame::draw(draws, 30.0, 1.0), color, change }
    }

    fn at(&self, x: f32, y: f32) -> Color {
        let along = self.frame.turn(x, y).0 / SIDE_PX as f32;
        std::array::from_fn(|channel| self.color[channel] + along * self.change[channel])
    }
}

/// Draws one picture: planes of red, green and blue, each column after column.
pub(crate) fn draw(figure: Figure, draws: &mut Draws) -> Vec<u8> {
    let [ground, ink] = colors(draws).map(|color| Paint::draw(draws, color));
    let cover = if figure.is_pattern() { pattern(figure, draws) } else { crowd(figure, draws) };
    // Faint spots behind the figures: light that falls unevenly.
    let spots = [(); 4].map(|()| {
        let strength = draws.between(-0.15, 0.15);
        (Frame::draw(draws, 0.0, 0.0), draws.between(8.0, 26.0), strength)
    });
    let plane = SIDE_PX * SIDE_PX;
    let mut picture = vec![0; CHANNELS * plane];
    for (place, cover) in cover.into_iter().enumerate() {
        let (x, y) = middle_of(place);
        let (below, above) = (ground.at(x, y), ink.at(x, y));
        let shade: f32 = spots
            .iter()
            .map(|(spot, size, strength)| {
                let (u, v) = spot.turn(x, y);
                strength * glow(u, v, *size)
            })
            .sum();
        let grain = draws.bits().to_le_bytes();
        for channel in 0..CHANNELS {
            // The sum of two uniform numbers is noise enough and costs no logarithm.
            let sum = f32::from(grain[2 * channel]) + f32::from(grain[2 * channel + 1]);
            let base = below[channel] * (1.0 + shade);
            let value = base + cover * (above[channel] - base) + NOISE * (sum / 127.5 - 2.0);
            picture[channel * plane + place] = value.round().clamp(0.0, 255.0) as u8;
        }
    }
    picture
}

/// The middle of the pixel at a place of a plane, in pixels from the left and from above.
fn middle_of(place: usize) -> (f32, f32) {
    ((place / SIDE_PX) as f32 + 0.5, (place % SIDE_PX) as f32 + 0.5)
}

/// How much of each pixel is ink, in a picture that a pattern fills.
fn pattern(figure: Figure, draws: &mut Draws) -> Vec<f32> {
    let (frame, period) = (Frame::draw(draws, 0.0, 0.06), draws.between(14.0, 20.0));
    let cover_at = |place| {
        let (x, y) = middle_of(place);
        let (u, v) = frame.turn(x, y);
        figure.cover(u, v, period)
    };
    (0..SIDE_PX * SIDE_PX).map(cover_at).collect()
}

/// How much of each pixel is ink, in a picture with a figure in each cell of a loose lattice: as many figures
/// as make every crop of the picture show some.
fn crowd(figure: Figure, draws: &mut Draws) -> Vec<f32> {
    let mut cover = vec![0.0f32; SIDE_PX * SIDE_PX];
    let size = draws.between(10.0, 13.0);
    let cell = 2.3 * size;
    let corner = [(); 2].map(|()| draws.between(-cell, 0.0));
    let cells = (SIDE_PX as f32 / cell) as u8 + 3;
    for (column, row) in (0..cells).flat_map(|column| (0..cells).map(move |row| (column, row))) {
        let [x, y]: [f32; 2] = std::array::from_fn(|axis| {
            corner[axis] + cell * (f32::from([column, row][axis]) + draws.between(-0.1, 0.1))
        });
        let frame = Frame { x, y, ..Frame::draw(draws, 0.0, 0.2) };
        let size = size * draws.between(0.85, 1.0);
        // No figure reaches farther than the corners of a square or of a cross.
        let near = |middle: f32| {
            let end = |at: f32| at.clamp(0.0, SIDE_PX as f32) as usize;
            end(middle - 1.5 * size)..end(middle + 1.5 * size)
        };
        for place in near(x).flat_map(|x| near(y).map(move |y| x * SIDE_PX + y)) {
            let (x, y) = middle_of(place);
            let (u, v) = frame.turn(x, y);
            cover[place] = cover[place].max(figure.cover(u, v, size));
        }
    }
    cover
}

/// The colours of ground and ink: a dark and a light tone of one hue. Turning the hue of a view changes both
/// alike, and without colour the figures stay visible.
fn colors(draws: &mut Draws) -> [Color; 2] {
    let color = [(); CHANNELS].map(|()| draws.between(0.0, 255.0));
    let gray: f32 = color.iter().zip(GRAY).map(|(level, weight)| level * weight).sum();
    [(40.0, 110.0), (150.0, 220.0)].map(|(low, high)| {
        let tone = draws.between(low, high);
        color.map(|level| tone + level - gray)
    })
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

    const PINNED: &str = "81fb85abfa33276c";

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
