//! What a step promises beyond its numbers: shards are independent, and nothing is applied unless all is finite.

#![expect(clippy::unwrap_used, reason = "helpers of tests, where a panic is the answer")]

mod device;

use device::device;
use recipe::{Draws, Purpose, Recipe};
use simsiam::{Commit, LearningRates, Parts, State, Trainer};

const RATES: LearningRates = LearningRates { encoder: 0.1, predictor: 0.1 };

fn trainer() -> Trainer {
    trainer_with(&[])
}

fn trainer_with(changes: &[&str]) -> Trainer {
    let set = [
        "training.batch=8",
        "training.shards=2",
        "views.crop_px=16",
        "model.width=4",
        "model.projector_dim=16",
        "model.predictor_dim=8",
    ];
    let set: Vec<String> = set.iter().chain(changes).map(|change| (*change).to_string()).collect();
    Trainer::new(&Recipe::from_toml(recipe::QUICKSTART, &set).unwrap(), 64, device())
}

/// Two views of four images, different for each shard.
fn views(shard: u32) -> [Vec<f32>; 2] {
    [0, 1].map(|view| {
        let mut draws = Draws::new(1, Purpose::View, 0, u64::from(shard), view);
        (0..4 * 3 * 16 * 16).map(|_| draws.normal()).collect()
    })
}

#[test]
fn one_network_serves_every_shard_of_a_step() {
    let trainer = trainer();
    let state = State::initial(trainer.layout(), 3);
    let bucket_of = |shard: u32, bound: &_| {
        let mut bucket = vec![f32::NAN; trainer.bucket().values()];
        trainer.forward_backward(bound, shard, views(shard), &mut bucket).unwrap();
        bucket
    };
    let shared = trainer.bind(&state);
    for shard in [0, 1, 0] {
        let alone = bucket_of(shard, &trainer.bind(&state));
        assert!(alone.iter().all(|value| value.is_finite()));
        assert!(bucket_of(shard, &shared) == alone, "shard {shard}");
    }
}

#[test]
fn what_is_not_finite_is_named_and_changes_nothing() {
    let trainer = trainer();
    let before = State::initial(trainer.layout(), 3);
    for (name, value) in [("NaN", f32::NAN), ("infinity", f32::INFINITY)] {
        let network = trainer.bind(&before);
        let mut sum = vec![0.0; trainer.bucket().values()];
        for shard in 0..2 {
            let [mut x1, x2] = views(shard);
            if shard == 1 {
                x1[5] = value;
            }
            let mut bucket = vec![0.0; trainer.bucket().values()];
            trainer.forward_backward(&network, shard, [x1, x2], &mut bucket).unwrap();
            let sick = trainer.non_finite_parts(&bucket);
            assert_eq!(sick.contains(&"encoder.conv1.weight".to_string()), shard == 1, "{sick:?}");
            assert_eq!(sick.contains(&"loss".to_string()), shard == 1, "{sick:?}");
            sum.iter_mut().zip(&bucket).for_each(|(sum, value)| *sum += value);
        }
        let mut state = before.clone();
        let refused = trainer.commit(&mut state, &trainer.bucket().read(&sum), RATES).unwrap_err();
        assert_eq!((refused.step, &refused.shards[..]), (0, [1].as_slice()), "{name}");
        assert!(
            refused.to_string().contains("step 1: loss or gradient is not finite, in shard 1"),
            "{refused}"
        );
        assert!(state == before, "{name}");
    }
}

#[test]
fn as_many_steps_in_a_row_are_skipped_as_the_recipe_allows() {
    let trainer = trainer_with(&["training.max_skipped_steps=2"]);
    let before = State::initial(trainer.layout(), 3);
    let mut healthy = vec![0.0; trainer.bucket().values()];
    trainer.forward_backward(&trainer.bind(&before), 0, views(0), &mut healthy).unwrap();
    let mut sick = healthy.clone();
    sick[7] = f32::NAN;
    let mut state = before.clone();
    let mut commit = |sum: &[f32]| {
        let outcome = trainer.commit(&mut state, &trainer.bucket().read(sum), RATES);
        (outcome, state.clone())
    };
    for (sum, skipped_steps) in [(&sick, 1), (&sick, 2)] {
        let (outcome, after) = commit(sum);
        let Ok(Commit::Skipped(found)) = outcome else { panic!("{outcome:?}") };
        assert_eq!((after.step, after.skipped_steps), (u64::from(skipped_steps), skipped_steps));
        assert_eq!((found.step, found.skipped_steps), (after.step - 1, skipped_steps - 1));
        let moved = State { step: 0, skipped_steps: 0, ..after.clone() };
        assert!(moved == before && after.hash() != before.hash());
    }
    let (outcome, after) = commit(&sick);
    assert!(outcome.is_err() && after.step == 2, "one too many: {outcome:?}");
    // A healthy one begins the count anew.
    let (outcome, after) = commit(&healthy);
    assert_eq!((outcome, after.step, after.skipped_steps), (Ok(Commit::Applied), 3, 0));
    assert!(matches!(commit(&sick).0, Ok(Commit::Skipped(_))));
}

#[test]
fn a_commit_moves_everything_together() {
    let trainer = trainer();
    let before = State::initial(trainer.layout(), 3);
    let mut sum = vec![0.0; trainer.bucket().values()];
    trainer.forward_backward(&trainer.bind(&before), 0, views(0), &mut sum).unwrap();
    let mut state = before.clone();
    trainer.commit(&mut state, &trainer.bucket().read(&sum), RATES).unwrap();
    assert_eq!(state.step, 1);
    assert!(state.weights != before.weights && state.momentum != before.momentum);
    assert!(state.statistics != before.statistics);
    assert_ne!(state.hash(), before.hash());
}

#[test]
fn a_healthy_step_moves_every_part_of_the_network() {
    let trainer = trainer();
    let sum_of = |state: &State| {
        let network = trainer.bind(state);
        let mut sum = vec![0.0; trainer.bucket().values()];
        for shard in 0..2 {
            let mut bucket = vec![0.0; trainer.bucket().values()];
            trainer.forward_backward(&network, shard, views(shard), &mut bucket).unwrap();
            sum.iter_mut().zip(&bucket).for_each(|(sum, value)| *sum += value);
        }
        sum
    };
    // The last BatchNorm of each block begins with zeros (Goyal et al. 2017), which lets nothing through to the block.
    let mut before = State::initial(trainer.layout(), 3);
    let sum = sum_of(&before);
    let folded = trainer.bucket().read(&sum);
    trainer.commit(&mut before, &folded, RATES).unwrap();
    let blocked = trainer.monitors(&before, &folded, RATES).without_gradient;
    assert!(blocked.contains(&"encoder.layer1.0.conv1.weight".to_string()), "{blocked:?}");
    assert!(blocked.iter().all(|name| name.starts_with("encoder.layer")), "{blocked:?}");

    let mut state = before.clone();
    let sum = sum_of(&before);
    let folded = trainer.bucket().read(&sum);
    trainer.commit(&mut state, &folded, RATES).unwrap();
    let monitors = trainer.monitors(&state, &folded, RATES);
    assert_eq!(monitors.without_gradient, [""; 0]);
    let Parts { backbone, projector, predictor } = monitors.gradient_norms;
    let whole = (backbone.powi(2) + projector.powi(2) + predictor.powi(2)).sqrt();
    assert!((whole / folded.gradient_norm() - 1.0).abs() < 1e-6, "{whole} {}", folded.gradient_norm());
    assert!(backbone.min(projector).min(predictor) > 1e-3 * whole, "{monitors:?}");
    // z has 16 coordinates; that of four images spreads in a few directions.
    assert!((1.0..16.0).contains(&monitors.effective_dimensions), "{monitors:?}");
    // Means of 0 and variances of 1 go a fifth of the way to those of the batch.
    assert!((0.01..1.0).contains(&monitors.statistics_change), "{monitors:?}");

    let encoder = 0..trainer.layout().predictor().start;
    let length = |values: &mut dyn Iterator<Item = f32>| {
        values.map(|value| f64::from(value).powi(2)).sum::<f64>().sqrt()
    };
    let (old, new) = (&before.weights[encoder.clone()], &state.weights[encoder]);
    let step = length(&mut new.iter().zip(old).map(|(new, old)| new - old));
    let ratio = step / length(&mut new.iter().copied());
    let Parts { backbone, projector, .. } = monitors.update_ratios;
    assert!(backbone.min(projector) <= ratio && ratio <= backbone.max(projector), "{ratio} {monitors:?}");
}
