//! Checkpoints: what was written is read, and nothing else is taken for it.

#![expect(clippy::unwrap_used, reason = "helpers of tests, where a panic is the answer")]

use proptest::prelude::*;
use recipe::Recipe;
use simsiam::checkpoint::{MODEL, OPTIMIZER, PROGRESS, read, write};
use simsiam::{Layout, State};

type Files = Vec<(&'static str, Vec<u8>)>;

fn layout(width: u32) -> Layout {
    let set = [
        format!("model.width={width}"),
        "model.projector_dim=16".to_string(),
        "model.predictor_dim=8".to_string(),
    ];
    Layout::of(&Recipe::from_toml(recipe::QUICKSTART, &set).unwrap().model)
}

fn state(layout: &Layout) -> State {
    let mut state = State::initial(layout, 7);
    (state.step, state.skipped_steps) = (41, 2);
    state.momentum.iter_mut().enumerate().for_each(|(index, value)| *value = index as f32);
    state
}

fn read_files(layout: &Layout, files: &Files) -> Result<State, String> {
    let find = |name| files.iter().find(|(other, _)| *other == name).map(|(_, content)| content.as_slice());
    read(layout, find).map_err(|error| error.to_string())
}

fn content<'a>(files: &'a mut Files, name: &str) -> &'a mut Vec<u8> {
    &mut files.iter_mut().find(|(other, _)| *other == name).unwrap().1
}

#[test]
fn a_state_survives_the_round_trip_bit_for_bit() {
    let layout = layout(4);
    let state = state(&layout);
    let files = write(&layout, state.clone());
    assert!(read_files(&layout, &files).unwrap() == state);
    assert!(write(&layout, state.clone()) == files, "equal states are equal files");
}

#[test]
fn what_is_missing_damaged_or_foreign_is_said() {
    let layout = layout(4);
    let good = write(&layout, state(&layout));
    type Damage = fn(&mut Files);
    let damages: [(Damage, &[&str]); 6] = [
        (|files| files.retain(|(name, _)| *name != OPTIMIZER), &["lacks optimizer.safetensors"]),
        (|files| content(files, MODEL).truncate(100), &["model.safetensors", "damaged"]),
        (|files| *content(files, PROGRESS) = b"{".to_vec(), &["progress.json", "damaged"]),
        (|files| *content(files, MODEL).last_mut().unwrap() ^= 1, &["hash"]),
        (|files| *content(files, OPTIMIZER) = content(files, MODEL).clone(), &["hash"]),
        (
            |files| *files = write(&self::layout(8), state(&self::layout(8))),
            &["encoder.conv1.weight", "[4, 3, 3, 3]", "[8, 3, 3, 3]", "another recipe"],
        ),
    ];
    for (damage, phrases) in damages {
        let mut files = good.clone();
        damage(&mut files);
        let error = read_files(&layout, &files).unwrap_err();
        for phrase in phrases {
            assert!(error.contains(phrase), "{error:?} lacks {phrase:?}");
        }
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(at in 0usize..4000, value in any::<u8>(), cut in 0usize..4000) {
        let layout = layout(1);
        let mut files = write(&layout, state(&layout));
        for (_, content) in &mut files {
            let at = at % content.len();
            content[at] = value;
            content.truncate(content.len().saturating_sub(cut));
        }
        let _ = read_files(&layout, &files);
    }
}
