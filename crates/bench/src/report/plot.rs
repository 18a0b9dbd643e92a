//! The cost of a change against the number of Services, as SVG: logarithmic both ways, so that cost which grows with the
//! cluster is a slope and cost which does not is a level line.

use std::fmt::Write as _;

use super::Report;
use crate::contender::Series;
use crate::metric::{Metric, metric};

/// What is drawn, and in which colour (of Okabe and Ito's palette, which colour-blind people can tell apart).
const LINES: [(&str, &str); 6] = [
    ("cold_served", "#000000"),
    ("replace_packet", "#0072b2"),
    ("add_packet", "#009e73"),
    ("create_packet", "#e69f00"),
    ("restart_packet", "#cc79a7"),
    ("tcp_connect", "#d55e00"),
];
/// How a series's lines are dashed.
const DASHES: [(Series, &str); 3] = [(Series::Ours, "none"), (Series::Peer, "8 4"), (Series::Floor, "1 4")];

/// Pixels.
const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 560.0;
const LEFT: f64 = 70.0;
const TOP: f64 = 50.0;
const PLOT_WIDTH: f64 = 500.0;
const PLOT_HEIGHT: f64 = 440.0;

/// Powers of ten at the ends of an axis.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Decades {
    first: f64,
    last: f64,
}

impl Decades {
    /// Those around values above zero.
    fn around(values: impl Iterator<Item = f64> + Clone) -> Self {
        let log = values.filter(|value| *value > 0.0).map(f64::log10);
        let first = log.clone().fold(f64::INFINITY, f64::min).floor();
        let last = log.fold(f64::NEG_INFINITY, f64::max).ceil();
        if first.is_finite() {
            Self { first, last: last.max(first + 1.0) }
        } else {
            Self { first: 0.0, last: 1.0 }
        }
    }

    /// The place of a value between the ends, as a part of 1.
    fn place(self, value: f64) -> f64 {
        (value.log10() - self.first) / (self.last - self.first)
    }

    fn each(self) -> impl Iterator<Item = f64> {
        std::iter::successors(Some(self.first), |power| Some(power + 1.0))
            .take_while(move |power| *power <= self.last)
            .map(|power| 10_f64.powf(power))
    }
}

/// One line: its metric, whose it is, its colour, its dashes and its points.
struct Line {
    metric: &'static Metric,
    series: Series,
    colour: &'static str,
    dashes: &'static str,
    points: Vec<(f64, f64)>,
}

impl Report {
    /// The picture.
    pub(super) fn plot(&self) -> String {
        let lines = self.lines();
        let points = lines.iter().flat_map(|line| line.points.iter().copied());
        let x = Decades::around(points.clone().map(|(x, _)| x));
        let y = Decades::around(points.map(|(_, y)| y));
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
             font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n"
        );
        text(&mut svg, (LEFT, 24.0), "start", "Milliseconds (median) against the number of Services");
        text(&mut svg, (LEFT, 40.0), "start", &self.machine);
        axes(&mut svg, x, y);
        for (number, line) in (0_u16..).zip(&lines) {
            draw(&mut svg, line, x, y);
            legend(&mut svg, line, TOP + 10.0 + 22.0 * f64::from(number));
        }
        svg + "</svg>\n"
    }

    fn lines(&self) -> Vec<Line> {
        let sizes = self.results.sizes();
        let mut lines = Vec::new();
        for (id, colour) in LINES {
            for (series, dashes) in DASHES {
                let metric = metric(id);
                let point =
                    |size: &u32| Some((f64::from(*size), self.results.all(*size, metric, series)?.median()));
                let points: Vec<_> = sizes.iter().filter_map(point).filter(|(_, ms)| *ms > 0.0).collect();
                if !points.is_empty() {
                    lines.push(Line { metric, series, colour, dashes, points });
                }
            }
        }
        lines
    }
}

fn axes(svg: &mut String, x: Decades, y: Decades) {
    let (right, bottom) = (LEFT + PLOT_WIDTH, TOP + PLOT_HEIGHT);
    for value in y.each() {
        let at = bottom - y.place(value) * PLOT_HEIGHT;
        stroke(svg, (LEFT, at), (right, at), "#dddddd", "none");
        text(svg, (LEFT - 8.0, at + 4.0), "end", &value.to_string());
    }
    for value in x.each() {
        let at = LEFT + x.place(value) * PLOT_WIDTH;
        stroke(svg, (at, TOP), (at, bottom), "#dddddd", "none");
        text(svg, (at, bottom + 18.0), "middle", &value.to_string());
    }
}

fn draw(svg: &mut String, line: &Line, x: Decades, y: Decades) {
    let place = |(services, ms): &(f64, f64)| {
        (LEFT + x.place(*services) * PLOT_WIDTH, TOP + PLOT_HEIGHT - y.place(*ms) * PLOT_HEIGHT)
    };
    let places: Vec<(f64, f64)> = line.points.iter().map(place).collect();
    let points: Vec<String> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let Line { colour, dashes, .. } = line;
    push(
        svg,
        &format!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" stroke-dasharray=\"{dashes}\"/>",
            points.join(" ")
        ),
    );
    for (x, y) in places {
        push(svg, &format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>"));
    }
}

fn legend(svg: &mut String, line: &Line, y: f64) {
    let x = LEFT + PLOT_WIDTH + 20.0;
    stroke(svg, (x, y), (x + 36.0, y), line.colour, line.dashes);
    let what = line.metric.what.split(": ").next().unwrap_or_default();
    let what = if line.metric.id == "tcp_connect" { "TCP connection" } else { what };
    text(svg, (x + 44.0, y + 4.0), "start", &format!("{what} ({})", line.series.as_str()));
}

fn stroke(svg: &mut String, (x1, y1): (f64, f64), (x2, y2): (f64, f64), colour: &str, dashes: &str) {
    push(
        svg,
        &format!(
            "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{colour}\" \
             stroke-width=\"2\" stroke-dasharray=\"{dashes}\"/>"
        ),
    );
}

fn text(svg: &mut String, (x, y): (f64, f64), anchor: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    push(svg, &format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>"));
}

fn push(svg: &mut String, element: &str) {
    writeln!(svg, "{element}").expect("writing to a string succeeds");
}

#[cfg(test)]
mod tests {
    use super::super::tests::example;
    use super::*;

    #[test]
    fn each_side_has_a_line() {
        let svg = example().plot();
        assert_eq!(svg.matches("<polyline").count(), 3, "{svg}");
        for dashes in ["none", "8 4", "1 4"] {
            assert!(
                svg.contains(&format!("stroke=\"#0072b2\" stroke-width=\"2\" stroke-dasharray=\"{dashes}\""))
            );
        }
        assert!(svg.contains(">one endpoint replaced (peer)</text>"), "{svg}");
        // 0.5 ms is a bit above the middle between 0.1 and 10 on the logarithmic axis; 100 Services are at the left.
        assert!(svg.contains(&format!("points=\"{LEFT:.1},")), "{svg}");
    }

    #[test]
    fn nothing_measured_is_an_empty_picture() {
        let mut report = example();
        report.results = crate::results::Results::default();
        let svg = report.plot();
        assert!(svg.ends_with("</svg>\n") && !svg.contains("polyline") && !svg.contains("NaN"), "{svg}");
    }

    #[test]
    fn axes_end_at_powers_of_ten() {
        let decades = |values: &[f64]| Decades::around(values.iter().copied());
        assert_eq!(decades(&[0.5, 20.0]), Decades { first: -1.0, last: 2.0 });
        assert_eq!(decades(&[100.0]), Decades { first: 2.0, last: 3.0 });
        assert_eq!(decades(&[0.5, 20.0]).each().count(), 4);
    }
}
