//! Charts as SVG or PNG files: a legend above rows of panels. Their bytes do not depend on the
//! machine, because the font is embedded.

mod legend;
mod panel;
mod ticks;

use std::path::Path;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail, ensure};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::{FontStyle, register_font};

pub use legend::{LegendEntry, MAX_NAME_CHARS, shorten};
pub use panel::{Axis, AxisRange, Curve, Panel, Style};

/// DejaVu Sans. Its license is `assets/LICENSE.DejaVu`.
const FONT: &[u8] = include_bytes!("../assets/DejaVuSans.ttf");

/// Width of a chart in pixels.
pub const WIDTH: u32 = 1_200;

/// The file format of a chart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageFormat {
    /// Scalable Vector Graphics.
    Svg,
    /// Portable Network Graphics.
    Png,
}

impl ImageFormat {
    /// Returns the format that the extension of a file name selects.
    ///
    /// # Errors
    /// If the extension is neither `.svg` nor `.png`.
    pub fn from_path(path: &Path) -> Result<Self> {
        let extension = path.extension().map(|extension| extension.to_string_lossy().to_lowercase());
        match extension.as_deref() {
            Some("svg") => Ok(ImageFormat::Svg),
            Some("png") => Ok(ImageFormat::Png),
            _ => bail!("{} ends neither in .svg nor in .png: use one of these extensions", path.display()),
        }
    }
}

/// A row of panels.
#[derive(Debug, Clone)]
pub struct PanelRow {
    /// Height in pixels.
    pub height: u32,
    /// The panels from left to right. They have the same width. There must be at least one.
    pub panels: Vec<Panel>,
}

/// A legend above rows of panels.
#[derive(Debug, Clone)]
pub struct Chart {
    /// The names of the curves of all panels.
    pub legend: Vec<LegendEntry>,
    /// The rows from top to bottom.
    pub rows: Vec<PanelRow>,
}

impl Chart {
    /// Writes the chart to a file in the format that the extension of its name selects. Creates the
    /// directory of the file if necessary.
    ///
    /// # Errors
    /// If the extension is neither `.svg` nor `.png`, or if the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let bytes = self.encode(ImageFormat::from_path(path)?)?;
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
        }
        std::fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Draws the chart and returns the contents of its file.
    fn encode(&self, format: ImageFormat) -> Result<Vec<u8>> {
        load_font()?;
        let height = legend::height(&self.legend) + self.rows.iter().map(|row| row.height).sum::<u32>();
        match format {
            ImageFormat::Svg => {
                let mut svg = String::new();
                self.draw(&SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area())?;
                Ok(svg.into_bytes())
            }
            ImageFormat::Png => {
                let mut pixels = vec![0u8; (3 * WIDTH * height) as usize];
                self.draw(&BitMapBackend::with_buffer(&mut pixels, (WIDTH, height)).into_drawing_area())?;
                encode_png(&pixels, height)
            }
        }
    }

    fn draw<B: DrawingBackend>(&self, root: &DrawingArea<B, Shift>) -> Result<()>
    where
        B::ErrorType: 'static,
    {
        root.fill(&WHITE)?;
        let (legend, mut below) = root.split_vertically(legend::height(&self.legend));
        legend::draw(&legend, &self.legend)?;
        for row in &self.rows {
            let (area, rest) = below.split_vertically(row.height);
            for (area, panel) in area.split_evenly((1, row.panels.len())).iter().zip(&row.panels) {
                panel.draw(area)?;
            }
            below = rest;
        }
        root.present()?;
        Ok(())
    }
}

/// Registers the font with plotters, once per process.
fn load_font() -> Result<()> {
    static IS_LOADED: OnceLock<bool> = OnceLock::new();
    let is_loaded = IS_LOADED.get_or_init(|| register_font("sans-serif", FontStyle::Normal, FONT).is_ok());
    ensure!(*is_loaded, "cannot load the embedded font: reinstall backpack");
    Ok(())
}

/// Encodes rows of 8-bit red, green and blue values as a PNG file.
fn encode_png(pixels: &[u8], height: u32) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, WIDTH, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(pixels)?;
    writer.finish()?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart() -> Chart {
        let bars = Curve { points: vec![(0.0, 2.0), (1.0, 5.0)], style: Style::Bars { color: 0, index: 0, count: 1 } };
        let level = Curve { points: vec![(0.0, 3.0)], style: Style::HorizontalLine(0) };
        let panel = Panel {
            title: "how many".to_owned(),
            x: Axis::from_names("kind", &["cats".to_owned(), "dogs".to_owned()]),
            curves: vec![bars, level],
            range: AxisRange::FromZero,
        };
        let legend = vec![
            LegendEntry { name: "here".to_owned(), style: Style::Bars { color: 0, index: 0, count: 1 } },
            LegendEntry { name: "elsewhere: 3".to_owned(), style: Style::HorizontalLine(0) },
        ];
        Chart { legend, rows: vec![PanelRow { height: 300, panels: vec![panel] }] }
    }

    #[test]
    fn svg_contains_all_names() {
        let dir = tempfile::tempdir().unwrap();
        let svg = dir.path().join("plots/out.svg");
        chart().write(&svg).unwrap();
        let text = std::fs::read_to_string(&svg).unwrap();
        assert!(text.starts_with("<svg"));
        for name in ["how many", "kind", "cats", "dogs", "here", "elsewhere: 3"] {
            assert!(text.contains(name), "{name}");
        }
    }

    #[test]
    fn png_contains_the_drawing() {
        let dir = tempfile::tempdir().unwrap();
        let png = dir.path().join("out.PNG");
        chart().write(&png).unwrap();
        let bytes = std::fs::read(&png).unwrap();
        assert!(bytes.starts_with(b"\x89PNG\r\n\x1a\n"));
        let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        assert_eq!((info.width, info.color_type), (WIDTH, png::ColorType::Rgb));
        // The background is white.
        let dark = pixels.chunks(3).filter(|rgb| rgb.iter().all(|value| *value < 128)).count();
        assert!(dark > 500 && pixels[0] == 255, "{dark}");
    }
}
