//! One panel of a picture.

use anyhow::Result;
use plotters::coord::Shift;
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use crate::ticks::{TICKS, tick, tick_distance, with_thousands};

pub(crate) const FONT_SIZE: u32 = 15;
const TITLE_SIZE: u32 = 17;

/// The axis that the curves of a panel share.
#[derive(Debug, Clone, PartialEq)]
pub struct Axis {
    /// What stands below it.
    pub description: String,
    /// Its left end.
    pub low: f64,
    /// Its right end.
    pub high: f64,
    /// Where it is labelled, and how; empty for round numbers.
    pub ticks: Vec<(f64, String)>,
}

impl Axis {
    /// One with a name at each whole number from 0, for bars.
    pub fn of_names(description: &str, names: &[String]) -> Self {
        let ticks = names.iter().enumerate().map(|(i, name)| (i as f64, name.clone())).collect();
        Axis { description: description.to_owned(), low: -0.5, high: names.len() as f64 - 0.5, ticks }
    }
}

/// How a curve is drawn. A number picks a colour, which those of levels (greys) leave alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// A thin line.
    Line(usize),
    /// The same behind others.
    Faint(usize),
    /// A line with its points.
    Dotted(usize),
    /// A dashed level line, at its first point's height.
    Level(usize),
    /// Bars from 0, side by side with those of other curves.
    Bars {
        /// Picks the colour.
        colour: usize,
        /// Which of the bars at a point, from the left.
        place: usize,
        /// How many there are at a point.
        of: usize,
    },
}

/// Points in their order.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    /// Along the axis, and their heights.
    pub points: Vec<(f64, f64)>,
    /// Its look.
    pub style: Style,
}

/// What the vertical axis holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AxisRange {
    /// All heights, with a margin.
    Fit,
    /// 0 and all heights, none of which is below it.
    FromZero,
    /// 0 and, of each curve, all heights but the highest hundredth, where that would flatten the others: the first
    /// steps' gradient norms would.
    FromZeroUsual,
}

impl AxisRange {
    /// Of all curves together, each by its heights.
    fn of_all(self, curves: &[Curve]) -> (f64, f64) {
        let heights = |curve: &Curve| curve.points.iter().map(|point| point.1).collect();
        let ranges = curves.iter().filter(|curve| !curve.points.is_empty()).map(|curve| self.of(heights(curve)));
        ranges.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1))).unwrap_or((0.0, 1.0))
    }

    fn of(self, mut heights: Vec<f64>) -> (f64, f64) {
        heights.sort_by(f64::total_cmp);
        let (Some(&low), Some(&high)) = (heights.first(), heights.last()) else { return (0.0, 1.0) };
        if self == AxisRange::Fit {
            let margin = ((high - low) * 0.05).max(0.05);
            return (low - margin, high + margin);
        }
        // Fewer than a hundred heights have no highest hundredth.
        let usual = heights[(heights.len() * 99).div_ceil(100) - 1];
        let high = if self == AxisRange::FromZeroUsual && high > 2.0 * usual { 1.3 * usual } else { 1.05 * high };
        (0.0, if high > 0.0 { high } else { 1.0 })
    }
}

/// The horizontal axis as plotters asks for it.
struct Horizontal {
    numbers: RangedCoordf64,
    /// Where it is labelled; empty for round numbers.
    places: Vec<f64>,
}

impl Ranged for Horizontal {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        self.numbers.map(value, limit)
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if self.places.is_empty() { self.numbers.key_points(hint) } else { self.places.clone() }
    }

    fn range(&self) -> std::ops::Range<f64> {
        self.numbers.range()
    }
}

/// Curves over one axis.
#[derive(Debug, Clone, PartialEq)]
pub struct Panel {
    /// What stands above it.
    pub title: String,
    /// The horizontal axis.
    pub x: Axis,
    /// From the hindmost.
    pub curves: Vec<Curve>,
    /// The vertical axis.
    pub range: AxisRange,
}

/// Of the room between two points, what bars take.
const BARS_SHARE: f64 = 0.8;

impl Panel {
    pub(crate) fn draw<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>) -> Result<()>
    where
        B::ErrorType: 'static,
    {
        let (low, high) = self.range.of_all(&self.curves);
        let horizontal = Horizontal {
            numbers: (self.x.low..self.x.high).into(),
            places: self.x.ticks.iter().map(|(place, _)| *place).collect(),
        };
        let mut chart = ChartBuilder::on(area)
            .margin_left(8)
            .margin_right(28)
            .margin_top(6)
            .margin_bottom(6)
            .caption(&self.title, ("sans-serif", TITLE_SIZE))
            .x_label_area_size(44)
            .y_label_area_size(74)
            .build_cartesian_2d(horizontal, low..high)?;
        let step = tick_distance(low, high);
        chart
            .configure_mesh()
            .x_desc(&self.x.description)
            .x_labels(TICKS.max(self.x.ticks.len()))
            .y_labels(TICKS)
            .x_label_formatter(&|x| self.label(*x))
            .y_label_formatter(&|y| tick(*y, step))
            .label_style(("sans-serif", FONT_SIZE))
            .light_line_style(TRANSPARENT)
            .bold_line_style(BLACK.mix(0.12))
            .draw()?;
        for Curve { points, style } in &self.curves {
            let line = points.iter().copied();
            match *style {
                Style::Line(i) => {
                    chart.draw_series(LineSeries::new(line, colour(i).mix(0.9).stroke_width(1)))?;
                }
                Style::Faint(i) => {
                    chart.draw_series(LineSeries::new(line, colour(i).mix(0.45).stroke_width(1)))?;
                }
                Style::Dotted(i) => {
                    // Dots that touch say no more than the line.
                    let size = if points.len() > 60 { 0 } else { 3 };
                    let style = colour(i).stroke_width(2).filled();
                    chart.draw_series(LineSeries::new(line, style).point_size(size))?;
                }
                Style::Level(i) => {
                    let ends = points.first().into_iter().flat_map(|at| [(self.x.low, at.1), (self.x.high, at.1)]);
                    let ends: Vec<(f64, f64)> = ends.collect();
                    chart.draw_series(DashedLineSeries::new(ends, 8, 5, level_style(i)))?;
                }
                Style::Bars { colour: i, place, of } => {
                    let width = BARS_SHARE / of as f64;
                    let bar = |(x, y): (f64, f64)| {
                        let left = x - BARS_SHARE / 2.0 + place as f64 * width;
                        Rectangle::new([(left, 0.0), (left + width, y)], colour(i).filled())
                    };
                    chart.draw_series(line.map(bar))?;
                }
            }
        }
        Ok(())
    }

    fn label(&self, x: f64) -> String {
        let named = self.x.ticks.iter().find(|(place, _)| *place == x);
        named.map_or_else(|| with_thousands(x), |(_, name)| name.clone())
    }
}

/// Okabe and Ito's, which the colour-blind can tell apart.
pub(crate) fn colour(i: usize) -> RGBAColor {
    const COLOURS: [(u8, u8, u8); 7] =
        [(0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233), (120, 94, 60)];
    let (r, g, b) = COLOURS[i % COLOURS.len()];
    RGBColor(r, g, b).to_rgba()
}

pub(crate) fn level_style(i: usize) -> ShapeStyle {
    let level = [40, 110, 80, 140][i % 4];
    RGBColor(level, level, level).stroke_width(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_wild_step_does_not_flatten_the_others() {
        let mut heights = vec![1.0; 1_000];
        heights[3] = 500.0;
        assert_eq!(AxisRange::FromZeroUsual.of(heights.clone()), (0.0, 1.3));
        assert_eq!(AxisRange::FromZero.of(heights.clone()), (0.0, 525.0));
        assert!(AxisRange::Fit.of(heights).1 > 500.0);
        assert_eq!(AxisRange::FromZero.of(Vec::new()), (0.0, 1.0));
        // Of a few none is wild.
        assert_eq!(AxisRange::FromZeroUsual.of(vec![0.0, 10.0]), (0.0, 10.5));
        assert_eq!(AxisRange::FromZeroUsual.of([vec![1.0; 98], vec![10.0]].concat()), (0.0, 10.5));
    }

    #[test]
    fn a_short_curve_beside_a_long_one_is_whole() {
        let curve = |n: usize, height: f64| Curve { points: vec![(0.0, height); n], style: Style::Line(0) };
        let curves = [curve(1_000, 1_000.0), curve(8, 5_000.0), curve(0, 0.0)];
        assert_eq!(AxisRange::FromZeroUsual.of_all(&curves), (0.0, 5_250.0));
        assert_eq!(AxisRange::FromZero.of_all(&[]), (0.0, 1.0));
    }

    #[test]
    fn names_stand_at_whole_numbers() {
        let names = ["a".to_owned(), "b".to_owned()];
        let panel = Panel {
            title: String::new(),
            x: Axis::of_names("", &names),
            curves: Vec::new(),
            range: AxisRange::FromZero,
        };
        assert_eq!((panel.x.low, panel.x.high), (-0.5, 1.5));
        assert_eq!((panel.label(1.0), panel.label(1_000.0)), ("b".to_owned(), "1,000".to_owned()));
    }
}
