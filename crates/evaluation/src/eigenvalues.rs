//! Eigenvalues of a symmetric matrix: Householder's reduction to a tridiagonal one, then the implicit QL
//! method (Wilkinson and Reinsch 1971, contributions II/2 and II/4).

use rayon::prelude::*;

/// Each eigenvalue takes two or three turns; a finite matrix never takes so many.
const MOST_TURNS: usize = 60;

/// The eigenvalues of the symmetric `matrix` of `n` rows, in no order.
///
/// # Panics
/// If it is not square.
pub(crate) fn symmetric_eigenvalues(matrix: Vec<f64>, n: usize) -> Vec<f64> {
    Tridiagonal::of(matrix, n).eigenvalues()
}

/// A symmetric matrix of which only the diagonal and the numbers beside it are not zero.
pub(crate) struct Tridiagonal {
    pub(crate) diagonal: Vec<f64>,
    /// What couples each row with the next; 0 for the last.
    pub(crate) off_diagonal: Vec<f64>,
    /// For each step the vector `v` of the reflection `I - v v'` that acted on the rows after it.
    pub(crate) reflections: Vec<Vec<f64>>,
}

impl Tridiagonal {
    /// Reduces the symmetric `matrix` of `n` rows, whose eigenvalues it keeps.
    pub(crate) fn of(mut matrix: Vec<f64>, n: usize) -> Tridiagonal {
        assert_eq!(matrix.len(), n * n, "a square matrix");
        let (mut off_diagonal, reflections): (Vec<f64>, Vec<Vec<f64>>) =
            (1..n).map(|below| reflect(&mut matrix, n, below - 1)).unzip();
        off_diagonal.push(0.0);
        let diagonal = (0..n).map(|row| matrix[row * n + row]).collect();
        Tridiagonal { diagonal, off_diagonal, reflections }
    }

    /// Its eigenvalues, in no order.
    pub(crate) fn eigenvalues(&self) -> Vec<f64> {
        let (mut diagonal, mut off_diagonal) = (self.diagonal.clone(), self.off_diagonal.clone());
        for first in 0..diagonal.len() {
            for _ in 0..MOST_TURNS {
                let last = unreduced_end(&diagonal, &off_diagonal, first);
                if last == first {
                    break;
                }
                implicit_ql(&mut diagonal, &mut off_diagonal, first, last);
            }
        }
        diagonal
    }
}

/// Makes column `step` zero below the subdiagonal by a reflection of both sides of what is right of and below
/// it, and gives the subdiagonal's number and the reflection's vector.
fn reflect(matrix: &mut [f64], n: usize, step: usize) -> (f64, Vec<f64>) {
    let below = step + 1;
    // v, scaled to length √2, so that the reflection is I - v v'.
    let mut v: Vec<f64> = (below..n).map(|row| matrix[row * n + step]).collect();
    let length = v.iter().map(|x| x * x).sum::<f64>().sqrt();
    let subdiagonal = -length.copysign(v[0]);
    v[0] -= subdiagonal;
    let scale = (v.iter().map(|x| x * x).sum::<f64>() / 2.0).sqrt();
    if scale == 0.0 {
        return (0.0, v);
    }
    v.iter_mut().for_each(|x| *x /= scale);

    // (I - v v') A (I - v v') = A - v w' - w v'   with   p = A v,  w = p - v (p · v) / 2
    let rows = &mut matrix[below * n..];
    let mut w: Vec<f64> = rows.par_chunks(n).map(|row| dot(&row[below..], &v)).collect();
    let half = dot(&w, &v) / 2.0;
    w.iter_mut().zip(&v).for_each(|(w, v)| *w -= half * v);
    rows.par_chunks_mut(n).zip(v.par_iter().zip(&w)).for_each(|(row, (v_row, w_row))| {
        for ((x, v), w) in row[below..].iter_mut().zip(&v).zip(&w) {
            *x -= v_row * w + w_row * v;
        }
    });
    (subdiagonal, v)
}

pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The end of the stretch from `first` on in which no off-diagonal number is negligible.
fn unreduced_end(diagonal: &[f64], off_diagonal: &[f64], first: usize) -> usize {
    let negligible = |place: usize| {
        let around = diagonal[place].abs() + diagonal[place + 1].abs();
        off_diagonal[place].abs() <= f64::EPSILON * around
    };
    (first..diagonal.len() - 1).find(|place| negligible(*place)).unwrap_or(diagonal.len() - 1)
}

/// One turn of the implicit QL method over the stretch from `first` to `last`.
fn implicit_ql(diagonal: &mut [f64], off_diagonal: &mut [f64], first: usize, last: usize) {
    // Wilkinson's shift: the eigenvalue of the first 2x2 block that is nearer to its first number.
    let ratio = (diagonal[first + 1] - diagonal[first]) / (2.0 * off_diagonal[first]);
    let root = ratio.hypot(1.0).copysign(ratio);
    let mut g = diagonal[last] - diagonal[first] + off_diagonal[first] / (ratio + root);
    let (mut sine, mut cosine, mut shift) = (1.0, 1.0, 0.0);
    for place in (first..last).rev() {
        let (f, b) = (sine * off_diagonal[place], cosine * off_diagonal[place]);
        let radius = f.hypot(g);
        off_diagonal[place + 1] = radius;
        if radius == 0.0 {
            // The stretch falls apart here; the next turn takes up its parts.
            diagonal[place + 1] -= shift;
            off_diagonal[last] = 0.0;
            return;
        }
        (sine, cosine) = (f / radius, g / radius);
        g = diagonal[place + 1] - shift;
        let turned = (diagonal[place] - g) * sine + 2.0 * cosine * b;
        shift = sine * turned;
        diagonal[place + 1] = g + shift;
        g = cosine * turned - b;
    }
    diagonal[first] -= shift;
    off_diagonal[first] = g;
    off_diagonal[last] = 0.0;
}

#[cfg(test)]
mod tests {
    use super::*;
    use recipe::{Draws, Purpose};

    fn check(matrix: Vec<f64>, mut expected: Vec<f64>) {
        let mut found = symmetric_eigenvalues(matrix, expected.len());
        found.sort_by(f64::total_cmp);
        expected.sort_by(f64::total_cmp);
        for (found, expected_one) in found.iter().zip(&expected) {
            assert!((found - expected_one).abs() < 1e-9, "{found} is not {expected_one}");
        }
    }

    #[test]
    fn known_matrices_have_their_known_eigenvalues() {
        check(vec![], vec![]);
        check(vec![4.0], vec![4.0]);
        check(vec![2.0, 1.0, 1.0, 2.0], vec![1.0, 3.0]);
        check(vec![0.0; 9], vec![0.0; 3]);
        check(vec![1.0, 0.0, 0.0, 0.0, -2.0, 0.0, 0.0, 0.0, 5.0], vec![1.0, -2.0, 5.0]);
        // All ones: rank 1.
        check(vec![1.0; 25], vec![0.0, 0.0, 0.0, 0.0, 5.0]);
        // The second difference: 2 - 2 cos(π k / (n + 1)).
        let n = 50;
        let entry = |row: usize, column: usize| match row.abs_diff(column) {
            0 => 2.0,
            1 => -1.0,
            _ => 0.0,
        };
        let matrix = (0..n * n).map(|place| entry(place / n, place % n)).collect();
        let angle = |k: usize| std::f64::consts::PI * k as f64 / (n + 1) as f64;
        check(matrix, (1..=n).map(|k| 2.0 - 2.0 * angle(k).cos()).collect());
    }

    #[test]
    fn a_turned_diagonal_keeps_its_eigenvalues() {
        let n = 40;
        let mut draws = Draws::new(1, Purpose::Synthetic, 0, 0, 0);
        let expected: Vec<f64> = (0..n).map(|_| f64::from(draws.normal())).collect();
        let mut matrix = vec![0.0; n * n];
        (0..n).for_each(|row| matrix[row * n + row] = expected[row]);
        for _ in 0..400 {
            let (a, b) = (draws.below(n as u64) as usize, draws.below(n as u64) as usize);
            if a == b {
                continue;
            }
            let (sine, cosine) = f64::from(draws.between(0.0, 6.0)).sin_cos();
            let mut turn = |a: usize, b: usize| {
                let (x, y) = (matrix[a], matrix[b]);
                (matrix[a], matrix[b]) = (cosine * x - sine * y, sine * x + cosine * y);
            };
            (0..n).for_each(|column| turn(a * n + column, b * n + column));
            (0..n).for_each(|row| turn(row * n + a, row * n + b));
        }
        check(matrix, expected);
    }
}
