//! Numerical parity with PyTorch: same weights and inputs, then loss, every gradient, and weights and running
//! statistics after three steps, from files that `fixtures/make_parity.py` wrote in f64.

#![expect(clippy::unwrap_used, reason = "helpers of tests, where a panic is the answer")]

mod device;

use std::path::Path;
use std::sync::Arc;

use device::device;
use recipe::{Draws, Purpose, Recipe};
use safetensors::SafeTensors;
use simsiam::{Device, Entry, Layout, LearningRates, SimSiam, State, Trainer, Views};

/// Relative to the tensor's norm. f32 itself is good for about 2e-5 on these networks.
const TOLERANCE: f64 = 1e-4;

const STEPS: [f64; 3] = [0.05, 0.04, 0.02];
const PREDICTOR_LEARNING_RATE: f64 = 0.03;

#[test]
fn basic_blocks_with_the_small_stem() {
    check("basic-small", "resnet10", "small", |trainer| trainer);
}

#[test]
fn a_state_in_the_devices_memory_is_trained_alike() {
    check("basic-small", "resnet10", "small", Trainer::with_state_on_device);
}

#[test]
fn basic_blocks_with_pooling_and_a_three_layer_projector() {
    check("basic-small-pool", "resnet18", "small-pool", |trainer| trainer);
}

#[test]
fn bottlenecks_with_the_imagenet_stem() {
    check("bottleneck-imagenet", "resnet50", "imagenet", |trainer| trainer);
}

/// Rounding to 8 bits upsets these small networks, so the measure is PyTorch's own: how far its first step under
/// autocast is from the truth, as `make_parity.py` prints it.
#[test]
fn bf16_is_no_further_from_the_truth_than_pytorchs() {
    const LOSS_TOLERANCE: f64 = 0.02;
    for (name, backbone, stem, autocast_error) in [
        ("basic-small", "resnet10", "small", 0.676),
        ("basic-small-pool", "resnet18", "small-pool", 0.245),
        ("bottleneck-imagenet", "resnet50", "imagenet", 0.299),
    ] {
        let bytes = read(name);
        let fixture = Fixture(SafeTensors::deserialize(&bytes).unwrap());
        let recipe = fixture.recipe(backbone, stem, "bf16");
        let trainer = Trainer::new(&recipe, recipe.training.batch.into(), device());
        let (layout, state) = (trainer.layout(), fixture.state(trainer.layout()));
        let mut bucket = vec![0.0; trainer.bucket().values()];
        let replica = trainer.place(state);
        trainer
            .forward_backward(&trainer.bind(&replica), 0, fixture.views(&trainer), false, &mut bucket)
            .unwrap();

        let (loss, expected) = (trainer.bucket().read(&bucket).loss(), f64::from(fixture.values("loss")[0]));
        assert!((loss - expected).abs() < LOSS_TOLERANCE, "{name}: loss {loss}, expected {expected}");
        let expected = fixture.all("gradient", &layout.parameters);
        let error = relative_error(&bucket[..expected.len()], &expected, 0.0);
        // Not zero either: it must have been computed in bf16.
        assert!((1e-3..autocast_error).contains(&error), "{name}: the gradient is off by {error:.3}");
    }
}

/// The fixtures are tiny; here every kernel meets the shapes it is made for. Many of these networks' activations are next to
/// zero, where rounding decides whether a ReLU lets a gradient through. PyTorch's own f32 is off by 1.3e-3 to 4.7e-3 (the
/// ResNet-50 by 1.8e-2), as much again from one layout to the other, and its bf16 under autocast by 0.26 to 0.35 (1.1).
#[test]
#[ignore = "compares a GPU with the CPU, at a size that takes the CPU minutes"]
fn networks_of_full_size_have_the_gradients_they_have_on_the_cpu() {
    for (backbone, stem, side, batch, tolerances) in [
        ("resnet18", "small", 32, 64, [0.02, 0.5]),
        ("resnet18", "imagenet", 96, 32, [0.02, 0.5]),
        ("resnet18", "small-pool", 96, 32, [0.02, 0.5]),
        ("resnet50", "imagenet", 96, 16, [0.06, 1.5]),
    ] {
        let gradient = |device: Device, precision: &str| {
            let set = [
                format!("model.backbone={backbone}"),
                format!("model.stem={stem}"),
                "model.width=64".into(),
                "model.projector_dim=2048".into(),
                "model.predictor_dim=512".into(),
                format!("views.crop_px={side}"),
                format!("training.batch={batch}"),
                "training.shards=1".into(),
                format!("training.precision={precision}"),
            ];
            let recipe = Recipe::from_toml(recipe::QUICKSTART, &set).unwrap();
            let trainer = Trainer::new(&recipe, batch, device);
            let mut state = State::initial(trainer.layout(), 0);
            // Blocks start as the identity, which would hide what is in them.
            for entry in trainer.layout().parameters.iter().filter(|entry| entry.name.ends_with(".weight")) {
                let weights = &mut Arc::make_mut(&mut state.weights)[entry.range.clone()];
                if weights.iter().all(|weight| *weight == 0.0) {
                    weights.fill(0.5);
                }
            }
            let mut draws = Draws::new(0, Purpose::View, 0, 0, 0);
            let noise = (0..2 * batch * 3 * side * side).map(|_| draws.normal()).collect();
            let mut bucket = vec![0.0; trainer.bucket().values()];
            let replica = trainer.place(state);
            let network = trainer.bind(&replica);
            trainer.forward_backward(&network, 0, trainer.loader().load(noise), false, &mut bucket).unwrap();
            bucket.truncate(trainer.layout().parameter_count());
            bucket
        };
        let expected = gradient(Device::flex(), "f32");
        for (precision, tolerance) in ["f32", "bf16"].into_iter().zip(tolerances) {
            let error = relative_error(&gradient(device(), precision), &expected, 0.0);
            println!("{backbone} {stem} {side} px, {precision}: off by {error:.2e}");
            assert!(error < tolerance, "{backbone} {stem} {side} px: {precision} is off by {error:.2e}");
        }
    }
}

/// `treats` the trainer before it is used.
fn check(name: &str, backbone: &str, stem: &str, treats: impl FnOnce(Trainer) -> Trainer) {
    let bytes = read(name);
    let fixture = Fixture(SafeTensors::deserialize(&bytes).unwrap());
    let recipe = fixture.recipe(backbone, stem, "f32");
    let images = recipe.training.batch as usize;
    let trainer = treats(Trainer::new(&recipe, images as u64, device()));
    let layout = trainer.layout();
    let mut replica = trainer.place(fixture.state(layout));

    let mut bucket = vec![0.0; trainer.bucket().values()];
    let losses = fixture.values("loss");
    for (step, learning_rate) in STEPS.into_iter().enumerate() {
        let views = fixture.views(&trainer);
        trainer.forward_backward(&trainer.bind(&replica), 0, views, false, &mut bucket).unwrap();
        let folded = trainer.bucket().read(&bucket);
        assert!((folded.loss() - f64::from(losses[step])).abs() < TOLERANCE, "loss of step {step}");
        if step == 0 {
            fixture.compare("gradient", &layout.parameters, &bucket);
        }
        let rates = LearningRates { encoder: learning_rate, predictor: PREDICTOR_LEARNING_RATE };
        trainer.commit(&mut replica, &folded, rates).unwrap();
    }
    let state = replica.state().unwrap();
    fixture.compare("after", &layout.parameters, &state.weights);
    fixture.compare("after", &layout.statistics, &state.statistics);

    let network = SimSiam::from_state(&recipe.model, state, &device());
    let x1 = fixture.values("input.x1");
    let side = recipe.views.crop_px as usize;
    let data = burn::tensor::TensorData::new(x1, [images, 3, side, side]);
    let features = network.features(burn::tensor::Tensor::from_data(data, &device()));
    let found = features.into_data().try_into_vec::<f32>().unwrap();
    assert_close("features", &found, &fixture.values("features"));
}

/// The file of a fixture.
fn read(name: &str) -> Vec<u8> {
    // Elsewhere when the test runs on another machine than the one that built it.
    let folder = std::env::var("SIMSIAM_FIXTURES");
    let folder =
        folder.unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures").to_string());
    std::fs::read(Path::new(&folder).join(format!("{name}.safetensors"))).unwrap()
}

struct Fixture<'a>(SafeTensors<'a>);

impl Fixture<'_> {
    /// A recipe with the fixture's sizes.
    fn recipe(&self, backbone: &str, stem: &str, precision: &str) -> Recipe {
        let shape = |name: &str| self.0.tensor(name).unwrap().shape().to_vec();
        let (x1, down) = (shape("input.x1"), shape("before.predictor.0.weight"));
        let three_layers = self.0.tensor("before.encoder.fc.6.weight").is_ok();
        let set = [
            format!("model.backbone={backbone}"),
            format!("model.stem={stem}"),
            format!("model.width={}", shape("before.encoder.conv1.weight")[0]),
            format!("model.projector_layers={}", if three_layers { 3 } else { 2 }),
            format!("model.projector_dim={}", down[1]),
            format!("model.predictor_dim={}", down[0]),
            format!("views.crop_px={}", x1[2]),
            format!("training.batch={}", x1[0]),
            "training.shards=1".into(),
            format!("training.precision={precision}"),
            "optimizer.momentum=0.9".into(),
            "optimizer.weight_decay=1e-3".into(),
        ];
        Recipe::from_toml(recipe::QUICKSTART, &set).unwrap()
    }

    fn values(&self, name: &str) -> Vec<f32> {
        let tensor = self.0.tensor(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    /// Both views, on the trainer's device.
    fn views(&self, trainer: &Trainer) -> Views {
        trainer.loader().load([self.values("input.x1"), self.values("input.x2")].concat())
    }

    fn all(&self, prefix: &str, entries: &[Entry]) -> Vec<f32> {
        entries.iter().flat_map(|entry| self.values(&format!("{prefix}.{}", entry.name))).collect()
    }

    /// The weights and statistics before the first step.
    fn state(&self, layout: &Layout) -> State {
        State {
            step: 0,
            skipped_steps: 0,
            weights: self.all("before", &layout.parameters).into(),
            statistics: self.all("before", &layout.statistics),
            momentum: vec![0.0; layout.parameter_count()],
        }
    }

    fn compare(&self, prefix: &str, entries: &[Entry], flat: &[f32]) {
        let fixed = self.0.names().iter().filter(|name| name.starts_with(&format!("{prefix}."))).count();
        assert!(fixed >= entries.len() && !entries.is_empty());
        for entry in entries {
            let name = format!("{prefix}.{}", entry.name);
            assert_close(&name, &flat[entry.range.clone()], &self.values(&name));
        }
    }
}

fn assert_close(name: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{name}");
    // The running mean in the predictor is zero but for rounding, as z has no mean: there, relative to 0.01.
    let smallest = if name.ends_with("running_mean") { 0.01 * (expected.len() as f64).sqrt() } else { 0.0 };
    let error = relative_error(found, expected, smallest);
    assert!(error <= TOLERANCE, "{name}: off by {error:.2e} of its norm");
}

/// The norm of the difference, relative to that of what is expected or to the smallest that counts.
fn relative_error(found: &[f32], expected: &[f32], smallest: f64) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = norm(&mut found.iter().zip(expected).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    difference / norm(&mut expected.iter().map(|b| f64::from(*b))).max(smallest)
}
