//! Long curves made short enough for a page.

/// A place on a curve: the mean of what was there, and its extremes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in super::super) struct Sample {
    pub(in super::super) x: f64,
    pub(in super::super) y: f64,
    pub(in super::super) low: f64,
    pub(in super::super) high: f64,
}

/// More than a screen has columns of pixels for a chart would only make the page large.
const MOST_SAMPLES: usize = 400;

/// The points themselves, or if there are too many the mean and extremes of equally many that follow each
/// other.
pub(in super::super) fn thin(points: &[(f64, f64)]) -> Vec<Sample> {
    let together = points.len().div_ceil(MOST_SAMPLES).max(1);
    let sample = |points: &[(f64, f64)]| {
        let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / points.len() as f64;
        let values = || points.iter().map(|(_, y)| *y);
        Sample {
            x: mean(|(x, _)| *x),
            y: mean(|(_, y)| *y),
            low: values().fold(f64::INFINITY, f64::min),
            high: values().fold(f64::NEG_INFINITY, f64::max),
        }
    };
    points.chunks(together).map(sample).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_curves_stay_and_long_ones_keep_their_extremes() {
        let short: Vec<(f64, f64)> = (0..400).map(|x| (f64::from(x), 1.0)).collect();
        assert_eq!(thin(&short).len(), 400);
        assert_eq!(thin(&short)[3], Sample { x: 3.0, y: 1.0, low: 1.0, high: 1.0 });
        let mut long: Vec<(f64, f64)> = (0..100_001).map(|x| (f64::from(x), 0.0)).collect();
        long[50_000].1 = 9.0;
        let thinned = thin(&long);
        assert!(thinned.len() <= 400);
        assert!(thinned.iter().any(|sample| sample.high == 9.0 && sample.y < 1.0));
        assert!(thinned.is_sorted_by(|a, b| a.x < b.x));
        assert_eq!(thin(&[]), []);
    }
}
