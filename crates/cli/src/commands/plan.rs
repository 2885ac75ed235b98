use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use trainer::{PlanOptions, RunPlan, measured_throughput};

use crate::args::config::ConfigArgs;
use crate::args::cost::CostArgs;

/// Say what a run will take: parameters, tokens, time, memory, disk; runs nothing
///
/// Needs no data; where data.path is there, its tokens give the epochs and what validation costs.
/// Memory is an estimate (docs/watching.md says how good). Warns of settings that are likely mistakes.
/// Example: backpack plan --config configs/owt/small.toml --processes 4 --tokens-per-second 168000 --watts 400
#[derive(Debug, Args)]
pub(crate) struct PlanCommand {
    #[command(flatten)]
    config: ConfigArgs,
    /// Training tokens of data that is not there
    #[arg(long, value_name = "N")]
    train_tokens: Option<u64>,
    /// Processes of the run, one a GPU
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    processes: u64,
    /// Tokens per second of all processes together: time and cost are told too
    #[arg(long, value_name = "X", conflicts_with = "from_bench")]
    tokens_per_second: Option<f64>,
    /// A report of `backpack bench --json`, whose rate is taken for each process
    #[arg(long, value_name = "FILE")]
    from_bench: Option<PathBuf>,
    /// Where checkpoints will go [default: runs/<run.name>]
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    #[command(flatten)]
    rates: CostArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl PlanCommand {
    pub(crate) fn run(self) -> Result<()> {
        let config = self.config.load_without_data()?;
        let measured = self.from_bench.map(|file| measured_throughput(&file, self.processes)).transpose()?;
        let request = PlanOptions {
            train_tokens: self.train_tokens,
            processes: self.processes,
            tokens_per_second: self.tokens_per_second.or(measured),
            rates: self.rates.into(),
            run_dir: self.run_dir.unwrap_or_else(|| PathBuf::from("runs").join(&config.run.name)),
        };
        let forecast = RunPlan::new(&config, &request)?;
        let text = if self.json { serde_json::to_string(&forecast)? } else { forecast.to_string() };
        Ok(writeln!(io::stdout().lock(), "{text}")?)
    }
}
