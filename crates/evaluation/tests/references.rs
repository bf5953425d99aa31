//! The classifiers and the label-free figures beside scikit-learn's and NumPy's, from files that
//! `fixtures/make_references.py` wrote.

#![expect(clippy::unwrap_used, reason = "helpers of tests, where a panic is the answer")]

use std::path::Path;

use evaluation::{
    Answer, Matrix, Neighbours, Preparation, Probe, ProbeSettings, Quality, Scores, Votes, fit,
};
use safetensors::SafeTensors;
use serde_json::Value;

const CLASSES: usize = 10;

/// What both implementations find in f64 from the same f32 features; the fixtures are rounded to f32.
const WEIGHTS_TOLERANCE: f64 = 1e-4;

#[test]
fn neighbours_are_those_of_scikit_learn() {
    let (file, facts) = (File::open("classifiers.safetensors"), facts());
    let [bank, queries] = ["train.x", "test.x"].map(|name| file.matrix(name).with_unit_rows());
    let (labels, truth) = (file.bytes("train.y"), file.bytes("test.y"));
    for votes in Votes::USUAL {
        let k = votes.k;
        let neighbours = Neighbours::search(&bank, &queries, k, &mut |_| {});
        let index = file.shorts(&format!("knn.{k}.index"));
        for (query, expected) in index.chunks_exact(index.len() / queries.rows()).enumerate() {
            let found: Vec<u16> =
                neighbours.of(query).iter().map(|neighbour| neighbour.index as u16).collect();
            assert_eq!(&found[..expected.len()], expected, "query {query}");
        }

        let answers = neighbours.answers(&votes, &labels, &truth, CLASSES);
        let (classes, ranks) = (file.bytes(&format!("knn.{k}.class")), file.bytes(&format!("knn.{k}.rank")));
        let expected: Vec<Answer> =
            classes.iter().zip(&ranks).map(|(class, rank)| Answer { class: *class, rank: *rank }).collect();
        assert_eq!(answers, expected, "k {k}");

        let scores = Scores::new(&answers, &truth, &names());
        let expected = &facts[format!("knn.{k}")];
        assert_eq!(scores.top1.correct, expected["correct"].as_u64().unwrap());
        assert_eq!(scores.top5.unwrap().correct, expected["top5"].as_u64().unwrap());
        assert_eq!(serde_json::to_value(&scores.confusion).unwrap(), expected["confusion"]);
        near(scores.top1.low_95, &expected["interval"][0], 1e-12);
        near(scores.top1.high_95, &expected["interval"][1], 1e-12);
    }
}

#[test]
fn the_probe_is_scikit_learns_logistic_regression() {
    let (file, facts) = (File::open("classifiers.safetensors"), facts());
    let [train, test] = ["train.x", "test.x"].map(|name| file.matrix(name));
    let (labels, truth) = (file.bytes("train.y"), file.bytes("test.y"));
    for (name, expected) in facts.as_object().unwrap() {
        let (Some(l2), Some(_)) = (expected["l2"].as_f64(), name.strip_prefix("linear.")) else { continue };
        let preparation: Preparation = serde_json::from_value(expected["preparation"].clone()).unwrap();
        let settings = ProbeSettings {
            preparation,
            l2_grid: vec![l2],
            gradient_tolerance: 1e-9,
            ..ProbeSettings::default()
        };
        let (probe, fit) = fit(&settings, name, &train, &labels, CLASSES, &mut |_| {}).unwrap();
        assert!(fit.converged, "{name}: {fit:?}");
        near(fit.objective, &expected["objective"], 1e-7);
        compare(name, &probe, &file);
        let classes: Vec<u8> = probe.answers(&test, &truth).iter().map(|answer| answer.class).collect();
        assert_eq!(classes, file.bytes(&format!("{name}.class")), "{name}");
    }
}

/// Relative to the largest weight.
fn compare(name: &str, probe: &Probe, file: &File) {
    let classifier = probe.classifier();
    let expected = [file.floats(&format!("{name}.weights")), file.floats(&format!("{name}.biases"))];
    let largest = expected[0].iter().fold(0.0f32, |largest, weight| largest.max(weight.abs()));
    for (found, expected) in [classifier.weights(), classifier.biases()].into_iter().zip(&expected) {
        for (found, expected) in found.iter().zip(expected) {
            let difference = (found - f64::from(*expected)).abs() / f64::from(largest);
            assert!(difference < WEIGHTS_TOLERANCE, "{name}: {found} is not {expected}");
        }
    }
}

#[test]
fn the_label_free_figures_are_numpys() {
    let (features, facts) = (File::open("classifiers.safetensors").matrix("train.x"), facts());
    let every_second =
        |first: usize| features.select(&(first..features.rows()).step_by(2).collect::<Vec<_>>());
    let quality = Quality::of(&features, [every_second(0), every_second(1)]);
    let expected = &facts["quality"];
    near(quality.effective_rank, &expected["effective_rank"], 1e-6);
    near(quality.alignment, &expected["alignment"], 1e-6);
    near(quality.uniformity, &expected["uniformity"], 1e-6);
    near(quality.spread, &expected["spread"], 1e-6);
}

fn near(found: f64, expected: &Value, tolerance: f64) {
    let expected = expected.as_f64().unwrap();
    assert!((found - expected).abs() < tolerance, "{found} is not {expected}");
}

fn names() -> Vec<String> {
    (0..CLASSES).map(|class| format!("class {class}")).collect()
}

fn read(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)).unwrap()
}

fn facts() -> Value {
    serde_json::from_slice(&read("classifiers.json")).unwrap()
}

/// A fixture's tensors.
struct File(Vec<u8>);

impl File {
    fn open(name: &str) -> File {
        File(read(name))
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        SafeTensors::deserialize(&self.0).unwrap().tensor(name).unwrap().data().to_vec()
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        self.bytes(name).as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    }

    fn shorts(&self, name: &str) -> Vec<u16> {
        self.bytes(name).as_chunks::<2>().0.iter().map(|bytes| u16::from_le_bytes(*bytes)).collect()
    }

    fn matrix(&self, name: &str) -> Matrix {
        let columns = SafeTensors::deserialize(&self.0).unwrap().tensor(name).unwrap().shape()[1];
        Matrix::new(self.floats(name), columns)
    }
}
