//! What a step promises beyond its numbers: shards are independent, and nothing is applied unless all is finite.

#![expect(clippy::unwrap_used, reason = "helpers of tests, where a panic is the answer")]

mod device;

use std::sync::{Arc, Barrier, Mutex};
use std::thread;

use device::device;
use recipe::{Draws, Purpose, Recipe};
use simsiam::{
    AllShards, Bound, Commit, DeviceBucket, LearningRates, Parts, Replica, ShardSum, State, Trainer,
};

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
fn noise(shard: u32) -> Vec<f32> {
    let of_view = |view| {
        let mut draws = Draws::new(1, Purpose::View, 0, u64::from(shard), view);
        (0..4 * 3 * 16 * 16).map(move |_| draws.normal())
    };
    of_view(0).chain(of_view(1)).collect()
}

/// The bucket of a shard that sees these values.
fn bucket_of(trainer: &Trainer, network: &Bound, shard: u32, values: Vec<f32>) -> Vec<f32> {
    // Every place must be written.
    let mut bucket = vec![f32::NAN; trainer.bucket().values()];
    let views = trainer.loader().load(values);
    trainer.forward_backward(network, shard, views, false, &mut bucket).unwrap();
    bucket
}

fn add(sum: &mut [f32], bucket: &[f32]) {
    sum.iter_mut().zip(bucket).for_each(|(sum, value)| *sum += value);
}

#[test]
fn one_network_serves_every_shard_of_a_step() {
    let trainer = trainer();
    let replica = trainer.place(State::initial(trainer.layout(), 3));
    let shared = trainer.bind(&replica);
    for shard in [0, 1, 0] {
        let alone = bucket_of(&trainer, &trainer.bind(&replica), shard, noise(shard));
        assert!(alone.iter().all(|value| value.is_finite()));
        assert!(bucket_of(&trainer, &shared, shard, noise(shard)) == alone, "shard {shard}");
    }
}

/// Adds up what the shards bring that come here, each on a thread.
struct Meeting {
    everyone: Barrier,
    brought: Mutex<Vec<Vec<f32>>>,
}

impl ShardSum for Meeting {
    fn sum(&self, shard: u32, values: &mut [f32]) {
        self.brought.lock().unwrap()[shard as usize] = values.to_vec();
        self.everyone.wait();
        values.fill(0.0);
        self.brought.lock().unwrap().iter().for_each(|brought| add(values, brought));
        self.everyone.wait();
    }
}

/// The buckets of both shards with statistics of both, each shard on its worker's replica.
fn sum_among_all(trainer: &Trainer, replicas: [&Replica; 2]) -> Vec<f32> {
    let meeting = Arc::new(Meeting { everyone: Barrier::new(2), brought: Mutex::new(vec![vec![]; 2]) });
    let bucket = |shard: u32| {
        let network = trainer.bind(replicas[shard as usize]);
        let network = network.among(AllShards::new(meeting.clone(), shard, 2));
        bucket_of(trainer, &network, shard, noise(shard))
    };
    thread::scope(|scope| {
        let other = scope.spawn(|| bucket(1));
        let mut sum = bucket(0);
        add(&mut sum, &other.join().unwrap());
        sum
    })
}

#[test]
fn with_statistics_of_all_shards_they_make_the_gradient_of_one_that_has_the_whole_batch() {
    let (split, whole) = (trainer(), trainer_with(&["training.shards=1"]));
    let state = State::initial(split.layout(), 3);
    // As after some training, so that every gradient is there and running means are not zero.
    let state = State {
        weights: state.weights.iter().map(|weight| if *weight == 0.0 { 0.5 } else { *weight }).collect(),
        statistics: state.statistics.iter().map(|value| if *value == 0.0 { 0.1 } else { *value }).collect(),
        ..state
    };
    let [first, second] = [noise(0), noise(1)];
    let half = first.len() / 2;
    let batch = [&first[..half], &second[..half], &first[half..], &second[half..]].concat();
    let replica = whole.place(state.clone());
    let expected = bucket_of(&whole, &whole.bind(&replica), 0, batch);

    let replica = split.place(state);
    let mut alone = bucket_of(&split, &split.bind(&replica), 0, first);
    add(&mut alone, &bucket_of(&split, &split.bind(&replica), 1, second));
    let among_all = sum_among_all(&split, [&replica, &replica]);
    // As far as it means the same in both: gradient, statistics, means of z, and not pairs of images, loss and flags.
    let length = expected.len() - 4;
    let difference = |mut mean: Vec<f32>| {
        mean.iter_mut().for_each(|value| *value /= 2.0);
        let norm = |values: &[f32]| values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
        let apart: Vec<f32> =
            mean.iter().zip(&expected).take(length).map(|(found, expected)| found - expected).collect();
        norm(&apart) / norm(&expected[..length])
    };
    let (among_all, alone) = (difference(among_all), difference(alone));
    assert!(among_all < 1e-5 && alone > 1e-2, "{among_all:e} and {alone:e}");
}

#[test]
fn what_is_not_finite_is_named_and_changes_nothing() {
    let trainer = trainer();
    let before = State::initial(trainer.layout(), 3);
    for (name, value) in [("NaN", f32::NAN), ("infinity", f32::INFINITY)] {
        let mut replica = trainer.place(before.clone());
        let network = trainer.bind(&replica);
        let mut sum = vec![0.0; trainer.bucket().values()];
        for shard in 0..2 {
            let mut values = noise(shard);
            if shard == 1 {
                values[5] = value;
            }
            let bucket = bucket_of(&trainer, &network, shard, values);
            let sick = trainer.non_finite_parts(&bucket);
            assert_eq!(sick.contains(&"encoder.conv1.weight".to_string()), shard == 1, "{sick:?}");
            assert_eq!(sick.contains(&"loss".to_string()), shard == 1, "{sick:?}");
            add(&mut sum, &bucket);
        }
        let refused = trainer.commit(&mut replica, &trainer.bucket().read(&sum), RATES).unwrap_err();
        assert_eq!((refused.step, &refused.shards[..]), (0, [1].as_slice()), "{name}");
        assert!(
            refused.to_string().contains("step 1: loss or gradient is not finite, in shard 1"),
            "{refused}"
        );
        assert!(*replica.state().unwrap() == before, "{name}");
    }
}

#[test]
fn as_many_steps_in_a_row_are_skipped_as_the_recipe_allows() {
    let trainer = trainer_with(&["training.max_skipped_steps=2"]);
    let before = State::initial(trainer.layout(), 3);
    let mut replica = trainer.place(before.clone());
    let healthy = bucket_of(&trainer, &trainer.bind(&replica), 0, noise(0));
    let mut sick = healthy.clone();
    sick[7] = f32::NAN;
    let mut commit = |sum: &[f32]| {
        let outcome = trainer.commit(&mut replica, &trainer.bucket().read(sum), RATES);
        (outcome, replica.state().unwrap().clone())
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
    let mut replica = trainer.place(before.clone());
    let sum = bucket_of(&trainer, &trainer.bind(&replica), 0, noise(0));
    trainer.commit(&mut replica, &trainer.bucket().read(&sum), RATES).unwrap();
    let state = replica.state().unwrap();
    assert_eq!(state.step, 1);
    assert!(state.weights != before.weights && state.momentum != before.momentum);
    assert!(state.statistics != before.statistics);
    assert_ne!(state.hash(), before.hash());
}

/// They take sums around the running means, which one has had all along and the other got with the state.
#[test]
fn a_worker_that_has_just_come_sums_around_what_the_others_do() {
    for trainer in [trainer(), trainer().with_state_on_device()] {
        let mut from_the_start = trainer.place(State::initial(trainer.layout(), 3));
        let sum = bucket_of(&trainer, &trainer.bind(&from_the_start), 0, noise(0));
        trainer.commit(&mut from_the_start, &trainer.bucket().read(&sum), RATES).unwrap();
        let has_just_come = trainer.place(from_the_start.state().unwrap().clone());
        let expected = sum_among_all(&trainer, [&has_just_come, &has_just_come]);
        assert!(sum_among_all(&trainer, [&from_the_start, &has_just_come]) == expected);
    }
}

#[test]
fn the_network_reads_the_weights_where_a_step_changes_them() {
    let trainer = trainer();
    let mut replica = trainer.place(State::initial(trainer.layout(), 3));
    let place = replica.state().unwrap().weights.as_ptr();
    for step in 0..2 {
        let sum = bucket_of(&trainer, &trainer.bind(&replica), 0, noise(step));
        trainer.commit(&mut replica, &trainer.bucket().read(&sum), RATES).unwrap();
        assert_eq!(replica.state().unwrap().weights.as_ptr(), place, "nobody holds on to the weights");
    }
}

#[test]
fn a_healthy_step_moves_every_part_of_the_network() {
    let trainer = trainer();
    let sum_of = |replica: &Replica| {
        let network = trainer.bind(replica);
        let mut sum = vec![0.0; trainer.bucket().values()];
        (0..2).for_each(|shard| add(&mut sum, &bucket_of(&trainer, &network, shard, noise(shard))));
        sum
    };
    // The last BatchNorm of each block begins with zeros (Goyal et al. 2017), which lets nothing through to the block.
    let mut replica = trainer.place(State::initial(trainer.layout(), 3));
    let sum = sum_of(&replica);
    let folded = trainer.bucket().read(&sum);
    trainer.commit(&mut replica, &folded, RATES).unwrap();
    let blocked = trainer.monitors(&replica, &folded, RATES).unwrap().without_gradient;
    assert!(blocked.contains(&"encoder.layer1.0.conv1.weight".to_string()), "{blocked:?}");
    assert!(blocked.iter().all(|name| name.starts_with("encoder.layer")), "{blocked:?}");

    let before = replica.state().unwrap().clone();
    let sum = sum_of(&replica);
    let folded = trainer.bucket().read(&sum);
    trainer.commit(&mut replica, &folded, RATES).unwrap();
    let monitors = trainer.monitors(&replica, &folded, RATES).unwrap();
    let state = replica.state().unwrap();
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

/// One BatchNorm in three places was a fault of the program that this one comes from: it trained, and its running
/// statistics were of none of the three.
#[test]
fn every_batch_norm_has_statistics_of_its_own() {
    let trainer = trainer();
    let mut replica = trainer.place(State::initial(trainer.layout(), 3));
    let sum = bucket_of(&trainer, &trainer.bind(&replica), 0, noise(0));
    trainer.commit(&mut replica, &trainer.bucket().read(&sum), RATES).unwrap();
    let state = replica.state().unwrap();
    let means: Vec<_> =
        trainer.layout().statistics.iter().filter(|entry| entry.name.ends_with(".running_mean")).collect();
    // Those of a ResNet-10, of the projector's two layers and of the predictor's first.
    assert_eq!(means.len(), 12 + 2 + 1);
    for (index, mean) in means.iter().enumerate() {
        for other in &means[..index] {
            let [mine, theirs] = [mean, other].map(|entry| &state.statistics[entry.range.clone()]);
            assert!(mine != theirs, "{} and {}", mean.name, other.name);
        }
    }
}

#[test]
fn a_step_of_which_a_part_was_not_computed_is_none() {
    let trainer = trainer().with_state_on_device();
    let replica = trainer.place(State::initial(trainer.layout(), 3));
    let network = trainer.bind(&replica);
    let views = trainer.loader().load(noise(0));
    let (one_shard, _) = trainer.forward_backward_on_device(&network, 0, views, false);
    trainer.bucket().ensure_computed(&one_shard, 1).unwrap();
    let failure = trainer.bucket().ensure_computed(&one_shard, 2).unwrap_err().to_string();
    assert!(failure.contains("0.500 instead of 1"), "{failure}");
    // Half of what two shards would have added up to.
    let failure = trainer.bucket().read_on_device(one_shard).err().unwrap().to_string();
    assert!(failure.contains("0.500 instead of 1") && failure.contains("raise training.shards"), "{failure}");
}

/// Of zeros nothing but zeros is computed, as of memory that nobody wrote. A CPU writes all of it.
#[test]
fn a_shard_that_was_not_computed_is_not_added_to_the_others() {
    for trainer in [trainer(), trainer().with_state_on_device()] {
        let expected = trainer.trains_on_device().then_some("0.000 instead of 1");
        let replica = trainer.place(State::initial(trainer.layout(), 3));
        let network = trainer.bind(&replica);
        let mut bucket = vec![0.0; trainer.bucket().values()];
        for (values, expected) in [(noise(0), None), (vec![0.0; noise(0).len()], expected)] {
            let views = trainer.loader().load(values);
            let failure = trainer.forward_backward(&network, 0, views, false, &mut bucket).err();
            let found = failure.map(|failure| failure.to_string());
            assert_eq!(found.is_some(), expected.is_some(), "{found:?}");
            assert!(expected.is_none_or(|phrase| found.is_some_and(|found| found.contains(phrase))));
        }
    }
}

#[test]
fn what_stays_in_the_devices_memory_comes_to_the_same() {
    let on_host = trainer();
    let on_device = trainer().with_state_on_device();
    let before = State::initial(on_host.layout(), 3);
    for (value, stop) in [(0.5, false), (0.5, true), (f32::NAN, false), (f32::INFINITY, true)] {
        let (mut host, mut device) = (on_host.place(before.clone()), on_device.place(before.clone()));
        let (host_network, device_network) = (on_host.bind(&host), on_device.bind(&device));
        let mut sum = vec![0.0; on_host.bucket().values()];
        let mut device_sum: Option<DeviceBucket> = None;
        for shard in 0..2 {
            let mut values = noise(shard);
            if shard == 0 {
                values[5] = value;
            }
            let mut bucket = vec![f32::NAN; sum.len()];
            let views = on_host.loader().load(values);
            on_host.forward_backward(&host_network, shard, views.clone(), stop, &mut bucket).unwrap();
            add(&mut sum, &bucket);
            let (bucket, _) = on_device.forward_backward_on_device(&device_network, shard, views, stop);
            device_sum = Some(match device_sum {
                Some(left) => left.plus(bucket),
                None => bucket,
            });
        }
        let expected = on_host.bucket().read(&sum);
        let found = on_device.bucket().read_on_device(device_sum.unwrap()).unwrap();
        assert_eq!(found.non_finite_shards(), expected.non_finite_shards());
        assert_eq!(found.stop_requested(), stop);
        let outcomes =
            (on_host.commit(&mut host, &expected, RATES), on_device.commit(&mut device, &found, RATES));
        assert_eq!(outcomes.0, outcomes.1);
        assert_eq!(outcomes.0.is_ok(), value.is_finite());
        if value.is_finite() {
            let near = |a: f64, b: f64| (a - b).abs() <= 1e-5 * b.abs();
            assert!(
                near(found.loss(), expected.loss())
                    && near(found.collapse_level(), expected.collapse_level())
            );
            assert!(near(found.gradient_norm(), expected.gradient_norm()));
            let monitors = on_host.monitors(&host, &expected, RATES).unwrap();
            let same = on_device.monitors(&device, &found, RATES).unwrap();
            assert_eq!(same.without_gradient, monitors.without_gradient);
            assert!(near(same.gradient_norms.backbone, monitors.gradient_norms.backbone));
            assert!(near(same.update_ratios.predictor, monitors.update_ratios.predictor));
        }
        let (found, expected) = (device.state().unwrap(), host.state().unwrap());
        assert_eq!((found.step, found.skipped_steps), (expected.step, expected.skipped_steps));
        for (found, expected) in [
            (&*found.weights, &*expected.weights),
            (&found.momentum, &expected.momentum),
            (&found.statistics, &expected.statistics),
        ] {
            let off = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(off < 1e-6, "off by {off}");
        }
    }
}
