//! One panel of a plot, and the legend over all.

use anyhow::Result;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::Reference;

/// Entries of the legend side by side.
pub(super) const LEGEND_COLUMNS: usize = 3;
/// Characters of a name: more would run into the next entry.
const LEGEND_CHARACTERS: usize = 32;

const FONT_SIZE: u32 = 15;
const TITLE_SIZE: u32 = 17;
/// Ticks of an axis, about.
const TICKS: usize = 6;

/// A run's curves.
pub(super) struct Panel<'a> {
    pub(super) title: &'static str,
    /// One line a run: step and value.
    pub(super) lines: Vec<Vec<(f64, f64)>>,
    /// One line with dots a run, in front of the others.
    pub(super) dots: Vec<Vec<(f64, f64)>>,
    /// Level lines.
    pub(super) references: &'a [Reference],
    /// The axis begins at 0.
    pub(super) zero: bool,
}

impl Panel<'_> {
    pub(super) fn draw<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>, last: f64) -> Result<()>
    where
        B::ErrorType: 'static,
    {
        let (low, high) = self.range();
        let mut chart = ChartBuilder::on(area)
            .margin_left(8)
            .margin_right(28)
            .margin_top(6)
            .margin_bottom(6)
            .caption(self.title, ("sans-serif", TITLE_SIZE))
            .x_label_area_size(44)
            .y_label_area_size(74)
            .build_cartesian_2d(0.0..last, low..high)?;
        let step = tick_distance(low, high);
        chart
            .configure_mesh()
            .x_desc("step")
            .x_labels(TICKS)
            .y_labels(TICKS)
            .x_label_formatter(&|x| with_thousands(*x))
            .y_label_formatter(&|y| tick(*y, step))
            .label_style(("sans-serif", FONT_SIZE))
            .light_line_style(TRANSPARENT)
            .bold_line_style(BLACK.mix(0.12))
            .draw()?;
        // A run's validation is drawn in its full colour, its noisy training loss fainter before it.
        let faint = if self.dots.is_empty() { 0.9 } else { 0.45 };
        for (i, line) in self.lines.iter().enumerate() {
            chart.draw_series(LineSeries::new(line.iter().copied(), colour(i).mix(faint).stroke_width(1)))?;
        }
        for (i, reference) in self.references.iter().enumerate() {
            let ends = [(0.0, reference.loss), (last, reference.loss)];
            chart.draw_series(DashedLineSeries::new(ends, 8, 5, reference_style(i)))?;
        }
        for (i, dots) in self.dots.iter().enumerate() {
            let style = colour(i).stroke_width(2);
            // Dots that touch say no more than the line.
            let size = if dots.len() > 60 { 0 } else { 3 };
            chart.draw_series(LineSeries::new(dots.iter().copied(), style.filled()).point_size(size))?;
        }
        Ok(())
    }

    /// Of the axis. Of values that begin at 0, the highest hundredth may leave the picture: the
    /// first steps' gradient norms would flatten all others.
    fn range(&self) -> (f64, f64) {
        let all = self.lines.iter().chain(&self.dots).flatten().map(|point| point.1);
        let mut values: Vec<f64> = all.chain(self.references.iter().map(|reference| reference.loss)).collect();
        values.sort_by(f64::total_cmp);
        let (Some(&low), Some(&high)) = (values.first(), values.last()) else { return (0.0, 1.0) };
        if self.zero {
            let usual = values[(values.len() - 1) * 99 / 100];
            let high = if high > 2.0 * usual { 1.3 * usual } else { 1.05 * high };
            return (0.0, if high > 0.0 { high } else { 1.0 });
        }
        let margin = ((high - low) * 0.05).max(0.05);
        (low - margin, high + margin)
    }
}

/// The names of all lines, `row` pixels a row.
pub(super) fn legend<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    runs: &[&str],
    references: &[Reference],
    row: u32,
) -> Result<()>
where
    B::ErrorType: 'static,
{
    let mut entries: Vec<(String, ShapeStyle, Sample)> = Vec::new();
    for (i, name) in runs.iter().enumerate() {
        let name = shorten(name);
        entries.push((format!("{name}: training"), colour(i).mix(0.45).stroke_width(2), Sample::Line));
        entries.push((format!("{name}: validation"), colour(i).stroke_width(3), Sample::Dotted));
    }
    for (i, reference) in references.iter().enumerate() {
        entries.push((format!("{}: {}", shorten(&reference.name), reference.loss), reference_style(i), Sample::Dashed));
    }
    let width = area.dim_in_pixel().0 as i32 / LEGEND_COLUMNS as i32;
    let text = TextStyle::from(("sans-serif", FONT_SIZE)).pos(Pos::new(HPos::Left, VPos::Center));
    for (i, (name, style, sample)) in entries.iter().enumerate() {
        let (x, y) = (16 + (i % LEGEND_COLUMNS) as i32 * width, 12 + (i / LEGEND_COLUMNS) as i32 * row as i32 + 8);
        let strokes: &[(i32, i32)] = if *sample == Sample::Dashed { &[(0, 8), (12, 20), (24, 28)] } else { &[(0, 28)] };
        for (from, to) in strokes {
            area.draw(&PathElement::new([(x + from, y), (x + to, y)], *style))?;
        }
        if *sample == Sample::Dotted {
            area.draw(&Circle::new((x + 14, y), 4, style.filled()))?;
        }
        area.draw_text(name, &text, (x + 36, y))?;
    }
    Ok(())
}

/// How the legend shows a line.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sample {
    Line,
    Dotted,
    Dashed,
}

/// Its middle is left out: runs differ at their ends.
fn shorten(name: &str) -> String {
    let characters: Vec<char> = name.chars().collect();
    if characters.len() <= LEGEND_CHARACTERS {
        return name.to_owned();
    }
    let half = (LEGEND_CHARACTERS - 3) / 2;
    let part = |from: &[char]| from.iter().collect::<String>();
    format!("{}...{}", part(&characters[..half]), part(&characters[characters.len() - half..]))
}

/// Of the i-th run: Okabe and Ito's, which the colour-blind can tell apart.
fn colour(i: usize) -> RGBAColor {
    const COLOURS: [(u8, u8, u8); 7] =
        [(0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233), (120, 94, 60)];
    let (r, g, b) = COLOURS[i % COLOURS.len()];
    RGBColor(r, g, b).to_rgba()
}

/// Greys: no run has one.
fn reference_style(i: usize) -> ShapeStyle {
    let level = [40, 110, 80, 140][i % 4];
    RGBColor(level, level, level).stroke_width(2)
}

/// About how far ticks are from one another.
fn tick_distance(low: f64, high: f64) -> f64 {
    (high - low) / TICKS as f64
}

/// As many digits as tell two ticks apart.
fn tick(value: f64, distance: f64) -> String {
    if value == 0.0 {
        "0".to_owned()
    } else if distance < 1e-3 {
        format!("{value:.1e}")
    } else if distance >= 1.0 {
        with_thousands(value)
    } else {
        let digits = (-distance.log10()).ceil() as usize;
        format!("{value:.digits$}")
    }
}

/// `52,000`.
fn with_thousands(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).unwrap_or_default()).collect();
    format!("{}{}", if value < 0.0 { "-" } else { "" }, groups.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_have_the_digits_that_tell_them_apart() {
        assert_eq!((tick(0.0, 1.0), tick(2.5, 0.5)), ("0".to_owned(), "2.5".to_owned()));
        assert_eq!((tick(3.25, 0.05), tick(6e-4, 1e-4)), ("3.25".to_owned(), "6.0e-4".to_owned()));
        assert_eq!((tick(52_000.0, 1e4), tick(1_000_000.0, 1e6)), ("52,000".to_owned(), "1,000,000".to_owned()));
        assert_eq!(with_thousands(-1_234.0), "-1,234");
    }

    #[test]
    fn a_long_name_keeps_both_ends() {
        let short = shorten(&format!("begin-{}-end", "x".repeat(80)));
        assert!(short.starts_with("begin-") && short.ends_with("-end") && short.len() <= LEGEND_CHARACTERS, "{short}");
        assert_eq!(shorten("run"), "run");
    }

    #[test]
    fn one_wild_step_does_not_flatten_the_others() {
        let mut line: Vec<(f64, f64)> = (0..1_000).map(|step| (f64::from(step), 1.0)).collect();
        line[3].1 = 500.0;
        let panel = |zero| Panel { title: "", lines: vec![line.clone()], dots: Vec::new(), references: &[], zero };
        assert_eq!(panel(true).range(), (0.0, 1.3));
        assert!(panel(false).range().1 > 500.0);
    }
}
