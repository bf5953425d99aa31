//! What the control plane reads: each function gets bytes as they may come, says whether they were taken, and asserts what
//! must hold of them then.

use std::cell::RefCell;
use std::fs;
use std::path::Path;
use std::time::Duration;

use coordinator::checkpoint::CheckpointDirectory;
use coordinator::membership::{Candidate, Event, Membership, Position, Settings};
use coordinator::{OnFailure, Past, Phase, Request, RunDirectory, Timeouts};
use dataset::Manifest;
use prost::Message;
use protocol::{Token, WorkerId, v1};
use recipe::{QUICKSTART, Recipe, RecipeError};

/// Says whether bytes were taken.
pub(crate) type Decode = fn(&[u8]) -> bool;

/// A name, which is also that of a folder of the corpus, and how many mutations of each of its files a test tries: fewer
/// where one takes long.
pub(crate) type Named = (&'static str, Decode, u64);

/// Those of this file.
pub(crate) const DECODERS: &[Named] = &[
    ("recipe", recipe, 400),
    ("change", change, 400),
    ("manifest", manifest, 400),
    ("report", report, 1000),
    ("course", course, 400),
    ("order", order, 1000),
    ("join", join, 1000),
    ("part", part, 1000),
    ("token", token, 400),
    ("journal", journal, 200),
    ("metrics", metrics, 200),
    ("checkpoint", checkpoint, 200),
    ("publish", publish, 100),
];

fn text(bytes: &[u8]) -> &str {
    // What is no text is refused where files are read.
    std::str::from_utf8(bytes).unwrap_or_default()
}

/// Runs `work` in a folder of this thread's, which is empty before.
pub(crate) fn in_folder(work: impl FnOnce(&Path) -> bool) -> bool {
    thread_local!(static FOLDER: RefCell<Option<tempfile::TempDir>> = const { RefCell::new(None) });
    FOLDER.with_borrow_mut(|kept| {
        // In memory, where the system has a place for that.
        let new = || tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let folder = kept.get_or_insert_with(new).path().join("work");
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).unwrap();
        work(&folder)
    })
}

/// A recipe that is taken is complete: what it is written as is the same recipe.
fn recipe(bytes: &[u8]) -> bool {
    is_complete(Recipe::from_toml(text(bytes), &[]))
}

fn is_complete(taken: Result<Recipe, RecipeError>) -> bool {
    let Ok(recipe) = taken else { return false };
    assert_eq!(Recipe::from_toml(&recipe.to_toml(), &[]).unwrap(), recipe);
    true
}

/// A change of the quickstart, as `--set` takes it.
fn change(bytes: &[u8]) -> bool {
    is_complete(Recipe::from_toml(QUICKSTART, &[text(bytes).to_owned()]))
}

/// A manifest that is taken says for each image in which block it is.
fn manifest(bytes: &[u8]) -> bool {
    let Ok(manifest) = Manifest::from_json(text(bytes)) else { return false };
    assert_eq!(Manifest::from_json(&manifest.to_json()).unwrap().digest(), manifest.digest());
    for block in 0..manifest.blocks_per_shard().min(1000) {
        let images = manifest.images_of_block(block);
        assert!(images.clone().all(|image| manifest.block_of(image) == block));
        let _ = manifest.block_bytes(block);
    }
    true
}

/// From a worker. The checksum is looked at apart from the rest, which would else never be reached.
fn report(bytes: &[u8]) -> bool {
    let Ok(mut report) = v1::Report::decode(bytes) else { return false };
    let _ = report.check();
    coordinator::untrusted::report(report).is_ok()
}

/// What two workers report, one after the other, each a second later. Whatever it is, every wait ends.
fn course(bytes: &[u8]) -> bool {
    let (mut rest, mut now, mut is_any) = (bytes, Duration::ZERO, false);
    let mut membership = Membership::new(&Past::default(), settings(), now).unwrap();
    newcomers(&mut membership, now);
    while let Ok(report) = v1::Report::decode_length_delimited(&mut rest) {
        let Ok(Some(event)) = coordinator::untrusted::report(report) else { continue };
        now += Duration::from_secs(1);
        membership.step(event, now);
        is_any = true;
    }
    ends(membership, now);
    is_any
}

/// Of a run of two workers and three steps.
fn settings() -> Settings {
    Settings {
        workers: 2,
        max_workers: 4,
        mixes_arithmetic: false,
        workers_are_local: false,
        on_failure: OnFailure::Shrink,
        min_workers: 1,
        shards: 4,
        total_steps: 3,
        first_step: 0,
        checkpoint: None,
        learning_rate_changes: Vec::new(),
        timeouts: Timeouts::default(),
    }
}

fn newcomers(membership: &mut Membership, now: Duration) {
    for incarnation in [6, 7] {
        let candidate = Candidate {
            returning: None,
            incarnation,
            outlives_coordinator: true,
            collective_address: format!("10.0.0.{incarnation}:7000"),
            description: String::new(),
            arithmetic: String::new(),
        };
        membership.step(Event::Joined(candidate), now);
    }
}

/// A pause lasts until a person ends it. All else ends by itself: each tick takes at least one silent worker, then the run.
fn ends(mut membership: Membership, mut now: Duration) {
    membership.step(Event::Requested(Request::Continue), now);
    for _ in 0..2 * membership.workers() + 12 {
        now += Duration::from_secs(3600);
        membership.step(Event::Tick, now);
    }
    assert!(matches!(membership.phase(), Phase::Finished | Phase::Failed), "still {:?}", membership.phase());
}

/// From the coordinator.
fn order(bytes: &[u8]) -> bool {
    let Ok(mut order) = v1::Order::decode(bytes) else { return false };
    let is_intact = order.check().is_ok();
    assert!(!is_intact || order.with_checksum().check().is_ok());
    is_intact
}

/// Who joins, and the answer.
fn join(bytes: &[u8]) -> bool {
    let request = v1::JoinRequest::decode(bytes).is_ok_and(|mut request| request.check().is_ok());
    let reply = v1::JoinReply::decode(bytes).is_ok_and(|mut reply| reply.check().is_ok());
    request || reply
}

/// A part of a file, which is taken only as it was sent.
fn part(bytes: &[u8]) -> bool {
    let _ = (v1::BlockPart::decode(bytes), v1::CheckpointPart::decode(bytes));
    let _ = (v1::FetchBlocksRequest::decode(bytes), v1::FetchCheckpointRequest::decode(bytes));
    let Ok(part) = v1::FilePart::decode(bytes) else { return false };
    let is_intact = part.check().is_ok();
    assert!(!is_intact || v1::FilePart::new(part.file.clone(), part.data.clone()) == part);
    is_intact
}

/// The content of a token's file. Why it is refused is told without a word of it: the same as of a text of as many x's.
fn token(bytes: &[u8]) -> bool {
    let text = text(bytes);
    let covered = |character: char| if character.is_ascii_graphic() { 'x' } else { character };
    match (Token::parse(text), Token::parse(&text.chars().map(covered).collect::<String>())) {
        (Ok(token), Ok(_)) => {
            assert_eq!(format!("{token:?}"), "Token(secret)");
            true
        }
        (token, other) => {
            assert_eq!(
                token.err().map(|error| error.to_string()),
                other.err().map(|error| error.to_string())
            );
            false
        }
    }
}

/// `journal.jsonl`, as the next coordinator reads it, which then waits for those who are left, and for others.
fn journal(bytes: &[u8]) -> bool {
    in_folder(|folder| {
        fs::write(folder.join("recipe.toml"), QUICKSTART).unwrap();
        fs::write(folder.join("journal.jsonl"), bytes).unwrap();
        let Ok(run) = RunDirectory::open(folder) else { return false };
        let past = run.past();
        assert!(past.members.keys().all(|worker| worker.0 <= past.workers_admitted));
        resume(past);
        true
    })
}

fn resume(past: &Past) {
    let mut membership = Membership::new(past, settings(), Duration::ZERO).unwrap();
    let attends = |worker| Event::Attending { worker, position: Position::default() };
    for (&worker, candidate) in &past.members {
        membership
            .step(Event::Joined(Candidate { returning: Some(worker), ..candidate.clone() }), Duration::ZERO);
        membership.step(attends(worker), Duration::ZERO);
    }
    newcomers(&mut membership, Duration::ZERO);
    for worker in 1..=2 {
        membership.step(attends(WorkerId(past.workers_admitted.saturating_add(worker))), Duration::ZERO);
    }
    ends(membership, Duration::ZERO);
}

/// `metrics.jsonl`, as the next coordinator and whoever watches read it.
fn metrics(bytes: &[u8]) -> bool {
    in_folder(|folder| {
        // How many images there are is in no recipe of this kind.
        let elsewhere = ["data={source=\"cifar10\",path=\"nowhere\"}".to_owned()];
        let recipe = Recipe::from_toml(QUICKSTART, &elsewhere).unwrap();
        fs::write(folder.join("recipe.toml"), recipe.to_toml()).unwrap();
        let created =
            r#"{"event":"created","run_id":"00000000000000000000000000000001","program_version":"1"}"#;
        fs::write(folder.join("journal.jsonl"), format!("{created}\n")).unwrap();
        fs::write(folder.join("metrics.jsonl"), bytes).unwrap();
        let is_seen = dashboard::Watched::of_run(folder, dashboard::Credentials::default()).look().is_ok();
        let mut run = RunDirectory::open(folder).unwrap();
        coordinator::untrusted::metrics(&mut run, 3).is_ok() && is_seen
    })
}

/// Parts of a checkpoint, one after the other, as a worker sends them: it is there as a whole, or nothing of it is.
fn publish(bytes: &[u8]) -> bool {
    in_folder(|folder| {
        let path = folder.join("run");
        let run = RunDirectory::create(&path, &Recipe::from_toml(QUICKSTART, &[]).unwrap(), "1").unwrap();
        let mut partial = run.checkpoints().begin(3).unwrap();
        let mut rest = bytes;
        let mut are_taken = true;
        while are_taken && let Ok(part) = v1::FilePart::decode_length_delimited(&mut rest) {
            are_taken = partial.write(&part.file, &part.data).is_ok();
        }
        let is_published = if are_taken {
            run.checkpoints().publish(partial).is_ok()
        } else {
            drop(partial);
            false
        };
        assert_eq!(run.checkpoints().find("step-000003").unwrap().is_some(), is_published);
        assert_eq!(fs::read_dir(path.join("checkpoints")).unwrap().count(), usize::from(is_published));
        is_published
    })
}

/// The manifest of a checkpoint, beside one file.
fn checkpoint(bytes: &[u8]) -> bool {
    in_folder(|folder| {
        fs::write(folder.join("manifest.json"), bytes).unwrap();
        fs::write(folder.join("model.safetensors"), b"weights").unwrap();
        let Ok(checkpoint) = CheckpointDirectory::open(folder) else { return false };
        // Nothing outside of the folder was looked at.
        assert!(checkpoint.manifest().files.keys().all(|name| !name.contains('/')));
        checkpoint.name().starts_with("step-")
    })
}
