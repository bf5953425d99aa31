//! Numbers and times in words.

use recipe::Recipe;
use serde::Serialize;
use serde_json::Value;

use super::super::cards::FigureValue;
use super::super::chart::{number, short_number};

/// A share as a percentage.
pub(super) fn percent(share: f64) -> String {
    format!("{} %", number(100.0 * share, 2))
}

/// A result without its confidence interval.
pub(super) fn figure(value: &FigureValue) -> String {
    match value {
        FigureValue::Share(share) => percent(share.share),
        FigureValue::Spread(mean, std) => format!("{} ± {}", percent(*mean), number(100.0 * std, 2)),
        FigureValue::Number(value) => short_number(*value),
        FigureValue::Text(text) => text.clone(),
    }
}

/// The 95 % confidence interval of a result that has one.
pub(super) fn interval(value: &FigureValue) -> Option<String> {
    match value {
        FigureValue::Share(share) => {
            Some(format!("{}–{}", number(100.0 * share.low_95, 2), number(100.0 * share.high_95, 2)))
        }
        _ => None,
    }
}

/// The largest two units of a duration.
pub(super) fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    let units = [(86_400, "d"), (3600, "h"), (60, "min"), (1, "s")];
    match units.iter().position(|(length, _)| whole >= *length) {
        None => format!("{} s", number(seconds, 1)),
        Some(first) => {
            let (length, name) = units[first];
            let mut text = format!("{} {name}", whole / length);
            if let Some((shorter, name)) = units.get(first + 1)
                && whole % length / shorter > 0
            {
                text += &format!(" {} {name}", whole % length / shorter);
            }
            text
        }
    }
}

/// A moment, as `2026-11-24 17:13 UTC`.
pub(super) fn date(unix_ms: u64) -> String {
    let (days, minutes) = (unix_ms / 86_400_000, unix_ms / 60_000 % 1440);
    // The civil calendar, counted from 1 March of the year 0, when leap days end their years
    // (Hinnant, "chrono-compatible low-level date algorithms").
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", minutes / 60, minutes % 60)
}

/// Which network a recipe trains.
pub(super) fn network(recipe: &Recipe) -> String {
    let model = to_json(&recipe.model);
    let backbone = model["backbone"].as_str().unwrap_or_default().replace("resnet", "ResNet-");
    match recipe.model.width {
        64 => backbone,
        width => format!("{backbone}, {width} wide"),
    }
}

/// Which images a recipe learns from.
pub(super) fn images(recipe: &Recipe) -> String {
    let data = to_json(&recipe.data);
    match data["source"].as_str().unwrap_or_default() {
        "synthetic" => format!("{} drawn images", number(data["images"].as_f64().unwrap_or(f64::NAN), 0)),
        "stl10" => "STL-10".to_owned(),
        "cifar10" => "CIFAR-10".to_owned(),
        "folder" => {
            let path = data["path"].as_str().unwrap_or_default();
            format!("the folder {}", path.trim_end_matches('/').rsplit('/').next().unwrap_or(path))
        }
        other => other.to_owned(),
    }
}

fn to_json(part: &impl Serialize) -> Value {
    serde_json::to_value(part).expect("a recipe can be written as JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_two_units() {
        for (seconds, expected) in [
            (0.0, "0.0 s"),
            (0.31, "0.3 s"),
            (17.8, "18 s"),
            (60.0, "1 min"),
            (125.0, "2 min 5 s"),
            (3600.0 * 5.0 + 59.0, "5 h"),
            (86_400.0 * 2.0 + 3600.0, "2 d 1 h"),
        ] {
            assert_eq!(duration(seconds), expected);
        }
    }

    #[test]
    fn recipes_are_told_in_words() {
        let preset = |name: &str, changes: &[String]| {
            let (_, text) = recipe::PRESETS.iter().find(|(preset, _)| *preset == name).unwrap();
            let recipe = Recipe::from_toml(text, changes).unwrap();
            (network(&recipe), images(&recipe))
        };
        for (name, changes, expected) in [
            ("quickstart", vec![], ("ResNet-10, 16 wide", "2048 drawn images")),
            ("cifar10-resnet18", vec![], ("ResNet-18", "CIFAR-10")),
            ("stl10-resnet50", vec![], ("ResNet-50", "STL-10")),
            ("imagefolder-resnet18", vec!["data.path=/a/cats/".to_owned()], ("ResNet-18", "the folder cats")),
        ] {
            let (network, images) = preset(name, &changes);
            assert_eq!((network.as_str(), images.as_str()), expected);
        }
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (unix_ms, expected) in [
            (0, "1970-01-01 00:00 UTC"),
            (951_782_400_000, "2000-02-29 00:00 UTC"),
            (1_709_251_199_999, "2024-02-29 23:59 UTC"),
            (1_795_540_402_753, "2026-11-24 17:13 UTC"),
            (4_102_444_800_000, "2100-01-01 00:00 UTC"),
        ] {
            assert_eq!(date(unix_ms), expected);
        }
    }
}
