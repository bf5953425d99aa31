//! Which recipe a command speaks of.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use recipe::{PRESETS, Recipe};

#[derive(Debug, clap::Args)]
pub(crate) struct RecipeArguments {
    /// The recipe: a TOML file, or the name of a built-in one
    #[arg(long, value_name = "FILE|NAME")]
    config: Option<String>,
    /// Change a value of the recipe, such as training.epochs=10; may be given more than once
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Name the run, and its folder; the same as --set name=NAME
    #[arg(long)]
    name: Option<String>,
}

/// The recipe of a command without `--config`.
const DEFAULT: &str = "quickstart";

impl RecipeArguments {
    /// The recipe, with all changes, checked.
    pub(crate) fn load(&self) -> Result<Recipe> {
        let config = self.config.as_deref().unwrap_or(DEFAULT);
        let text = match PRESETS.iter().find(|(name, _)| *name == config) {
            Some((_, text)) => (*text).to_string(),
            None => read(Path::new(config))?,
        };
        let name = self.name.iter().map(|name| format!("name={name:?}"));
        let changes: Vec<String> = self.set.iter().cloned().chain(name).collect();
        Recipe::from_toml(&text, &changes).with_context(|| format!("recipe {config}"))
    }

    /// The name of the run that is meant. Changes of other values may be those of its own recipe.
    pub(crate) fn run_name(&self) -> Result<String> {
        let is_name = |change: &&String| change.starts_with("name=");
        let set = match &self.config {
            Some(_) => self.set.clone(),
            None => self.set.iter().filter(is_name).cloned().collect(),
        };
        let only_named = RecipeArguments { config: self.config.clone(), set, name: self.name.clone() };
        Ok(only_named.load()?.name)
    }

    /// What is asked of a run that has this recipe: without `--config`, to change values of its own.
    pub(crate) fn of_run(&self, saved: &Recipe) -> Result<Recipe> {
        match self.config {
            Some(_) => self.load(),
            None => Recipe::from_toml(&saved.to_toml(), &self.set).context("the run's recipe"),
        }
    }

    /// Whether a recipe was asked for, beyond a run's name.
    pub(crate) fn are_given(&self) -> bool {
        self.config.is_some() || !self.set.is_empty()
    }

    /// Whether the run was named apart from its recipe.
    pub(crate) fn name_is_given(&self) -> bool {
        self.name.is_some()
    }
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|error| {
        let names: Vec<&str> = PRESETS.iter().map(|(name, _)| *name).collect();
        anyhow!("--config {}: expected a file ({error}) or one of {}", path.display(), names.join(", "))
    })
}

/// The recipe of a run whose images lie where another recipe has them. That is all that may change of it: whether they are
/// the same images, their hashes say.
pub(crate) fn moved(saved: &Recipe, asked: &Recipe) -> Recipe {
    let mut moved = saved.clone();
    moved.data = saved.data.moved_to(&asked.data);
    if let (Some(data), Some(asked)) = (&mut moved.evaluation.data, &asked.evaluation.data) {
        *data = data.moved_to(asked);
    }
    moved
}

/// Where two recipes differ, as lines such as `training.epochs: 5, not 10`; `None` if they are the same but
/// for their names.
pub(crate) fn difference(saved: &Recipe, asked: &Recipe) -> Option<String> {
    let asked = Recipe { name: saved.name.clone(), ..asked.clone() };
    if *saved == asked {
        return None;
    }
    let (saved, asked) = (saved.values(), asked.values());
    let find = |lines: &[(String, String)], key: &str| {
        lines.iter().find(|(other, _)| other == key).map_or("absent".to_string(), |(_, value)| value.clone())
    };
    let mut keys: Vec<&String> = saved.iter().chain(&asked).map(|(key, _)| key).collect();
    keys.sort_unstable();
    keys.dedup();
    let differing = keys.into_iter().filter_map(|key| {
        let (saved, asked) = (find(&saved, key), find(&asked, key));
        (saved != asked).then(|| format!("{key} is {saved}, not {asked}"))
    });
    Some(differing.collect::<Vec<_>>().join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(config: Option<&str>, set: &[&str], name: Option<&str>) -> RecipeArguments {
        RecipeArguments {
            config: config.map(String::from),
            set: set.iter().map(|change| (*change).to_string()).collect(),
            name: name.map(String::from),
        }
    }

    #[test]
    fn a_recipe_comes_from_a_file_or_by_name_with_its_changes() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("mine.toml");
        std::fs::write(&file, recipe::QUICKSTART).unwrap();
        for (config, expected) in [
            (None, "quickstart"),
            (Some("cifar10-resnet18"), "cifar10-resnet18"),
            (file.to_str(), "quickstart"),
        ] {
            assert_eq!(arguments(config, &[], None).load().unwrap().name, expected);
        }
        let changed = arguments(None, &["training.epochs=7", "name=a"], Some("b")).load().unwrap();
        assert_eq!((changed.training.epochs, changed.name.as_str()), (7, "b"));
        for (bad, expected) in [
            (arguments(Some("nowhere.toml"), &[], None), "stl10-resnet18"),
            (arguments(None, &["training.shards=3"], None), "power of two"),
            (arguments(None, &[], Some("a/b")), "letters, digits"),
        ] {
            let sentence = format!("{:#}", bad.load().unwrap_err());
            assert!(sentence.contains(expected), "{sentence}");
        }
    }

    #[test]
    fn a_run_goes_on_with_its_own_recipe_and_its_images_may_move() {
        let folder = |path: &str| {
            let data = format!("data={{source=\"folder\",path=\"{path}\",image_px=32}}");
            arguments(None, &[&data], Some("mine")).load().unwrap()
        };
        let saved = folder("a");
        let asked = |set: &[&str]| arguments(None, set, None).of_run(&saved).unwrap();
        assert_eq!(asked(&["data.path=b"]), folder("b"));
        assert_eq!(moved(&saved, &asked(&["data.path=b"])), folder("b"));
        assert_eq!(moved(&saved, &asked(&["data.image_px=64"])), saved);
        assert_eq!(asked(&["training.epochs=30"]), saved);
        // Without --config the run is named by what is said of its name, whatever else is said.
        assert_eq!(arguments(None, &["data.path=b", "name=a"], None).run_name().unwrap(), "a");
        assert_eq!(arguments(None, &["data.path=b"], Some("c")).run_name().unwrap(), "c");
        assert_eq!(arguments(None, &[], None).run_name().unwrap(), "quickstart");
    }

    #[test]
    fn differing_values_are_named() {
        let load = |set: &[&str]| arguments(None, set, None).load().unwrap();
        let saved = load(&[]);
        assert_eq!(difference(&saved, &load(&["name=other"])), None);
        let found =
            difference(&saved, &load(&["training.epochs=7", "checkpoint.every_minutes=1.0"])).unwrap();
        assert!(found.contains("training.epochs is 30, not 7"), "{found}");
        assert!(found.contains("checkpoint.every_minutes is absent, not 1.0"), "{found}");
    }
}
