//! Gaussian blur, as PIL does it: three box filters with fractional edges (Gwosdek et al. 2011, "Theoretical
//! foundations of Gaussian convolution by extended box filtering"). The three are one symmetric kernel here:
//! it is shorter than a true Gaussian of the same accuracy.

/// Extended boxes that make the Gaussian.
const PASSES: usize = 3;

/// The kernel and the room to apply it.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    kernel: Vec<f32>,
    /// One row with its ends repeated.
    row: Vec<f32>,
    /// The plane, blurred across, with its first and last row repeated.
    rows: Vec<f32>,
}

impl Buffers {
    /// Sets the standard deviation for [`Buffers::blur`].
    pub(super) fn set_sigma(&mut self, sigma_px: f32) {
        // The paper's equations 7, 11 and 14: a box of whole radius and two pixels of weight `edge`.
        let variance = sigma_px * sigma_px / PASSES as f32;
        let radius = (((12.0 * variance + 1.0).sqrt() - 1.0) / 2.0).floor();
        let next = radius + 1.0;
        let edge = (2.0 * radius + 1.0) * (radius * next - 3.0 * variance) / (6.0 * (variance - next * next));
        let inside = 1.0 / (2.0 * (radius + edge) + 1.0);
        let last = 2 * next as usize;
        let boxed = |tap: usize| if tap == 0 || tap == last { inside * edge } else { inside };
        self.kernel.clear();
        self.kernel.push(1.0);
        for _ in 0..PASSES {
            let old_len = self.kernel.len();
            self.kernel.resize(old_len + last, 0.0);
            // From the end, so that what is still needed has not been overwritten.
            for place in (0..self.kernel.len()).rev() {
                self.kernel[place] =
                    (0..=last.min(place)).map(|tap| boxed(tap) * self.kernel[place - tap]).sum();
            }
        }
    }

    /// Blurs a plane of side x side. Beyond the border, its pixels repeat.
    pub(super) fn blur(&mut self, plane: &mut [f32], side: usize) {
        let radius = self.kernel.len() / 2;
        let half = &self.kernel[radius..];
        self.row.resize(side + 2 * radius, 0.0);
        self.rows.resize((side + 2 * radius) * side, 0.0);
        let inner = radius * side..(radius + side) * side;
        for (row, out) in plane.chunks_exact(side).zip(self.rows[inner.clone()].chunks_exact_mut(side)) {
            self.row[..radius].fill(row[0]);
            self.row[radius..radius + side].copy_from_slice(row);
            self.row[radius + side..].fill(row[side - 1]);
            convolve(&self.row, 1, half, out);
        }
        for repeated in 0..radius {
            self.rows.copy_within(inner.start..inner.start + side, repeated * side);
            self.rows.copy_within(inner.end - side..inner.end, inner.end + repeated * side);
        }
        for (y, out) in plane.chunks_exact_mut(side).enumerate() {
            convolve(&self.rows[y * side..], side, half, out);
        }
    }
}

/// Each `out` is the sum of what lies `step` apart in `padded`, weighted by the kernel whose second half is
/// `half`.
fn convolve(padded: &[f32], step: usize, half: &[f32], out: &mut [f32]) {
    let (radius, length) = (half.len() - 1, out.len());
    let line = |number: usize| &padded[number * step..][..length];
    for (out, level) in out.iter_mut().zip(line(radius)) {
        *out = half[0] * level;
    }
    // Three boxes of radius r make a kernel of radius 3 r, so nothing is left over.
    let (triples, _) = half[1..].as_chunks::<3>();
    for (number, [a, b, c]) in triples.iter().enumerate() {
        let near = 3 * number + 1;
        let (left_a, right_a) = (line(radius - near), line(radius + near));
        let (left_b, right_b) = (line(radius - near - 1), line(radius + near + 1));
        let (left_c, right_c) = (line(radius - near - 2), line(radius + near + 2));
        for x in 0..length {
            out[x] +=
                a * (left_a[x] + right_a[x]) + b * (left_b[x] + right_b[x]) + c * (left_c[x] + right_c[x]);
        }
    }
}
