//! How good features are, judged without labels: for choosing a checkpoint where nobody has labels.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::eigenvalues::symmetric_eigenvalues;
use crate::matrix::{Lies, Matrix, multiply};

/// Figures of the features of some images, and of two views of each.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quality {
    /// RankMe: as how many directions the features' spectrum counts, from 1 to their length. Higher is
    /// better among checkpoints of one recipe (Garrido et al. 2022, arXiv 2210.02885).
    pub effective_rank: f64,
    /// The mean squared distance of two views of an image on the unit sphere, 0 to 4: lower is better, as
    /// long as uniformity does not suffer (Wang and Isola 2020, arXiv 2005.10242).
    pub alignment: f64,
    /// How evenly images lie on the unit sphere: the logarithm of the mean over pairs of
    /// `exp(-2 distance²)`, 0 when all are one point and less when they are spread (same paper).
    pub uniformity: f64,
    /// The mean standard deviation of a normalised feature times the root of their number: 0 when all images
    /// have the same features, 1 when they point everywhere alike (SimSiam, section 4.1). Pooled features
    /// are never negative, so even good ones stay below 1.
    pub spread: f64,
}

/// RankMe's guard against the logarithm of 0.
const EPSILON: f64 = 1e-7;

/// Rows of a product of all pairs.
const BLOCK_ROWS: usize = 256;

impl Quality {
    /// Of `features`, and of two views of the same or other images, row for row.
    ///
    /// # Panics
    /// If there are fewer than 2 rows, or the two views differ in shape.
    pub fn of(features: &Matrix, views: [Matrix; 2]) -> Quality {
        let [a, b] = views.map(Matrix::with_unit_rows);
        let unit = features.clone().with_unit_rows();
        Quality {
            effective_rank: effective_rank(features),
            alignment: alignment(&a, &b),
            uniformity: uniformity(&unit),
            spread: spread(&unit),
        }
    }
}

/// `exp` of the entropy of the singular values, scaled to sum 1.
fn effective_rank(z: &Matrix) -> f64 {
    let (rows, columns) = (z.rows(), z.columns());
    let z: Vec<f64> = z.values().iter().map(|value| f64::from(*value)).collect();
    // The squared singular values are the eigenvalues of Z'Z and of ZZ': take the smaller matrix.
    let n = rows.min(columns);
    let mut gram = vec![0.0; n * n];
    if columns <= rows {
        multiply(&mut gram, 0.0, (&z, Lies::Transposed), (&z, Lies::ByRow), [n, n, rows]);
    } else {
        multiply(&mut gram, 0.0, (&z, Lies::ByRow), (&z, Lies::Transposed), [n, n, columns]);
    }
    // Rounding leaves tiny negative ones where there should be zeros.
    let singular: Vec<f64> =
        symmetric_eigenvalues(gram, n).into_iter().map(|eigenvalue| eigenvalue.max(0.0).sqrt()).collect();
    let sum: f64 = singular.iter().sum();
    let entropy = |value: &f64| {
        let p = value / sum.max(f64::MIN_POSITIVE) + EPSILON;
        -p * p.ln()
    };
    singular.iter().map(entropy).sum::<f64>().exp()
}

fn alignment(a: &Matrix, b: &Matrix) -> f64 {
    assert_eq!((a.rows(), a.columns()), (b.rows(), b.columns()), "two views of each image");
    let square = |(a, b): (&f32, &f32)| (f64::from(*a) - f64::from(*b)).powi(2);
    a.values().iter().zip(b.values()).map(square).sum::<f64>() / a.rows() as f64
}

fn uniformity(unit: &Matrix) -> f64 {
    let (rows, columns) = (unit.rows(), unit.columns());
    assert!(rows >= 2, "at least one pair");
    let blocks = unit.values().par_chunks(BLOCK_ROWS * columns).enumerate();
    let sums: Vec<f64> = blocks
        .map(|(number, block)| {
            let block_rows = block.len() / columns;
            let mut cosines = vec![0.0f32; block_rows * rows];
            let shape = [block_rows, rows, columns];
            multiply(&mut cosines, 0.0, (block, Lies::ByRow), (unit.values(), Lies::Transposed), shape);
            // On the unit sphere the squared distance is 2 - 2 cos. Each pair is counted once.
            let row = |(row, cosines): (usize, &[f32])| -> f64 {
                let later = &cosines[number * BLOCK_ROWS + row + 1..];
                later.iter().map(|cosine| (-4.0 * (1.0 - f64::from(*cosine))).exp()).sum()
            };
            cosines.chunks_exact(rows).enumerate().map(row).sum()
        })
        .collect();
    let pairs = rows as f64 * (rows - 1) as f64 / 2.0;
    (sums.into_iter().sum::<f64>() / pairs).ln()
}

fn spread(unit: &Matrix) -> f64 {
    let (n, columns) = (unit.rows() as f64, unit.columns());
    let mut moments = vec![[0.0; 2]; columns];
    for row in unit.values().chunks_exact(columns) {
        for ([sum, squares], value) in moments.iter_mut().zip(row) {
            let value = f64::from(*value);
            *sum += value;
            *squares += value * value;
        }
    }
    let std = |[sum, squares]: &[f64; 2]| (squares / n - (sum / n).powi(2)).max(0.0).sqrt();
    moments.iter().map(std).sum::<f64>() / (columns as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use recipe::{Draws, Purpose};

    fn drawn(rows: usize, columns: usize) -> Matrix {
        let mut draws = Draws::new(1, Purpose::Synthetic, 0, 0, 0);
        Matrix::new((0..rows * columns).map(|_| draws.normal()).collect(), columns)
    }

    #[test]
    fn collapsed_features_show_in_every_figure() {
        let same = Matrix::new([0.0, 3.0, 4.0].repeat(500), 3);
        let quality = Quality::of(&same, [same.clone(), same.clone()]);
        assert!((quality.effective_rank - 1.0).abs() < 1e-4, "{quality:?}");
        assert!(quality.alignment.abs() < 1e-12 && quality.uniformity.abs() < 1e-6, "{quality:?}");
        assert!(quality.spread < 1e-6, "{quality:?}");
    }

    #[test]
    fn features_that_point_everywhere_are_uniform() {
        let (a, b) = (drawn(2000, 16), drawn(4000, 16).select(&(2000..4000).collect::<Vec<_>>()));
        let quality = Quality::of(&a, [a.clone(), b]);
        assert!(quality.effective_rank > 15.9 && quality.effective_rank < 16.01, "{quality:?}");
        assert!((quality.spread - 1.0).abs() < 0.01, "{quality:?}");
        // Unrelated points of a sphere are √2 apart.
        assert!((quality.alignment - 2.0).abs() < 0.1, "{quality:?}");
        assert!(quality.uniformity < -3.0, "{quality:?}");
    }

    #[test]
    fn the_rank_is_the_same_from_either_side() {
        let wide = drawn(20, 50);
        let mut tall = vec![0.0; 1000];
        for (place, value) in wide.values().iter().enumerate() {
            tall[place % 50 * 20 + place / 50] = *value;
        }
        let (wide, tall) = (effective_rank(&wide), effective_rank(&Matrix::new(tall, 20)));
        assert!((wide - tall).abs() < 1e-6, "{wide} {tall}");
    }
}
