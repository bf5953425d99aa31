//! A clock that jumps, as when a machine wakes, or is told the time: by a day ahead, and by more than that back. What it
//! proves: no wait, no timeout and no bit depends on what time it is.
//!
//! A small library comes between the programs and the system's clock, and adds what a file says to the time of day.
//! `rustc` makes it from `clock_shim.rs`; clocks that only measure are left alone, for those do not jump.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use super::recovery::{check_end, lines};
use super::*;

const DAY_S: i64 = 86_400;

/// The library, and the file that it looks at.
struct Clock {
    library: PathBuf,
    offset: PathBuf,
}

impl Clock {
    fn in_folder(folder: &Path) -> Clock {
        let clock = Clock { library: folder.join("libclock.so"), offset: folder.join("offset") };
        clock.jump_to(0);
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/clock_shim.rs");
        let made = Command::new("rustc")
            .args(["--edition", "2024", "--crate-type", "cdylib", "-O", "-o"])
            .args([&clock.library, &source])
            .env("OFFSET_FILE", &clock.offset)
            .output()
            .unwrap();
        expect(&made, 0, &[]);
        clock
    }

    /// From now on the time of day is so many seconds ahead of the system's.
    fn jump_to(&self, seconds: i64) {
        let aside = self.offset.with_extension("new");
        fs::write(&aside, seconds.to_le_bytes()).unwrap();
        fs::rename(aside, &self.offset).unwrap();
    }
}

#[test]
fn a_clock_that_jumps_changes_nothing() {
    let place = Place::new();
    expect(&place.train("whole", "1", &[]).output().unwrap(), 0, &[]);
    let clock = Clock::in_folder(place.0.path());
    let child = place
        .train("jumped", "2", &[])
        .args(["--heartbeat-timeout-s", "4"])
        .env("LD_PRELOAD", &clock.library)
        .spawn()
        .unwrap();
    place.wait_for_steps("jumped", 8);
    for offset_s in [DAY_S, -2 * DAY_S, 0] {
        clock.jump_to(offset_s);
        // The journal tells what the clock shows, with the next checkpoint.
        let expected_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64 + offset_s;
        wait_for(|| times_s(&place).last()?.abs_diff(expected_s).lt(&600).then_some(()));
    }
    expect(&child.wait_with_output().unwrap(), 0, &["all 96 steps are done"]);
    check_end(&place, "jumped");
    let events: Vec<_> =
        lines(&place, "jumped", "journal.jsonl").into_iter().map(|line| line["event"].clone()).collect();
    assert!(!events.iter().any(|event| event == "lost" || event == "detached"), "{events:?}");
}

fn times_s(place: &Place) -> Vec<i64> {
    let journal = lines(place, "jumped", "journal.jsonl");
    journal.iter().map(|line| line["unix_time_ms"].as_i64().unwrap() / 1000).collect()
}
