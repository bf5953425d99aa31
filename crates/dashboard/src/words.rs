//! Numbers and times as people say them.

/// A number with so many digits after the point; groups of three are set apart by a narrow space.
pub(crate) fn number(value: f64, decimals: usize) -> String {
    if !value.is_finite() {
        return "–".to_string();
    }
    let digits = format!("{:.decimals$}", value.abs());
    let (whole, fraction) = digits.split_once('.').unwrap_or((&digits, ""));
    let is_zero = digits.bytes().all(|byte| matches!(byte, b'0' | b'.'));
    let mut text = String::from(if value < 0.0 && !is_zero { "\u{2212}" } else { "" });
    for (place, digit) in whole.chars().enumerate() {
        let left = whole.len() - place;
        if place > 0 && whole.len() > 4 && left.is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    if decimals > 0 {
        text.push('.');
        text.push_str(fraction);
    }
    text
}

/// A whole number, grouped.
pub(crate) fn count(value: u64) -> String {
    number(value as f64, 0)
}

/// A size or a rate with the prefix that leaves one to three digits before the point: "45.2 GFLOP/s".
pub fn scaled(value: f64, unit: &str) -> String {
    const PREFIXES: [&str; 6] = ["", "k", "M", "G", "T", "P"];
    let mut prefixes = PREFIXES.into_iter();
    let (mut value, mut prefix) = (value, prefixes.next().unwrap_or_default());
    // What is no number is not larger either.
    while value.abs() >= 1000.0
        && let Some(next) = prefixes.next()
    {
        (value, prefix) = (value / 1000.0, next);
    }
    let decimals = if value.abs() >= 100.0 { 0 } else { 1 + usize::from(value.abs() < 10.0) };
    format!("{} {prefix}{unit}", number(value, decimals))
}

/// The time of day at which something ends that takes so many seconds from `now_unix_ms` on, milliseconds since 1970.
pub fn time_of_end(now_unix_ms: u64, seconds_left: f64) -> String {
    let minutes = now_unix_ms.saturating_add((1000.0 * seconds_left) as u64) / 60_000 % 1440;
    format!("{:02}:{:02} UTC", minutes / 60, minutes % 60)
}

/// The largest two units of a duration: "48 s", "3 min 20 s", "2 h 5 min", "6 d 3 h".
pub(crate) fn duration(seconds: f64) -> String {
    let whole = seconds.max(0.0).round() as u64;
    let units = [(86_400, "d"), (3600, "h"), (60, "min"), (1, "s")];
    let Some(first) = units.iter().position(|(length, _)| whole >= *length) else {
        return "0 s".to_string();
    };
    let (length, name) = units[first];
    let mut text = format!("{} {name}", whole / length);
    if let Some((shorter, name)) = units.get(first + 1).filter(|(shorter, _)| whole % length / shorter > 0) {
        text += &format!(" {} {name}", whole % length / shorter);
    }
    text
}

/// How long ago: "0.4 s", and from ten seconds on as [`duration`] says it.
pub(crate) fn age(milliseconds: u64) -> String {
    match milliseconds {
        0..10_000 => format!("{:.1} s", milliseconds as f64 / 1000.0),
        _ => duration(milliseconds as f64 / 1000.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_times_are_written_for_people() {
        for (value, decimals, expected) in [
            (-0.5, 2, "\u{2212}0.50"),
            (-0.001, 2, "0.00"),
            (1234.0, 0, "1234"),
            (12345.6, 1, "12\u{202f}345.6"),
            (1_234_567.0, 0, "1\u{202f}234\u{202f}567"),
            (f64::NAN, 2, "–"),
        ] {
            assert_eq!(number(value, decimals), expected);
        }
        for (seconds, expected) in [
            (0.2, "0 s"),
            (48.0, "48 s"),
            (200.0, "3 min 20 s"),
            (7500.0, "2 h 5 min"),
            (-1.0, "0 s"),
            (530_000.0, "6 d 3 h"),
        ] {
            assert_eq!(duration(seconds), expected);
        }
        for (value, expected) in [
            (0.0, "0.00 B/s"),
            (999.4, "999 B/s"),
            (1250.0, "1.25 kB/s"),
            (45_210_000.0, "45.2 MB/s"),
            (798e12, "798 TB/s"),
            (12e21, "12\u{202f}000\u{202f}000 PB/s"),
            (f64::NAN, "– B/s"),
            (f64::INFINITY, "– PB/s"),
        ] {
            assert_eq!(scaled(value, "B/s"), expected);
        }
        for (now_unix_ms, seconds_left, expected) in [
            (1_795_540_402_753, 0.0, "17:13 UTC"),
            (1_795_540_402_753, 7800.0, "19:23 UTC"),
            (1_795_540_402_753, 86_400.0, "17:13 UTC"),
            (0, -5.0, "00:00 UTC"),
            (0, f64::NAN, "00:00 UTC"),
        ] {
            assert_eq!(time_of_end(now_unix_ms, seconds_left), expected);
        }
        // However far away.
        assert!(time_of_end(1, f64::INFINITY).ends_with(" UTC"));
        assert_eq!((age(430).as_str(), age(61_000).as_str()), ("0.4 s", "1 min 1 s"));
    }
}
