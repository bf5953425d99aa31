//! The commands that repeat a run and its figures.

use serde_json::Value;

use super::cards::ResultCard;
use super::run_files::{EVALUATIONS, RunFiles};

/// What repeats the training: on a CPU to the same bits, with any number of workers.
pub(super) fn train(run: &RunFiles) -> String {
    let recipe = quoted(&run.folder.join(crate::encoder::RECIPE).display().to_string());
    let workers = run.journal.workers.max(1);
    format!("coordinator --config {recipe} --name {}-again --workers {workers}", run.recipe.name)
}

/// What makes a card anew, if this program knows how.
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
    let own = serde_json::to_value(run.recipe.labelled_data()).is_ok_and(|own| own == card.source);
    let data = other_data(&card.source)
        .filter(|_| !own)
        .map_or(String::new(), |data| format!(" --data {}", quoted(&data)));
    let native = if card.native { " --native" } else { "" };
    Some(format!("evaluate {subcommand} {folder} {weights}{data}{native}{options}"))
}

/// What computes a card again and says whether it is equal.
pub(super) fn verify(run: &RunFiles, card: &ResultCard) -> String {
    let path = run.folder.join(EVALUATIONS).join(&card.file);
    format!("evaluate verify {}", quoted(&path.display().to_string()))
}

/// Data that is not the run's, as `--data` wants it.
fn other_data(source: &Value) -> Option<String> {
    Some(format!("{}:{}", source["source"].as_str()?, source["path"].as_str()?))
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
        assert_eq!(evaluate(&run, &ResultCard { command: None, ..card }), None);
    }
}
