//! The k-nearest-neighbour classifier of Wu et al. 2018 (arXiv 1805.01978): the labels of the `k` training
//! images that are nearest by cosine vote, each with the weight `exp(similarity / temperature)`.
//!
//! The search is exact. It multiplies a block of queries with a block of the bank at a time, so that memory
//! does not grow with their product, and gives the same neighbours with any number of threads.

use std::cmp::Ordering;
use std::path::Path;

use dataset::{Images, Split};
use rayon::prelude::*;
use recipe::{Recipe, Votes};

use crate::error::EvaluationError;
use crate::matrix::{Lies, Matrix, multiply};
use crate::scores::Answer;

/// Refuses votes that cannot be taken among `bank` labelled images.
pub(crate) fn check(votes: &Votes, bank: usize, name: &str) -> Result<(), EvaluationError> {
    if votes.k == 0 {
        let (expected, found) = ("at least 1".into(), "0".into());
        return Err(EvaluationError::Setting { name: "k", expected, found });
    }
    if !(votes.temperature.is_finite() && votes.temperature > 0.0) {
        let (expected, found) = ("a number above 0".into(), votes.temperature.to_string());
        return Err(EvaluationError::Setting { name: "temperature", expected, found });
    }
    if votes.k > bank {
        let expected = format!("at least k = {} labelled images to choose neighbours from", votes.k);
        let advice = "give a smaller k, or more images";
        return Err(EvaluationError::images(name, expected, bank.to_string(), advice));
    }
    Ok(())
}

/// Refuses votes that a run's evaluations cannot take, before it begins. Labelled images that cannot be opened are left for
/// the evaluations to complain of, which cost a run nothing.
///
/// # Errors
/// Fewer labelled images than neighbours, settings out of range.
pub fn check_votes(recipe: &Recipe, cache_dir: &Path) -> Result<(), EvaluationError> {
    let Ok(bank) = Images::open_split(recipe.labelled_data(), Split::Train, cache_dir) else { return Ok(()) };
    let name = format!("{} (train)", bank.name());
    recipe.evaluation.knn.iter().try_for_each(|votes| check(votes, bank.len() as usize, &name))
}

/// One image of the bank, seen from a query.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Neighbour {
    /// Cosine of the angle between their features.
    pub similarity: f32,
    /// Its row in the bank.
    pub index: u32,
}

/// The `k` nearest images of the bank for each query.
#[derive(Debug, Clone, PartialEq)]
pub struct Neighbours {
    k: usize,
    all: Vec<Neighbour>,
}

/// Queries and bank rows in one product: the similarities, 2 MiB, stay in a core's cache.
const QUERY_BLOCK: usize = 256;
const BANK_BLOCK: usize = 2048;

/// Queries between two reports of progress: enough blocks for the cores of a large machine.
const QUERIES_AT_ONCE: usize = 64 * QUERY_BLOCK;

/// Similarities that are compared with the threshold together, which lets the compiler use wide registers.
const LANES: usize = 32;

impl Neighbours {
    /// Searches `bank` for the `k` rows nearest to each row of `queries`, both with rows of length 1. Of
    /// equally near ones the first is taken. `progress` is told the queries done.
    ///
    /// # Panics
    /// If `k` is 0 or greater than the bank, which must have fewer than 2^32 rows, or the columns differ.
    pub fn search(bank: &Matrix, queries: &Matrix, k: usize, progress: &mut dyn FnMut(usize)) -> Neighbours {
        assert!((1..=bank.rows()).contains(&k) && u32::try_from(bank.rows()).is_ok(), "k of the bank");
        assert_eq!(bank.columns(), queries.columns(), "features of one length");
        let mut all = Vec::with_capacity(queries.rows() * k);
        for queries in queries.values().chunks(QUERIES_AT_ONCE * queries.columns()) {
            let blocks = queries.par_chunks(QUERY_BLOCK * bank.columns());
            let found: Vec<Vec<Neighbour>> = blocks.map(|block| search_block(bank, block, k)).collect();
            all.extend(found.into_iter().flatten());
            progress(all.len() / k);
        }
        Neighbours { k, all }
    }

    /// The neighbours of one query, the nearest first.
    ///
    /// # Panics
    /// If there is no such query.
    pub fn of(&self, query: usize) -> &[Neighbour] {
        &self.all[query * self.k..(query + 1) * self.k]
    }

    /// The class that the neighbours of each query vote for, `labels` being the bank's and `truth` the queries'.
    ///
    /// # Panics
    /// If fewer than `votes.k` neighbours were searched for, or labels do not go with bank and queries.
    pub fn answers(&self, votes: &Votes, labels: &[u8], truth: &[u8], classes: usize) -> Vec<Answer> {
        assert!(votes.k <= self.k, "as many neighbours as vote");
        let answer = |(neighbours, label): (&[Neighbour], &u8)| {
            let nearest = f64::from(neighbours[0].similarity);
            let mut scores = vec![0.0; classes];
            for neighbour in &neighbours[..votes.k] {
                // All weights are divided by the greatest, which keeps the order and every power finite.
                let weight = ((f64::from(neighbour.similarity) - nearest) / votes.temperature).exp();
                scores[usize::from(labels[neighbour.index as usize])] += weight;
            }
            Answer::from_scores(&scores, *label)
        };
        self.all.par_chunks_exact(self.k).zip_eq(truth).map(answer).collect()
    }
}

fn search_block(bank: &Matrix, queries: &[f32], k: usize) -> Vec<Neighbour> {
    let depth = bank.columns();
    let rows = queries.len() / depth;
    let mut nearest = vec![Nearest::new(k); rows];
    let mut similarities = vec![0.0; rows * BANK_BLOCK.min(bank.rows())];
    for (number, block) in bank.values().chunks(BANK_BLOCK * depth).enumerate() {
        let columns = block.len() / depth;
        let similarities = &mut similarities[..rows * columns];
        let shape = [rows, columns, depth];
        multiply(similarities, 0.0, (queries, Lies::ByRow), (block, Lies::Transposed), shape);
        for (nearest, similarities) in nearest.iter_mut().zip(similarities.chunks_exact(columns)) {
            nearest.offer(similarities, number * BANK_BLOCK);
        }
    }
    nearest.into_iter().flat_map(Nearest::into_sorted).collect()
}

/// The `k` nearest so far. Candidates are collected up to twice that many and then cut to the best half, so
/// that each costs a constant time.
#[derive(Debug, Clone)]
struct Nearest {
    k: usize,
    candidates: Vec<Neighbour>,
    /// Nobody below or at this similarity gets in any more.
    threshold: f32,
}

impl Nearest {
    fn new(k: usize) -> Nearest {
        Nearest { k, candidates: Vec::with_capacity(2 * k), threshold: f32::NEG_INFINITY }
    }

    /// Considers the bank's rows from `first` on, which must come in their order.
    fn offer(&mut self, similarities: &[f32], first: usize) {
        for (chunk, values) in similarities.chunks(LANES).enumerate() {
            let above = values.iter().fold(false, |above, value| above | (*value > self.threshold));
            if above {
                for (lane, &similarity) in values.iter().enumerate() {
                    let index = (first + chunk * LANES + lane) as u32;
                    self.consider(Neighbour { similarity, index });
                }
            }
        }
    }

    fn consider(&mut self, neighbour: Neighbour) {
        // One that is as near as the threshold comes after those already there, and so after them in order.
        if neighbour.similarity > self.threshold {
            self.candidates.push(neighbour);
            if self.candidates.len() == 2 * self.k {
                self.candidates.select_nth_unstable_by(self.k - 1, nearer);
                self.candidates.truncate(self.k);
                self.threshold = self.candidates[self.k - 1].similarity;
            }
        }
    }

    fn into_sorted(mut self) -> Vec<Neighbour> {
        self.candidates.sort_unstable_by(nearer);
        self.candidates.truncate(self.k);
        self.candidates
    }
}

/// The order of neighbours: the nearest first, of equally near ones the one with the lower number.
fn nearer(a: &Neighbour, b: &Neighbour) -> Ordering {
    b.similarity.total_cmp(&a.similarity).then(a.index.cmp(&b.index))
}

#[cfg(test)]
mod tests {
    use super::*;
    use recipe::{Draws, Purpose};

    fn drawn(rows: usize, columns: usize, seed: u64) -> Matrix {
        let mut draws = Draws::new(seed, Purpose::Synthetic, 0, 0, 0);
        Matrix::new((0..rows * columns).map(|_| draws.normal()).collect(), columns).with_unit_rows()
    }

    fn search(bank: &Matrix, queries: &Matrix, k: usize) -> Neighbours {
        Neighbours::search(bank, queries, k, &mut |_| {})
    }

    /// By sorting all of the bank, with sums in f64.
    fn nearest_by_definition(bank: &Matrix, query: &[f32], k: usize) -> Vec<(f64, u32)> {
        let cosine =
            |row: &[f32]| row.iter().zip(query).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        let mut all: Vec<(f64, u32)> =
            (0..bank.rows()).map(|row| (cosine(bank.row(row)), row as u32)).collect();
        all.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        all.truncate(k);
        all
    }

    #[test]
    fn the_search_is_exact_at_every_size() {
        for (bank, queries, columns, k) in
            [(1, 1, 1, 1), (7, 3, 5, 7), (300, 300, 16, 20), (BANK_BLOCK + 100, 5, 8, 200), (5000, 2, 3, 1)]
        {
            let (bank, queries) = (drawn(bank, columns, 1), drawn(queries, columns, 2));
            let found = search(&bank, &queries, k);
            for query in 0..queries.rows() {
                let expected = nearest_by_definition(&bank, queries.row(query), k);
                for (neighbour, (similarity, index)) in found.of(query).iter().zip(expected) {
                    let difference = (f64::from(neighbour.similarity) - similarity).abs();
                    // In f32 two neighbours within rounding may change places.
                    assert!(difference < 1e-6, "{neighbour:?} {similarity} {index}");
                }
            }
        }
    }

    #[test]
    fn of_equals_the_first_is_taken() {
        let bank = Matrix::new([[1.0, 0.0], [0.0, 1.0]].concat().repeat(1500), 2);
        let found = search(&bank, &Matrix::new(vec![0.0, 1.0], 2), 3);
        let indices: Vec<u32> = found.of(0).iter().map(|neighbour| neighbour.index).collect();
        assert_eq!(indices, [1, 3, 5]);
    }

    #[test]
    fn the_number_of_threads_changes_nothing() {
        let (bank, queries) = (drawn(3000, 12, 3), drawn(700, 12, 4));
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| search(&bank, &queries, 10))
        };
        assert_eq!(with(1), with(3));
    }

    #[test]
    fn nearer_neighbours_outvote_more_but_farther_ones_when_it_is_cold() {
        let neighbours = [(0.9, 0), (0.5, 1), (0.5, 2)]
            .map(|(similarity, index)| Neighbour { similarity, index })
            .to_vec();
        let neighbours = Neighbours { k: 3, all: neighbours };
        let labels = [0, 1, 1];
        for (k, temperature, class) in [(3, 0.07, 0), (3, 1e-9, 0), (3, 10.0, 1), (1, 10.0, 0)] {
            let answers = neighbours.answers(&Votes { k, temperature }, &labels, &[0], 2);
            assert_eq!(answers[0].class, class, "k {k} temperature {temperature}");
        }
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        for (k, temperature, bank, phrase) in [
            (200, 0.1, 199, "at least k = 200"),
            (0, 0.1, 5, "expected at least 1"),
            (1, 0.0, 5, "temperature"),
            (1, f64::NAN, 5, "NaN"),
            (1, f64::INFINITY, 5, "inf"),
        ] {
            let error = check(&Votes { k, temperature }, bank, "set").unwrap_err().to_string();
            assert!(error.contains(phrase), "{error:?} lacks {phrase:?}");
        }
        check(&Votes { k: 5, temperature: 0.1 }, 5, "set").unwrap();
    }
}
