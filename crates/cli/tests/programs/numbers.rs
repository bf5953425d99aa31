//! Numbers that go bad, as real processes: the step and whose images it took are named, the state before it is saved,
//! and the step can be computed again.

use super::recovery::{count, lines};
use super::*;

/// The weights grow fivefold in a step, until `f32` has no more room for them: some fifty steps.
const EXPLODING: &[&str] =
    &["optimizer.base_learning_rate=100", "optimizer.weight_decay=1", "checkpoint.every_steps=1000"];

#[test]
fn a_step_that_is_not_finite_ends_the_run_and_can_be_computed_again() {
    let place = Place::new();
    let output = place.train("sick", "2", EXPLODING).output().unwrap();
    expect(
        &output,
        1,
        &["loss or gradient is not finite, in shard", "was computed by rank", "from images", "worker replay"],
    );
    let saved = fs::read_dir(place.run("sick").join("checkpoints")).unwrap().next().unwrap().unwrap();
    let saved = saved.file_name().into_string().unwrap();
    let steps = lines(&place, "sick", "metrics.jsonl");
    assert_eq!(saved, format!("step-{:06}", steps.len()), "the state before it");

    let replay = |extra: &[&str]| {
        let arguments = [&["replay", "runs/sick"], extra].concat();
        place.command(env!("CARGO_BIN_EXE_worker"), &arguments).output().unwrap()
    };
    let output = replay(&["--picture", "batch.png"]);
    expect(&output, 0, &["not finite: ", "this ends the run", "batch.png: images of shard"]);
    assert!(fs::metadata(place.0.path().join("batch.png")).unwrap().len() > 1000);
    expect(&replay(&["--picture", "batch.png", "--shard", "9"]), 1, &["--shard below 4"]);
    expect(&replay(&["--checkpoint", "step-000001"]), 1, &["step-000001", &saved]);

    // It is no accident of this cluster.
    let resumed = place.coordinator(&["--resume", "runs/sick", "--workers", "1"]).output().unwrap();
    expect(&resumed, 1, &["loss or gradient is not finite"]);
}

#[test]
fn such_steps_are_skipped_if_the_recipe_says_so() {
    let place = Place::new();
    let changes = [EXPLODING, &["training.max_skipped_steps=3"]].concat();
    let output = place.train("skipping", "2", &changes).output().unwrap();
    expect(
        &output,
        1,
        &[
            "is skipped: something was not finite in shards",
            "as in the 3 steps before it, which were skipped",
        ],
    );
    assert_eq!(count(&place, "skipping", "skipped"), 3);
    let skipped = lines(&place, "skipping", "metrics.jsonl");
    assert_eq!(skipped.iter().filter(|line| line["skipped"] == true).count(), 3);
    assert!(skipped.last().unwrap()["step"] == skipped.len(), "they are counted");
}

#[test]
fn a_healthy_step_is_computed_again_to_the_same_numbers() {
    let place = Place::new();
    expect(&place.train("well", "3", &[]).output().unwrap(), 0, &[]);
    // A checkpoint is passed over while the one before it is still on its way, so take what is there.
    let saved = fs::read_dir(place.run("well").join("checkpoints")).unwrap();
    let saved = saved.map(|entry| entry.unwrap().file_name().into_string().unwrap()).min().unwrap();
    let done: usize = saved.strip_prefix("step-").unwrap().parse().unwrap();
    let step = &lines(&place, "well", "metrics.jsonl")[done];
    let loss = format!("all shards: loss {:+.4}", step["loss"].as_f64().unwrap());
    let arguments = ["replay", "runs/well", "--checkpoint", &saved];
    let output = place.command(env!("CARGO_BIN_EXE_worker"), &arguments).output().unwrap();
    expect(&output, 0, &[&format!("step {} of 96", done + 1), &loss, "it leads to state"]);
    let output = place.command(env!("CARGO_BIN_EXE_worker"), &["replay", "runs/well"]).output().unwrap();
    expect(&output, 1, &["that of the last step, 96", "--checkpoint"]);

    // Of other images, it would be another step.
    let recipe = place.run("well").join("recipe.toml");
    let text = fs::read_to_string(&recipe).unwrap();
    let line = text.lines().find(|line| line.starts_with("images = ")).unwrap();
    fs::write(&recipe, text.replace(line, "images = 192")).unwrap();
    let output = place.command(env!("CARGO_BIN_EXE_worker"), &arguments).output().unwrap();
    expect(&output, 1, &["was begun with", "its data holds 192 images", "bring the images back"]);
}

#[test]
fn a_signal_saves_at_once() {
    let place = Place::new();
    let child = place.train("asked", "2", &["checkpoint.every_steps=1000"]).spawn().unwrap();
    place.wait_for_steps("asked", 6);
    signal(pid(&child), Signal::USR1);
    wait_for(|| (count(&place, "asked", "checkpoint") == 1).then_some(()));
    let output = child.wait_with_output().unwrap();
    expect(&output, 0, &["all 96 steps are done"]);
    assert_eq!(count(&place, "asked", "checkpoint"), 2, "that one, and the last");
}

#[test]
fn a_run_is_paused_and_goes_on_when_asked() {
    let place = Place::new();
    expect(&place.train("whole", "2", &[]).output().unwrap(), 0, &[]);
    let child = place.train("rests", "2", &[]).args(["--dashboard", "127.0.0.1:0"]).spawn().unwrap();
    place.wait_for_steps("rests", 6);
    let ask = |what: &str| place.coordinator(&["ask", what, "runs/rests"]).output().unwrap();
    expect(&ask("continue"), 1, &["refused"]);
    // One after the other, before any of it is seen.
    expect(&ask("pause"), 0, &["The run pauses."]);
    expect(&ask("continue"), 0, &["The run goes on."]);
    expect(&ask("pause"), 0, &["The run pauses."]);
    let status = || words(&place.coordinator(&["status", "runs/rests"]).output().unwrap());
    wait_for(|| status().contains("paused").then_some(()));
    let steps = lines(&place, "rests", "metrics.jsonl").len();
    expect(&ask("save"), 0, &[]);
    wait_for(|| place.run("rests").join(format!("checkpoints/step-{steps:06}")).exists().then_some(()));
    assert_eq!(lines(&place, "rests", "metrics.jsonl").len(), steps, "nothing is done in a pause");
    expect(&ask("continue"), 0, &["The run goes on."]);
    expect(
        &child.wait_with_output().unwrap(),
        0,
        &["paused after step", "goes on after step", "all 96 steps are done"],
    );
    super::recovery::check_end(&place, "rests");
    expect(&ask("stop"), 1, &["no coordinator with a dashboard is at work"]);
}
