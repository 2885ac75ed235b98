//! The names of all curves, over the panels.

use anyhow::Result;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::panel::{FONT_SIZE, Style, colour, level_style};

/// Entries side by side.
const COLUMNS: usize = 3;
/// Of one row, in pixels.
const ROW: u32 = 24;

/// Characters of an entry's name: more would run into the next one.
pub const LEGEND_CHARACTERS: usize = 45;

/// A text of at most so many characters (4 or more): its middle is left out, since names differ at their ends.
pub fn shorten(text: &str, most: usize) -> String {
    let characters: Vec<char> = text.chars().collect();
    if characters.len() <= most {
        return text.to_owned();
    }
    let half = most.saturating_sub(3) / 2;
    let part = |from: &[char]| from.iter().collect::<String>();
    format!("{}...{}", part(&characters[..half]), part(&characters[characters.len() - half..]))
}

/// A curve's name.
#[derive(Debug, Clone, PartialEq)]
pub struct LegendEntry {
    /// At most [`LEGEND_CHARACTERS`].
    pub name: String,
    /// That of the curves that it names.
    pub style: Style,
}

/// In pixels.
pub(crate) fn height(entries: &[LegendEntry]) -> u32 {
    16 + entries.len().div_ceil(COLUMNS) as u32 * ROW
}

pub(crate) fn draw<B: DrawingBackend>(area: &DrawingArea<B, Shift>, entries: &[LegendEntry]) -> Result<()>
where
    B::ErrorType: 'static,
{
    let width = area.dim_in_pixel().0 as i32 / COLUMNS as i32;
    let text = TextStyle::from(("sans-serif", FONT_SIZE)).pos(Pos::new(HPos::Left, VPos::Center));
    for (i, LegendEntry { name, style }) in entries.iter().enumerate() {
        let (x, y) = (16 + (i % COLUMNS) as i32 * width, 12 + (i / COLUMNS) as i32 * ROW as i32 + 8);
        let line = |from: i32, to: i32, style: ShapeStyle| PathElement::new([(x + from, y), (x + to, y)], style);
        match *style {
            Style::Line(i) => area.draw(&line(0, 28, colour(i).mix(0.9).stroke_width(2)))?,
            Style::Faint(i) => area.draw(&line(0, 28, colour(i).mix(0.45).stroke_width(2)))?,
            Style::Dotted(i) => {
                area.draw(&line(0, 28, colour(i).stroke_width(3)))?;
                area.draw(&Circle::new((x + 14, y), 4, colour(i).stroke_width(3).filled()))?;
            }
            Style::Level(i) => {
                for (from, to) in [(0, 8), (12, 20), (24, 28)] {
                    area.draw(&line(from, to, level_style(i)))?;
                }
            }
            Style::Bars { colour: i, .. } => {
                area.draw(&Rectangle::new([(x + 8, y - 7), (x + 22, y + 7)], colour(i).filled()))?;
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
    fn a_long_name_keeps_both_ends() {
        let short = shorten(&format!("begin-{}-end", "x".repeat(80)), 32);
        assert!(short.starts_with("begin-") && short.ends_with("-end") && short.len() <= 32, "{short}");
        assert_eq!(shorten("run", 32), "run");
    }
}
