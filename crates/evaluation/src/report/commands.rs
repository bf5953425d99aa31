//! The commands that repeat a run and its figures.

use super::cards::ResultCard;
use super::run_files::{EVALUATIONS, RunFiles};
use crate::data_source::DataSource;

/// What repeats the training: on a CPU to the same bits, with any number of workers.
pub(super) fn train(run: &RunFiles) -> String {
    let recipe = quoted(&run.folder.join(crate::encoder::RECIPE).display().to_string());
    let workers = run.journal.workers.max(1);
    format!("coordinator --config {recipe} --name {}-again --workers {workers}", run.recipe.name)
}

/// What makes a card anew, if this program knows how, and options name its images.
pub(super) fn evaluate(run: &RunFiles, card: &ResultCard) -> Option<String> {
    let (subcommand, options) = match card.command.as_deref()?.split_once(' ') {
        Some((subcommand, options)) => (subcommand, format!(" {options}")),
        None => (card.command.as_deref()?, String::new()),
    };
    let folder = quoted(&run.folder.display().to_string());
    let weights = match &card.checkpoint {
        Some(name) => format!("--checkpoint {}", quoted(name)),
        None => "--random".to_owned(),
    };
    let images = run.images_of(card)?;
    let data = if images == *run.recipe.labelled_data() {
        String::new()
    } else {
        let named = DataSource::naming(&images).filter(|named| named.of(&run.recipe) == images)?;
        format!(" --data {}", quoted(&named.to_string()))
    };
    let native = if card.native { " --native" } else { "" };
    Some(format!("evaluate {subcommand} {folder} {weights}{data}{native}{options}"))
}

/// What computes a card again and says whether it is equal.
pub(super) fn verify(run: &RunFiles, card: &ResultCard) -> String {
    let path = run.folder.join(EVALUATIONS).join(&card.file);
    format!("evaluate verify {}", quoted(&path.display().to_string()))
}

/// One word for a shell.
fn quoted(text: &str) -> String {
    let is_plain = |character: char| character.is_ascii_alphanumeric() || "-_./:=+,".contains(character);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use recipe::Data;
    use serde_json::json;
    use std::path::PathBuf;

    #[test]
    fn commands_say_what_differs_from_the_run() {
        let folder = tempfile::tempdir().unwrap();
        let path = crate::testing::write_run(folder.path(), &[]);
        let mut run = RunFiles::read_all(&[path]).unwrap().remove(0);
        run.folder = PathBuf::from("runs/my run");
        run.journal.workers = 4;
        assert_eq!(
            train(&run),
            "coordinator --config 'runs/my run/recipe.toml' --name quickstart-again --workers 4"
        );
        let card = ResultCard {
            file: "knn-a.json".into(),
            kind: "knn".into(),
            checkpoint: Some("step-000007".into()),
            step: 7,
            data: "drawn".into(),
            source: serde_json::to_value(&run.recipe.data).unwrap(),
            side_px: 32,
            native: false,
            command: Some("knn --k 5 --temperature 0.1".into()),
            settings: vec![],
            figures: vec![],
            scores: None,
        };
        assert_eq!(
            evaluate(&run, &card).unwrap(),
            "evaluate knn 'runs/my run' --checkpoint step-000007 --k 5 --temperature 0.1"
        );
        assert_eq!(verify(&run, &card), "evaluate verify 'runs/my run/evaluations/knn-a.json'");
        let other = ResultCard {
            checkpoint: None,
            source: json!({"source": "cifar10", "path": "data/it's"}),
            native: true,
            command: Some("linear".into()),
            ..card.clone()
        };
        assert_eq!(
            evaluate(&run, &other).unwrap(),
            "evaluate linear 'runs/my run' --random --data 'cifar10:data/it'\\''s' --native"
        );
        assert_eq!(evaluate(&run, &ResultCard { command: None, ..card.clone() }), None);
        let drawn = json!({"source": "synthetic", "images": 77});
        assert_eq!(
            evaluate(&run, &ResultCard { source: drawn, ..card.clone() }),
            None,
            "no option names them"
        );

        // Pictures that moved, those in another folder, and some at a size that no option gives.
        run.recipe.data = Data::Folder { path: "moved".into(), image_px: 144 };
        let there = folder.path().to_str().unwrap();
        let other =
            format!("evaluate knn 'runs/my run' --checkpoint step-000007 --data folder:{there} --k 5");
        for (path, image_px, command) in [
            ("nowhere", 144, Some("evaluate knn 'runs/my run' --checkpoint step-000007 --k 5")),
            (there, 144, Some(other.as_str())),
            (there, 128, None),
        ] {
            let source = json!({"source": "folder", "path": path, "image_px": image_px});
            let card = ResultCard { source, command: Some("knn --k 5".into()), ..card.clone() };
            assert_eq!(evaluate(&run, &card).as_deref(), command, "{path}");
        }
    }
}
