//! Charts as SVG. They are complete without the page's script, which only adds what the pointer is at; their
//! colours are classes of the style sheet, so that they follow light and dark.

mod axis;
mod heat_map;
mod line;
mod scatter;
mod thin;

pub(super) use axis::{number, short_number};
pub(super) use heat_map::heat_map;
pub(super) use line::{LineChart, Series, Shape, Span};
pub(super) use scatter::{Scatter, scatter};
pub(super) use thin::{Sample, thin};

/// How many colours there are before they are used again, with another shape.
pub(super) const COLOURS: usize = 10;

/// The class of a colour of the style sheet.
pub(super) fn colour(number: usize) -> String {
    format!("c{}", number % COLOURS)
}
