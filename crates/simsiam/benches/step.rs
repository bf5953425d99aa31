//! One training step, as it is compared with PyTorch: ResNet-18, 32 images in two views each, f32, forward,
//! backward and SGD. And the features of 32 images, as evaluation computes them.
//!
//! `cargo bench -p simsiam --bench step`; the figure is images per second (`elem/s`). `SIMSIAM_DEVICE` names another
//! device than the CPU, `SIMSIAM_BATCH` another number of images, `SIMSIAM_PRECISION` may be bf16.

use std::str::FromStr;
use std::time::Duration;

use burn::tensor::{Tensor, TensorData};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use recipe::{Draws, Purpose, Recipe};
use simsiam::{DeviceName, SimSiam, State, Trainer};

fn setting<T: FromStr>(name: &str, default: T) -> T {
    let text = std::env::var(name).ok();
    text.map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text} cannot be used")))
}

/// Crop side and stem, as in that comparison.
const SIZES: [(usize, &str); 2] = [(96, "imagenet"), (32, "small")];

fn recipe(batch: usize, side: usize, stem: &str) -> Recipe {
    let set = [
        "model.backbone=resnet18".into(),
        format!("model.stem={stem}"),
        "model.projector_layers=2".into(),
        "model.projector_dim=2048".into(),
        "model.predictor_dim=512".into(),
        "model.width=64".into(),
        format!("views.crop_px={side}"),
        format!("training.batch={batch}"),
        format!("training.precision={}", setting("SIMSIAM_PRECISION", "f32".to_string())),
        "training.shards=1".into(),
    ];
    Recipe::from_toml(recipe::QUICKSTART, &set).expect("the quickstart recipe takes these settings")
}

fn noise(batch: usize, side: usize, view: u64) -> Vec<f32> {
    let mut draws = Draws::new(0, Purpose::Weights, 0, 0, view);
    (0..batch * 3 * side * side).map(|_| draws.normal()).collect()
}

fn benchmark(criterion: &mut Criterion) {
    let batch = setting("SIMSIAM_BATCH", 32);
    let device = setting("SIMSIAM_DEVICE", DeviceName::Cpu).open(&std::env::temp_dir());
    let device = device.unwrap_or_else(|error| panic!("{error}"));
    let mut group = criterion.benchmark_group("resnet18");
    group.sample_size(10).warm_up_time(Duration::from_secs(3)).throughput(Throughput::Elements(batch as u64));
    for (side, stem) in SIZES {
        let recipe = recipe(batch, side, stem);
        let trainer = Trainer::new(&recipe, batch as u64, device.clone());
        let mut replica = trainer.place(State::initial(trainer.layout(), 0));
        let mut bucket = vec![0.0; trainer.bucket().values()];
        let first = noise(batch, side, 0);
        let views = trainer.loader().load([first.clone(), noise(batch, side, 1)].concat());
        group.bench_function(BenchmarkId::new("step", side), |bencher| {
            bencher.iter(|| {
                let network = trainer.bind(&replica);
                let done = trainer.forward_backward(&network, 0, views.clone(), false, &mut bucket);
                done.expect("the device does its part");
                let folded = trainer.bucket().read(&bucket);
                drop(network);
                let rates = trainer.schedule().at(0);
                trainer.commit(&mut replica, &folded, rates).expect("a step on noise is finite");
            });
        });
        let network =
            SimSiam::from_state(&recipe.model, replica.state().expect("the device has it"), &device);
        group.bench_function(BenchmarkId::new("features", side), |bencher| {
            bencher.iter(|| {
                let data = TensorData::new(first.clone(), [batch, 3, side, side]);
                network.features(Tensor::from_data(data, &device)).into_data()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, benchmark);
criterion_main!(benches);
