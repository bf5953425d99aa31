//! Evaluations as a person asks for them.

use std::fs;
use std::path::PathBuf;
use std::process::Output;

use super::{Place, expect, foreign, foreign_recipe, words};

/// A run that has not begun, with one checkpoint, which can be evaluated.
fn imported() -> Place {
    let place = Place::new();
    let mut import = place.command(env!("CARGO_BIN_EXE_evaluate"), &["import"]);
    let output =
        import.args([&foreign("simsiam.pth.tar"), "runs/a"]).args(foreign_recipe()).output().unwrap();
    expect(&output, 0, &["as runs/a"]);
    place
}

fn evaluate(place: &Place, arguments: &[&str]) -> Output {
    place.command(env!("CARGO_BIN_EXE_evaluate"), arguments).output().unwrap()
}

/// The one card of the run.
fn card(place: &Place) -> PathBuf {
    let files = fs::read_dir(place.run("a").join("evaluations")).unwrap();
    let mut cards = files.map(|file| file.unwrap().path()).filter(|path| path.extension().unwrap() == "json");
    let card = cards.next().unwrap();
    assert_eq!(cards.next(), None);
    card
}

#[test]
fn figures_whose_card_cannot_be_written_are_told() {
    let place = imported();
    expect(
        &evaluate(&place, &["quality", "runs/a"]),
        0,
        &["effective rank", "evaluations/quality-step-000000"],
    );
    let card = card(&place);
    // A folder in its place takes no file's.
    fs::remove_file(&card).unwrap();
    fs::create_dir_all(card.join("full")).unwrap();
    let output = evaluate(&place, &["quality", "runs/a"]);
    expect(&output, 1, &["error: cannot write", "evaluations/quality-step-000000"]);
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(told.contains("effective rank") && !told.contains("evaluations"), "{told}");

    // Where nothing can be written at all, nothing is computed.
    let evaluations = place.run("a").join("evaluations");
    fs::remove_dir_all(&evaluations).unwrap();
    fs::write(&evaluations, "").unwrap();
    let output = evaluate(&place, &["quality", "runs/a"]);
    expect(&output, 1, &["error: cannot write into runs/a/evaluations"]);
    assert!(output.stdout.is_empty(), "{}", words(&output));
}

#[test]
fn cards_and_images_elsewhere_get_a_sentence() {
    let place = imported();
    expect(&evaluate(&place, &["quality", "runs/a"]), 0, &["effective rank"]);
    let card = card(&place);
    fs::copy(&card, place.0.path().join("copy.json")).unwrap();
    let card = card.to_str().unwrap();
    for (arguments, code, phrase) in [
        (&["verify", card][..], 0, "equal"),
        (&["verify", card, "--data", "cifar10:runs"], 1, "expected images of the card's kind, synthetic-128"),
        (&["verify", "copy.json"], 1, "copy.json: expected a card within its run, as RUN/evaluations/CARD"),
        (&["knn", "runs/a", "--data", "stl10:nowhere"], 2, "expected a folder at nowhere, found none"),
        (&["knn", "runs/a", "--data", "runs"], 2, "expected stl10:FOLDER"),
        (&["knn", "runs/a", "--data", "stl10:runs"], 1, "or to `evaluate` by --data, the folder"),
    ] {
        expect(&evaluate(&place, arguments), code, &[phrase]);
    }
}
