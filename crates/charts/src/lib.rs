//! Pictures of figures: a legend over rows of panels, as SVG or PNG, the same on every machine.

mod legend;
mod panel;
mod ticks;

use std::path::Path;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail, ensure};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::{FontStyle, register_font};

pub use legend::{LEGEND_CHARACTERS, LegendEntry, shorten};
pub use panel::{Axis, AxisRange, Curve, Panel, Style};

/// DejaVu Sans, so that a picture is the same on every machine; its licence lies beside it.
const FONT: &[u8] = include_bytes!("../assets/DejaVuSans.ttf");

/// Of the whole picture, in pixels.
pub const WIDTH: u32 = 1_200;

/// What a picture is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageFormat {
    /// Shapes and text.
    Svg,
    /// Pixels.
    Png,
}

impl ImageFormat {
    /// That of a file, by the ending of its name.
    ///
    /// # Errors
    /// When it is neither.
    pub fn of(path: &Path) -> Result<Self> {
        let ending = path.extension().map(|ending| ending.to_string_lossy().to_lowercase());
        match ending.as_deref() {
            Some("svg") => Ok(ImageFormat::Svg),
            Some("png") => Ok(ImageFormat::Png),
            _ => bail!("{} ends neither in .svg nor in .png: these are what plots are drawn as", path.display()),
        }
    }
}

/// Panels side by side.
#[derive(Debug, Clone)]
pub struct PanelRow {
    /// In pixels.
    pub height: u32,
    /// From the left, equally wide; at least one.
    pub panels: Vec<Panel>,
}

/// A picture.
#[derive(Debug, Clone)]
pub struct Chart {
    /// What the curves of all panels are called.
    pub legend: Vec<LegendEntry>,
    /// From the top.
    pub rows: Vec<PanelRow>,
}

impl Chart {
    /// Draws it into a file, whose folder is made; the ending of its name says as what.
    ///
    /// # Errors
    /// When the ending is neither `.svg` nor `.png`, or the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let bytes = self.bytes(ImageFormat::of(path)?)?;
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).with_context(|| format!("{} cannot be made", parent.display()))?;
        }
        std::fs::write(path, bytes).with_context(|| format!("{} cannot be written", path.display()))
    }

    fn bytes(&self, format: ImageFormat) -> Result<Vec<u8>> {
        register()?;
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
                encode(&pixels, height)
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

/// Makes the font known, once a process.
fn register() -> Result<()> {
    static DONE: OnceLock<bool> = OnceLock::new();
    let done = DONE.get_or_init(|| register_font("sans-serif", FontStyle::Normal, FONT).is_ok());
    ensure!(*done, "the font of this program is damaged: install it again");
    Ok(())
}

/// Rows of red, green and blue as a PNG.
fn encode(pixels: &[u8], height: u32) -> Result<Vec<u8>> {
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
        let bars = Curve { points: vec![(0.0, 2.0), (1.0, 5.0)], style: Style::Bars { colour: 0, place: 0, of: 1 } };
        let level = Curve { points: vec![(0.0, 3.0)], style: Style::Level(0) };
        let panel = Panel {
            title: "how many".to_owned(),
            x: Axis::of_names("kind", &["cats".to_owned(), "dogs".to_owned()]),
            curves: vec![bars, level],
            range: AxisRange::FromZero,
        };
        let legend = vec![
            LegendEntry { name: "here".to_owned(), style: Style::Bars { colour: 0, place: 0, of: 1 } },
            LegendEntry { name: "elsewhere: 3".to_owned(), style: Style::Level(0) },
        ];
        Chart { legend, rows: vec![PanelRow { height: 300, panels: vec![panel] }] }
    }

    #[test]
    fn a_picture_names_its_panels_axes_and_curves() {
        let folder = tempfile::tempdir().unwrap();
        let svg = folder.path().join("plots/out.svg");
        chart().write(&svg).unwrap();
        let text = std::fs::read_to_string(&svg).unwrap();
        assert!(text.starts_with("<svg"));
        for name in ["how many", "kind", "cats", "dogs", "here", "elsewhere: 3"] {
            assert!(text.contains(name), "{name}");
        }
    }

    #[test]
    fn a_png_holds_what_was_drawn() {
        let folder = tempfile::tempdir().unwrap();
        let png = folder.path().join("out.PNG");
        chart().write(&png).unwrap();
        let bytes = std::fs::read(&png).unwrap();
        assert!(bytes.starts_with(b"\x89PNG\r\n\x1a\n"));
        let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        assert_eq!((info.width, info.color_type), (WIDTH, png::ColorType::Rgb));
        // Text and lines are drawn on white.
        let dark = pixels.chunks(3).filter(|rgb| rgb.iter().all(|value| *value < 128)).count();
        assert!(dark > 500 && pixels[0] == 255, "{dark}");
    }
}
