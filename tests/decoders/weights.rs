//! What needs the network of tensors: weights, and what evaluation reads of a run. Some of it is bytes that others read, too.

use std::fs;
use std::path::Path;

use evaluation::{Card, Encoder, ReportRequest, write_report};
use recipe::{QUICKSTART, Recipe, Start};
use simsiam::{Device, Layout, State, checkpoint};

use super::control::{Named, in_folder};
use super::gradients::changes;

/// As in `control.rs`.
pub(crate) const DECODERS: &[Named] = &[
    ("card", card, 400),
    ("import", import, 60),
    ("state", state, 100),
    ("checkpoint", newest_checkpoint, 200),
    ("metrics", page_of_metrics, 60),
    ("journal", page_of_journal, 60),
    ("card", page_of_card, 60),
];

/// The smallest network.
fn small_network() -> Recipe {
    let network = [
        "model.width=2",
        "model.projector_dim=6",
        "model.predictor_dim=3",
        "model.backbone=resnet10",
        "data={source=\"cifar10\",path=\"nowhere\"}",
    ];
    Recipe::from_toml(QUICKSTART, &network.map(str::to_owned)).unwrap()
}

/// A result card.
fn card(bytes: &[u8]) -> bool {
    in_folder(|folder| {
        let path = folder.join("card.json");
        fs::write(&path, bytes).unwrap();
        let Ok(card) = Card::read(&path) else { return false };
        assert!(card.differences(&card).is_empty(), "a card equals itself");
        card.file_name().ends_with(".json")
    })
}

/// Weights of another program: a pickle, or safetensors.
fn import(bytes: &[u8]) -> bool {
    in_folder(|folder| {
        let path = folder.join("weights");
        fs::write(&path, bytes).unwrap();
        let start = Start { weights: path, blake3: None, heads: None };
        let Ok(imported) = evaluation::import(&small_network(), &start) else { return false };
        assert!(imported.state.weights.iter().all(|weight| weight.is_finite()));
        true
    })
}

/// The files of a checkpoint with changes in their first 64 KiB: they give the state that was written, or none.
fn state(bytes: &[u8]) -> bool {
    let layout = Layout::of(&small_network().model);
    let written = State::initial(&layout, 1);
    let mut files = checkpoint::write(&layout, written.clone());
    let mut places = files.iter_mut().rev().flat_map(|(_, content)| content).collect::<Vec<_>>();
    for (place, change) in changes(bytes) {
        if let Some(byte) = places.get_mut(place) {
            **byte ^= change;
        }
    }
    let content = |name| files.iter().find(|(other, _)| *other == name).map(|(_, content)| &content[..]);
    let Ok(read) = checkpoint::read(&layout, content) else { return false };
    assert_eq!(read.hash(), written.hash());
    true
}

/// The manifest of a run's only checkpoint, beside one file.
fn newest_checkpoint(bytes: &[u8]) -> bool {
    in_folder(|run| {
        let checkpoint = run.join("checkpoints/step-000003");
        fs::create_dir_all(&checkpoint).unwrap();
        fs::write(run.join("recipe.toml"), small_network().to_toml()).unwrap();
        fs::write(checkpoint.join("manifest.json"), bytes).unwrap();
        fs::write(checkpoint.join("model.safetensors"), b"weights").unwrap();
        assert!(Encoder::open(run, None).is_err(), "the other files are not there");
        true
    })
}

fn page_of_metrics(bytes: &[u8]) -> bool {
    is_on_a_page("metrics.jsonl", bytes)
}

fn page_of_journal(bytes: &[u8]) -> bool {
    is_on_a_page("journal.jsonl", bytes)
}

fn page_of_card(bytes: &[u8]) -> bool {
    is_on_a_page("evaluations/a.json", bytes)
}

/// Whether a report can be made of a run with this file.
fn is_on_a_page(name: &str, bytes: &[u8]) -> bool {
    in_folder(|run| {
        fs::create_dir(run.join("evaluations")).unwrap();
        fs::write(run.join("recipe.toml"), small_network().to_toml()).unwrap();
        fs::write(run.join(name), bytes).unwrap();
        let request = ReportRequest {
            runs: &[run.to_owned()],
            data: &|recipe: &Recipe| recipe.data.clone(),
            cache_dir: run,
            device: &Device::flex(),
        };
        let page = run.join("page.html");
        write_report(&request, &page, &mut |_, _, _| {}).is_ok_and(|()| is_whole(&page))
    })
}

fn is_whole(page: &Path) -> bool {
    let text = fs::read_to_string(page).unwrap();
    assert!(text.ends_with("</html>"), "the page is cut");
    true
}
