//! Features as points of a plane: by their principal components, and by t-SNE.

use bhtsne::tSNE;

use crate::eigenvectors::leading_eigenpairs;
use crate::error::EvaluationError;
use crate::knn::Neighbours;
use crate::matrix::{Lies, Matrix, multiply};

/// A point of a map.
pub(super) type Point = [f32; 2];

/// Where each row of features lies.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Map {
    pub(super) points: Vec<Point>,
}

/// A map by principal components.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Components {
    pub(super) map: Map,
    /// How much of the features' variance each axis shows.
    pub(super) shares: [f64; 2],
}

/// How many neighbours count for a point, as van der Maaten and Hinton 2008 and scikit-learn have it.
const PERPLEXITY: f32 = 30.0;

/// Neighbours farther than these have no weight left at that perplexity (van der Maaten 2014).
const NEIGHBOURS_OF_PERPLEXITY: f32 = 3.0;

/// What Barnes and Hut's approximation may see of far points as one; 0.5 is the usual value.
const THETA: f32 = 0.5;

/// The spread from which t-SNE starts, as openTSNE and scikit-learn have it: small enough to move freely.
const INITIAL_STD: f64 = 1e-4;

/// Fewer points make no map.
pub(super) const LEAST_POINTS: usize = 8;

/// The first two principal components of `features`: the directions of their greatest variance.
pub(super) fn principal_components(features: &Matrix) -> Components {
    let (rows, columns) = (features.rows(), features.columns());
    let mut centred: Vec<f64> = features.values().iter().map(|value| f64::from(*value)).collect();
    for column in 0..columns {
        let places = || (0..rows).map(|row| row * columns + column);
        let mean = places().map(|place| centred[place]).sum::<f64>() / rows as f64;
        places().for_each(|place| centred[place] -= mean);
    }
    let mut covariance = vec![0.0; columns * columns];
    let (left, right) = ((&centred[..], Lies::Transposed), (&centred[..], Lies::ByRow));
    multiply(&mut covariance, 0.0, left, right, [columns, columns, rows]);
    let variance: f64 = (0..columns).map(|column| covariance[column * (columns + 1)]).sum();

    let (mut points, mut shares) = (vec![[0.0; 2]; rows], [0.0; 2]);
    for (axis, pair) in leading_eigenpairs(covariance, columns, 2).into_iter().enumerate() {
        shares[axis] = (pair.value / variance.max(f64::MIN_POSITIVE)).max(0.0);
        for (point, row) in points.iter_mut().zip(centred.chunks_exact(columns)) {
            point[axis] = row.iter().zip(&pair.vector).map(|(x, v)| x * v).sum::<f64>() as f32;
        }
    }
    Components { map: Map { points }, shares }
}

/// t-SNE of the directions of `features`, begun at their principal components, so that the same features give
/// the same map; neighbours are those of kNN.
///
/// It runs on one thread, where sums have one order: 2,000 points take some two seconds.
///
/// # Errors
/// Fewer than [`LEAST_POINTS`] rows.
pub(super) fn neighbourhoods(features: &Matrix, start: &Map) -> Result<Map, EvaluationError> {
    let rows = features.rows();
    if rows < LEAST_POINTS {
        let expected = format!("at least {LEAST_POINTS} images to make a map of");
        return Err(EvaluationError::images("map", expected, rows.to_string(), "evaluate on more images"));
    }
    if start.points.iter().all(|point| *point == start.points[0]) {
        // All images look the same to the network: there are no neighbourhoods to keep.
        return Ok(start.clone());
    }
    let perplexity = PERPLEXITY.min((rows - 1) as f32 / NEIGHBOURS_OF_PERPLEXITY);
    let neighbours = neighbours_of_each(features, (NEIGHBOURS_OF_PERPLEXITY * perplexity) as usize);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
    let fit = || {
        let samples = vec![(); rows];
        let mut tsne: tSNE<f32, (), 2> = tSNE::new(&samples);
        tsne.perplexity(perplexity).initial_embedding(scaled(start));
        tsne.barnes_hut_with_neighbors(THETA, &neighbours).embedding()
    };
    let embedding = match pool {
        Ok(pool) => pool.install(fit),
        Err(error) => {
            tracing::warn!("the map may differ from the next one's: {error}");
            fit()
        }
    };
    let (points, _) = embedding.as_chunks();
    Ok(Map { points: points.to_vec() })
}

/// The `k` nearest other rows of each row, by the distance of their directions.
fn neighbours_of_each(features: &Matrix, k: usize) -> Vec<Vec<bhtsne::Neighbor<f32>>> {
    let unit = features.clone().with_unit_rows();
    // One more, because each row is near to itself.
    let found = Neighbours::search(&unit, &unit, k + 1, &mut |_| {});
    let others = |row: usize| {
        let others = found.of(row).iter().filter(move |neighbour| neighbour.index as usize != row);
        let distance = |similarity: f32| (2.0 - 2.0 * similarity).max(0.0).sqrt();
        others
            .take(k)
            .map(|neighbour| bhtsne::Neighbor {
                index: neighbour.index as usize,
                distance: distance(neighbour.similarity),
            })
            .collect()
    };
    (0..unit.rows()).map(others).collect()
}

/// The map with the first axis at the spread from which t-SNE starts.
fn scaled(map: &Map) -> Vec<f32> {
    let square: f64 = map.points.iter().map(|[x, _]| f64::from(*x).powi(2)).sum();
    let std = (square / map.points.len() as f64).sqrt().max(f64::MIN_POSITIVE.sqrt());
    map.points.iter().flatten().map(|x| (f64::from(*x) * INITIAL_STD / std) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::SafeTensors;
    use serde_json::Value;
    use std::fs;
    use std::path::{Path, PathBuf};

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
    }

    fn features() -> Matrix {
        let bytes = fs::read(fixture("classifiers.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let tensor = tensors.tensor("train.x").unwrap();
        let values =
            tensor.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        Matrix::new(values, tensor.shape()[1])
    }

    fn facts() -> Value {
        serde_json::from_slice(&fs::read(fixture("map.json")).unwrap()).unwrap()
    }

    /// How far neighbours on the map are neighbours among the features (Venna and Kaski 2001), by cosine, as
    /// `sklearn.manifold.trustworthiness` computes it.
    fn trustworthiness(features: &Matrix, map: &Map, k: usize) -> f64 {
        let unit = features.clone().with_unit_rows();
        let n = unit.rows();
        let ordered = |row: usize, distance: &dyn Fn(usize) -> f64| {
            let mut others: Vec<usize> = (0..n).filter(|other| *other != row).collect();
            others.sort_by(|a, b| distance(*a).total_cmp(&distance(*b)));
            others
        };
        let mut penalty = 0.0;
        for row in 0..n {
            let product = |other: usize| -> f64 {
                unit.row(row).iter().zip(unit.row(other)).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
            };
            let far = |other: usize| {
                let ([x, y], [other_x, other_y]) = (map.points[row], map.points[other]);
                f64::from(x - other_x).hypot(f64::from(y - other_y))
            };
            let among_features = ordered(row, &|other| -product(other));
            for neighbour in &ordered(row, &far)[..k] {
                let rank = among_features.iter().position(|other| other == neighbour).unwrap() + 1;
                penalty += rank.saturating_sub(k) as f64;
            }
        }
        1.0 - penalty * 2.0 / (n as f64 * k as f64 * (2.0 * n as f64 - 3.0 * k as f64 - 1.0))
    }

    #[test]
    fn the_principal_components_are_scikit_learns() {
        let (found, facts) = (principal_components(&features()), facts());
        for axis in 0..2 {
            let expected = facts["pca"]["shares"][axis].as_f64().unwrap();
            assert!((found.shares[axis] - expected).abs() < 1e-9, "{:?}", found.shares);
        }
        let expected = facts["pca"]["points"].as_array().unwrap();
        let scale = found.map.points.iter().flatten().fold(0.0f32, |scale, x| scale.max(x.abs()));
        for (point, expected) in found.map.points.iter().zip(expected) {
            for (axis, x) in point.iter().enumerate() {
                let expected = expected[axis].as_f64().unwrap();
                assert!((f64::from(*x) - expected).abs() < 1e-4 * f64::from(scale), "{x} is not {expected}");
            }
        }
        // The measure itself.
        let k = facts["k"].as_u64().unwrap() as usize;
        let measured = trustworthiness(&features(), &found.map, k);
        let expected = facts["pca"]["trustworthiness"].as_f64().unwrap();
        assert!((measured - expected).abs() < 1e-4, "{measured} is not {expected}");
    }

    #[test]
    fn the_map_keeps_neighbourhoods_as_well_as_scikit_learns_does() {
        let (features, facts) = (features(), facts());
        let start = principal_components(&features).map;
        let map = neighbourhoods(&features, &start).unwrap();
        let k = facts["k"].as_u64().unwrap() as usize;
        let (found, expected) =
            (trustworthiness(&features, &map, k), facts["tsne"]["trustworthiness"].as_f64().unwrap());
        assert!(found > expected - 0.01, "{found} is less than {expected}");
        assert_eq!(neighbourhoods(&features, &start).unwrap(), map, "the same again");
    }

    #[test]
    fn few_and_equal_points_are_no_trouble() {
        let same = Matrix::new([1.0, 2.0, 3.0].repeat(40), 3);
        let components = principal_components(&same);
        assert_eq!(components.shares, [0.0, 0.0]);
        let twice: Vec<usize> = (0..40).map(|row| row / 2 * 2).collect();
        let (few, zeros) = (features().select(&[0, 1, 2, 3, 4, 5, 6, 7]), Matrix::new(vec![0.0; 40], 1));
        for features in [&same, &zeros, &few, &features().select(&twice)] {
            let start = principal_components(features).map;
            let map = neighbourhoods(features, &start).unwrap();
            assert!(map.points.iter().flatten().all(|x| x.is_finite()), "{map:?}");
        }
        let few = Matrix::new(vec![1.0; 7], 1);
        let error = neighbourhoods(&few, &principal_components(&few).map).unwrap_err().to_string();
        assert!(error.contains("at least 8 images") && error.contains("found 7"), "{error}");
    }
}
