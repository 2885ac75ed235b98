//! The legend: the names of all curves, above the panels.

use anyhow::Result;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::panel::{FONT_SIZE, Style, color, gray_line};

/// Number of entries per row.
const COLUMNS: usize = 3;
/// Height of one row in pixels.
const ROW_HEIGHT: u32 = 24;

/// Maximum number of characters of an entry's name. A longer name would overlap the next entry.
pub const MAX_NAME_CHARS: usize = 45;

/// Shortens a text to at most `max_chars` characters (at least 4) by replacing its middle with
/// `...`, because names of runs differ at their ends.
pub fn shorten(text: &str, max_chars: usize) -> String {
    let chars: Vec<char> = text.chars().collect();
    if chars.len() <= max_chars {
        return text.to_owned();
    }
    let half = max_chars.saturating_sub(3) / 2;
    let part = |from: &[char]| from.iter().collect::<String>();
    format!("{}...{}", part(&chars[..half]), part(&chars[chars.len() - half..]))
}

/// The name of one or several curves.
#[derive(Debug, Clone, PartialEq)]
pub struct LegendEntry {
    /// The name, of at most [`MAX_NAME_CHARS`] characters.
    pub name: String,
    /// The style of the named curves.
    pub style: Style,
}

/// Returns the height of the legend in pixels.
pub(crate) fn height(entries: &[LegendEntry]) -> u32 {
    16 + entries.len().div_ceil(COLUMNS) as u32 * ROW_HEIGHT
}

/// Draws the entries in rows from the left.
pub(crate) fn draw<B: DrawingBackend>(area: &DrawingArea<B, Shift>, entries: &[LegendEntry]) -> Result<()>
where
    B::ErrorType: 'static,
{
    let width = area.dim_in_pixel().0 as i32 / COLUMNS as i32;
    let text = TextStyle::from(("sans-serif", FONT_SIZE)).pos(Pos::new(HPos::Left, VPos::Center));
    for (i, LegendEntry { name, style }) in entries.iter().enumerate() {
        let (x, y) = (16 + (i % COLUMNS) as i32 * width, 12 + (i / COLUMNS) as i32 * ROW_HEIGHT as i32 + 8);
        let line = |from: i32, to: i32, style: ShapeStyle| PathElement::new([(x + from, y), (x + to, y)], style);
        match *style {
            Style::Line(i) => area.draw(&line(0, 28, color(i).mix(0.9).stroke_width(2)))?,
            Style::Faint(i) => area.draw(&line(0, 28, color(i).mix(0.45).stroke_width(2)))?,
            Style::Markers(i) => {
                area.draw(&line(0, 28, color(i).stroke_width(3)))?;
                area.draw(&Circle::new((x + 14, y), 4, color(i).stroke_width(3).filled()))?;
            }
            Style::HorizontalLine(i) => {
                for (from, to) in [(0, 8), (12, 20), (24, 28)] {
                    area.draw(&line(from, to, gray_line(i)))?;
                }
            }
            Style::Bars { color: i, .. } => {
                area.draw(&Rectangle::new([(x + 8, y - 7), (x + 22, y + 7)], color(i).filled()))?;
            }
        }
        area.draw_text(name, &text, (x + 36, y))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shortened_name_keeps_both_ends() {
        let short = shorten(&format!("begin-{}-end", "x".repeat(80)), 32);
        assert!(short.starts_with("begin-") && short.ends_with("-end") && short.len() <= 32, "{short}");
        assert_eq!(shorten("run", 32), "run");
    }
}
