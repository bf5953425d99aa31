//! STL-10's ten predefined folds: a classifier learns from 1,000 images of each, and the ten accuracies on the
//! whole test part are averaged (Coates, Ng and Lee 2011).

use std::fs;
use std::io;
use std::path::Path;

use dataset::STL10_ADVICE;

use crate::error::EvaluationError;

const FILE: &str = "fold_indices.txt";

/// The folds, each as rows of the training part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Folds {
    pub(crate) rows: Vec<Vec<usize>>,
    /// Of the file, in hexadecimal.
    pub(crate) blake3: String,
}

impl Folds {
    /// Reads the folds of a training part of `images` images: one line each, of numbers that count from 0.
    ///
    /// # Errors
    /// A file that is missing, or holds no folds of these images.
    pub(crate) fn read(folder: &Path, images: usize) -> Result<Folds, EvaluationError> {
        let path = folder.join(FILE);
        let refuse =
            |expected: &str, found: String| EvaluationError::content(&path, expected, found, STL10_ADVICE);
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(refuse("STL-10's folds", "no such file".to_owned()));
            }
            other => other.map_err(EvaluationError::io("read", &path))?,
        };
        let mut rows = Vec::new();
        for (number, line) in text.lines().filter(|line| !line.trim().is_empty()).enumerate() {
            let row = |word: &str| match word.parse() {
                Ok(row) if row < images => Ok(row),
                _ => Err(refuse(
                    &format!("numbers below the {images} images of the training part"),
                    format!("{word:?} in line {}", number + 1),
                )),
            };
            rows.push(line.split_whitespace().map(row).collect::<Result<Vec<usize>, _>>()?);
        }
        if rows.len() < 2 {
            return Err(refuse("at least 2 lines, one for each fold", rows.len().to_string()));
        }
        Ok(Folds { rows, blake3: blake3::hash(text.as_bytes()).to_string() })
    }
}

/// Mean and standard deviation (of a sample: over `n - 1`) of two or more values.
pub(crate) fn mean_and_std(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1.0);
    (mean, variance.sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folds_are_lines_of_rows() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(FILE), "0 2 4 \n1 3 5 \n\n").unwrap();
        let folds = Folds::read(folder.path(), 6).unwrap();
        assert_eq!(folds.rows, [[0, 2, 4], [1, 3, 5]]);
    }

    #[test]
    fn what_is_no_fold_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        for (content, phrase) in [
            (None, "found no such file"),
            (Some("0 1\n2 6\n"), "below the 6 images of the training part, found \"6\" in line 2"),
            (Some("0 -1\n2 3\n"), "\"-1\" in line 1"),
            (Some("0 1 2"), "at least 2 lines, one for each fold, found 1"),
            (Some(""), "found 0"),
        ] {
            if let Some(content) = content {
                fs::write(folder.path().join(FILE), content).unwrap();
            }
            let error = Folds::read(folder.path(), 6).unwrap_err().to_string();
            assert!(error.contains(FILE) && error.contains(phrase), "{error:?} lacks {phrase:?}");
        }
    }

    #[test]
    fn spread_is_that_of_a_sample() {
        assert_eq!(mean_and_std(&[1.0, 2.0, 3.0]), (2.0, 1.0));
        assert_eq!(mean_and_std(&[0.5, 0.5]), (0.5, 0.0));
    }
}
