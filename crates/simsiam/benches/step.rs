//! One training step, as it is compared with PyTorch: ResNet-18, 32 images in two views each, f32, forward,
//! backward and SGD. And the features of 32 images, as evaluation computes them.
//!
//! `cargo bench -p simsiam --bench step`; the figure is images per second (`elem/s`).

use std::time::Duration;

use burn::tensor::{Tensor, TensorData};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use recipe::{Draws, Purpose, Recipe};
use simsiam::{Device, SimSiam, State, Trainer};

const BATCH: usize = 32;

/// Crop side and stem, as in that comparison.
const SIZES: [(usize, &str); 2] = [(96, "imagenet"), (32, "small")];

fn recipe(side: usize, stem: &str) -> Recipe {
    let set = [
        "model.backbone=resnet18".into(),
        format!("model.stem={stem}"),
        "model.projector_layers=2".into(),
        "model.projector_dim=2048".into(),
        "model.predictor_dim=512".into(),
        "model.width=64".into(),
        format!("views.crop_px={side}"),
        format!("training.batch={BATCH}"),
        "training.shards=1".into(),
    ];
    Recipe::from_toml(recipe::QUICKSTART, &set).expect("the quickstart recipe takes these settings")
}

fn noise(side: usize, view: u64) -> Vec<f32> {
    let mut draws = Draws::new(0, Purpose::Weights, 0, 0, view);
    (0..BATCH * 3 * side * side).map(|_| draws.normal()).collect()
}

fn benchmark(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("resnet18");
    group.sample_size(10).warm_up_time(Duration::from_secs(3)).throughput(Throughput::Elements(BATCH as u64));
    for (side, stem) in SIZES {
        let recipe = recipe(side, stem);
        let trainer = Trainer::new(&recipe, BATCH as u64, Device::flex());
        let mut state = State::initial(trainer.layout(), 0);
        let mut bucket = vec![0.0; trainer.bucket().values()];
        let views = [noise(side, 0), noise(side, 1)];
        group.bench_function(BenchmarkId::new("step", side), |bencher| {
            bencher.iter(|| {
                trainer.forward_backward(&trainer.bind(&state), 0, views.clone(), &mut bucket);
                let folded = trainer.bucket().read(&bucket);
                let rates = trainer.schedule().at(0);
                trainer.commit(&mut state, &folded, rates).expect("a step on noise is finite");
            });
        });
        let network = SimSiam::from_state(&recipe.model, &state, &Device::flex());
        group.bench_function(BenchmarkId::new("features", side), |bencher| {
            bencher.iter(|| {
                let data = TensorData::new(views[0].clone(), [BATCH, 3, side, side]);
                network.features(Tensor::from_data(data, &Device::flex())).into_data()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, benchmark);
criterion_main!(benches);
