//! Which pixels a convolution multiplies with each other.

use std::ops::Range;

use super::Sizes;

/// An output pixel and an input pixel that a tap joins, by the places of their first channels.
#[derive(Clone, Copy)]
pub(super) struct Pair {
    pub(super) to: u32,
    pub(super) from: u32,
}

/// Pairs that the same neighbouring taps of a kernel row join: each is one run of numbers on both sides, of all
/// these taps' inputs and of all these taps' weights.
pub(super) struct Segment {
    pub(super) taps: Range<usize>,
    pub(super) pairs: Vec<Pair>,
}

/// Which pixels pair up: every `to` pixel with the `from` pixels under the kernel.
#[derive(Clone, Copy)]
pub(super) struct Grid {
    pub(super) images: usize,
    pub(super) to: [usize; 2],
    pub(super) to_pitch: usize,
    pub(super) from: [usize; 2],
    pub(super) from_pitch: usize,
    pub(super) kernel: [usize; 2],
    pub(super) padding: usize,
    pub(super) stride: usize,
    /// Whether `from` grows with the tap, and is the finer of the two when the stride is above 1.
    pub(super) is_forward: bool,
}

impl Grid {
    pub(super) fn forward(sizes: &Sizes) -> Grid {
        Grid {
            images: sizes.images,
            to: sizes.output(),
            to_pitch: sizes.output_channels,
            from: [sizes.height, sizes.width],
            from_pitch: sizes.channels,
            kernel: [sizes.kernel; 2],
            padding: sizes.kernel / 2,
            stride: sizes.stride,
            is_forward: true,
        }
    }

    pub(super) fn backward(sizes: &Sizes) -> Grid {
        let Grid { to, to_pitch, from, from_pitch, .. } = Grid::forward(sizes);
        let (to, to_pitch, from, from_pitch) = (from, from_pitch, to, to_pitch);
        Grid { to, to_pitch, from, from_pitch, is_forward: sizes.stride == 1, ..Grid::forward(sizes) }
    }

    pub(super) fn rows(&self) -> usize {
        self.images * self.to[0]
    }

    /// The pairs of a tap whose `to` pixel lies in these rows, counted through all images. `to` places count
    /// from the first of these rows. `columns` are the tap's [`column_pairs`](Self::column_pairs).
    pub(super) fn pairs(&self, row_tap: usize, columns: &[Pair], rows: &Range<usize>, pairs: &mut Vec<Pair>) {
        pairs.clear();
        for row in rows.clone() {
            let (image, y) = (row / self.to[0], row % self.to[0]);
            let Some(from_y) = self.source(y, row_tap, self.from[0]) else { continue };
            let to = ((row - rows.start) * self.to[1] * self.to_pitch) as u32;
            let from = ((image * self.from[0] + from_y) * self.from[1] * self.from_pitch) as u32;
            pairs.extend(columns.iter().map(|pair| Pair { to: to + pair.to, from: from + pair.from }));
        }
    }

    /// The pairs of a tap within one row of both sides.
    pub(super) fn column_pairs(&self, column_tap: usize) -> Vec<Pair> {
        let pair = |x: usize| {
            let from_x = self.source(x, column_tap, self.from[1])?;
            Some(Pair { to: (x * self.to_pitch) as u32, from: (from_x * self.from_pitch) as u32 })
        };
        (0..self.to[1]).filter_map(pair).collect()
    }

    /// The same pairs for all taps, with as many taps joined as lie side by side.
    pub(super) fn segments(&self, rows: &Range<usize>) -> Vec<Segment> {
        let mut segments = Vec::new();
        for row_tap in 0..self.kernel[0] {
            let first = segments.len();
            let columns = self.columns(row_tap, &mut segments);
            for row in rows.clone() {
                let (image, y) = (row / self.to[0], row % self.to[0]);
                let Some(from_y) = self.source(y, row_tap, self.from[0]) else { continue };
                let to = (row - rows.start) * self.to[1];
                let from = (image * self.from[0] + from_y) * self.from[1];
                for &(segment, x, from_x) in &columns {
                    let (to, from) = ((to + x) * self.to_pitch, (from + from_x) * self.from_pitch);
                    segments[first + segment].pairs.push(Pair { to: to as u32, from: from as u32 });
                }
            }
        }
        segments
    }

    /// Adds the segments of a kernel row, and says for every column of `to`: segment, column, column of `from`.
    fn columns(&self, row_tap: usize, segments: &mut Vec<Segment>) -> Vec<(usize, usize, usize)> {
        let first = segments.len();
        let mut columns = Vec::new();
        for x in 0..self.to[1] {
            let sources =
                (0..self.kernel[1]).filter_map(|tap| Some((tap, self.source(x, tap, self.from[1])?)));
            let mut sources = sources.collect::<Vec<_>>();
            let joined = if self.is_forward { sources.len() } else { 1 };
            if self.is_forward {
                sources.truncate(1);
            }
            for (tap, from_x) in sources {
                let start = row_tap * self.kernel[1] + tap;
                let taps = start..start + joined;
                let known = segments[first..].iter().position(|segment| segment.taps == taps);
                let segment = known.unwrap_or_else(|| {
                    segments.push(Segment { taps, pairs: Vec::new() });
                    segments.len() - 1 - first
                });
                columns.push((segment, x, from_x));
            }
        }
        columns
    }

    /// The place, along one axis of length `length`, that a tap joins to `to`.
    fn source(&self, to: usize, tap: usize, length: usize) -> Option<usize> {
        let place = if self.is_forward {
            (to * self.stride + tap).checked_sub(self.padding)?
        } else {
            let place = (to + self.padding).checked_sub(tap)?;
            if !place.is_multiple_of(self.stride) {
                return None;
            }
            place / self.stride
        };
        (place < length).then_some(place)
    }
}
