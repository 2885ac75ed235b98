//! `backpack plot`: curves of one or more runs as an SVG or PNG image.

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, ensure};
use charts::{
    Axis, AxisRange, Chart, Curve, ImageFormat, LegendEntry, MAX_NAME_CHARS, Panel, PanelRow, Style, shorten,
};

use crate::logging::metrics::{self, MetricLine};

/// Height in pixels of a row of small panels.
const PANEL_HEIGHT: u32 = 300;
/// Height in pixels of the panel of the losses.
const LOSS_HEIGHT: u32 = 460;
/// Largest number of points per curve. More are not visible at this width.
const MAX_POINTS: usize = 1_000;
/// Largest number of characters of a run's name, to which the legend adds the kind of curve.
const NAME_CHARACTERS: usize = MAX_NAME_CHARS - ": validation".len();

/// A horizontal line in the panel of the losses.
#[derive(Debug, Clone, PartialEq)]
pub struct ReferenceLine {
    /// Name in the legend.
    pub name: String,
    /// Loss in nats.
    pub loss: f64,
}

impl std::str::FromStr for ReferenceLine {
    type Err = anyhow::Error;

    /// Parses `NAME=X`.
    fn from_str(text: &str) -> Result<Self> {
        let (name, loss) = text.split_once('=').ok_or_else(|| anyhow!("\"{text}\" is not NAME=X, as in GPT-2=3.12"))?;
        let loss: f64 = loss.trim().parse().map_err(|_| anyhow!("\"{loss}\" is not a number, as in GPT-2=3.12"))?;
        ensure!(loss.is_finite() && !name.trim().is_empty(), "\"{text}\" is not NAME=X, as in GPT-2=3.12");
        Ok(ReferenceLine { name: name.trim().to_owned(), loss })
    }
}

/// The name and the metrics of a run.
struct PlottedRun {
    name: String,
    lines: Vec<MetricLine>,
}

/// Draws training and validation loss, learning rate, gradient norm, throughput and utilization of
/// each run.
///
/// The file name extension of `output` selects SVG or PNG.
///
/// # Errors
/// Returns an error if a run directory has no metrics, if the extension is unknown, or if the file
/// cannot be written.
pub fn plot(run_dirs: &[PathBuf], references: &[ReferenceLine], output: &Path) -> Result<()> {
    ImageFormat::from_path(output)?;
    let runs = run_dirs.iter().map(|run_dir| read(run_dir)).collect::<Result<Vec<PlottedRun>>>()?;
    chart(&runs, references).write(output)
}

/// Reads the metrics of a run.
fn read(run_dir: &Path) -> Result<PlottedRun> {
    let lines = metrics::read(run_dir)?;
    ensure!(
        lines.iter().any(|line| line.loss.is_some() || line.val_loss.is_some()),
        "{} contains no loss to draw",
        run_dir.join(metrics::METRICS_FILE).display()
    );
    let real = run_dir.canonicalize().unwrap_or_else(|_| run_dir.to_owned());
    let name = real.file_name().map_or_else(|| run_dir.display().to_string(), |n| n.to_string_lossy().into_owned());
    Ok(PlottedRun { name, lines })
}

/// Arranges the curves in panels.
fn chart(runs: &[PlottedRun], references: &[ReferenceLine]) -> Chart {
    let mut legend = Vec::new();
    for (i, run) in runs.iter().enumerate() {
        let name = shorten(&run.name, NAME_CHARACTERS);
        legend.push(LegendEntry { name: format!("{name}: training"), style: Style::Faint(i) });
        legend.push(LegendEntry { name: format!("{name}: validation"), style: Style::Markers(i) });
    }
    for (i, ReferenceLine { name, loss }) in references.iter().enumerate() {
        legend.push(LegendEntry {
            name: format!("{}: {loss}", shorten(name, NAME_CHARACTERS)),
            style: Style::HorizontalLine(i),
        });
    }
    let last = runs.iter().flat_map(|run| run.lines.last()).map(|line| line.step).max().unwrap_or(1).max(1) as f64;
    let lines = |value: fn(&MetricLine) -> Option<f64>, style: fn(usize) -> Style| {
        let line =
            move |(i, run): (usize, &PlottedRun)| Curve { points: thin(&points(&run.lines, value)), style: style(i) };
        runs.iter().enumerate().map(line).collect::<Vec<_>>()
    };
    // The validation loss has the full color of the run. The noisy training loss is fainter and
    // drawn first.
    let mut losses = lines(|line| line.loss, Style::Faint);
    let level = |(i, reference): (usize, &ReferenceLine)| Curve {
        points: vec![(0.0, reference.loss)],
        style: Style::HorizontalLine(i),
    };
    losses.extend(references.iter().enumerate().map(level));
    let dots = |(i, run): (usize, &PlottedRun)| Curve {
        points: points(&run.lines, |line| line.val_loss),
        style: Style::Markers(i),
    };
    losses.extend(runs.iter().enumerate().map(dots));
    let panel = |title: &str, curves, range| Panel {
        title: title.to_owned(),
        x: Axis { label: "step".to_owned(), min: 0.0, max: last, ticks: Vec::new() },
        curves,
        range,
    };
    let small = |title, value| panel(title, lines(value, Style::Line), AxisRange::FromZeroClipped);
    let rows = vec![
        PanelRow { height: LOSS_HEIGHT, panels: vec![panel("loss (nats)", losses, AxisRange::Fit)] },
        PanelRow {
            height: PANEL_HEIGHT,
            panels: vec![
                small("learning rate", |line| line.lr),
                small("gradient norm before clipping", |line| line.grad_norm),
            ],
        },
        PanelRow {
            height: PANEL_HEIGHT,
            panels: vec![
                small("tokens per second", |line| line.tokens_per_s),
                small("utilization (%)", |line| line.mfu.map(|mfu| 100.0 * mfu)),
            ],
        },
    ];
    Chart { legend, rows }
}

/// Returns the steps and values of the lines that have the value.
fn points(lines: &[MetricLine], value: fn(&MetricLine) -> Option<f64>) -> Vec<(f64, f64)> {
    lines.iter().filter_map(|line| Some((line.step as f64, value(line)?))).collect()
}

/// Reduces a curve to at most [`MAX_POINTS`] points, each the mean of consecutive points.
fn thin(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let size = points.len().div_ceil(MAX_POINTS).max(1);
    let mean = |chunk: &[(f64, f64)]| {
        let n = chunk.len() as f64;
        (chunk.iter().map(|p| p.0).sum::<f64>() / n, chunk.iter().map(|p| p.1).sum::<f64>() / n)
    };
    points.chunks(size).map(mean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(dir: &Path) -> PathBuf {
        let run = dir.join("first");
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
    fn plot_contains_names_of_runs_panels_and_references() {
        let dir = tempfile::tempdir().unwrap();
        let run = run(dir.path());
        let svg = dir.path().join("plots/out.svg");
        let reference: ReferenceLine = "GPT-2=3.12".parse().unwrap();
        plot(std::slice::from_ref(&run), std::slice::from_ref(&reference), &svg).unwrap();
        let text = std::fs::read_to_string(&svg).unwrap();
        assert!(text.starts_with("<svg"));
        for name in
            ["first: training", "first: validation", "GPT-2: 3.12", "loss (nats)", "learning rate", "tokens per second"]
        {
            assert!(text.contains(name), "{name}");
        }
    }

    #[test]
    fn invalid_inputs_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let error = plot(&[dir.path().to_owned()], &[], Path::new("out.svg")).unwrap_err().to_string();
        assert!(error.contains(metrics::METRICS_FILE) && error.contains("a run directory?"), "{error}");
        let error = plot(&[run(dir.path())], &[], Path::new("out.gif")).unwrap_err().to_string();
        assert!(error.starts_with("out.gif ends neither in .svg nor in .png"), "{error}");
        for wrong in ["GPT-2", "GPT-2=x", "=3", "a=inf"] {
            assert!(wrong.parse::<ReferenceLine>().unwrap_err().to_string().contains("as in GPT-2=3.12"), "{wrong}");
        }
    }

    #[test]
    fn many_points_are_reduced_to_means() {
        let points: Vec<(f64, f64)> = (0..10_000).map(|i| (f64::from(i), f64::from(i % 5))).collect();
        let thinned = thin(&points);
        assert_eq!(thinned.len(), 1_000);
        assert!(thinned.iter().all(|p| p.1 == 2.0));
    }
}
