//! The command `plan`.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use trainer::{PlanOptions, RunPlan, measured_throughput};

use crate::args::config::ConfigArgs;
use crate::args::cost::CostArgs;

/// Estimate a run's parameters, tokens, time, memory and disk without running it
///
/// Needs no data. If data.path exists, its number of tokens gives the epochs and the cost of
/// validation. The memory is an estimate; docs/watching.md describes its accuracy. Settings that
/// are probably mistakes are reported as warnings.
///
/// Example: backpack plan --config configs/owt/small.toml --processes 4 --tokens-per-second 168000 --watts 400
#[derive(Debug, Args)]
pub(crate) struct PlanCommand {
    #[command(flatten)]
    config: ConfigArgs,
    /// Number of training tokens, if the data is not on this machine [default: of data.path]
    #[arg(long, value_name = "N")]
    train_tokens: Option<u64>,
    /// Number of processes of the run, one per GPU
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    processes: u64,
    /// Tokens per second of all processes together; adds time and cost
    #[arg(long, value_name = "X", conflicts_with = "from_bench")]
    tokens_per_second: Option<f64>,
    /// Take the tokens per second of each process from a report of `backpack bench --json`
    #[arg(long, value_name = "FILE")]
    from_bench: Option<PathBuf>,
    /// Run directory, whose disk is checked for space [default: runs/<run.name>]
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    #[command(flatten)]
    rates: CostArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl PlanCommand {
    /// Prints the estimate.
    pub(crate) fn run(self) -> Result<()> {
        let config = self.config.load_without_data()?;
        let measured = self.from_bench.map(|file| measured_throughput(&file, self.processes)).transpose()?;
        let options = PlanOptions {
            train_tokens: self.train_tokens,
            processes: self.processes,
            tokens_per_second: self.tokens_per_second.or(measured),
            rates: self.rates.into(),
            run_dir: self.run_dir.unwrap_or_else(|| PathBuf::from("runs").join(&config.run.name)),
        };
        let plan = RunPlan::new(&config, &options)?;
        let text = if self.json { serde_json::to_string(&plan)? } else { plan.to_string() };
        Ok(writeln!(io::stdout().lock(), "{text}")?)
    }
}
