//! Numbers on axes.

/// A stretch of numbers, and those of them that are written beside an axis.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Axis {
    pub(super) min: f64,
    pub(super) max: f64,
    pub(super) ticks: Vec<f64>,
    decimals: usize,
}

impl Axis {
    /// From `min` to `max`, widened to whole ticks if `rounded`, with about `count` of them.
    pub(super) fn new(min: f64, max: f64, count: usize, rounded: bool) -> Axis {
        // A stretch without length gets some, or every number would lie at its end; and so does one that is too short or
        // too long to be divided, as only a damaged file has it.
        let (min, max) = if max > min && ((max - min) / 1e9).is_normal() {
            (min, max)
        } else {
            let around = if min.abs() < 1e-290 { 0.5 } else { min.abs() * 0.1 };
            (min - around, min + around)
        };
        let step = nice_step((max - min) / count.max(1) as f64);
        let near = |quotient: f64| (quotient - quotient.round()).abs() < 1e-9;
        let down = |x: f64| if near(x / step) { (x / step).round() } else { (x / step).floor() };
        let up = |x: f64| if near(x / step) { (x / step).round() } else { (x / step).ceil() };
        let (min, max) = if rounded { (down(min) * step, up(max) * step) } else { (min, max) };
        let (first, last) = (up(min) as i64, down(max) as i64);
        let decimals = (-step.log10().floor()).max(0.0) as usize;
        // 2.5 and its like need one more digit.
        let digits = step / 10f64.powf(step.log10().floor());
        let decimals = if (digits - 2.5).abs() < 1e-6 && step < 10.0 { decimals + 1 } else { decimals };
        Axis { min, max, ticks: (first..=last).map(|tick| tick as f64 * step).collect(), decimals }
    }

    /// Where `value` lies when the axis goes from `from` to `to`.
    pub(super) fn place(&self, value: f64, from: f64, to: f64) -> f64 {
        from + (value - self.min) / (self.max - self.min) * (to - from)
    }

    /// A tick's text.
    pub(super) fn label(&self, tick: f64) -> String {
        number(tick, self.decimals)
    }
}

/// 1, 2, 2.5 or 5 times a power of ten, at least `least`.
fn nice_step(least: f64) -> f64 {
    let power = 10f64.powf(least.log10().floor());
    [1.0, 2.0, 2.5, 5.0, 10.0]
        .into_iter()
        .map(|digit| digit * power)
        .find(|step| *step >= least * (1.0 - 1e-9))
        .unwrap_or(power * 10.0)
}

/// A number for people: a true minus sign, and thin spaces between thousands.
pub(in super::super) fn number(value: f64, decimals: usize) -> String {
    if !value.is_finite() {
        return "–".to_owned();
    }
    let text = format!("{:.decimals$}", value.abs());
    let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
    let mut grouped = String::new();
    for (place, digit) in whole.chars().enumerate() {
        // Four digits are read at a glance.
        if whole.len() > 4 && place > 0 && (whole.len() - place).is_multiple_of(3) {
            grouped.push('\u{202f}');
        }
        grouped.push(digit);
    }
    let is_zero = text.chars().all(|character| matches!(character, '0' | '.'));
    let sign = if value < 0.0 && !is_zero { "\u{2212}" } else { "" };
    let point = if fraction.is_empty() { "" } else { "." };
    format!("{sign}{grouped}{point}{fraction}")
}

/// A number with some four digits, however large or small it is.
pub(in super::super) fn short_number(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude == 0.0 || !magnitude.is_finite() {
        return number(value, 0);
    }
    if magnitude < 1e-3 {
        return format!("{value:.1e}").replace('-', "\u{2212}");
    }
    let decimals = (3.0 - magnitude.log10().floor()).clamp(0.0, 6.0) as usize;
    let text = number(value, decimals);
    // 30.000 is 30.
    match text.split_once('.') {
        Some(_) => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_cover_the_numbers() {
        for (min, max, rounded, ticks, first) in [
            (0.0, 1.0, true, vec![0.0, 0.25, 0.5, 0.75, 1.0], "0.00"),
            (-0.62, -0.02, true, vec![-0.8, -0.6, -0.4, -0.2, 0.0], "\u{2212}0.8"),
            (1.0, 390.0, false, vec![100.0, 200.0, 300.0], "100"),
            (0.0, 78_000.0, false, vec![0.0, 20_000.0, 40_000.0, 60_000.0], "0"),
            (3.0, 3.0, true, vec![2.6, 2.8, 3.0, 3.2, 3.4], "2.6"),
            (0.0, 0.0, true, vec![-0.5, -0.25, 0.0, 0.25, 0.5], "\u{2212}0.50"),
        ] {
            let axis = Axis::new(min, max, 4, rounded);
            assert_eq!(axis.ticks.len(), ticks.len(), "{axis:?}");
            for (found, expected) in axis.ticks.iter().zip(&ticks) {
                assert!((found - expected).abs() < 1e-9, "{axis:?}");
            }
            assert_eq!(axis.label(axis.ticks[0]), first);
            assert!(axis.min <= min && axis.max >= max);
            assert_eq!(axis.place(axis.max, 10.0, 20.0), 20.0);
        }
    }

    #[test]
    fn numbers_that_no_run_has_get_a_few_ticks_too() {
        let tiny = f64::from_bits(1);
        for (min, max) in [(0.0, tiny), (tiny, tiny), (-tiny, 1e-300), (-1e308, 1.7e308), (1e308, 1e308)] {
            for rounded in [false, true] {
                let axis = Axis::new(min, max, 4, rounded);
                assert!(axis.ticks.len() <= 8, "{min} to {max}: {} ticks", axis.ticks.len());
                axis.ticks.iter().for_each(|tick| drop(axis.label(*tick)));
            }
        }
    }

    #[test]
    fn numbers_are_written_for_people() {
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
        for (value, expected) in [
            (0.0, "0"),
            (30.0, "30"),
            (45.4321, "45.43"),
            (0.00003, "3.0e\u{2212}5"),
            (1234.5, "1234"),
            (0.5, "0.5"),
        ] {
            assert_eq!(short_number(value), expected);
        }
    }
}
