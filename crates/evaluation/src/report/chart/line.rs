//! Curves over the steps of a run.

use std::fmt::Write;

use maud::{Markup, html};

use super::axis::{Axis, number};
use super::{Sample, colour};

/// The drawing's size and margins; the page scales it to the space that there is.
const WIDTH: f64 = 440.0;
const HEIGHT: f64 = 232.0;
const LEFT: f64 = 50.0;
const RIGHT: f64 = WIDTH - 12.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = HEIGHT - 28.0;

/// One curve.
#[derive(Debug, Clone, PartialEq)]
pub(in super::super) struct Series {
    /// What it is called; empty if the chart's title says it.
    pub(in super::super) name: String,
    /// Which colour of the style sheet.
    pub(in super::super) colour: usize,
    /// How it is drawn.
    pub(in super::super) shape: Shape,
    /// In the order of `x`.
    pub(in super::super) samples: Vec<Sample>,
}

/// How a curve is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Shape {
    /// A line, within a band from lowest to highest.
    Line,
    /// Marks with whiskers from lowest to highest, joined by a line.
    Marks,
    /// The same with a dashed line.
    DashedMarks,
    /// The area between lowest and highest.
    Area,
}

/// What the vertical axis spans.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in super::super) enum Span {
    /// The curves.
    Fit,
    /// The curves and 0.
    FromZero,
    /// The curves and these two.
    AtLeast(f64, f64),
}

/// A chart of curves.
#[derive(Debug, Clone, PartialEq)]
pub(in super::super) struct LineChart<'a> {
    pub(in super::super) title: &'a str,
    /// What is behind a number, such as ` %`.
    pub(in super::super) unit: &'a str,
    /// Digits after the point, where the pointer is.
    pub(in super::super) decimals: usize,
    /// What the horizontal axis counts: steps or epochs.
    pub(in super::super) x_name: &'a str,
    /// How many of them make an epoch, if that should be told.
    pub(in super::super) epoch: Option<f64>,
    pub(in super::super) span: Span,
    /// A level to compare with, and what it means.
    pub(in super::super) guide: Option<(f64, &'a str)>,
    pub(in super::super) series: Vec<Series>,
}

impl LineChart<'_> {
    /// The chart with its title and, for several curves, their names.
    pub(in super::super) fn render(&self) -> Markup {
        let samples = || self.series.iter().flat_map(|series| &series.samples);
        if samples().next().is_none() {
            return html! {};
        }
        let fold = |of: fn(&Sample) -> f64, start: f64, pick: fn(f64, f64) -> f64| {
            samples().map(of).fold(start, pick)
        };
        let low = fold(|sample| sample.low, f64::INFINITY, f64::min);
        let high = fold(|sample| sample.high, f64::NEG_INFINITY, f64::max);
        let (low, high) = match self.span {
            Span::Fit => (low, high),
            Span::FromZero => (low.min(0.0), high),
            Span::AtLeast(bottom, top) => (low.min(bottom), high.max(top)),
        };
        let x_low = fold(|sample| sample.x, f64::INFINITY, f64::min).clamp(0.0, 1.0);
        let x = Axis::new(x_low, fold(|sample| sample.x, f64::NEG_INFINITY, f64::max), 5, false);
        let y = Axis::new(low, high, 4, true);
        let plot =
            [LEFT, TOP, RIGHT, BOTTOM, x.min, x.max, y.min, y.max].map(|number| number.to_string()).join(" ");
        html! {
            figure.chart {
                figcaption {
                    span.title { (self.title) }
                    @if let Some((_, meaning)) = self.guide { span.legend { span { (meaning) } } }
                    (self.legend())
                }
                svg viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } role="img" aria-label=(self.sentence()) tabindex="0"
                    data-plot=(plot) data-unit=(self.unit) data-decimals=(self.decimals) data-x=(self.x_name)
                    data-epoch=[self.epoch] {
                    (self.axes(&x, &y))
                    @for series in &self.series { (series.render(&x, &y)) }
                    line.cursor x1="0" x2="0" y1=(TOP) y2=(BOTTOM) {}
                }
            }
        }
    }

    fn legend(&self) -> Markup {
        html! {
            @if self.series.iter().any(|series| !series.name.is_empty()) {
                span.legend {
                    @for series in &self.series {
                        span class=(colour(series.colour)) { i.swatch.dashed[series.shape == Shape::DashedMarks] {} (series.name) }
                    }
                }
            }
        }
    }

    /// The chart for who cannot see it.
    fn sentence(&self) -> String {
        let mut sentence = format!("{} over {}.", self.title, self.x_name);
        for series in &self.series {
            if let (Some(first), Some(last)) = (series.samples.first(), series.samples.last()) {
                let value = |sample: &Sample| format!("{}{}", number(sample.y, self.decimals), self.unit);
                let name = if series.name.is_empty() { "It goes" } else { &format!("{} goes", series.name) };
                let _ = write!(
                    sentence,
                    " {name} from {} at {} to {} at {}.",
                    value(first),
                    number(first.x, 0),
                    value(last),
                    number(last.x, 0)
                );
            }
        }
        sentence
    }

    fn axes(&self, x: &Axis, y: &Axis) -> Markup {
        html! {
            g.axes {
                @for tick in &y.ticks {
                    @let place = y.place(*tick, BOTTOM, TOP);
                    line.rule x1=(LEFT) x2=(RIGHT) y1=(coordinate(place)) y2=(coordinate(place)) {}
                    text.left x=(LEFT - 8.0) y=(coordinate(place + 4.0)) { (y.label(*tick)) }
                }
                @for tick in &x.ticks {
                    @let place = x.place(*tick, LEFT, RIGHT);
                    line.tick x1=(coordinate(place)) x2=(coordinate(place)) y1=(BOTTOM) y2=(BOTTOM + 4.0) {}
                    text.below x=(coordinate(place)) y=(BOTTOM + 18.0) { (x.label(*tick)) }
                }
                @if let Some((level, _)) = self.guide {
                    @let place = coordinate(y.place(level, BOTTOM, TOP));
                    line.guide x1=(LEFT) x2=(RIGHT) y1=(place) y2=(place) {}
                }
            }
        }
    }
}

impl Series {
    fn render(&self, x: &Axis, y: &Axis) -> Markup {
        let place =
            |sample: &Sample, value: f64| (x.place(sample.x, LEFT, RIGHT), y.place(value, BOTTOM, TOP));
        let numbers = |of: fn(&Sample) -> f64| {
            // What the pointer shows needs no more digits than that.
            let texts: Vec<String> = self.samples.iter().map(|sample| trimmed(of(sample))).collect();
            texts.join(" ")
        };
        let line = path(self.samples.iter().map(|sample| place(sample, sample.y)));
        let above = self.samples.iter().map(|sample| place(sample, sample.high));
        let below = self.samples.iter().rev().map(|sample| place(sample, sample.low));
        let has_band = self.samples.iter().any(|sample| sample.low < sample.high);
        // An area's own share, rather than where it ends.
        let values = if self.shape == Shape::Area {
            numbers(|sample| sample.high - sample.low)
        } else {
            numbers(|sample| sample.y)
        };
        html! {
            g class={ "series " (colour(self.colour)) } data-name=(self.name) data-xs=(numbers(|sample| sample.x)) data-ys=(values) {
                @match self.shape {
                    Shape::Area => path.area d={ (path(above.chain(below))) "Z" } {},
                    Shape::Line => {
                        @if has_band { path.band d={ (path(above.chain(below))) "Z" } {} }
                        path.line d=(line) {}
                    }
                    Shape::Marks | Shape::DashedMarks => {
                        path.line.dashed[self.shape == Shape::DashedMarks] d=(line) {}
                        @for sample in &self.samples {
                            @let ((at, low), (_, high), (_, middle)) = (place(sample, sample.low), place(sample, sample.high), place(sample, sample.y));
                            line.whisker x1=(coordinate(at)) x2=(coordinate(at)) y1=(coordinate(low)) y2=(coordinate(high)) {}
                            circle cx=(coordinate(at)) cy=(coordinate(middle)) r="3.5" {}
                        }
                    }
                }
            }
        }
    }
}

/// A tenth of a unit is less than a pixel.
pub(super) fn coordinate(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").unwrap_or(&text).to_owned()
}

/// Six digits.
fn trimmed(value: f64) -> String {
    let text = format!("{value:.5}");
    if value.abs() < 0.01 && value != 0.0 {
        return format!("{value:.3e}");
    }
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn path(points: impl Iterator<Item = (f64, f64)>) -> String {
    let mut path = String::new();
    for (x, y) in points {
        let command = if path.is_empty() { 'M' } else { 'L' };
        let _ = write!(path, "{command}{} {}", coordinate(x), coordinate(y));
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(x: f64, y: f64) -> Sample {
        Sample { x, y, low: y, high: y }
    }

    fn chart(series: Vec<Series>) -> LineChart<'static> {
        LineChart {
            title: "Loss <script>",
            unit: " %",
            decimals: 2,
            x_name: "steps",
            epoch: Some(16.0),
            span: Span::AtLeast(0.0, 1.0),
            guide: Some((1.0, "1 is healthy")),
            series,
        }
    }

    fn series(name: &str, shape: Shape, samples: Vec<Sample>) -> Series {
        Series { name: name.to_owned(), colour: 3, shape, samples }
    }

    #[test]
    fn a_chart_holds_its_numbers() {
        let line = series("a & b", Shape::Line, vec![sample(0.0, 0.0), sample(100.0, 1.0)]);
        let text = chart(vec![line]).render().into_string();
        for phrase in [
            "data-xs=\"0 100\"",
            "data-ys=\"0 1\"",
            // From the lower left to the upper right of the plot.
            "d=\"M50 204L428 12\"",
            "a &amp; b goes from 0.00 % at 0 to 1.00 % at 100.",
            "Loss &lt;script&gt;",
            "<span>1 is healthy</span>",
            "class=\"guide\" x1=\"50\" x2=\"428\" y1=\"12\" y2=\"12\"",
            "data-epoch=\"16\"",
        ] {
            assert!(text.contains(phrase), "{text} lacks {phrase}");
        }
        assert!(!text.contains("<script"));
    }

    #[test]
    fn shapes_show_lowest_and_highest() {
        let wide = Sample { x: 100.0, y: 0.5, low: 0.25, high: 0.75 };
        let draw =
            |shape| chart(vec![series("", shape, vec![sample(0.0, 0.5), wide])]).render().into_string();
        assert!(draw(Shape::Line).contains("class=\"band\" d=\"M50 108L428 60L428 156L50 108Z\""));
        assert!(draw(Shape::Marks).contains("y1=\"156\" y2=\"60\""), "{}", draw(Shape::Marks));
        let area = draw(Shape::Area);
        assert!(area.contains("data-ys=\"0 0.5\"") && area.contains("class=\"area\""), "{area}");
    }

    #[test]
    fn a_curve_without_points_or_with_one_is_no_trouble() {
        assert_eq!(chart(vec![]).render().into_string(), "");
        assert_eq!(chart(vec![series("", Shape::Line, vec![])]).render().into_string(), "");
        let one = chart(vec![series("", Shape::Marks, vec![sample(7.0, 0.5)])]).render().into_string();
        assert!(one.contains("<circle") && !one.contains("NaN"), "{one}");
    }

    #[test]
    fn numbers_for_the_pointer_are_short() {
        for (value, expected) in
            [(0.0, "0"), (1.0, "1"), (-0.1234567, "-0.12346"), (0.000012345, "1.234e-5"), (1234.5, "1234.5")]
        {
            assert_eq!(trimmed(value), expected);
        }
    }
}
