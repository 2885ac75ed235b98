use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use model::Kernels;
use trainer::{BenchOptions, BenchReport};

use crate::args::config::ConfigArgs;
use crate::args::distributed::DistributedArgs;

/// Measure how fast a configuration trains on this machine
///
/// The steps are those of train (forward, backward, clipping, AdamW) from fresh weights, at
/// the constant rate optimizer.learning_rate; nothing is written, and no prepared data is
/// needed. After the timed steps come those of --profile-steps, which tell the time by part.
/// Example: backpack bench --config configs/owt/micro.toml --set batch.tokens_per_step=2048
#[derive(Debug, Args)]
pub(crate) struct BenchCommand {
    #[command(flatten)]
    run: ConfigArgs,
    /// Train on the rows tokens[r*T .. r*T+T+1] of this file in order, uint16 little-endian
    /// [default: random ids by Zipf's law, the same every time]
    #[arg(long, value_name = "F.bin")]
    tokens_file: Option<PathBuf>,
    /// Timed steps
    #[arg(long, value_name = "N", default_value_t = 10)]
    steps: u64,
    /// Steps before them; their losses are reported, their times are not
    #[arg(long, value_name = "N", default_value_t = 2)]
    warmup: u64,
    /// Steps after them, in no other figure, whose time is told by part; 0 for none
    #[arg(long, value_name = "N", default_value_t = 2)]
    profile_steps: u64,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pub(crate) world: DistributedArgs,
}

impl BenchCommand {
    pub(crate) fn run(self) -> Result<()> {
        let world = self.world.detect()?;
        let config = self.run.load_without_data()?;
        let request = BenchOptions {
            world,
            tokens_file: self.tokens_file,
            warmup: self.warmup,
            steps: self.steps,
            profile_steps: self.profile_steps,
        };
        let speaks = request.world.rank == 0;
        let report = trainer::bench(&config, &request, &mut |line| {
            if speaks {
                let _ = writeln!(io::stderr(), "{line}");
            }
        })?;
        if !speaks {
            return Ok(());
        }
        let text = if self.json { serde_json::to_string(&report)? } else { table(&report) };
        writeln!(io::stdout().lock(), "{}", text.trim_end())?;
        Ok(())
    }
}

/// The report as a person reads it.
fn table(report: &BenchReport) -> String {
    let kernels = match report.kernels {
        Kernels::Reference => "reference",
        Kernels::Fused => "fused",
    };
    let mut text = format!(
        "model        {} parameters, {:.1} MFLOP a token\n\
         step         {} x {} sequences of {} (accumulation x micro-batch)\n\
         machine      {}, {} threads, {} products at {:.0} GFLOP/s at most, {kernels} kernels\n\
         throughput   {:.0} tokens/s (median of {} steps; best {:.0})\n\
         utilisation  {:.1}%\n\
         memory       {:.2} GB resident at most\n",
        report.parameters,
        report.flops_per_token / 1e6,
        report.accumulation,
        report.micro_batch,
        report.sequence_length,
        report.device,
        report.threads,
        report.precision,
        report.matmul_peak_flops / 1e9,
        report.tokens_per_s,
        report.step_seconds.len(),
        report.tokens_per_s_best,
        100.0 * report.mfu,
        report.peak_memory_bytes as f64 / 1e9,
    );
    // Writing to a string cannot fail.
    if report.world_size > 1 {
        let _ = writeln!(
            text,
            "processes    {}; the figures are rank 0's, throughput and peak those of all",
            report.world_size
        );
    }
    if let Some(communication) = &report.communication {
        let _ = writeln!(
            text,
            "gradients    {:.1} MB in {} buckets, reduced in {:.3} s, {:.3} s of it during the backward pass of {:.3} s",
            communication.bucket_bytes.iter().sum::<usize>() as f64 / 1e6,
            communication.bucket_bytes.len(),
            communication.communication_seconds,
            communication.overlap_seconds,
            communication.backward_seconds,
        );
    }
    if let Some(bytes) = report.peak_device_memory_bytes {
        let _ = writeln!(text, "             {:.2} GB of tensors on the GPU at most", bytes as f64 / 1e9);
    }
    let all: f64 = report.seconds_by_part.iter().map(|(_, seconds)| seconds).sum();
    let width = report.seconds_by_part.iter().map(|(part, _)| part.len()).max().unwrap_or_default();
    for (i, (part, seconds)) in report.seconds_by_part.iter().enumerate() {
        let heading = if i == 0 { "by part" } else { "" };
        let _ = writeln!(text, "{heading:<12} {part:<width$} {seconds:8.4} s {:5.1}%", 100.0 * seconds / all);
    }
    text
}
