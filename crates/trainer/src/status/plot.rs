//! The curves of runs as a picture, SVG or PNG.

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, ensure};
use charts::{
    Axis, AxisRange, Chart, Curve, ImageFormat, LegendEntry, MAX_NAME_CHARS, Panel, PanelRow, Style, shorten,
};

use crate::logging::metrics::{self, MetricLine};

/// Of a row of the picture, in pixels.
const PANEL_HEIGHT: u32 = 300;
const LOSS_HEIGHT: u32 = 460;
/// Points drawn of one line: more are not seen at this width.
const MOST_POINTS: usize = 1_000;
/// Characters of a name, to which the legend adds what a curve is of.
const NAME_CHARACTERS: usize = MAX_NAME_CHARS - ": validation".len();

/// A line that the user draws across the losses.
#[derive(Debug, Clone, PartialEq)]
pub struct ReferenceLine {
    /// What it is called in the legend.
    pub name: String,
    /// Its loss, in nats.
    pub loss: f64,
}

impl std::str::FromStr for ReferenceLine {
    type Err = anyhow::Error;

    /// `NAME=X`.
    fn from_str(text: &str) -> Result<Self> {
        let (name, loss) = text.split_once('=').ok_or_else(|| anyhow!("\"{text}\" is not NAME=X, as in GPT-2=3.12"))?;
        let loss: f64 = loss.trim().parse().map_err(|_| anyhow!("\"{loss}\" is no number, as in GPT-2=3.12"))?;
        ensure!(loss.is_finite() && !name.trim().is_empty(), "\"{text}\" is not NAME=X, as in GPT-2=3.12");
        Ok(ReferenceLine { name: name.trim().to_owned(), loss })
    }
}

/// One run, read.
struct PlottedRun {
    name: String,
    lines: Vec<MetricLine>,
}

/// Draws training and validation loss, learning rate, gradient norm and throughput of each run,
/// with the references across the losses: an SVG or a PNG, by the ending of `output`.
///
/// # Errors
/// When a run folder has no metrics, the ending is neither, or the file cannot be written.
pub fn plot(run_dirs: &[PathBuf], references: &[ReferenceLine], output: &Path) -> Result<()> {
    ImageFormat::from_path(output)?;
    let runs = run_dirs.iter().map(|run_dir| read(run_dir)).collect::<Result<Vec<PlottedRun>>>()?;
    chart(&runs, references).write(output)
}

fn read(run_dir: &Path) -> Result<PlottedRun> {
    let lines = metrics::read(run_dir)?;
    ensure!(
        lines.iter().any(|line| line.loss.is_some() || line.val_loss.is_some()),
        "{} holds no loss to draw",
        run_dir.join(metrics::METRICS_FILE).display()
    );
    let real = run_dir.canonicalize().unwrap_or_else(|_| run_dir.to_owned());
    let name = real.file_name().map_or_else(|| run_dir.display().to_string(), |n| n.to_string_lossy().into_owned());
    Ok(PlottedRun { name, lines })
}

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
    // A run's validation is drawn in its full colour, its noisy training loss fainter before it.
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
                small("tokens a second", |line| line.tokens_per_s),
                small("utilisation (%)", |line| line.mfu.map(|mfu| 100.0 * mfu)),
            ],
        },
    ];
    Chart { legend, rows }
}

fn points(lines: &[MetricLine], value: fn(&MetricLine) -> Option<f64>) -> Vec<(f64, f64)> {
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
        let reference: ReferenceLine = "GPT-2=3.12".parse().unwrap();
        plot(std::slice::from_ref(&run), std::slice::from_ref(&reference), &svg).unwrap();
        let text = std::fs::read_to_string(&svg).unwrap();
        assert!(text.starts_with("<svg"));
        for name in
            ["first: training", "first: validation", "GPT-2: 3.12", "loss (nats)", "learning rate", "tokens a second"]
        {
            assert!(text.contains(name), "{name}");
        }
    }

    #[test]
    fn what_cannot_be_drawn_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let error = plot(&[folder.path().to_owned()], &[], Path::new("out.svg")).unwrap_err().to_string();
        assert!(error.contains("is") && error.contains("a run folder"), "{error}");
        let error = plot(&[run(folder.path())], &[], Path::new("out.gif")).unwrap_err().to_string();
        assert!(error.starts_with("out.gif ends neither in .svg nor in .png"), "{error}");
        for wrong in ["GPT-2", "GPT-2=x", "=3", "a=inf"] {
            assert!(wrong.parse::<ReferenceLine>().unwrap_err().to_string().contains("as in GPT-2=3.12"), "{wrong}");
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
