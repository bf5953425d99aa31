//! Rows of numbers, and the one product that everything here is made of.

use gemm::Parallelism;

/// Features of images, or anything else with a row of `columns` numbers for each image.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {
    values: Vec<f32>,
    columns: usize,
}

impl Matrix {
    /// `values` row after row.
    ///
    /// # Panics
    /// If they do not make whole rows of `columns`, which must not be 0.
    pub fn new(values: Vec<f32>, columns: usize) -> Matrix {
        assert!(columns > 0 && values.len().is_multiple_of(columns), "a matrix has whole rows");
        Matrix { values, columns }
    }

    /// How many rows there are.
    pub fn rows(&self) -> usize {
        self.values.len() / self.columns
    }

    /// The length of each row.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// All numbers, row after row.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// One row.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.columns..(index + 1) * self.columns]
    }

    /// The rows at `indices`, in that order.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn select(&self, indices: &[usize]) -> Matrix {
        let values = indices.iter().flat_map(|index| self.row(*index)).copied().collect();
        Matrix { values, columns: self.columns }
    }

    /// Every row scaled to length 1. A row of zeros stays what it is.
    pub fn with_unit_rows(mut self) -> Matrix {
        for row in self.values.chunks_exact_mut(self.columns) {
            let square: f64 = row.iter().map(|value| f64::from(*value) * f64::from(*value)).sum();
            // PyTorch's bound in `normalize`.
            let scale = 1.0 / square.sqrt().max(1e-12);
            for value in row {
                *value = (f64::from(*value) * scale) as f32;
            }
        }
        self
    }

    pub(crate) fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }
}

/// How a factor's numbers lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lies {
    /// Row after row.
    ByRow,
    /// As the transpose of what lies row after row.
    Transposed,
}

/// `out = scale * out + a * b` on this thread, with `a: [m, depth]`, `b: [depth, n]` and `out: [m, n]`, which
/// lies row after row. `scale` 0 overwrites whatever was there.
pub(crate) fn multiply<T: Copy + PartialEq + From<f32> + 'static>(
    out: &mut [T],
    scale: T,
    (a, a_lies): (&[T], Lies),
    (b, b_lies): (&[T], Lies),
    [m, n, depth]: [usize; 3],
) {
    assert_eq!([out.len(), a.len(), b.len()], [m * n, m * depth, depth * n], "matrices have their shapes");
    let strides = |lies, rows: usize, columns: usize| match lies {
        Lies::ByRow => (1, columns as isize),
        Lies::Transposed => (rows as isize, 1),
    };
    let (a_column, a_row) = strides(a_lies, m, depth);
    let (b_column, b_row) = strides(b_lies, depth, n);
    let read_out = scale != T::from(0.0);
    // SAFETY: with the lengths asserted above, every index that the strides can give lies within its slice;
    // `out` is borrowed mutably and so overlaps neither factor. `gemm` takes f32 and f64, the only callers.
    unsafe {
        gemm::gemm(
            m,
            n,
            depth,
            out.as_mut_ptr(),
            1,
            n as isize,
            read_out,
            a.as_ptr(),
            a_column,
            a_row,
            b.as_ptr(),
            b_column,
            b_row,
            scale,
            T::from(1.0),
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Lies::{ByRow, Transposed};

    #[test]
    fn products_are_those_of_the_definition() {
        for (m, n, depth) in [(1, 1, 1), (2, 3, 4), (17, 5, 33), (64, 10, 3), (0, 3, 2)] {
            let numbers =
                |count: usize| -> Vec<f64> { (0..count).map(|i| ((i * 7) % 11) as f64 - 5.0).collect() };
            let (a, b) = (numbers(m * depth), numbers(depth * n));
            let at = |matrix: &[f64], lies, rows: usize, columns: usize, row: usize, column: usize| match lies
            {
                ByRow => matrix[row * columns + column],
                Transposed => matrix[column * rows + row],
            };
            for (a_lies, b_lies) in
                [(ByRow, ByRow), (ByRow, Transposed), (Transposed, ByRow), (Transposed, Transposed)]
            {
                for scale in [0.0, 2.0] {
                    let mut out = vec![if scale == 0.0 { f64::NAN } else { 3.0 }; m * n];
                    multiply(&mut out, scale, (&a, a_lies), (&b, b_lies), [m, n, depth]);
                    for (place, value) in out.iter().enumerate() {
                        let (row, column) = (place / n, place % n);
                        let product =
                            |k| at(&a, a_lies, m, depth, row, k) * at(&b, b_lies, depth, n, k, column);
                        let expected: f64 = (0..depth).map(product).sum::<f64>() + 3.0 * scale;
                        assert_eq!(*value, expected, "{m}x{n}x{depth} {a_lies:?} {b_lies:?} {scale}");
                    }
                }
            }
        }
    }

    #[test]
    fn rows_are_scaled_to_length_1() {
        let matrix = Matrix::new(vec![3.0, 4.0, 0.0, 0.0, -2e-20, 0.0], 2).with_unit_rows();
        assert_eq!(matrix.values(), [0.6, 0.8, 0.0, 0.0, -2e-8, 0.0]);
        assert_eq!(matrix.select(&[1, 0]).values(), [0.0, 0.0, 0.6, 0.8]);
    }
}
