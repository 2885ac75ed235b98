//! The curves of runs as a picture, SVG or PNG.

mod panel;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, bail, ensure};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::{FontStyle, register_font};

use crate::metrics::{self, Line};
use panel::Panel;

/// DejaVu Sans, so that a picture is the same on every machine; its licence lies beside it.
const FONT: &[u8] = include_bytes!("../assets/DejaVuSans.ttf");

/// Of the whole picture, in pixels.
const WIDTH: u32 = 1_200;
const PANEL_HEIGHT: u32 = 300;
const LOSS_HEIGHT: u32 = 460;
/// Of one row of the legend.
const ROW: u32 = 24;
/// Points drawn of one line: more are not seen at this width.
const MOST_POINTS: usize = 1_000;

/// A line that the user draws across the losses.
#[derive(Debug, Clone, PartialEq)]
pub struct Reference {
    /// What it is called in the legend.
    pub name: String,
    /// Its loss, in nats.
    pub loss: f64,
}

impl std::str::FromStr for Reference {
    type Err = anyhow::Error;

    /// `NAME=X`.
    fn from_str(text: &str) -> Result<Self> {
        let (name, loss) = text.split_once('=').ok_or_else(|| anyhow!("\"{text}\" is not NAME=X, as in GPT-2=3.12"))?;
        let loss: f64 = loss.trim().parse().map_err(|_| anyhow!("\"{loss}\" is no number, as in GPT-2=3.12"))?;
        ensure!(loss.is_finite() && !name.trim().is_empty(), "\"{text}\" is not NAME=X, as in GPT-2=3.12");
        Ok(Reference { name: name.trim().to_owned(), loss })
    }
}

/// One run, read.
struct Run {
    name: String,
    lines: Vec<Line>,
}

/// Draws training and validation loss, learning rate, gradient norm and throughput of each run,
/// with the references across the losses: an SVG or a PNG, by the ending of `output`.
///
/// # Errors
/// When a run folder has no metrics, the ending is neither, or the file cannot be written.
pub fn plot(run_dirs: &[PathBuf], references: &[Reference], output: &Path) -> Result<()> {
    let ending = output.extension().map(|ending| ending.to_string_lossy().to_lowercase());
    let ending = ending.filter(|ending| ["svg", "png"].contains(&ending.as_str()));
    let Some(ending) = ending else {
        bail!("{} ends neither in .svg nor in .png: these are what plots are drawn as", output.display())
    };
    let runs = run_dirs.iter().map(|run_dir| read(run_dir)).collect::<Result<Vec<Run>>>()?;
    register()?;
    let height = height(&runs, references);
    let bytes = if ending == "svg" {
        let mut svg = String::new();
        draw(&SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area(), &runs, references)?;
        svg.into_bytes()
    } else {
        let mut pixels = vec![0u8; (3 * WIDTH * height) as usize];
        draw(&BitMapBackend::with_buffer(&mut pixels, (WIDTH, height)).into_drawing_area(), &runs, references)?;
        encode(&pixels, height)?
    };
    if let Some(parent) = output.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("{} cannot be made", parent.display()))?;
    }
    std::fs::write(output, bytes).with_context(|| format!("{} cannot be written", output.display()))
}

fn read(run_dir: &Path) -> Result<Run> {
    let lines = metrics::read(run_dir)?;
    ensure!(
        lines.iter().any(|line| line.loss.is_some() || line.val_loss.is_some()),
        "{} holds no loss to draw",
        run_dir.join(metrics::METRICS_FILE).display()
    );
    let real = run_dir.canonicalize().unwrap_or_else(|_| run_dir.to_owned());
    let name = real.file_name().map_or_else(|| run_dir.display().to_string(), |n| n.to_string_lossy().into_owned());
    Ok(Run { name, lines })
}

/// Makes the font known, once a process.
fn register() -> Result<()> {
    static DONE: OnceLock<bool> = OnceLock::new();
    let done = DONE.get_or_init(|| register_font("sans-serif", FontStyle::Normal, FONT).is_ok());
    ensure!(*done, "the font of this program is damaged: install it again");
    Ok(())
}

/// Rows of the legend: two entries a run, one a reference, three side by side.
fn legend_rows(runs: &[Run], references: &[Reference]) -> u32 {
    (2 * runs.len() + references.len()).div_ceil(panel::LEGEND_COLUMNS) as u32
}

fn height(runs: &[Run], references: &[Reference]) -> u32 {
    16 + legend_rows(runs, references) * ROW + LOSS_HEIGHT + 2 * PANEL_HEIGHT
}

fn draw<B: DrawingBackend>(root: &DrawingArea<B, Shift>, runs: &[Run], references: &[Reference]) -> Result<()>
where
    B::ErrorType: 'static,
{
    root.fill(&WHITE)?;
    let (legend, below) = root.split_vertically(16 + legend_rows(runs, references) * ROW);
    let names: Vec<&str> = runs.iter().map(|run| run.name.as_str()).collect();
    panel::legend(&legend, &names, references, ROW)?;
    let (losses, small) = below.split_vertically(LOSS_HEIGHT);
    let lines = |value: fn(&Line) -> Option<f64>| -> Vec<Vec<(f64, f64)>> {
        runs.iter().map(|run| thin(&points(&run.lines, value))).collect()
    };
    let last = runs.iter().flat_map(|run| run.lines.last()).map(|line| line.step).max().unwrap_or(1).max(1) as f64;
    let dots = runs.iter().map(|run| points(&run.lines, |line| line.val_loss)).collect();
    let loss = Panel { title: "loss (nats)", lines: lines(|line| line.loss), dots, references, zero: false };
    loss.draw(&losses, last)?;
    let panel = |title, value| Panel { title, lines: lines(value), dots: Vec::new(), references: &[], zero: true };
    let panels = [
        panel("learning rate", |line| line.lr),
        panel("gradient norm before clipping", |line| line.grad_norm),
        panel("tokens a second", |line| line.tokens_per_s),
        panel("utilisation (%)", |line| line.mfu.map(|mfu| 100.0 * mfu)),
    ];
    for (area, panel) in small.split_evenly((2, 2)).iter().zip(panels) {
        panel.draw(area, last)?;
    }
    root.present()?;
    Ok(())
}

fn points(lines: &[Line], value: fn(&Line) -> Option<f64>) -> Vec<(f64, f64)> {
    lines.iter().filter_map(|line| Some((line.step as f64, value(line)?))).collect()
}

/// Means over equal stretches of steps.
fn thin(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let stretch = points.len().div_ceil(MOST_POINTS).max(1);
    let mean = |chunk: &[(f64, f64)]| {
        let n = chunk.len() as f64;
        (chunk.iter().map(|p| p.0).sum::<f64>() / n, chunk.iter().map(|p| p.1).sum::<f64>() / n)
    };
    points.chunks(stretch).map(mean).collect()
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

    fn run(folder: &Path) -> PathBuf {
        let run = folder.join("first");
        std::fs::create_dir(&run).unwrap();
        let lines = concat!(
            r#"{"step":1,"loss":5.0,"lr":0.1,"grad_norm":2.0,"tokens_per_s":100.0,"mfu":0.4}"#,
            "\n",
            r#"{"step":2,"tokens":16,"val_loss":4.5,"val_ppl":90.0}"#,
            "\n{\"torn"
        );
        std::fs::write(run.join("metrics.jsonl"), lines).unwrap();
        run
    }

    #[test]
    fn a_plot_names_its_runs_panels_and_references() {
        let folder = tempfile::tempdir().unwrap();
        let run = run(folder.path());
        let svg = folder.path().join("plots/out.svg");
        let reference: Reference = "GPT-2=3.12".parse().unwrap();
        plot(std::slice::from_ref(&run), std::slice::from_ref(&reference), &svg).unwrap();
        let text = std::fs::read_to_string(&svg).unwrap();
        assert!(text.starts_with("<svg"));
        for name in
            ["first: training", "first: validation", "GPT-2: 3.12", "loss (nats)", "learning rate", "tokens a second"]
        {
            assert!(text.contains(name), "{name}");
        }
        let png = folder.path().join("out.PNG");
        plot(&[run], &[reference], &png).unwrap();
        let bytes = std::fs::read(&png).unwrap();
        assert!(bytes.starts_with(b"\x89PNG\r\n\x1a\n"));
        let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        assert_eq!((info.width, info.color_type), (WIDTH, png::ColorType::Rgb));
        // Text and lines are drawn on white.
        let dark = pixels.chunks(3).filter(|rgb| rgb.iter().all(|value| *value < 128)).count();
        assert!(dark > 1_000 && pixels[0] == 255, "{dark}");
    }

    #[test]
    fn what_cannot_be_drawn_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let error = plot(&[folder.path().to_owned()], &[], Path::new("out.svg")).unwrap_err().to_string();
        assert!(error.contains("is") && error.contains("a run folder"), "{error}");
        let error = plot(&[run(folder.path())], &[], Path::new("out.gif")).unwrap_err().to_string();
        assert!(error.starts_with("out.gif ends neither in .svg nor in .png"), "{error}");
        for wrong in ["GPT-2", "GPT-2=x", "=3", "a=inf"] {
            assert!(wrong.parse::<Reference>().unwrap_err().to_string().contains("as in GPT-2=3.12"), "{wrong}");
        }
    }

    #[test]
    fn many_points_are_thinned_to_their_means() {
        let points: Vec<(f64, f64)> = (0..10_000).map(|i| (f64::from(i), f64::from(i % 5))).collect();
        let thinned = thin(&points);
        assert_eq!(thinned.len(), 1_000);
        assert!(thinned.iter().all(|p| p.1 == 2.0));
    }
}
