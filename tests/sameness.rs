//! A run is a function of its recipe: not of its workers, their wiring, or interruptions.

use collective::Medium;
use coordinator::Outcome;
use evaluation::Encoder;
use worker::Device;

use crate::cluster::{Disturbance, TestRun, Wiring, quickstart};

/// 75 steps in 3 epochs, with checkpoints in the middle of each.
const SHORT: &[&str] = &[
    "data.images=600",
    "training.batch=24",
    "training.shards=8",
    "training.epochs=3",
    "views.crop_px=24",
    "model.width=4",
    "model.projector_dim=16",
    "model.predictor_dim=8",
    "checkpoint.every_steps=10",
    "checkpoint.keep=100",
];

const LAST: &str = "step-000075";

#[tokio::test(flavor = "multi_thread")]
async fn the_number_of_workers_and_their_wiring_change_no_bit() {
    let alone = TestRun::new(quickstart(SHORT));
    let trained = alone.train(1, Wiring::Loopback, Disturbance::None).await;
    assert!(matches!(trained.outcome, Outcome::Completed { step: 75, .. }), "{:?}", trained.outcome);
    assert_eq!(trained.steps.len(), 75);
    for (workers, wiring) in [
        (2, Wiring::Loopback),
        (3, Wiring::Processes(Medium::Tcp)),
        (4, Wiring::Processes(Medium::SharedMemory)),
        (8, Wiring::Loopback),
    ] {
        let run = TestRun::new(quickstart(SHORT));
        let other = run.train(workers, wiring, Disturbance::None).await;
        assert_eq!(other.outcome, trained.outcome, "{workers} workers, {wiring:?}");
        assert!(run.files(LAST) == alone.files(LAST), "{workers} workers, {wiring:?}");
        // What people see is folded too.
        let folded = |run: &crate::cluster::Trained| -> Vec<_> {
            run.steps.iter().map(|step| (step.loss, step.collapse_level, step.gradient_norm)).collect()
        };
        assert_eq!(folded(&other), folded(&trained), "{workers} workers, {wiring:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_run_ends_as_one_that_was_not() {
    let whole = TestRun::new(quickstart(SHORT));
    whole.train(2, Wiring::Loopback, Disturbance::None).await;

    let run = TestRun::new(quickstart(SHORT));
    let stopped = run.train(2, Wiring::Loopback, Disturbance::StopAfter(6)).await;
    let Outcome::Stopped { step } = stopped.outcome else { panic!("{:?}", stopped.outcome) };
    assert!((6..75).contains(&step), "the step in hand was finished, and no more than a few");
    let saved = format!("step-{step:06}");
    assert_eq!(run.checkpoints().last(), Some(&saved), "a stop saves");
    assert_eq!(stopped.steps.len() as u64, step);

    // Now without a word: a worker disappears, and the rest of the run is lost back to its last checkpoint.
    let lost =
        run.train(4, Wiring::Processes(Medium::SharedMemory), Disturbance::LoseWorkerAfter(step + 15)).await;
    let Outcome::Failed { reason } = lost.outcome else { panic!("{:?}", lost.outcome) };
    for phrase in ["(thread 3)", "--resume", "the last checkpoint is step-"] {
        assert!(reason.contains(phrase), "{reason}");
    }

    let ended = run.train(3, Wiring::Loopback, Disturbance::None).await;
    assert!(matches!(ended.outcome, Outcome::Completed { step: 75, .. }), "{:?}", ended.outcome);
    assert!(run.files(LAST) == whole.files(LAST), "resumed is uninterrupted");

    // Each step once, whatever happened in between; with the same loss.
    let column = |run: &TestRun, name: &str| -> Vec<serde_json::Value> {
        run.lines("metrics.jsonl").iter().map(|line| line[name].clone()).collect()
    };
    for name in ["step", "epoch", "loss", "collapse_level", "learning_rate", "gradient_norm"] {
        assert_eq!(column(&run, name), column(&whole, name), "{name}");
    }
    let events = column_of_events(&run);
    assert_eq!(events.iter().filter(|event| *event == "opened").count(), 3, "{events:?}");
}

/// BatchNorm's statistics over the whole batch.
const SYNC: &str = "training.batch_norm=sync";

#[tokio::test(flavor = "multi_thread")]
async fn statistics_over_the_whole_batch_change_the_run_and_not_with_its_workers() {
    let changes: Vec<&str> =
        SHORT.iter().copied().chain([SYNC, "training.epochs=1", "optimizer.warmup_epochs=0"]).collect();
    let last = "step-000025";
    let alone = TestRun::new(quickstart(&changes));
    let trained = alone.train(1, Wiring::Loopback, Disturbance::None).await;
    assert!(matches!(trained.outcome, Outcome::Completed { step: 25, .. }), "{:?}", trained.outcome);
    for (workers, wiring, disturbance) in [
        (2, Wiring::Loopback, Disturbance::None),
        (3, Wiring::Processes(Medium::Tcp), Disturbance::None),
        (4, Wiring::Processes(Medium::SharedMemory), Disturbance::ShrinkAfter(12)),
    ] {
        let run = TestRun::new(quickstart(&changes));
        let other = run.train(workers, wiring, disturbance).await;
        assert_eq!(other.outcome, trained.outcome, "{workers} workers, {wiring:?}");
        assert!(run.files(last) == alone.files(last), "{workers} workers, {wiring:?}");
    }
    // Without a cluster.
    let mut state = Encoder::open(&alone.path(), Some("step-000020")).unwrap().state().clone();
    let end = Encoder::open(&alone.path(), Some(last)).unwrap();
    while state.step < end.state().step {
        state = worker::replay(end.recipe(), &alone.images(), Device::flex(), state).unwrap().state;
    }
    assert!(state == *end.state());
    // Otherwise nothing would be shown.
    let per_shard =
        TestRun::new(quickstart(&[SHORT, &["training.epochs=1", "optimizer.warmup_epochs=0"]].concat()));
    assert_ne!(per_shard.train(1, Wiring::Loopback, Disturbance::None).await.outcome, trained.outcome);
}

fn column_of_events(run: &TestRun) -> Vec<String> {
    run.lines("journal.jsonl").iter().map(|line| line["event"].as_str().unwrap().to_string()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_others_take_over_and_end_with_the_same_bits() {
    let whole = TestRun::new(quickstart(SHORT));
    let undisturbed = whole.train(1, Wiring::Loopback, Disturbance::None).await;
    for wiring in [Wiring::Loopback, Wiring::Processes(Medium::Tcp), Wiring::Processes(Medium::SharedMemory)]
    {
        let run = TestRun::new(quickstart(SHORT));
        let shrunk = run.train(3, wiring, Disturbance::ShrinkAfter(22)).await;
        assert_eq!(shrunk.outcome, undisturbed.outcome, "{wiring:?}");
        assert!(run.files(LAST) == whole.files(LAST), "{wiring:?}");
        let steps: Vec<u64> = shrunk.steps.iter().map(|step| step.step).collect();
        assert!(steps.iter().copied().eq(1..=75), "each step once: {steps:?}");
        assert_eq!(shrunk.steps.last().unwrap().generation, 2, "{wiring:?}");
        let events = column_of_events(&run);
        for (event, count) in [("lost", 1), ("generation", 2), ("started", 2), ("ended", 1)] {
            assert_eq!(events.iter().filter(|other| *other == event).count(), count, "{events:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_last_checkpoints_are_kept() {
    let keep: Vec<&str> = SHORT.iter().copied().chain(["checkpoint.keep=2"]).collect();
    let run = TestRun::new(quickstart(&keep));
    run.train(2, Wiring::Loopback, Disturbance::None).await;
    assert_eq!(run.checkpoints().len(), 2);
    assert_eq!(run.checkpoints().last().map(String::as_str), Some(LAST));
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_are_computed_again_from_a_checkpoint_without_the_cluster() {
    let run = TestRun::new(quickstart(SHORT));
    run.train(3, Wiring::Processes(Medium::SharedMemory), Disturbance::None).await;
    let checkpoints = run.checkpoints();
    let before = &checkpoints[checkpoints.len() - 2];
    let mut state = Encoder::open(&run.path(), Some(before)).unwrap().state().clone();
    let last = Encoder::open(&run.path(), Some(LAST)).unwrap();
    while state.step < last.state().step {
        state = worker::replay(last.recipe(), &run.images(), Device::flex(), state).unwrap().state;
    }
    assert!(state == *last.state(), "from {before}");
}
