//! What is written is read again, and what is damaged is refused.

use super::*;
use crate::membership::{Digest, Outcome, Place};
use proptest::prelude::*;
use protocol::WorkerId;

fn quickstart() -> Recipe {
    Recipe::from_toml(recipe::QUICKSTART, &[]).unwrap()
}

fn create(path: &Path) -> Result<RunDirectory, RunDirectoryError> {
    RunDirectory::create(path, &quickstart(), "1.0.0")
}

#[test]
fn a_run_is_created_and_opened_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("runs/first");
    let mut created = create(&path).unwrap();
    let run_id = created.run_id();
    created.record(&Record::Ended(Outcome::Stopped { step: 5 })).unwrap();
    drop(created);

    let opened = RunDirectory::open(&path).unwrap();
    assert_eq!(opened.run_id(), run_id);
    assert_eq!(opened.recipe(), &quickstart());
    assert!(opened.logs().is_dir());
    // Whoever may read an ordinary file here may read the run.
    fs::write(path.join("ordinary"), "").unwrap();
    let mode = |name: &str| fs::metadata(path.join(name)).unwrap().permissions().mode();
    assert_eq!(mode(RECIPE), mode("ordinary"));
    let journal = fs::read_to_string(path.join(JOURNAL)).unwrap();
    let lines: Vec<serde_json::Value> =
        journal.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0]["event"], "created");
    assert_eq!(lines[1]["event"], "ended");
    assert_eq!(lines[1]["outcome"], "stopped");
    assert!(lines[1]["unix_time_ms"].as_u64().unwrap() > 0);
}

/// With more images or fewer an epoch is another one, and with others of the same number a shard holds other pixels.
#[test]
fn a_run_goes_on_with_the_images_it_was_begun_with() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    let images = |name: &str, images, digest: &str| Dealt {
        name: name.to_string(),
        images,
        digest: digest.repeat(64),
    };
    let confirms = |images: &Dealt| RunDirectory::confirms(&path, images);
    assert!(!confirms(&images("photos", 40, "a")).unwrap(), "no journal");
    let mut run = create(&path).unwrap();
    assert!(!confirms(&images("photos", 40, "a")).unwrap(), "a journal that does not say");
    run.hold_to(images("photos", 40, "a")).unwrap();
    drop(run);
    for (name, count, digest, expected) in [
        ("photos", 40, "a", None),
        ("moved", 40, "a", None),
        ("photos", 41, "a", Some("40 images of photos (aaaaaaaa…), and its data holds 41 images of photos")),
        ("photos", 40, "b", Some("holds 40 images of photos (bbbbbbbb…)")),
    ] {
        // Whoever only computes a step again looks on while a coordinator holds the folder.
        let mut run = RunDirectory::open(&path).unwrap();
        let confirmed = confirms(&images(name, count, digest));
        let held = run.hold_to(images(name, count, digest)).map(|()| true);
        for outcome in [confirmed, held] {
            match expected {
                None => assert!(outcome.unwrap()),
                Some(part) => {
                    let refused = outcome.unwrap_err().to_string();
                    assert!(refused.contains(part), "{refused}");
                }
            }
        }
    }
}

#[test]
fn a_journal_is_read_as_it_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    let mut run = create(&path).unwrap();
    let place = Place {
        worker: WorkerId(7),
        collective_address: "10.0.0.1:7000".to_string(),
        first_shard: 0,
        shard_count: 4,
    };
    let records = [
        Record::Dealt(Dealt { name: "photos".to_string(), images: 3, digest: "c0ffee".to_string() }),
        Record::Opened {
            program_version: "1.0.0".to_string(),
            checkpoint: Some("step-000003".to_string()),
            step: 3,
            address: Some("10.0.0.9:7070".to_string()),
            workers: 2,
            local_workers: 0,
            awaited: vec![3, 4],
        },
        Record::Joined {
            worker: 7,
            incarnation: u64::MAX,
            collective_address: "10.0.0.1:7000".to_string(),
            description: "host".to_string(),
            outlives_coordinator: true,
            arithmetic: String::new(),
        },
        Record::Returned { worker: 3, step: None },
        Record::Generation { generation: 2, places: vec![place] },
        Record::Started { generation: 2, step: 3, state_hash: "00".to_string() },
        Record::Adopted { generation: 2, step: 3 },
        Record::Checkpoint { generation: 2, checkpoint: "step-000005".to_string(), step: 5 },
        Record::Predicted { step: 5, steps_left: 4, seconds_left: 0.7 },
        Record::StopRequested { step: 5 },
        Record::Lost { worker: 3, reason: "gone".to_string() },
        Record::Ended(Outcome::Failed { reason: "disk".to_string() }),
        Record::Ended(Outcome::Completed { step: 9, state_hash: Digest([0xab; 32]) }),
    ];
    for record in &records {
        run.record(record).unwrap();
    }
    drop(run);
    let text = fs::read_to_string(path.join(JOURNAL)).unwrap();
    let read: Vec<Record> = text.lines().skip(1).map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(read, records);
    assert!(!RunDirectory::open(&path).unwrap().past().has_left_workers(), "the run has ended");

    // Without its end, and with lines of other versions, cut as a crash cuts them.
    let whole: Vec<&str> = text.lines().take(6).collect();
    let earlier = r#"{"event":"opened","program_version":"0.9.0","checkpoint":null,"step":0}"#;
    let later = r#"{"event":"moved","worker":7}"#;
    let cut = format!("{}\n{earlier}\n{later}\n{}\n{{\"event\":\"lo", whole[0], whole[1..].join("\n"));
    fs::write(path.join(JOURNAL), cut).unwrap();
    let run = RunDirectory::open(&path).unwrap();
    let past = run.past();
    assert_eq!((past.workers_admitted, past.generation.0, past.workers), (7, 2, 2));
    assert_eq!((past.ranks.as_slice(), past.has_started), (&[WorkerId(7)][..], false));
    assert_eq!(past.members[&WorkerId(7)].incarnation, u64::MAX);
    assert_eq!(past.address.as_deref(), Some("10.0.0.9:7070"));
}

#[test]
fn two_runs_have_different_ids() {
    let folder = tempfile::tempdir().unwrap();
    let ids = ["a", "b"].map(|name| create(&folder.path().join(name)).unwrap().run_id());
    assert_ne!(ids[0], ids[1]);
}

#[test]
fn folders_that_cannot_be_used_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let check = |result: Result<RunDirectory, RunDirectoryError>, expected: &str| {
        let error = result.expect_err(expected).to_string();
        assert!(error.contains(expected), "{error:?} lacks {expected:?}");
    };
    let path = folder.path();
    check(RunDirectory::open(&path.join("nowhere")), "not a run directory");
    fs::write(path.join("notes.txt"), "mine").unwrap();
    check(create(path), "--resume");
    assert_eq!(fs::read_dir(path).unwrap().count(), 1, "nothing was put there");
    check(create(&path.join("notes.txt/run")), "cannot create");

    let run = path.join("run");
    let held = create(&run).unwrap();
    check(create(&run), "--resume");
    let ours = format!("another coordinator (process {})", std::process::id());
    check(RunDirectory::open(&run), &ours);
    drop(held);
    RunDirectory::open(&run).unwrap();

    fs::write(run.join(JOURNAL), "{}\n").unwrap();
    check(RunDirectory::open(&run), "run's creation");
    fs::write(run.join(JOURNAL), "{\"run_id\":\"+0\",\"program_version\":\"1\"}\n").unwrap();
    check(RunDirectory::open(&run), "32 hexadecimal digits");
    fs::write(run.join(RECIPE), "seed = -1").unwrap();
    check(RunDirectory::open(&run), "recipe.toml");
}

#[test]
fn numbers_from_which_nobody_can_count_on_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    let mut run = create(&path).unwrap();
    run.record(&Record::Generation { generation: u64::MAX, places: Vec::new() }).unwrap();
    drop(run);
    let error = RunDirectory::open(&path).unwrap_err().to_string();
    assert!(error.contains("journal.jsonl") && error.contains("generation 18446744073709551615"), "{error}");
}

#[test]
fn metrics_after_the_checkpoint_are_forgotten() {
    #[derive(Serialize)]
    struct Metric {
        step: u64,
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    let mut run = create(&path).unwrap();
    for step in 1..=5 {
        run.metric(&Metric { step });
    }
    run.metrics.append(b"{\"step\":1").unwrap();
    drop(run);

    let mut run = RunDirectory::open(&path).unwrap();
    run.forget_metrics_after(3).unwrap();
    run.metric(&Metric { step: 4 });
    let text = fs::read_to_string(path.join(METRICS)).unwrap();
    assert_eq!(text, "{\"step\":1}\n{\"step\":2}\n{\"step\":3}\n{\"step\":4}\n");
}

#[test]
fn a_cut_line_of_the_journal_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    let mut run = create(&path).unwrap();
    run.record(&Record::StopRequested { step: 7 }).unwrap();
    run.journal.append(b"{\"event\":\"st").unwrap();
    drop(run);

    let mut run = RunDirectory::open(&path).unwrap();
    run.record(&Record::StopRequested { step: 8 }).unwrap();
    let journal = fs::read_to_string(path.join(JOURNAL)).unwrap();
    assert_eq!(journal.lines().count(), 3, "{journal}");
    assert!(journal.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// A journal, a recipe or metrics with some bytes changed: the run opens, or is refused with a sentence; and
    /// what is opened can be gone on with.
    #[test]
    fn damaged_files_never_panic(
        name in proptest::sample::select(vec![JOURNAL, RECIPE, METRICS]),
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<proptest::sample::Index>(),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run");
        let mut run = create(&path).unwrap();
        run.record(&Record::StopRequested { step: 7 }).unwrap();
        run.metric(&serde_json::json!({ "step": 1 }));
        drop(run);
        let mut bytes = fs::read(path.join(name)).unwrap();
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        bytes.truncate(bytes.len() - cut.index(8));
        fs::write(path.join(name), bytes).unwrap();
        match RunDirectory::open(&path) {
            Ok(mut run) => {
                run.record(&Record::StopRequested { step: 8 }).unwrap();
                let _ = run.forget_metrics_after(0);
            }
            Err(error) => prop_assert!(error.to_string().len() > 20, "{}", error),
        }
    }
}
