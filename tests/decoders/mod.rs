//! Whatever bytes come from a network or lie on a disk, nobody panics over them, and nobody takes wrong ones for right.
//!
//! [`control`], [`images`], [`gradients`], [`dashboard`] and [`pickles`] have a function for each kind of bytes, [`weights`] those
//! that need the network of tensors. Here each is given the files of its corpus, and mutations of them that look random and are the same
//! each time. `tests/fuzz` gives the same functions to cargo-fuzz, which looks for others for as long as one likes; what it
//! finds goes into the corpus. `TARGET=import SIMSIAM_MUTATIONS=100` tries one decoder alone, and a hundred times as many.

mod control;
mod dashboard;
mod gradients;
mod images;
mod pickles;
mod samples;
mod weights;

use std::cell::Cell;
use std::fs;
use std::ops::Range;
use std::panic::{catch_unwind, set_hook, take_hook};
use std::path::{Path, PathBuf};
use std::sync::Once;

/// Files of other tests that belong to the corpus of `import`.
const FOREIGN_WEIGHTS: &str = "crates/evaluation/tests/fixtures/foreign";

/// Files of a folder, in the order of their names.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

thread_local! {
    /// Whether anything panicked in this thread, also if somebody caught it, as servers do.
    static HAS_PANICKED: Cell<bool> = const { Cell::new(false) };
}

#[test]
fn the_control_plane_takes_any_bytes() {
    try_all(control::DECODERS);
}

#[test]
fn images_are_read_from_any_bytes() {
    try_all(images::DECODERS);
}

#[test]
fn workers_take_any_bytes_of_each_other() {
    try_all(gradients::DECODERS);
}

#[test]
fn the_dashboard_takes_any_bytes() {
    try_all(dashboard::DECODERS);
}

#[test]
fn evaluation_reads_any_bytes() {
    try_all(weights::DECODERS);
    try_all(pickles::DECODERS);
}

fn try_all(decoders: &[control::Named]) {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = take_hook();
        set_hook(Box::new(move |panic| {
            HAS_PANICKED.set(true);
            before(panic);
        }));
    });
    let only = std::env::var("TARGET").ok();
    let asked_for = decoders.iter().filter(|(name, ..)| only.as_ref().is_none_or(|only| only == name));
    let failures: Vec<String> = asked_for.flat_map(failures_of).collect();
    assert!(failures.is_empty(), "target, file, mutation and the bytes that were too much:\n{failures:#?}");
}

/// What was too much for one decoder, of its corpus and of what is made from it.
fn failures_of((name, decode, mutations): &control::Named) -> Vec<String> {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut paths = files(&repository.join("tests/fuzz/corpus").join(name));
    if *name == "import" {
        paths.extend(files(&repository.join(FOREIGN_WEIGHTS)));
    }
    let corpus: Vec<Vec<u8>> = paths.iter().map(|path| fs::read(path).unwrap()).collect();
    let times = std::env::var("SIMSIAM_MUTATIONS").ok().and_then(|times| times.parse().ok()).unwrap_or(1);
    let (mut is_taken, mut failures) = (false, Vec::new());
    for (path, original) in paths.iter().zip(&corpus) {
        for number in 0..=mutations * times {
            // The first is the file itself.
            let bytes = mutated(original, &corpus, number);
            HAS_PANICKED.set(false);
            match catch_unwind(|| decode(&bytes)) {
                Ok(taken) if !HAS_PANICKED.get() => is_taken |= taken && number == 0,
                _ => {
                    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{number}"));
                    fs::write(&kept, bytes).unwrap();
                    failures.push(format!("{name} {} {number}: {}", path.display(), kept.display()));
                }
            }
        }
    }
    assert!(
        is_taken || !failures.is_empty(),
        "nothing of the corpus of {name} is taken, so nothing is tried"
    );
    failures
}

/// Numbers that look random.
struct Dice(u64);

impl Dice {
    /// Sebastiano Vigna's SplitMix64.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    fn one_of<'a, T: ?Sized>(&mut self, all: &[&'a T]) -> &'a T {
        all[self.below(all.len())]
    }
}

/// What numbers, lengths, names and structures in text and bytes break on.
const AWKWARD: &[&[u8]] = &[
    b"18446744073709551615",
    b"-1",
    b"1e999",
    b"1e308",
    b"-5e-324",
    b"nan",
    b"null",
    b"[[[[[[[[",
    b"{\"\":",
    b"\"",
    b"\\u0000",
    b"\n",
    b"../../",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    b"\x00\x00\x00\x00",
    b"\xff\xff\xff\x7f",
    "é\u{202e}\u{1f600}".as_bytes(),
];

/// `original` with up to five changes; with none if `number` is 0.
fn mutated(original: &[u8], corpus: &[Vec<u8>], number: u64) -> Vec<u8> {
    let mut dice = Dice(number.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ original.len() as u64);
    let mut bytes = original.to_vec();
    let changes = if number == 0 { 0 } else { 1 + dice.below(5) };
    for _ in 0..changes {
        let (from, to) = (dice.below(bytes.len() + 1), dice.below(bytes.len() + 1));
        let range = from.min(to)..from.max(to).min(from.min(to) + 64);
        match dice.below(10) {
            0..2 if !bytes.is_empty() => {
                let place = dice.below(bytes.len());
                bytes[place] ^= 1 << dice.below(8);
            }
            2 if !bytes.is_empty() => {
                let place = dice.below(bytes.len());
                bytes[place] = dice.next() as u8;
            }
            3 => drop(bytes.drain(range)),
            4 => bytes.truncate(to),
            5 => {
                let again = bytes[range.clone()].to_vec();
                bytes.splice(range.start..range.start, again);
            }
            6 => {
                let other = &corpus[dice.below(corpus.len())];
                bytes.truncate(from);
                bytes.extend_from_slice(&other[dice.below(other.len() + 1)..]);
            }
            7 => drop(bytes.splice(range, dice.one_of(AWKWARD).iter().copied())),
            8 => {
                // A word in the place of another.
                let other = &corpus[dice.below(corpus.len())];
                let word = word_at(other, dice.below(other.len()));
                bytes.splice(word_at(&bytes, from), other[word].iter().copied());
            }
            _ => drop(bytes.splice(word_at(&bytes, from), dice.one_of(AWKWARD).iter().copied())),
        }
    }
    bytes
}

/// Where the word or the number ends and begins that `place` lies in.
fn word_at(bytes: &[u8], place: usize) -> Range<usize> {
    let is_between = |byte: &u8| !byte.is_ascii_alphanumeric() && !b"._-+".contains(byte);
    let place = place.min(bytes.len());
    let start = bytes[..place].iter().rposition(is_between).map_or(0, |between| between + 1);
    let end = bytes[place..].iter().position(is_between).map_or(bytes.len(), |between| place + between);
    start..end
}

/// Writes the files of the corpus that are messages or a manifest, from which cargo-fuzz and the test above make others.
#[test]
#[ignore = "writes into tests/fuzz/corpus"]
fn the_corpus_is_made() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (number, (target, bytes)) in samples::all().into_iter().enumerate() {
        fs::write(corpus.join(target).join(format!("sample-{number}")), bytes).unwrap();
    }
}
