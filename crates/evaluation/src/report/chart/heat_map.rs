//! Which class was taken for which.

use maud::{Markup, html};

use super::axis::number;
use super::line::coordinate;
use crate::scores::Scores;

/// The side of a cell with a number in it.
const LARGE_CELL: f64 = 40.0;

/// The side of the whole matrix that more classes share.
const MOST_SIDE: f64 = 560.0;

/// With more classes than this, neither numbers nor names would be legible.
const MOST_NAMED: usize = 40;
const MOST_NUMBERED: usize = 14;

/// The room for names, and for each class's own accuracy.
const NAMES: f64 = 108.0;
const RECALLS: f64 = 120.0;

/// Longer names are cut; the whole one is shown where the pointer is.
const MOST_LETTERS: usize = 15;

/// The confusion matrix: rows are true classes, columns answers; beside each row how much of it is right.
pub(in super::super) fn heat_map(scores: &Scores) -> Markup {
    let names: Vec<&str> = scores.per_class.iter().map(|class| class.class.as_str()).collect();
    let classes = names.len();
    let cell = LARGE_CELL.min(MOST_SIDE / classes as f64);
    let (side, named) = (cell * classes as f64, classes <= MOST_NAMED);
    let (left, top) = if named { (NAMES, NAMES - 20.0) } else { (8.0, 8.0) };
    let middle = |place: usize| (place as f64 + 0.5) * cell;
    let label = format!(
        "Confusion matrix of {classes} classes: {} of {} images are recognised.",
        scores.top1.correct, scores.top1.of
    );
    html! {
        svg.heat viewBox={ "0 0 " (coordinate(left + side + RECALLS)) " " (coordinate(top + side + 8.0)) } role="img" aria-label=(label) {
            @if named {
                @for (place, name) in names.iter().enumerate() {
                    @let (x, y) = (coordinate(left + middle(place) + 4.0), coordinate(top - 8.0));
                    text.column x=(x) y=(y) transform={ "rotate(-45 " (x) " " (y) ")" } { (cut(name)) }
                    text.row x=(coordinate(left - 8.0)) y=(coordinate(top + middle(place) + 4.0)) { (cut(name)) }
                }
            }
            @for (truth, row) in scores.confusion.iter().enumerate() {
                @let of = row.iter().fold(0_u64, |sum, count| sum.saturating_add(*count)).max(1);
                @for (answer, count) in row.iter().enumerate() {
                    @let share = *count as f64 / of as f64;
                    g.cell.right[truth == answer].strong[share > 0.45] {
                        title { (names[truth]) @if truth == answer { " recognised: " } @else { " taken for " (names[answer]) ": " } (count) " of " (of) }
                        rect.ground x=(coordinate(left + cell * answer as f64)) y=(coordinate(top + cell * truth as f64)) width=(coordinate(cell)) height=(coordinate(cell)) {}
                        rect.heat x=(coordinate(left + cell * answer as f64)) y=(coordinate(top + cell * truth as f64)) width=(coordinate(cell)) height=(coordinate(cell)) fill-opacity=(format!("{:.3}", share.powf(0.75))) {}
                        @if classes <= MOST_NUMBERED && *count > 0 {
                            text x=(coordinate(left + middle(answer))) y=(coordinate(top + middle(truth) + 4.0)) { (count) }
                        }
                    }
                }
            }
            (recalls(scores, left + side + 12.0, top, cell, named))
        }
    }
}

/// A bar and a number beside each row.
fn recalls(scores: &Scores, left: f64, top: f64, cell: f64, named: bool) -> Markup {
    let width = RECALLS - 62.0;
    html! {
        g.recalls {
            @for (place, class) in scores.per_class.iter().enumerate() {
                @let recall = &class.recall;
                @let y = top + (place as f64 + 0.5) * cell;
                @let thick = (cell * 0.5).min(12.0);
                g {
                    title { (class.class) ": " (recall.correct) " of " (recall.of) ", 95 % " (number(100.0 * recall.low_95, 1)) " to " (number(100.0 * recall.high_95, 1)) " %" }
                    rect.track x=(coordinate(left)) y=(coordinate(y - thick / 2.0)) width=(coordinate(width)) height=(coordinate(thick)) {}
                    rect.bar x=(coordinate(left)) y=(coordinate(y - thick / 2.0)) width=(coordinate(width * recall.share)) height=(coordinate(thick)) {}
                    @if named {
                        text x=(coordinate(left + width + 6.0)) y=(coordinate(y + 4.0)) { (number(100.0 * recall.share, 1)) " %" }
                    }
                }
            }
        }
    }
}

fn cut(name: &str) -> String {
    if name.chars().count() <= MOST_LETTERS {
        return name.to_owned();
    }
    name.chars().take(MOST_LETTERS - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scores::Answer;

    fn scores(classes: usize) -> Scores {
        let names: Vec<String> = (0..classes).map(|class| format!("<b>{class}")).collect();
        let labels: Vec<u8> = (0..2 * classes).map(|image| (image / 2) as u8).collect();
        // The first of each class is right, the second is taken for the class before.
        let answer = |image: usize| Answer {
            class: ((image / 2 + classes - image % 2) % classes) as u8,
            rank: (image % 2) as u8,
        };
        Scores::new(&(0..2 * classes).map(answer).collect::<Vec<_>>(), &labels, &names)
    }

    #[test]
    fn cells_and_recalls_are_those_of_the_scores() {
        let text = heat_map(&scores(3)).into_string();
        assert_eq!(text.matches("class=\"ground\"").count(), 9);
        for phrase in [
            "&lt;b&gt;1 recognised: 1 of 2",
            "&lt;b&gt;1 taken for &lt;b&gt;0: 1 of 2",
            "50.0 %",
            "3 of 6 images",
        ] {
            assert!(text.contains(phrase), "{text} lacks {phrase}");
        }
        assert!(!text.contains("<b>"));
    }

    #[test]
    fn many_classes_have_neither_names_nor_numbers() {
        let text = heat_map(&scores(100)).into_string();
        assert_eq!(text.matches("class=\"ground\"").count(), 10_000);
        assert!(!text.contains("<text"));
        assert_eq!((cut("short"), cut("a-very-long-class-name")), ("short".into(), "a-very-long-cl…".into()));
    }
}
