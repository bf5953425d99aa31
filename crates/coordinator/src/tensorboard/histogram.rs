//! How the weights of a checkpoint are spread.

use std::io;
use std::path::Path;

use safetensors::{Dtype, SafeTensorError, SafeTensors};

/// Enough for a shape, and little beside the weights themselves.
const BUCKETS: usize = 40;

/// Numbers, counted in buckets of equal width from the least to the greatest.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Histogram {
    pub(super) least: f64,
    pub(super) greatest: f64,
    pub(super) sum: f64,
    pub(super) square_sum: f64,
    /// Where each bucket ends.
    pub(super) limits: Vec<f64>,
    pub(super) counts: Vec<f64>,
}

impl Histogram {
    /// Of all numbers; what is none is left out.
    fn of(values: impl Iterator<Item = f32> + Clone) -> Histogram {
        let values = values.map(f64::from).filter(|value| value.is_finite());
        let (mut least, mut greatest) = (f64::INFINITY, f64::NEG_INFINITY);
        let (mut sum, mut square_sum) = (0.0, 0.0);
        for value in values.clone() {
            (least, greatest) = (least.min(value), greatest.max(value));
            (sum, square_sum) = (sum + value, square_sum + value * value);
        }
        if least > greatest {
            return Histogram::default();
        }
        let width = (greatest - least) / BUCKETS as f64;
        let mut counts = vec![0.0; BUCKETS];
        for value in values {
            // Where all are equal the width is 0, and so is the place.
            counts[(((value - least) / width) as usize).min(BUCKETS - 1)] += 1.0;
        }
        let limits = (1..=BUCKETS).map(|bucket| least + width * bucket as f64).collect();
        Histogram { least, greatest, sum, square_sum, limits, counts }
    }
}

/// The weights of convolutions and linear layers in a file of a checkpoint, by their names.
///
/// # Errors
/// A file that cannot be read, or is none of safetensors.
pub(crate) fn of_weights(path: &Path) -> io::Result<Vec<(String, Histogram)>> {
    let bytes = std::fs::read(path)?;
    let damaged = |error: SafeTensorError| io::Error::new(io::ErrorKind::InvalidData, error);
    let file = SafeTensors::deserialize(&bytes).map_err(damaged)?;
    let matrices = file.iter().filter(|(_, tensor)| tensor.shape().len() > 1 && tensor.dtype() == Dtype::F32);
    let histogram = |(name, tensor): (&str, safetensors::tensor::TensorView)| {
        let (numbers, _) = tensor.data().as_chunks::<4>();
        (name.to_owned(), Histogram::of(numbers.iter().map(|bytes| f32::from_le_bytes(*bytes))))
    };
    let mut histograms: Vec<_> = matrices.map(histogram).collect();
    histograms.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(histograms)
}

#[cfg(test)]
mod tests {
    use safetensors::tensor::TensorView;

    use super::*;

    #[test]
    fn every_number_is_in_the_bucket_it_belongs_to() {
        let values = (0..=400).map(|number| number as f32 / 100.0 - 2.0);
        let found = Histogram::of(values.chain([f32::NAN, f32::INFINITY]));
        assert_eq!((found.least, found.greatest), (-2.0, 2.0));
        assert_eq!(found.counts.iter().sum::<f64>(), 401.0);
        assert!(found.counts.iter().all(|count| (9.0..=11.0).contains(count)), "{:?}", found.counts);
        assert_eq!((found.limits.len(), found.limits[BUCKETS - 1]), (BUCKETS, 2.0));
        let equal = Histogram::of([0.5f32; 3].into_iter());
        assert_eq!((equal.counts[0], equal.sum, equal.square_sum), (3.0, 1.5, 0.75));
        assert_eq!(Histogram::of([f32::NAN].into_iter()), Histogram::default());
    }

    #[test]
    fn weights_are_those_of_layers_and_not_of_batch_norm() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let bytes: Vec<u8> = [1.0f32, 2.0, 3.0, 4.0].iter().flat_map(|value| value.to_le_bytes()).collect();
        let tensor = |shape: &[usize]| TensorView::new(Dtype::F32, shape.to_vec(), &bytes).unwrap();
        let tensors =
            [("fc.1.weight", tensor(&[4])), ("fc.0.weight", tensor(&[2, 2])), ("a", tensor(&[4, 1]))];
        std::fs::write(&path, safetensors::serialize(tensors, None).unwrap()).unwrap();
        let found = of_weights(&path).unwrap();
        let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!((names, found[0].1.sum), (vec!["a", "fc.0.weight"], 10.0));
        std::fs::write(&path, b"no").unwrap();
        assert_eq!(of_weights(&path).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
