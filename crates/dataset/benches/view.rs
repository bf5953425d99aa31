//! Views per second on one core: the official pipeline with the `stl10-resnet18` preset, on a 96x96 image in
//! STL-10's layout, from the draw of the parameters to normalised planes.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use dataset::views::{Scratch, ViewMaker};
use dataset::{Geometry, PixelLayout};
use recipe::{PRESETS, Recipe};

const PRESET: &str = "stl10-resnet18";

fn view(criterion: &mut Criterion) {
    let (_, text) = PRESETS.iter().find(|(name, _)| *name == PRESET).expect("the preset is built in");
    let recipe = Recipe::from_toml(text, &[]).expect("every preset is valid");
    let geometry = Geometry { width_px: 96, height_px: 96, layout: PixelLayout::PlanarColumnMajor };
    // Noise, as the benchmark of the others has it.
    let mut draws = recipe::Draws::new(0, recipe::Purpose::Synthetic, 0, 0, 0);
    let record: Vec<u8> = (0..geometry.record_bytes()).map(|_| draws.bits() as u8).collect();

    let maker = ViewMaker::new(&recipe.views, geometry);
    let mut scratch = Scratch::default();
    let mut out = vec![0.0; maker.view_len()];
    let mut sample = 0;
    let mut group = criterion.benchmark_group("view");
    group.throughput(Throughput::Elements(1));
    group.bench_function("96 px", |bencher| {
        bencher.iter(|| {
            sample += 1;
            let parameters = maker.draw(0, 0, sample, 0);
            maker.render(black_box(&record), &parameters, &mut scratch, &mut out);
            black_box(&mut out);
        });
    });
    group.finish();
}

criterion_group!(benches, view);
criterion_main!(benches);
