//! A line chart as inline SVG: axes with round ticks, a legend, one line per series.

use super::{escape, write_to};

/// One series: its name and its points `(x, y)`.
type Series = (String, Vec<(f64, f64)>);

/// Size of the drawing in its own units; the page scales it to its width.
const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 340.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 58.0;
const BOTTOM: f64 = 46.0;

/// Ticks aimed at on each axis.
const X_TICKS: f64 = 8.0;
const Y_TICKS: f64 = 5.0;

/// Colours in the style sheet; further series start over.
const N_COLOURS: usize = 6;

/// More points than this are thinned: two per unit of width, each bucket's least and greatest.
const POINTS_MAX: usize = 1600;

/// Width of the stroke that stands for a line of one point.
const LONE_POINT: f64 = 6.0;

/// Width of one character of the legend, and of its stroke with the gaps around.
const LEGEND_CHARACTER: f64 = 7.0;
const LEGEND_STROKE: f64 = 42.0;

pub(super) fn line_chart(html: &mut String, title: &str, x_label: &str, series: &[Series]) {
    let series: Vec<Series> =
        series.iter().map(|(name, points)| (name.clone(), finite(points))).collect();
    write_to(
        html,
        format_args!(
            "<div class=\"chart\"><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
             aria-label=\"{0}\">\n<text class=\"title\" x=\"{LEFT}\" y=\"18\">{0}</text>\n",
            escape(title)
        ),
    );
    let all: Vec<(f64, f64)> = series.iter().flat_map(|(_, points)| points.clone()).collect();
    if all.is_empty() {
        write_to(html, format_args!("<text x=\"{LEFT}\" y=\"{TOP}\">no points yet</text>\n"));
    } else {
        let x = Axis::new(all.iter().map(|p| p.0), X_TICKS);
        let y = Axis::new(all.iter().map(|p| p.1), Y_TICKS).widened();
        draw_grid(html, &x, &y, x_label);
        draw_legend(html, &series);
        for (idx, (_, points)) in series.iter().enumerate() {
            draw_line(html, idx, &thinned(points), &x, &y);
        }
    }
    html.push_str("</svg></div>\n");
}

/// The range of one axis and the distance of its ticks.
struct Axis {
    low: f64,
    high: f64,
    step: f64,
}

impl Axis {
    fn new(values: impl Iterator<Item = f64> + Clone, n_ticks: f64) -> Self {
        let mut low = values.clone().fold(f64::INFINITY, f64::min);
        let mut high = values.fold(f64::NEG_INFINITY, f64::max);
        if high <= low {
            let margin = if low == 0.0 { 1.0 } else { low.abs() * 0.1 };
            (low, high) = (low - margin, high + margin);
        }
        Self { low, high, step: round_step((high - low) / n_ticks) }
    }

    /// Ends the axis on ticks.
    fn widened(self) -> Self {
        let low = (self.low / self.step).floor() * self.step;
        let high = (self.high / self.step).ceil() * self.step;
        Self { low, high, ..self }
    }

    fn ticks(&self) -> Vec<f64> {
        let first = (self.low / self.step).ceil() as i64;
        let last = (self.high / self.step).floor() as i64;
        (first..=last).map(|i| i as f64 * self.step).collect()
    }

    /// Where a value lies on the axis, 0 to 1.
    fn place(&self, value: f64) -> f64 {
        (value - self.low) / (self.high - self.low)
    }

    fn label(&self, tick: f64) -> String {
        if tick != 0.0 && (tick.abs() >= 1e6 || self.step < 1e-4) {
            return format!("{tick:.2e}");
        }
        let decimals = (-self.step.log10()).ceil().max(0.0) as usize;
        format!("{tick:.decimals$}")
    }
}

/// The next of 1, 2, 5 times a power of ten.
fn round_step(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|f| f * power >= step * 0.999).unwrap_or(10.0);
    factor * power
}

fn finite(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    points.iter().copied().filter(|(x, y)| x.is_finite() && y.is_finite()).collect()
}

/// Keeps each bucket's least and greatest point, so that spikes stay visible.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= POINTS_MAX {
        return points.to_vec();
    }
    let bucket = points.len().div_ceil(POINTS_MAX / 2);
    let mut kept = Vec::with_capacity(POINTS_MAX);
    for points in points.chunks(bucket) {
        let by_y = |i: &usize, j: &usize| points[*i].1.total_cmp(&points[*j].1);
        let least = (0..points.len()).min_by(by_y).unwrap_or(0);
        let greatest = (0..points.len()).max_by(by_y).unwrap_or(0);
        kept.push(points[least.min(greatest)]);
        if least != greatest {
            kept.push(points[least.max(greatest)]);
        }
    }
    kept
}

fn to_page(x: &Axis, y: &Axis, (px, py): (f64, f64)) -> (f64, f64) {
    let left = LEFT + x.place(px) * (WIDTH - LEFT - RIGHT);
    let top = HEIGHT - BOTTOM - y.place(py) * (HEIGHT - TOP - BOTTOM);
    (left, top)
}

fn draw_grid(html: &mut String, x: &Axis, y: &Axis, x_label: &str) {
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    for tick in y.ticks() {
        let (_, top) = to_page(x, y, (x.low, tick));
        let (label, text_left, text_top) = (y.label(tick), LEFT - 8.0, top + 4.0);
        write_to(
            html,
            format_args!(
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{top:.1}\" y2=\"{top:.1}\"/>\
                 <text x=\"{text_left}\" y=\"{text_top:.1}\" text-anchor=\"end\">{label}</text>\n"
            ),
        );
    }
    for tick in x.ticks() {
        let (left, _) = to_page(x, y, (tick, y.low));
        let (label, text_top, end) = (x.label(tick), bottom + 18.0, bottom + 5.0);
        write_to(
            html,
            format_args!(
                "<line class=\"grid\" x1=\"{left:.1}\" x2=\"{left:.1}\" y1=\"{bottom}\" y2=\"{end}\"/>\
                 <text x=\"{left:.1}\" y=\"{text_top}\" text-anchor=\"middle\">{label}</text>\n"
            ),
        );
    }
    let (middle, below) = (f64::midpoint(LEFT, right), HEIGHT - 8.0);
    let x_label = escape(x_label);
    write_to(
        html,
        format_args!(
            "<text x=\"{middle}\" y=\"{below}\" text-anchor=\"middle\">{x_label}</text>\n"
        ),
    );
}

fn draw_legend(html: &mut String, series: &[Series]) {
    let mut left = LEFT;
    for (idx, (name, _)) in series.iter().enumerate() {
        let (colour, end, text_left) = (idx % N_COLOURS, left + 18.0, left + 24.0);
        write_to(
            html,
            format_args!(
                "<line class=\"line s{colour}\" x1=\"{left}\" x2=\"{end}\" y1=\"36\" y2=\"36\"/>\
                 <text x=\"{text_left}\" y=\"40\">{}</text>\n",
                escape(name)
            ),
        );
        left += LEGEND_STROKE + LEGEND_CHARACTER * name.chars().count() as f64;
    }
}

fn draw_line(html: &mut String, idx: usize, points: &[(f64, f64)], x: &Axis, y: &Axis) {
    write_to(html, format_args!("<polyline class=\"line s{}\" points=\"", idx % N_COLOURS));
    for &point in points {
        let (left, top) = to_page(x, y, point);
        write_to(html, format_args!("{left:.1},{top:.1} "));
    }
    if let &[point] = points {
        // A line of one point alone would not be seen.
        let (left, top) = to_page(x, y, point);
        write_to(html, format_args!("{:.1},{top:.1} ", left + LONE_POINT));
    }
    html.push_str("\"/>\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_numbers_inside_the_axis() {
        let axis = Axis::new([0.13, 2.9].into_iter(), 5.0).widened();
        assert_eq!(axis.ticks(), [0.0, 1.0, 2.0, 3.0]);
        let labels: Vec<_> = axis.ticks().iter().map(|&t| axis.label(t)).collect();
        assert_eq!(labels, ["0", "1", "2", "3"]);
        let axis = Axis::new([0.01, 0.06].into_iter(), 5.0);
        assert_eq!(axis.label(0.02), "0.02");
    }

    #[test]
    fn a_line_of_one_point_is_seen() {
        let mut html = String::new();
        line_chart(&mut html, "t", "x", &[("a".to_owned(), vec![(1.0, 2.0)])]);
        let points = html.split("points=\"").nth(1).unwrap().split('"').next().unwrap();
        assert_eq!(points.split_whitespace().count(), 2, "{points}");
    }

    #[test]
    fn points_that_are_not_finite_do_not_move_the_axes() {
        let mut with = String::new();
        let mut without = String::new();
        let good = vec![(0.0, 1.0), (1.0, 2.0)];
        let mut bad = good.clone();
        bad.push((2.0, f64::NAN));
        bad.push((f64::INFINITY, 3.0));
        line_chart(&mut with, "t", "x", &[("s".to_owned(), bad)]);
        line_chart(&mut without, "t", "x", &[("s".to_owned(), good)]);
        assert_eq!(with, without);
    }

    #[test]
    fn one_point_and_no_point_are_charts_too() {
        for points in [vec![], vec![(3.0, 0.0)], vec![(3.0, 7.0), (3.0, 7.0)]] {
            let mut html = String::new();
            line_chart(&mut html, "t", "x", &[("s".to_owned(), points)]);
            assert!(!html.contains("NaN") && html.ends_with("</svg></div>\n"), "{html}");
        }
    }

    #[test]
    fn thinning_keeps_a_single_spike() {
        let mut points: Vec<_> = (0..50_000).map(|i| (f64::from(i), 1.0)).collect();
        points[31_337].1 = 9.0;
        let kept = thinned(&points);
        assert!(kept.len() <= POINTS_MAX);
        assert!(kept.contains(&(31_337.0, 9.0)));
        assert!(kept.is_sorted_by(|a, b| a.0 < b.0));
    }
}
