//! One panel of a chart, with its axes and curves.

use anyhow::Result;
use plotters::coord::Shift;
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use crate::ticks::{NUM_TICKS, format_tick, tick_distance, with_thousands};

/// Font size of all labels but the titles, in pixels.
pub(crate) const FONT_SIZE: u32 = 15;
/// Font size of a panel's title, in pixels.
const TITLE_SIZE: u32 = 17;

/// The horizontal axis of a panel.
#[derive(Debug, Clone, PartialEq)]
pub struct Axis {
    /// The text below the axis.
    pub label: String,
    /// The value at the left end.
    pub min: f64,
    /// The value at the right end.
    pub max: f64,
    /// Positions and texts of the ticks. If empty, the ticks are at round numbers.
    pub ticks: Vec<(f64, String)>,
}

impl Axis {
    /// Returns an axis for bars, with one name at each integer from 0.
    pub fn from_names(label: &str, names: &[String]) -> Self {
        let ticks = names.iter().enumerate().map(|(i, name)| (i as f64, name.clone())).collect();
        Axis { label: label.to_owned(), min: -0.5, max: names.len() as f64 - 0.5, ticks }
    }
}

/// How a curve is drawn. The number of a variant selects a color. Horizontal lines have their own
/// colors, which are shades of gray.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// A thin line.
    Line(usize),
    /// A thin, pale line, for a curve behind other curves.
    Faint(usize),
    /// A line with a marker at each point.
    Markers(usize),
    /// A dashed horizontal line at the height of the first point.
    HorizontalLine(usize),
    /// Bars that start at 0, next to the bars of other curves.
    Bars {
        /// Selects the color.
        color: usize,
        /// Index of this bar among the bars at a point, from the left.
        index: usize,
        /// Number of bars at a point.
        count: usize,
    },
}

/// A series of points.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    /// The points (x, y), in the order in which they are connected.
    pub points: Vec<(f64, f64)>,
    /// How the points are drawn.
    pub style: Style,
}

/// The range of the vertical axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AxisRange {
    /// From the lowest to the highest point, with a margin.
    Fit,
    /// From 0 to the highest point. No point may be below 0.
    FromZero,
    /// From 0, without the highest 1% of the points of each curve if these would flatten the rest.
    /// An example is the gradient norm of the first steps.
    FromZeroClipped,
}

impl AxisRange {
    /// Returns the smallest range that contains the ranges of all curves.
    fn of_curves(self, curves: &[Curve]) -> (f64, f64) {
        let heights = |curve: &Curve| curve.points.iter().map(|point| point.1).collect();
        let ranges =
            curves.iter().filter(|curve| !curve.points.is_empty()).map(|curve| self.of_heights(heights(curve)));
        ranges.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1))).unwrap_or((0.0, 1.0))
    }

    /// Returns the range (min, max) for the heights of one curve.
    fn of_heights(self, mut heights: Vec<f64>) -> (f64, f64) {
        heights.sort_by(f64::total_cmp);
        let (Some(&min), Some(&max)) = (heights.first(), heights.last()) else { return (0.0, 1.0) };
        if self == AxisRange::Fit {
            let margin = ((max - min) * 0.05).max(0.05);
            return (min - margin, max + margin);
        }
        // The 99th percentile. It is the maximum for fewer than 100 heights.
        let percentile = heights[(heights.len() * 99).div_ceil(100) - 1];
        let is_clipped = self == AxisRange::FromZeroClipped && max > 2.0 * percentile;
        let max = if is_clipped { 1.3 * percentile } else { 1.05 * max };
        (0.0, if max > 0.0 { max } else { 1.0 })
    }
}

/// The coordinate of the horizontal axis, with fixed ticks if there are any.
struct XCoord {
    coord: RangedCoordf64,
    /// The positions of the ticks. If empty, plotters selects round numbers.
    ticks: Vec<f64>,
}

impl Ranged for XCoord {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        self.coord.map(value, limit)
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if self.ticks.is_empty() { self.coord.key_points(hint) } else { self.ticks.clone() }
    }

    fn range(&self) -> std::ops::Range<f64> {
        self.coord.range()
    }
}

/// Curves in one coordinate system.
#[derive(Debug, Clone, PartialEq)]
pub struct Panel {
    /// The text above the panel.
    pub title: String,
    /// The horizontal axis.
    pub x: Axis,
    /// The curves, in the order of drawing. Later curves cover earlier ones.
    pub curves: Vec<Curve>,
    /// The range of the vertical axis.
    pub range: AxisRange,
}

/// Fraction of the distance between two points that their bars fill.
const BARS_WIDTH: f64 = 0.8;

impl Panel {
    /// Draws the title, the axes and the curves.
    pub(crate) fn draw<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>) -> Result<()>
    where
        B::ErrorType: 'static,
    {
        let (min, max) = self.range.of_curves(&self.curves);
        let x = XCoord {
            coord: (self.x.min..self.x.max).into(),
            ticks: self.x.ticks.iter().map(|(position, _)| *position).collect(),
        };
        let mut chart = ChartBuilder::on(area)
            .margin_left(8)
            .margin_right(28)
            .margin_top(6)
            .margin_bottom(6)
            .caption(&self.title, ("sans-serif", TITLE_SIZE))
            .x_label_area_size(44)
            .y_label_area_size(74)
            .build_cartesian_2d(x, min..max)?;
        let step = tick_distance(min, max);
        chart
            .configure_mesh()
            .x_desc(&self.x.label)
            .x_labels(NUM_TICKS.max(self.x.ticks.len()))
            .y_labels(NUM_TICKS)
            .x_label_formatter(&|x| self.tick_label(*x))
            .y_label_formatter(&|y| format_tick(*y, step))
            .label_style(("sans-serif", FONT_SIZE))
            .light_line_style(TRANSPARENT)
            .bold_line_style(BLACK.mix(0.12))
            .draw()?;
        for Curve { points, style } in &self.curves {
            let line = points.iter().copied();
            match *style {
                Style::Line(i) => {
                    chart.draw_series(LineSeries::new(line, color(i).mix(0.9).stroke_width(1)))?;
                }
                Style::Faint(i) => {
                    chart.draw_series(LineSeries::new(line, color(i).mix(0.45).stroke_width(1)))?;
                }
                Style::Markers(i) => {
                    // With many points the markers would touch and hide the line.
                    let size = if points.len() > 60 { 0 } else { 3 };
                    let style = color(i).stroke_width(2).filled();
                    chart.draw_series(LineSeries::new(line, style).point_size(size))?;
                }
                Style::HorizontalLine(i) => {
                    let ends = points.first().into_iter().flat_map(|at| [(self.x.min, at.1), (self.x.max, at.1)]);
                    let ends: Vec<(f64, f64)> = ends.collect();
                    chart.draw_series(DashedLineSeries::new(ends, 8, 5, gray_line(i)))?;
                }
                Style::Bars { color: i, index, count } => {
                    let width = BARS_WIDTH / count as f64;
                    let bar = |(x, y): (f64, f64)| {
                        let left = x - BARS_WIDTH / 2.0 + index as f64 * width;
                        Rectangle::new([(left, 0.0), (left + width, y)], color(i).filled())
                    };
                    chart.draw_series(line.map(bar))?;
                }
            }
        }
        Ok(())
    }

    /// Returns the text of the tick at `x`.
    fn tick_label(&self, x: f64) -> String {
        let tick = self.x.ticks.iter().find(|(position, _)| *position == x);
        tick.map_or_else(|| with_thousands(x), |(_, name)| name.clone())
    }
}

/// Returns a color of the palette of Okabe and Ito, which color-blind readers can distinguish.
pub(crate) fn color(i: usize) -> RGBAColor {
    const COLORS: [(u8, u8, u8); 7] =
        [(0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233), (120, 94, 60)];
    let (r, g, b) = COLORS[i % COLORS.len()];
    RGBColor(r, g, b).to_rgba()
}

/// Returns the style of a horizontal line, in one of four shades of gray.
pub(crate) fn gray_line(i: usize) -> ShapeStyle {
    let gray = [40, 110, 80, 140][i % 4];
    RGBColor(gray, gray, gray).stroke_width(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clipped_range_excludes_a_single_outlier() {
        let mut heights = vec![1.0; 1_000];
        heights[3] = 500.0;
        assert_eq!(AxisRange::FromZeroClipped.of_heights(heights.clone()), (0.0, 1.3));
        assert_eq!(AxisRange::FromZero.of_heights(heights.clone()), (0.0, 525.0));
        assert!(AxisRange::Fit.of_heights(heights).1 > 500.0);
        assert_eq!(AxisRange::FromZero.of_heights(Vec::new()), (0.0, 1.0));
        // Fewer than 100 points are not clipped.
        assert_eq!(AxisRange::FromZeroClipped.of_heights(vec![0.0, 10.0]), (0.0, 10.5));
        assert_eq!(AxisRange::FromZeroClipped.of_heights([vec![1.0; 98], vec![10.0]].concat()), (0.0, 10.5));
    }

    #[test]
    fn short_curve_is_not_clipped_with_a_long_one() {
        let curve = |n: usize, height: f64| Curve { points: vec![(0.0, height); n], style: Style::Line(0) };
        let curves = [curve(1_000, 1_000.0), curve(8, 5_000.0), curve(0, 0.0)];
        assert_eq!(AxisRange::FromZeroClipped.of_curves(&curves), (0.0, 5_250.0));
        assert_eq!(AxisRange::FromZero.of_curves(&[]), (0.0, 1.0));
    }

    #[test]
    fn names_are_at_integers() {
        let names = ["a".to_owned(), "b".to_owned()];
        let panel = Panel {
            title: String::new(),
            x: Axis::from_names("", &names),
            curves: Vec::new(),
            range: AxisRange::FromZero,
        };
        assert_eq!((panel.x.min, panel.x.max), (-0.5, 1.5));
        assert_eq!((panel.tick_label(1.0), panel.tick_label(1_000.0)), ("b".to_owned(), "1,000".to_owned()));
    }
}
