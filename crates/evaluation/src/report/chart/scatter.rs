//! Points on a plane, coloured by class.

use maud::{Markup, PreEscaped, html};

use super::colour;
use super::line::coordinate;

const SIDE: f64 = 440.0;
const MARGIN: f64 = 10.0;

/// Points of classes. The shapes change where the colours begin again.
pub(in super::super) struct Scatter<'a> {
    /// For who cannot see it.
    pub(in super::super) label: &'a str,
    pub(in super::super) points: &'a [[f32; 2]],
    /// The class of each point.
    pub(in super::super) labels: &'a [u8],
    pub(in super::super) classes: usize,
    /// Both axes have one scale, because distances along them can be compared.
    pub(in super::super) same_scale: bool,
}

/// The points, a group for each class.
pub(in super::super) fn scatter(scatter: &Scatter<'_>) -> Markup {
    let ranges = [0, 1].map(|axis| {
        let values = || scatter.points.iter().map(|point| f64::from(point[axis]));
        let (low, high) =
            (values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max));
        ((low + high) / 2.0, (high - low).max(1e-9))
    });
    let extents =
        if scatter.same_scale { [ranges[0].1.max(ranges[1].1); 2] } else { [ranges[0].1, ranges[1].1] };
    let place = |axis: usize, value: f32| {
        let from_middle = (f64::from(value) - ranges[axis].0) / extents[axis];
        // Up is up.
        let turned = if axis == 1 { -from_middle } else { from_middle };
        SIDE / 2.0 + turned * (SIDE - 2.0 * MARGIN)
    };
    let mark = |class: usize, index: usize| {
        let [x, y] = scatter.points[index];
        let (x, y) = (coordinate(place(0, x)), coordinate(place(1, y)));
        // The numbers are ours: nothing to escape, and thousands of elements to write.
        match class / super::COLOURS % 3 {
            0 => format!("<circle cx=\"{x}\" cy=\"{y}\" r=\"2.6\" data-i=\"{index}\"/>"),
            1 => format!("<path d=\"M{x} {y}m-2.6-2.6h5.2v5.2h-5.2z\" data-i=\"{index}\"/>"),
            _ => format!("<path d=\"M{x} {y}m0-3.4l3.2 5.6h-6.4z\" data-i=\"{index}\"/>"),
        }
    };
    let of_class = |class: usize| -> String {
        let indices = (0..scatter.points.len()).filter(|index| usize::from(scatter.labels[*index]) == class);
        indices.map(|index| mark(class, index)).collect()
    };
    html! {
        svg.map viewBox={ "0 0 " (SIDE) " " (SIDE) } role="img" aria-label=(scatter.label) {
            @for class in 0..scatter.classes {
                g class=(colour(class)) data-class=(class) { (PreEscaped(of_class(class))) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_lie_where_they_should() {
        let points = [[0.0, 0.0], [2.0, 1.0], [1.0, 0.5]];
        let draw = |same_scale| {
            scatter(&Scatter {
                label: "a \"map\"",
                points: &points,
                labels: &[0, 11, 21],
                classes: 22,
                same_scale,
            })
            .into_string()
        };
        let free = draw(false);
        for phrase in [
            "<circle cx=\"10\" cy=\"430\" r=\"2.6\" data-i=\"0\"/>",
            "<path d=\"M430 10m-2.6-2.6h5.2v5.2h-5.2z\" data-i=\"1\"/>",
            "<path d=\"M220 220m0-3.4l3.2 5.6h-6.4z\" data-i=\"2\"/>",
            "<g class=\"c1\" data-class=\"11\">",
            "a &quot;map&quot;",
        ] {
            assert!(free.contains(phrase), "{free} lacks {phrase}");
        }
        assert!(draw(true).contains("cx=\"10\" cy=\"325\""), "half as high as wide: {}", draw(true));
    }

    #[test]
    fn equal_points_are_no_trouble() {
        let text = scatter(&Scatter {
            label: "",
            points: &[[1.0, 1.0]; 3],
            labels: &[0; 3],
            classes: 1,
            same_scale: true,
        });
        assert!(text.into_string().contains("cx=\"220\" cy=\"220\""));
    }
}
