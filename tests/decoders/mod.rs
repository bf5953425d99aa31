//! Whatever bytes come from a network or lie on a disk, nobody panics over them, and nobody takes wrong ones for right.
//!
//! [`control`] has a function for each kind of bytes, [`weights`] those that need the network of tensors. Here each is given
//! the files of its corpus, and mutations of them that look random and are the same each time. `tests/fuzz` gives the same
//! functions to cargo-fuzz, which looks for others for as long as one likes; what it finds goes into the corpus.

mod control;
mod samples;
mod weights;

use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

/// Files of other tests that belong to the corpus of `import`.
const FOREIGN_WEIGHTS: &str = "crates/evaluation/tests/fixtures/foreign";

/// Files of a folder, in the order of their names.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn no_bytes_are_worth_a_panic() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut failures = Vec::new();
    for (name, decode, mutations) in control::DECODERS.iter().chain(weights::DECODERS) {
        let mut paths = files(&repository.join("tests/fuzz/corpus").join(name));
        if *name == "import" {
            paths.extend(files(&repository.join(FOREIGN_WEIGHTS)));
        }
        let corpus: Vec<Vec<u8>> = paths.iter().map(|path| fs::read(path).unwrap()).collect();
        let is_taken = corpus.iter().any(|bytes| decode(bytes));
        assert!(is_taken, "nothing of the corpus of {name} is taken, so nothing is tried");
        for (path, original) in paths.iter().zip(&corpus) {
            for number in 0..=*mutations {
                // The first is the file itself.
                let bytes = mutated(original, &corpus, number);
                if catch_unwind(|| decode(&bytes)).is_err() {
                    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{number}"));
                    fs::write(&kept, bytes).unwrap();
                    failures.push(format!("{name} {} {number}: {}", path.display(), kept.display()));
                }
            }
        }
    }
    assert!(failures.is_empty(), "target, file, mutation and the bytes that were too much:\n{failures:#?}");
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
        match dice.below(8) {
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
            _ => drop(bytes.splice(range, dice.one_of(AWKWARD).iter().copied())),
        }
    }
    bytes
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
