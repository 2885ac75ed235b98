//! Loss and validation of runs as an SVG.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use plotters::prelude::*;

use crate::metrics;

/// Points drawn of one line: more are not seen at this width.
const MOST_POINTS: usize = 2_000;

/// Draws training loss (a line) and validation loss (with dots) of each run.
///
/// # Errors
/// When a run folder has no metrics, or the file cannot be written.
pub fn plot(run_dirs: &[PathBuf], output: &Path) -> Result<()> {
    ensure!(
        output.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("svg")),
        "{} does not end in .svg: plots are drawn as SVG",
        output.display()
    );
    let mut runs = Vec::new();
    for run_dir in run_dirs {
        let records = metrics::read(run_dir)?;
        let line = |value: &dyn Fn(&metrics::Line) -> Option<f64>| -> Vec<(f64, f64)> {
            let points = records.iter().filter_map(|r| Some((r.step as f64, value(r).filter(|v| v.is_finite())?)));
            points.collect()
        };
        let training = thin(&line(&|r| r.loss));
        let validation = line(&|r| r.val_loss);
        ensure!(
            !training.is_empty() || !validation.is_empty(),
            "{} holds no loss to draw",
            run_dir.join(metrics::METRICS_FILE).display()
        );
        let real = run_dir.canonicalize().unwrap_or_else(|_| run_dir.clone());
        let name = real.file_name().map_or_else(|| run_dir.display().to_string(), |n| n.to_string_lossy().into_owned());
        runs.push((name, training, validation));
    }
    let svg = draw(&runs).context("the plot cannot be drawn")?;
    if let Some(parent) = output.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("{} cannot be made", parent.display()))?;
    }
    std::fs::write(output, svg).with_context(|| format!("{} cannot be written", output.display()))
}

type Lines = (String, Vec<(f64, f64)>, Vec<(f64, f64)>);

/// Means over equal stretches of steps.
fn thin(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let stretch = points.len().div_ceil(MOST_POINTS).max(1);
    let mean = |chunk: &[(f64, f64)]| {
        let n = chunk.len() as f64;
        (chunk.iter().map(|p| p.0).sum::<f64>() / n, chunk.iter().map(|p| p.1).sum::<f64>() / n)
    };
    points.chunks(stretch).map(mean).collect()
}

fn draw(runs: &[Lines]) -> Result<String> {
    let points = || runs.iter().flat_map(|(_, training, validation)| training.iter().chain(validation));
    let (mut low, mut high, mut last) = (f64::INFINITY, f64::NEG_INFINITY, 1.0_f64);
    for &(step, loss) in points() {
        (low, high, last) = (low.min(loss), high.max(loss), last.max(step));
    }
    let margin = ((high - low) * 0.05).max(0.05);
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (900, 540)).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .margin(16)
            .caption("Loss", ("sans-serif", 20))
            .x_label_area_size(40)
            .y_label_area_size(56)
            .build_cartesian_2d(0.0..last, (low - margin)..(high + margin))?;
        chart
            .configure_mesh()
            .x_desc("step")
            .y_desc("cross-entropy (nats)")
            .x_label_formatter(&|x| format!("{x:.0}"))
            .light_line_style(TRANSPARENT)
            .draw()?;
        for (i, (name, training, validation)) in runs.iter().enumerate() {
            let colour = Palette99::pick(i).to_rgba();
            let faint = colour.mix(0.45);
            let sample =
                move |style: ShapeStyle| move |(x, y): (i32, i32)| PathElement::new([(x, y), (x + 20, y)], style);
            if !training.is_empty() {
                chart
                    .draw_series(LineSeries::new(training.iter().copied(), faint.stroke_width(1)))?
                    .label(format!("{name}: training"))
                    .legend(sample(faint.stroke_width(1)));
            }
            if !validation.is_empty() {
                chart
                    .draw_series(LineSeries::new(validation.iter().copied(), colour.stroke_width(2)).point_size(3))?
                    .label(format!("{name}: validation"))
                    .legend(sample(colour.stroke_width(2)));
            }
        }
        chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK.mix(0.3)).draw()?;
        root.present()?;
    }
    Ok(svg)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_holds_both_lines_and_their_names() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("first");
        std::fs::create_dir(&run).unwrap();
        let lines = concat!(
            r#"{"step":1,"loss":5.0}"#,
            "\n",
            r#"{"step":2,"tokens":16,"val_loss":4.5,"val_ppl":90.0}"#,
            "\n{\"torn"
        );
        std::fs::write(run.join("metrics.jsonl"), lines).unwrap();
        let svg = folder.path().join("plots/out.svg");
        plot(&[run], &svg).unwrap();
        let text = std::fs::read_to_string(&svg).unwrap();
        assert!(text.starts_with("<svg") && text.contains("first: training") && text.contains("first: validation"));
        let error = plot(&[folder.path().to_owned()], &svg).unwrap_err().to_string();
        assert!(error.contains("is") && error.contains("a run folder"), "{error}");
    }

    #[test]
    fn many_points_are_thinned_to_their_means() {
        let points: Vec<(f64, f64)> = (0..10_000).map(|i| (f64::from(i), f64::from(i % 5))).collect();
        let thinned = thin(&points);
        assert_eq!(thinned.len(), 2_000);
        assert!(thinned.iter().all(|p| p.1 == 2.0));
    }
}
