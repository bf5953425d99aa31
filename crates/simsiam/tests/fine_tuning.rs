//! Fine-tuning beside PyTorch's, from a file that `fixtures/make_fine_tuning.py` wrote in f64, and what its
//! steps promise beyond their numbers.

#![expect(clippy::unwrap_used, reason = "helpers of tests, where a panic is the answer")]

use std::path::Path;

use recipe::{Draws, Model, Purpose, Recipe};
use safetensors::SafeTensors;
use simsiam::{Device, Entry, FineTuner, Layout, State, TuningRates};

/// Relative to the tensor's norm; f32 itself is good for about 2e-5 on this network.
const TOLERANCE: f64 = 1e-4;

const RATES: [TuningRates; 2] =
    [TuningRates { backbone: 0.02, classifier: 0.2 }, TuningRates { backbone: 0.01, classifier: 0.1 }];

const SIDE_PX: usize = 16;

fn model() -> Model {
    let set = ["model.width=4", "model.stem=small", "model.projector_dim=16", "model.predictor_dim=8"];
    Recipe::from_toml(recipe::QUICKSTART, &set.map(String::from)).unwrap().model
}

fn tuner(classes: usize) -> FineTuner {
    FineTuner::new(&model(), classes, 0.9, 1e-3, &Device::flex())
}

#[test]
fn two_steps_are_pytorchs() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/fine-tuning.safetensors");
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let values = |name: &str| -> Vec<f32> {
        let tensor = file.tensor(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        tensor.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    };
    let all = |prefix: &str, entries: &[Entry]| -> Vec<f32> {
        entries.iter().flat_map(|entry| values(&format!("{prefix}.{}", entry.name))).collect()
    };
    let tuner = tuner(3);
    let Layout { parameters, statistics } = tuner.layout();
    let mut state = State {
        weights: all("before", parameters).into(),
        statistics: all("before", statistics),
        ..State::initial(tuner.layout(), 0)
    };

    let labels = file.tensor("input.labels").unwrap().data();
    for (rates, expected) in RATES.into_iter().zip(values("loss")) {
        let loss = tuner.step(&mut state, values("input.x"), SIDE_PX, labels, rates).unwrap();
        assert!((loss - f64::from(expected)).abs() < TOLERANCE, "{loss} is not {expected}");
    }
    for (entries, found) in [(parameters, &*state.weights), (statistics, &state.statistics)] {
        for entry in entries {
            let name = format!("after.{}", entry.name);
            assert_close(&name, &found[entry.range.clone()], &values(&name));
        }
    }
    let logits = tuner.frozen(&state).logits(values("input.x"), SIDE_PX);
    assert_close("logits", &logits, &values("logits"));
}

fn assert_close(name: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{name}");
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = norm(&mut found.iter().zip(expected).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    let size = norm(&mut expected.iter().map(|b| f64::from(*b)));
    assert!(difference <= TOLERANCE * size, "{name}: off by {difference:.2e} of {size:.2e}");
}

/// Eight images of noise around the brightness of their class, and their classes.
fn batch() -> (Vec<f32>, [u8; 8]) {
    let labels = [0, 1, 2, 3, 0, 1, 2, 3];
    let mut draws = Draws::new(1, Purpose::Synthetic, 0, 0, 0);
    let images =
        labels.iter().flat_map(|label| std::iter::repeat_n(f32::from(*label), 3 * SIDE_PX * SIDE_PX));
    (images.map(|level| level + draws.normal()).collect(), labels)
}

#[test]
fn it_begins_with_the_backbone_and_ends_the_same_with_any_number_of_threads() {
    let (tuner, pretrained) = (tuner(4), State::initial(&Layout::of(&model()), 5));
    let before = tuner.initial(&pretrained, 1);
    let classifier =
        tuner.layout().parameters.iter().find(|entry| entry.name == "classifier.weight").unwrap();
    let backbone = 0..classifier.range.start;
    assert_eq!(before.weights[backbone.clone()], pretrained.weights[backbone.clone()]);
    let other_seed = tuner.initial(&pretrained, 2);
    assert_eq!(before.weights[backbone.clone()], other_seed.weights[backbone]);
    assert_ne!(before.weights, other_seed.weights);
    let spread = before.weights[classifier.range.clone()].iter().map(|weight| weight * weight).sum::<f32>()
        / classifier.range.len() as f32;
    assert!((0.008..0.012).contains(&spread.sqrt()), "{spread}");

    let tuned = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let ((images, labels), mut state) = (batch(), before.clone());
            let mut losses = RATES
                .into_iter()
                .cycle()
                .take(10)
                .map(|rates| tuner.step(&mut state, images.clone(), SIDE_PX, &labels, rates).unwrap());
            let (first, last) = (losses.next().unwrap(), losses.last().unwrap());
            assert!((first - 4f64.ln()).abs() < 0.1 && last < 0.5 * first, "{first} {last}");
            state
        })
    };
    let alone = tuned(1);
    assert_eq!(alone.step, 10);
    for threads in [2, 3] {
        assert!(tuned(threads) == alone, "{threads} threads");
    }
}

#[test]
fn what_is_not_finite_changes_nothing() {
    let tuner = tuner(4);
    let before = tuner.initial(&State::initial(&Layout::of(&model()), 5), 1);
    for value in [f32::NAN, f32::INFINITY] {
        let ((mut images, labels), mut state) = (batch(), before.clone());
        images[7] = value;
        let refused = tuner.step(&mut state, images, SIDE_PX, &labels, RATES[0]).unwrap_err();
        assert!(refused.step == 0 && refused.to_string().contains("not finite"), "{refused}");
        assert!(state == before);
    }
}
