//! The leading eigenvectors of a symmetric matrix: inverse iteration on its tridiagonal form, whose vectors the
//! reflections then turn back (Wilkinson and Reinsch 1971, contribution II/18). A few of them cost no more than
//! the eigenvalues do.

use crate::eigenvalues::{Tridiagonal, dot};

/// Inverse iteration with an eigenvalue that is right to the last digits needs two.
const TURNS: usize = 4;

/// An eigenvalue and its direction, of length 1.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Eigenpair {
    pub(crate) value: f64,
    pub(crate) vector: Vec<f64>,
}

/// The `count` greatest eigenvalues of the symmetric `matrix` of `n` rows, the greatest first, with vectors
/// that are orthogonal to each other. Of the two directions of a vector it is the one whose largest number is
/// positive, so that the same matrix gives the same vectors.
///
/// # Panics
/// If the matrix is not square.
pub(crate) fn leading_eigenpairs(matrix: Vec<f64>, n: usize, count: usize) -> Vec<Eigenpair> {
    let tridiagonal = Tridiagonal::of(matrix, n);
    let mut values = tridiagonal.eigenvalues();
    values.sort_by(|a, b| b.total_cmp(a));
    values.truncate(count);
    let mut vectors: Vec<Vec<f64>> = Vec::with_capacity(count);
    for &value in &values {
        vectors.push(inverse_iteration(&tridiagonal, value, &vectors));
    }
    let turned_back = vectors.into_iter().map(|mut vector| {
        turn_back(&tridiagonal, &mut vector);
        let largest =
            vector.iter().fold(0.0f64, |largest, x| if x.abs() > largest.abs() { *x } else { largest });
        vector.iter_mut().for_each(|x| *x *= largest.signum());
        vector
    });
    values.iter().zip(turned_back).map(|(&value, vector)| Eigenpair { value, vector }).collect()
}

/// The eigenvector of the tridiagonal matrix that goes with `value` and is orthogonal to the `earlier` ones.
fn inverse_iteration(tridiagonal: &Tridiagonal, value: f64, earlier: &[Vec<f64>]) -> Vec<f64> {
    // Irregular, so that no eigenvector is orthogonal to it by symmetry; and another one each time, because
    // eigenvalues may be equal.
    let stride = 0.618_033_988_749_895 + 0.129 * earlier.len() as f64;
    let mut vector: Vec<f64> =
        (1..=tridiagonal.diagonal.len()).map(|place| (place as f64 * stride).fract() + 0.1).collect();
    for _ in 0..TURNS {
        solve_shifted(tridiagonal, value, &mut vector);
        scale_to_unit(&mut vector);
        for other in earlier {
            let along = dot(&vector, other);
            vector.iter_mut().zip(other).for_each(|(x, other)| *x -= along * other);
        }
        scale_to_unit(&mut vector);
    }
    vector
}

/// Divides by the largest number first, because what inverse iteration grows may be too large to be squared.
fn scale_to_unit(vector: &mut [f64]) {
    let largest = vector.iter().fold(0.0f64, |largest, x| largest.max(x.abs()));
    vector.iter_mut().for_each(|x| *x /= largest.max(f64::MIN_POSITIVE));
    let length = dot(vector, vector).sqrt();
    vector.iter_mut().for_each(|x| *x /= length.max(f64::MIN_POSITIVE));
}

/// Solves `(T - shift) x = b` in place, by elimination with exchanges of neighbouring rows. With an eigenvalue
/// as shift the matrix is singular: its last pivot is then as small as rounding makes it, which is what turns
/// `x` into the eigenvector.
fn solve_shifted(tridiagonal: &Tridiagonal, shift: f64, b: &mut [f64]) {
    let Tridiagonal { diagonal, off_diagonal, .. } = tridiagonal;
    let n = diagonal.len();
    let norm = diagonal.iter().chain(off_diagonal).fold(0.0f64, |norm, x| norm.max(x.abs()));
    let least_pivot = (f64::EPSILON * norm).max(1e-100);
    let guard = |pivot: f64| if pivot.abs() < least_pivot { least_pivot.copysign(pivot) } else { pivot };
    // The pivot of each row of the upper triangle, and the two numbers right of it.
    let mut rows: Vec<[f64; 3]> = Vec::with_capacity(n);
    let mut row = [diagonal[0] - shift, off_diagonal[0], 0.0];
    for place in 0..n - 1 {
        let mut below = [off_diagonal[place], diagonal[place + 1] - shift, off_diagonal[place + 1]];
        if below[0].abs() > row[0].abs() {
            std::mem::swap(&mut row, &mut below);
            b.swap(place, place + 1);
        }
        row[0] = guard(row[0]);
        let factor = below[0] / row[0];
        b[place + 1] -= factor * b[place];
        rows.push(row);
        row = [below[1] - factor * row[1], below[2] - factor * row[2], 0.0];
    }
    rows.push([guard(row[0]), 0.0, 0.0]);
    for (place, [pivot, next, after]) in rows.into_iter().enumerate().rev() {
        let right = |distance: usize| b.get(place + distance).copied().unwrap_or(0.0);
        b[place] = (b[place] - next * right(1) - after * right(2)) / pivot;
    }
}

/// From the tridiagonal matrix's directions to those of the one that it was made of.
fn turn_back(tridiagonal: &Tridiagonal, vector: &mut [f64]) {
    for (step, v) in tridiagonal.reflections.iter().enumerate().rev() {
        let below = &mut vector[step + 1..];
        let along = dot(below, v);
        below.iter_mut().zip(v).for_each(|(x, v)| *x -= along * v);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use recipe::{Draws, Purpose};

    /// That all pairs are pairs, in order, and the vectors orthogonal and of length 1.
    fn check(matrix: &[f64], n: usize, count: usize) {
        let pairs = leading_eigenpairs(matrix.to_vec(), n, count);
        assert_eq!(pairs.len(), count.min(n));
        let norm = matrix.iter().fold(0.0f64, |norm, x| norm.max(x.abs())).max(1.0);
        for (number, Eigenpair { value, vector }) in pairs.iter().enumerate() {
            for (row, x) in matrix.chunks_exact(n).zip(vector) {
                let product = dot(row, vector);
                assert!((product - value * x).abs() < 1e-9 * norm * n as f64, "{product} {value} {x}");
            }
            for (other_number, other) in pairs.iter().enumerate() {
                let expected = f64::from(u8::from(number == other_number));
                let product = dot(vector, &other.vector);
                assert!((product - expected).abs() < 1e-9, "{number} {other_number}: {product}");
            }
        }
        assert!(pairs.is_sorted_by(|a, b| a.value >= b.value));
    }

    #[test]
    fn pairs_fit_their_matrix() {
        check(&[], 0, 2);
        check(&[4.0], 1, 2);
        check(&[2.0, 1.0, 1.0, 2.0], 2, 2);
        // Equal eigenvalues: any orthogonal directions will do.
        check(&[0.0; 9], 3, 3);
        check(&[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0], 3, 3);
        check(&[1.0; 25], 5, 3);
        check(&[1e-80; 25], 5, 2);
        let second_difference = |row: usize, column: usize| match row.abs_diff(column) {
            0 => 2.0,
            1 => -1.0,
            _ => 0.0,
        };
        check(&(0..900).map(|place| second_difference(place / 30, place % 30)).collect::<Vec<_>>(), 30, 6);
        let (n, mut draws) = (60, Draws::new(1, Purpose::Synthetic, 0, 0, 0));
        let half: Vec<f64> = (0..n * n).map(|_| f64::from(draws.normal())).collect();
        let symmetric = |place: usize| half[place] + half[place % n * n + place / n];
        check(&(0..n * n).map(symmetric).collect::<Vec<_>>(), n, n);
    }

    #[test]
    fn the_direction_does_not_depend_on_chance() {
        let vector = |matrix: [f64; 4]| leading_eigenpairs(matrix.to_vec(), 2, 1).remove(0).vector;
        let root = 0.5f64.sqrt();
        for (found, expected) in [
            (vector([2.0, 1.0, 1.0, 2.0]), [root, root]),
            (vector([1.0, -0.5, -0.5, 3.0]), [-0.22975292054736117, 0.9732489894677301]),
        ] {
            for (found, expected) in found.iter().zip(expected) {
                assert!((found - expected).abs() < 1e-12, "{found} is not {expected}");
            }
        }
    }
}
