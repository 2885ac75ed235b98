//! The command `bench`.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use model::Kernels;
use trainer::{BenchOptions, BenchReport, gigabytes};

use crate::args::config::ConfigArgs;
use crate::args::distributed::DistributedArgs;
use crate::output::format::percent;

/// Measure the training speed of a configuration on this machine
///
/// Runs the training steps of `train` (forward, backward, gradient clipping, AdamW) with new
/// weights and the constant learning rate optimizer.learning_rate. Needs no prepared data and
/// writes no files. The steps of --profile-steps follow the timed steps and measure the time by
/// part.
///
/// Example: backpack bench --config configs/owt/micro.toml --set batch.tokens_per_step=2048
#[derive(Debug, Args)]
pub(crate) struct BenchCommand {
    #[command(flatten)]
    pub(crate) run: ConfigArgs,
    /// File of token ids (uint16, little-endian), read in order and again from its start: row r is
    /// tokens[r*T .. r*T+T+1], T being data.sequence_length [default: random ids with a Zipf
    /// distribution and a fixed seed]
    #[arg(long, value_name = "F.bin")]
    tokens_file: Option<PathBuf>,
    /// Number of timed steps
    #[arg(long, value_name = "N", default_value_t = 10)]
    steps: u64,
    /// Number of steps before the timed ones; only their losses are reported
    #[arg(long, value_name = "N", default_value_t = 2)]
    warmup: u64,
    /// Number of steps after the timed ones, which measure the time by part only; 0: none
    #[arg(long, value_name = "N", default_value_t = 2)]
    profile_steps: u64,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pub(crate) world: DistributedArgs,
}

impl BenchCommand {
    /// Runs the steps and prints the report.
    pub(crate) fn run(self) -> Result<()> {
        let world = self.world.detect()?;
        let config = self.run.load_without_data()?;
        let options = BenchOptions {
            world,
            tokens_file: self.tokens_file,
            warmup: self.warmup,
            steps: self.steps,
            profile_steps: self.profile_steps,
        };
        let is_first = options.world.rank == 0;
        let report = trainer::bench(&config, &options, &mut |line| {
            if is_first {
                let _ = writeln!(io::stderr(), "{line}");
            }
        })?;
        if !is_first {
            return Ok(());
        }
        let text = if self.json { serde_json::to_string(&report)? } else { describe(&report) };
        writeln!(io::stdout().lock(), "{}", text.trim_end())?;
        Ok(())
    }
}

/// The report as text.
fn describe(report: &BenchReport) -> String {
    let kernels = match report.kernels {
        Kernels::Reference => "reference",
        Kernels::Fused => "fused",
    };
    let mut text = format!(
        "model        {} parameters, {:.1} MFLOP per token\n\
         step         {} x {} sequences of {} (accumulation x micro-batch)\n\
         machine      {}, {} threads, {} matrix products up to {:.0} GFLOP/s, {kernels} kernels\n\
         throughput   {:.0} tokens/s (median of {} steps; best {:.0})\n\
         MFU          {}%\n\
         memory       {:.2} GB resident (peak)\n",
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
        percent(report.mfu, 1),
        gigabytes(report.peak_memory_bytes),
    );
    // Writing to a string cannot fail.
    if report.world_size > 1 {
        let _ = writeln!(
            text,
            "processes    {}; throughput and peak are of all ranks, the rest is of rank 0",
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
        let _ = writeln!(text, "             {:.2} GB of tensors on the GPU (peak)", gigabytes(bytes));
    }
    let total: f64 = report.seconds_by_part.iter().map(|(_, seconds)| seconds).sum();
    let width = report.seconds_by_part.iter().map(|(part, _)| part.len()).max().unwrap_or_default();
    for (i, (part, seconds)) in report.seconds_by_part.iter().enumerate() {
        let heading = if i == 0 { "by part" } else { "" };
        let _ = writeln!(text, "{heading:<12} {part:<width$} {seconds:8.4} s {:>5}%", percent(seconds / total, 1));
    }
    text
}
