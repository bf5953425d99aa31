//! Where the recipes of several runs differ.

use std::collections::BTreeMap;

use maud::{Markup, html};

use super::super::run_files::RunFiles;

/// A table of the values that are not the same in all recipes.
pub(super) fn differences(runs: &[RunFiles]) -> Markup {
    let recipes: Vec<BTreeMap<String, String>> =
        runs.iter().map(|run| run.recipe.values().into_iter().collect()).collect();
    let mut keys: Vec<&String> = recipes.iter().flat_map(BTreeMap::keys).collect();
    keys.sort_unstable();
    keys.dedup();
    let differs = |key: &&String| {
        key.as_str() != "name" && recipes.iter().any(|recipe| recipe.get(*key) != recipes[0].get(*key))
    };
    let keys: Vec<&String> = keys.into_iter().filter(differs).collect();
    if keys.is_empty() {
        return html! { p.caption { "The recipes are the same but for their names: on a CPU, so are the bits." } };
    }
    html! {
        p.caption { "Everything else in the recipes is the same." }
        div.scroll tabindex="0" {
            table {
                thead { tr { th { "recipe" } @for run in runs { th { (run.name) } } } }
                tbody {
                    @for key in keys {
                        tr {
                            th scope="row" { code { (key) } }
                            @for recipe in &recipes { td { (recipe.get(key).map_or("absent", String::as_str)) } }
                        }
                    }
                }
            }
        }
    }
}
