//! Pages of made-up runs.

use std::fs;
use std::path::{Path, PathBuf};

use recipe::{Data, Recipe};
use serde_json::json;

use super::*;
use crate::scores::Proportion;
use crate::testing::quickstart;

const HOSTILE: &str = "<script>alert('cat')</script>\"&";

/// A run of 40 steps, 16 to an epoch, with cards and a journal, but without a checkpoint.
fn write_run(folder: &Path, name: &str, change: &str) -> PathBuf {
    let run = folder.join(name);
    fs::create_dir_all(run.join("evaluations")).unwrap();
    let changes = [format!("name={name}"), change.to_owned()];
    let recipe = Recipe::from_toml(&quickstart().to_toml(), &changes).unwrap();
    fs::write(run.join("recipe.toml"), recipe.to_toml()).unwrap();
    let lines: String =
        (1..=40).map(|step| metrics::line(step, (step - 1) / 16 + 1, -0.0123 * step as f64, 0.97)).collect();
    fs::write(run.join("metrics.jsonl"), lines).unwrap();
    let journal = [
        json!({"unix_time_ms": 1_795_540_402_753u64, "event": "created", "program_version": "0.1.0"}),
        json!({"unix_time_ms": 1_795_540_403_000u64, "event": "lost", "worker": 2, "reason": HOSTILE}),
    ];
    fs::write(run.join("journal.jsonl"), journal.map(|line| format!("{line}\n")).concat()).unwrap();
    run
}

fn write_cards(run: &Path) {
    let class = |name: &str, correct| json!({"class": name, "recall": Proportion::new(correct, 4)});
    let scores = json!({
        "top1": Proportion::new(5, 8), "top5": null, "per_class": [class(HOSTILE, 3), class("dog", 2)],
        "confusion": [[3, 1], [2, 2]],
    });
    let card = |step: u64, measurement: &serde_json::Value| {
        let checkpoint = (step > 0).then(|| format!("step-{step:06}"));
        json!({
            "format": 1, "weights": {"run": "a", "checkpoint": checkpoint, "step": step},
            "data": {"name": HOSTILE, "source": {"source": "synthetic", "images": 2048}},
            "input": {"input": "crop", "side_px": 32}, "measurement": measurement,
        })
        .to_string()
    };
    let knn = json!({"evaluation": "knn", "results": [{"votes": {"k": 20, "temperature": 0.07}, "scores": scores}]});
    let strange = json!({"evaluation": "telepathy", "settings": {"labels_percent": 10.0, "epochs": 20}, "scores": {"top1": Proportion::new(7, 8)}, HOSTILE: 3.5});
    for (name, step, measurement) in [("a", 0, &knn), ("b", 32, &knn), ("c", 32, &strange)] {
        fs::write(run.join(format!("evaluations/{name}.json")), card(step, measurement)).unwrap();
    }
}

/// The page of `runs`, whose images are in `folder`.
fn page(folder: &Path, runs: &[PathBuf]) -> Result<String, String> {
    let request = ReportRequest {
        runs,
        data: &|recipe: &Recipe| recipe.data.clone(),
        cache_dir: folder,
        device: &Device::flex(),
    };
    let file = folder.join("page.html");
    write_report(&request, &file, &mut |_, _, _| {}).map_err(|error| error.to_string())?;
    Ok(fs::read_to_string(file).unwrap())
}

fn expect(page: &str, phrases: &[&str]) {
    for phrase in phrases {
        assert!(page.contains(phrase), "the page lacks {phrase:?}");
    }
    // The one script of the page, and no element that loads anything.
    assert_eq!(page.matches("<script").count(), 1);
    for loader in ["src=\"http", "href=\"http", "url(http", "<link", "<iframe", "@import"] {
        assert!(!page.contains(loader), "the page has {loader:?}");
    }
}

#[test]
fn a_page_holds_the_numbers_of_its_files_and_nothing_hostile() {
    let folder = tempfile::tempdir().unwrap();
    let run = write_run(folder.path(), "first", "seed=3");
    write_cards(&run);
    let text = page(folder.path(), std::slice::from_ref(&run)).unwrap();
    expect(
        &text,
        &[
            "<h1>first</h1>",
            "40 of 480",
            "the collapse level is 0.97",
            // The mean of the losses of the last 20 steps.
            "<dd>\u{2212}0.375</dd>",
            // Every loss is in the curve.
            "-0.0123 -0.0246 -0.0369",
            "62.50 %",
            "30.57–86.32",
            "k 20, T 0.07",
            "telepathy",
            // How it was made, in its tile and its table.
            "10 % of labels, 20 epochs, step-000032 on &lt;script&gt;",
            "% of labels</th>",
            "87.50 %",
            "&lt;script&gt;alert('cat')&lt;/script&gt;&quot;&amp;",
            "taken for dog: 1 of 4",
            "evaluate knn",
            "--checkpoint step-000032 --k 20 --temperature 0.07",
            "evaluations/c.json",
            "seed = 3",
            "2026-11-24 17:13 UTC",
            // There is no checkpoint.
            "expected a checkpoint",
            "It takes a checkpoint and labelled images",
            // But images.
            "data:image/png;base64,",
        ],
    );
    assert_eq!(page(folder.path(), std::slice::from_ref(&run)).unwrap(), text, "the same again");
}

#[test]
fn a_run_that_has_hardly_begun_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let run = write_run(folder.path(), "young", "seed=0");
    let metrics = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let torn = &metrics[..metrics.len() - 20];
    fs::write(run.join("metrics.jsonl"), torn).unwrap();
    let text = page(folder.path(), std::slice::from_ref(&run)).unwrap();
    expect(
        &text,
        &["39 of 480", "There are no result cards yet", "There is no kNN card yet", "evaluate linear RUN"],
    );
    for file in ["metrics.jsonl", "journal.jsonl"] {
        fs::remove_file(run.join(file)).unwrap();
    }
    let text = page(folder.path(), std::slice::from_ref(&run)).unwrap();
    expect(
        &text,
        &[
            "No step has been committed yet",
            "the curves begin with the first one",
            "There is no <code>journal",
        ],
    );
    fs::write(run.join("metrics.jsonl"), "broken\n").unwrap();
    let error = page(folder.path(), std::slice::from_ref(&run)).unwrap_err();
    assert!(error.contains("metrics.jsonl") && error.contains("line 1"), "{error}");
    let error = page(folder.path(), &[folder.path().join("nowhere")]).unwrap_err();
    assert!(error.contains("recipe.toml"), "{error}");
}

#[test]
fn several_runs_lie_over_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let runs = [("first", "optimizer.momentum=0.9"), ("second", "optimizer.momentum=0.5")]
        .map(|(name, change)| write_run(folder.path(), name, change));
    write_cards(&runs[1]);
    let text = page(folder.path(), &runs).unwrap();
    expect(
        &text,
        &[
            "<h1>first · second</h1>",
            "data-name=\"first\"",
            "data-name=\"second\"",
            "data-name=\"second: k 20, T 0.07\"",
            "<code>optimizer.momentum</code></th><td>0.9</td><td>0.5</td>",
            "--name second-again",
        ],
    );
    assert!(!text.contains("<code>seed</code>"), "what is the same is not listed");
    assert!(!text.contains("class=\"maps\""));
}

#[test]
fn a_whole_run_shows_its_map_and_neighbours() {
    let folder = tempfile::tempdir().unwrap();
    let run = crate::testing::write_run(folder.path(), &[7]);
    let request = ReportRequest {
        runs: &[run],
        data: &|_| Data::Synthetic { images: 128 },
        cache_dir: folder.path(),
        device: &Device::flex(),
    };
    let (file, mut seen) = (folder.path().join("page.html"), Vec::new());
    let mut progress = |phase, done, of| {
        if done == of {
            seen.push((phase, of));
        }
    };
    let error =
        write_report(&request, &folder.path().join("run/recipe.toml/page.html"), &mut progress).unwrap_err();
    assert!(error.to_string().contains("cannot write"), "{error}");
    write_report(&request, &file, &mut progress).unwrap();
    // Once each: nothing was computed for the page that cannot be written.
    assert_eq!(seen, [(crate::Phase::TrainFeatures, 1000), (crate::Phase::TestFeatures, 500)]);
    let text = fs::read_to_string(file).unwrap();
    expect(&text, &["500 test images of synthetic-128", "of 64 are of its class", "data:image/jpeg;base64,"]);
    assert_eq!(text.matches("data-i=\"499\"").count(), 2, "the last point is on both maps");
}
