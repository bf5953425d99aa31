//! What the control plane, the images and the gradients read: each function gets bytes as they may come, says whether they
//! were taken, and asserts what must hold of them then.

use std::cell::RefCell;
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::ops::Range;
use std::path::Path;
use std::thread;
use std::time::Duration;

use collective::{Collective, CollectiveError, Group, Key, Limits, Medium, assemble};
use coordinator::RunDirectory;
use coordinator::checkpoint::CheckpointDirectory;
use dataset::{Images, Manifest, Pictures};
use prost::Message;
use protocol::{Token, v1};
use recipe::{QUICKSTART, Recipe, RecipeError};

/// Says whether bytes were taken.
pub(crate) type Decode = fn(&[u8]) -> bool;

/// All of them by name, with how many mutations of a file a test tries: fewer where each takes long.
pub(crate) const DECODERS: &[(&str, Decode, u64)] = &[
    ("recipe", recipe, 400),
    ("change", change, 400),
    ("manifest", manifest, 400),
    ("report", report, 1000),
    ("order", order, 1000),
    ("join", join, 1000),
    ("part", part, 1000),
    ("token", token, 400),
    ("journal", journal, 200),
    ("metrics", metrics, 200),
    ("checkpoint", checkpoint, 200),
    ("picture", picture, 200),
    ("pack", pack, 30),
    ("gradients", gradients, 30),
];

fn text(bytes: &[u8]) -> &str {
    // What is no text is refused where files are read.
    std::str::from_utf8(bytes).unwrap_or_default()
}

/// Runs `work` in a folder of this thread's, which is empty before.
fn in_folder(work: impl FnOnce(&Path) -> bool) -> bool {
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

/// `journal.jsonl`, as the next coordinator reads it.
fn journal(bytes: &[u8]) -> bool {
    in_folder(|folder| {
        fs::write(folder.join("recipe.toml"), QUICKSTART).unwrap();
        fs::write(folder.join("journal.jsonl"), bytes).unwrap();
        let Ok(run) = RunDirectory::open(folder) else { return false };
        let past = run.past();
        assert!(past.members.keys().all(|worker| worker.0 <= past.workers_admitted));
        true
    })
}

/// `metrics.jsonl`, as the next coordinator and whoever watches read it.
fn metrics(bytes: &[u8]) -> bool {
    in_folder(|folder| {
        fs::write(folder.join("recipe.toml"), QUICKSTART).unwrap();
        let created =
            r#"{"event":"created","run_id":"00000000000000000000000000000001","program_version":"1"}"#;
        fs::write(folder.join("journal.jsonl"), format!("{created}\n")).unwrap();
        fs::write(folder.join("metrics.jsonl"), bytes).unwrap();
        let is_seen = dashboard::read_status(folder, None).is_ok();
        let mut run = RunDirectory::open(folder).unwrap();
        coordinator::untrusted::metrics(&mut run, 3).is_ok() && is_seen
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

/// A picture that claims to be a JPEG, and one that claims to be a PNG.
fn picture(bytes: &[u8]) -> bool {
    in_folder(|folder| {
        for name in ["a.jpg", "b.png"] {
            fs::write(folder.join(name), bytes).unwrap();
        }
        let mut pictures = Pictures::open(folder).unwrap();
        let decoded = pictures.decode(0..pictures.count(), 8).unwrap_or_default();
        assert!(decoded.iter().all(|(_, record)| record.len() == 3 * 8 * 8));
        !decoded.is_empty()
    })
}

/// A file of packed pictures: either it is the one that was made, or it is made anew.
fn pack(bytes: &[u8]) -> bool {
    in_folder(|folder| {
        let (images, cache) = (folder.join("images"), folder.join("cache"));
        fs::create_dir(&images).unwrap();
        fs::write(images.join("a.png"), PNG).unwrap();
        let recipe = Recipe::from_toml(
            QUICKSTART,
            &["data={source=\"folder\",path=\"images\",image_px=8}".to_owned(), "views.crop_px=8".to_owned()],
        );
        let mut data = recipe.unwrap().data;
        if let recipe::Data::Folder { path, .. } = &mut data {
            path.clone_from(&images);
        }
        let expected = Images::open(&data, &cache).unwrap().record(0).to_vec();
        damage(&cache, bytes);
        let again = Images::open(&data, &cache);
        again.is_ok_and(|images| {
            assert_eq!(images.record(0), expected);
            true
        })
    })
}

/// Writes `bytes` over the end of every file below `folder`.
fn damage(folder: &Path, bytes: &[u8]) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            damage(&path, bytes);
        } else {
            let mut content = fs::read(&path).unwrap();
            let kept = content.len().saturating_sub(bytes.len());
            content.truncate(kept);
            content.extend_from_slice(bytes);
            fs::write(&path, content).unwrap();
        }
    }
}

/// Two pixels by two.
const PNG: &[u8] = include_bytes!("../fuzz/corpus/picture/small.png");

/// What one worker sends to another, changed on its way: the sum is the right one, or there is none. The input is a list of
/// changes, each of a place (two bytes) and of what the byte there is combined with.
fn gradients(bytes: &[u8]) -> bool {
    let changes: Vec<(usize, u8)> = bytes
        .chunks_exact(3)
        .take(32)
        .map(|change| (usize::from(u16::from_le_bytes([change[0], change[1]])), change[2]))
        .collect();
    let listen = || TcpListener::bind("127.0.0.1:0").unwrap();
    let (listeners, through) = ([listen(), listen()], listen());
    let target = listeners[0].local_addr().unwrap();
    let addresses = [&through, &listeners[1]].map(|listener| listener.local_addr().unwrap().to_string());
    thread::scope(|scope| {
        scope.spawn(|| {
            let Ok((from, _)) = through.accept() else { return };
            let Ok(to) = TcpStream::connect(target) else { return };
            let (mut back_from, mut back_to) = (to.try_clone().unwrap(), from.try_clone().unwrap());
            let back = thread::spawn(move || pass(&mut back_from, &mut back_to, &[]));
            pass(&mut &from, &mut &to, &changes);
            // Ends the other way, too.
            let _ = to.shutdown(Shutdown::Both);
            let _ = back.join();
        });
        let ranks = [0, 1].map(|rank| {
            let (listener, addresses) = (&listeners[rank], &addresses);
            scope.spawn(move || fold(rank, listener, addresses))
        });
        let mut are_summed = true;
        for rank in ranks {
            let sum = rank.join().unwrap().ok();
            are_summed &= sum.is_some();
            let are_right =
                |sum: Vec<f32>| sum.iter().zip(0u8..).all(|(sum, place)| *sum == 3.0 * f32::from(place));
            assert!(sum.is_none_or(are_right));
        }
        // The proxy ends with the connection that it waits for, also if nobody came.
        let _ = TcpStream::connect(through.local_addr().unwrap());
        are_summed
    })
}

/// Floats in each worker's bucket.
const LEN: usize = 64;

fn fold(rank: usize, listener: &TcpListener, addresses: &[String]) -> Result<Vec<f32>, CollectiveError> {
    let leases: Vec<Range<u32>> = vec![0..1, 1..2];
    let group = Group::new([1; 16], 1, rank, leases, 2).unwrap();
    let limit = Duration::from_millis(100);
    let limits = Limits { bucket_len: LEN, connect_deadline: limit, step_deadline: limit };
    let key = Key::new([2; 32]);
    let mut collective: Collective = assemble(listener, &key, group, addresses, limits, Medium::Tcp)?;
    let sums = collective.sums();
    sums.clear();
    while let Some(shard) = sums.next_shard() {
        for (place, float) in (0u8..).zip(sums.next_bucket()) {
            *float = f32::from(place) * (shard + 1) as f32;
        }
        sums.commit();
    }
    collective.fold(1).map(<[f32]>::to_vec)
}

/// Passes bytes on, with `changes` of some, until either side ends.
fn pass(from: &mut impl Read, to: &mut impl Write, changes: &[(usize, u8)]) {
    let (mut passed, mut buffer) = (0, [0; 4096]);
    while let Ok(count) = from.read(&mut buffer) {
        for (place, change) in changes {
            if (passed..passed + count).contains(place) {
                buffer[place - passed] ^= change;
            }
        }
        passed += count;
        if count == 0 || to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
}
