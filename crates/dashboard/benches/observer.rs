//! What the control loop pays for being watched: `cargo bench -p dashboard`.

use std::hint::black_box;

use coordinator::{Doing, Pace, Phase, Progress, Sight, StepMetrics, StepSeconds, WorkerSight};
use criterion::{Criterion, criterion_group, criterion_main};
use dashboard::{Dashboard, Settings, Yardsticks};
use protocol::Token;
use recipe::{QUICKSTART, Recipe};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

fn sight(workers: u64) -> Sight {
    let worker = |worker| WorkerSight {
        worker,
        rank: Some(worker as u32),
        description: format!("node-{worker}, process 12345"),
        first_shard: worker as u32,
        shard_count: 1,
        doing: Doing::Training,
        silent_ms: 10,
        pace: Some(Pace { step: 1, seconds: StepSeconds::default() }),
    };
    Sight { phase: Phase::Training, generation: 1, step: 1, workers: (0..workers).map(worker).collect() }
}

fn step() -> StepMetrics {
    StepMetrics {
        step: 1,
        total_steps: 480,
        epoch: 1,
        total_epochs: 30,
        loss: -0.5,
        collapse_level: 0.9,
        learning_rate: 0.1,
        gradient_norm: 1.0,
        skipped: false,
        monitors: None,
        images_per_second: 1000.0,
        seconds: StepSeconds::default(),
        generation: 1,
    }
}

fn observer(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime starts");
    let dashboard = runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let settings = Settings {
            folder: std::env::temp_dir(),
            recipe: Recipe::from_toml(QUICKSTART, &[]).expect("the quickstart is a recipe"),
            run_id: [7; 16],
            total_steps: 480,
            program_version: "1.0.0".to_string(),
            token: Token::random().expect("this system has randomness"),
            yardsticks: Yardsticks::default(),
            views: None,
        };
        Dashboard::start(listener, settings, mpsc::channel(1).0).expect("a dashboard starts")
    });
    let observer = dashboard.observer();
    let step = Progress::Step(step());
    criterion.bench_function("a step", |bencher| bencher.iter(|| observer.hear(black_box(&step))));
    for workers in [4, 256] {
        let seen = Progress::Seen(sight(workers));
        let name = format!("the sight of {workers} workers, once a second");
        criterion.bench_function(&name, |bencher| bencher.iter(|| observer.hear(black_box(&seen))));
    }
}

criterion_group!(benches, observer);
criterion_main!(benches);
