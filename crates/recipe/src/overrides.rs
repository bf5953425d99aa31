//! `--set key=value`: changes to a recipe's text before it is parsed.

use crate::RecipeError;

/// Applies `key=value` pairs in order. A value is read as TOML, or else as plain text, so that
/// `name=mine` needs no quotes.
pub(crate) fn apply(recipe: &mut toml::Table, overrides: &[String]) -> Result<(), RecipeError> {
    overrides.iter().try_for_each(|argument| {
        apply_one(recipe, argument)
            .map_err(|problem| RecipeError::Override { argument: argument.clone(), problem })
    })
}

fn apply_one(recipe: &mut toml::Table, argument: &str) -> Result<(), String> {
    let (path, value) = argument
        .split_once('=')
        .filter(|(path, _)| !path.trim().is_empty())
        .ok_or("write it as key=value, for example training.epochs=10")?;
    let mut keys: Vec<&str> = path.trim().split('.').collect();
    let last = keys.pop().expect("split yields at least one part");
    let mut table = recipe;
    let mut seen = String::new();
    for key in keys {
        seen = if seen.is_empty() { key.to_string() } else { format!("{seen}.{key}") };
        table = table
            .entry(key)
            .or_insert_with(|| toml::Value::Table(toml::Table::new()))
            .as_table_mut()
            .ok_or_else(|| format!("{seen} is a value and has no keys of its own"))?;
    }
    table.insert(last.to_string(), parse(value.trim()));
    Ok(())
}

fn parse(text: &str) -> toml::Value {
    format!("value = {text}")
        .parse::<toml::Table>()
        .ok()
        .filter(|table| table.len() == 1)
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| toml::Value::String(text.to_string()))
}
