//! The search for neighbours at the size of CIFAR-10 with a ResNet-18: 10,000 queries in a bank of 50,000, 512
//! features each, the 200 nearest, on all cores.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use evaluation::{Matrix, Neighbours};

const BANK: usize = 50_000;
const QUERIES: usize = 10_000;
const FEATURES: usize = 512;
const K: usize = 200;

fn drawn(rows: usize, item: u64) -> Matrix {
    let mut draws = recipe::Draws::new(0, recipe::Purpose::Synthetic, 0, item, 0);
    // As pooled features are: never negative.
    Matrix::new((0..rows * FEATURES).map(|_| draws.unit()).collect(), FEATURES).with_unit_rows()
}

fn knn(criterion: &mut Criterion) {
    let (bank, queries) = (drawn(BANK, 0), drawn(QUERIES, 1));
    let mut group = criterion.benchmark_group("knn");
    group.sample_size(10).throughput(Throughput::Elements(QUERIES as u64));
    group.bench_function("50,000 x 10,000 x 512", |bencher| {
        bencher.iter(|| black_box(Neighbours::search(&bank, &queries, K, &mut |_| {})));
    });
    group.finish();
}

criterion_group!(benches, knn);
criterion_main!(benches);
