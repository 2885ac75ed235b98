//! What a run will take, before it starts: runs nothing and needs no data.

pub(crate) mod display;
pub(crate) mod memory;
pub(crate) mod warnings;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use data_prep::Manifest;
use model::ModelConfig;
use serde::Serialize;

use crate::config::Config;
use crate::data::batch_reader::BatchLayout;
use crate::perf::cost::{CostRates, RunCost};
use crate::perf::flops::flops_per_token;
use crate::runtime::device::DeviceKind;

pub use memory::MemoryEstimate;

/// What is known besides the configuration.
#[derive(Debug, Clone, Default)]
pub struct PlanOptions {
    /// Training tokens of the data; by its manifest where that is there.
    pub train_tokens: Option<u64>,
    /// Processes, all on GPUs or hosts of one kind.
    pub processes: u64,
    /// Tokens per second of all processes together.
    pub tokens_per_second: Option<f64>,
    /// What an hour of a process takes.
    pub rates: CostRates,
    /// Where the run folder will be.
    pub run_dir: std::path::PathBuf,
}

/// Parameters of one part of the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ModelPart {
    /// What it is.
    pub name: &'static str,
    /// Trained values.
    pub parameters: i64,
}

/// Checkpoints at their most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct DiskEstimate {
    /// Of one checkpoint: weights and two moments, fp32.
    pub bytes_each: u64,
    /// Complete ones that are kept at most, and the one that is being written.
    pub most: u64,
    /// Of all of them.
    pub bytes: u64,
}

/// What a run will take.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunPlan {
    /// Trained values.
    pub parameters: i64,
    /// By part of the network.
    pub parameters_by_part: Vec<ModelPart>,
    /// Training FLOPs per token, by the full formula.
    pub flops_per_token: f64,
    /// Of the whole run, validation left out.
    pub flops: f64,
    /// Optimiser steps.
    pub steps: u64,
    /// Tokens a step.
    pub tokens_per_step: u64,
    /// Sequences a step, over all processes.
    pub sequences_per_step: u64,
    /// Sequences per process and pass.
    pub micro_batch: u64,
    /// Passes per step.
    pub accumulation: u64,
    /// Tokens of the whole run.
    pub tokens: u64,
    /// Training tokens of the data, where they are known.
    pub train_tokens: Option<u64>,
    /// Passes over the data, where its size is known.
    pub epochs: Option<f64>,
    /// Validations.
    pub validations: u64,
    /// What of the computing they take, a fraction; none where the validation split is not known.
    pub validation_share: Option<f64>,
    /// Processes.
    pub processes: u64,
    /// Those of them on this machine, as far as is known: one on each GPU, all on a CPU.
    #[serde(skip)]
    pub local_processes: u64,
    /// `cpu` or `cuda`.
    pub device: &'static str,
    /// Tokens per second of all processes, as given.
    pub tokens_per_second: Option<f64>,
    /// Seconds a step, at that rate.
    pub seconds_per_step: Option<f64>,
    /// Seconds of the whole run, validations included.
    pub seconds: Option<f64>,
    /// What it costs.
    pub cost: Option<RunCost>,
    /// Of one process.
    pub memory: MemoryEstimate,
    /// What this machine has, for a run on its CPU.
    pub machine_memory: Option<u64>,
    /// Checkpoints.
    pub disk: DiskEstimate,
    /// Bytes that are free where the run folder will be.
    pub free_disk: Option<u64>,
    /// Settings that are likely mistakes.
    pub warnings: Vec<String>,
}

impl RunPlan {
    /// Of a configuration.
    ///
    /// # Errors
    /// When the batch does not divide, or what was given is no number.
    pub fn new(config: &Config, request: &PlanOptions) -> Result<Self> {
        let on_gpu = on_gpu(config.run.device);
        let machine_memory = if on_gpu { None } else { machine_memory() };
        let tokens = known_tokens(config, request)?;
        Self::with(config, request, on_gpu, tokens, machine_memory, free_disk(&request.run_dir))
    }

    fn with(
        config: &Config,
        request: &PlanOptions,
        on_gpu: bool,
        tokens: TokenCount,
        machine_memory: Option<u64>,
        free_disk: Option<u64>,
    ) -> Result<Self> {
        request.rates.validate()?;
        let rate = request.tokens_per_second;
        ensure!(rate.is_none_or(|r| r.is_finite() && r > 0.0), "--tokens-per-second must be a number above 0");
        let length = config.data.sequence_length as u64;
        let BatchLayout { sequences, micro_batch, accumulation } = config.batch.split(length, request.processes)?;
        let model = &config.model;
        let (steps, flops_per_token) = (config.schedule.max_steps, flops_per_token(model, length));
        let run_tokens = steps * config.batch.tokens_per_step;
        let validations = match config.validation.every_steps {
            0 => 1,
            // The last step always has one.
            every => steps / every + u64::from(!steps.is_multiple_of(every)),
        };
        // A forward pass is a third of a step.
        let validation_share = tokens.validation.map(|each| {
            let all = (validations * each) as f64 / 3.0;
            all / (all + run_tokens as f64)
        });
        let seconds_per_step = rate.map(|rate| config.batch.tokens_per_step as f64 / rate);
        let seconds = rate.map(|rate| run_tokens as f64 / rate / (1.0 - validation_share.unwrap_or(0.0)));
        let hours = seconds.map(|seconds| seconds / 3_600.0 * request.processes as f64);
        let memory = MemoryEstimate::new(config, micro_batch, accumulation, on_gpu);
        let mut forecast = RunPlan {
            parameters: model.num_parameters(),
            parameters_by_part: parts(model),
            flops_per_token,
            flops: flops_per_token * run_tokens as f64,
            steps,
            tokens_per_step: config.batch.tokens_per_step,
            sequences_per_step: sequences,
            micro_batch,
            accumulation,
            tokens: run_tokens,
            train_tokens: tokens.training,
            epochs: tokens.training.map(|training| {
                let blocks = (training.saturating_sub(1) / length).max(1);
                (steps * sequences) as f64 / blocks as f64
            }),
            validations,
            validation_share,
            processes: request.processes,
            local_processes: if on_gpu { 1 } else { request.processes },
            device: if on_gpu { "cuda" } else { "cpu" },
            tokens_per_second: rate,
            seconds_per_step,
            seconds,
            cost: hours.map(|hours| {
                let threads = (!on_gpu).then_some(config.run.threads as f64).filter(|threads| *threads > 0.0);
                request.rates.cost(hours, threads.map(|threads| threads * hours))
            }),
            memory,
            machine_memory,
            disk: disk(config),
            free_disk,
            warnings: Vec::new(),
        };
        forecast.warnings = warnings::warnings(config, &forecast);
        Ok(forecast)
    }
}

/// Tokens of the data, as far as they are known.
#[derive(Debug, Clone, Copy, Default)]
struct TokenCount {
    training: Option<u64>,
    /// Of one validation.
    validation: Option<u64>,
}

fn known_tokens(config: &Config, request: &PlanOptions) -> Result<TokenCount> {
    let path = &config.data.path;
    let plain = |name: &str| std::fs::metadata(path.join(name)).ok().map(|file| file.len() / 2);
    let manifest = if path.is_dir() { Manifest::load(path)? } else { None };
    let (training, validation) = match manifest {
        Some((manifest, _)) => (Some(manifest.train.tokens), Some(manifest.val.tokens)),
        None => (plain("train.bin"), plain("val.bin")),
    };
    let most = match config.validation.max_sequences {
        0 => None,
        n => Some(n * config.data.sequence_length as u64),
    };
    let validation = match (validation, most) {
        (Some(all), Some(most)) => Some(all.min(most)),
        (all, most) => all.or(most),
    };
    Ok(TokenCount { training: request.train_tokens.or(training), validation })
}

/// The network's parts in the order of the data; [`ModelConfig::parameters`] names each tensor.
fn parts(model: &ModelConfig) -> Vec<ModelPart> {
    const PARTS: [(&str, &[&str]); 5] = [
        ("token embedding and head (tied)", &[".wte."]),
        ("position embedding", &[".wpe."]),
        ("body", &[".h.", ".ln_f."]),
        ("sense network", &["sense_network."]),
        ("contextualization", &["sense_weight_net."]),
    ];
    let sum = |marks: &[&str]| {
        let rows = model.parameters();
        let own =
            rows.iter().filter(|row| marks.iter().any(|mark| row.name.contains(mark)) && !is_other(&row.name, marks));
        own.map(|row| row.shape.iter().product::<i64>()).sum::<i64>()
    };
    PARTS
        .iter()
        .map(|&(name, marks)| ModelPart { name, parameters: sum(marks) })
        .filter(|part| part.parameters > 0)
        .collect()
}

/// Senses have layers of the body's names.
fn is_other(name: &str, marks: &[&str]) -> bool {
    name.contains("sense_") && !marks[0].starts_with("sense_")
}

/// Checkpoints at their most: the newest, the best and those for good may all be different ones.
fn disk(config: &Config) -> DiskEstimate {
    let (checkpoint, steps) = (&config.checkpoint, config.schedule.max_steps);
    let saved = match checkpoint.every_steps {
        0 => 1,
        every => steps.div_ceil(every),
    };
    let for_good =
        if checkpoint.keep_every > 0 && checkpoint.every_steps > 0 { steps / checkpoint.keep_every } else { 0 };
    let kept = (checkpoint.keep_last + checkpoint.keep_best) as u64 + for_good;
    // One is written before another goes, and one may be there for its time alone.
    let most = kept.min(saved) + 1 + u64::from(checkpoint.every_minutes > 0);
    let bytes_each = 12 * config.model.num_parameters() as u64;
    DiskEstimate { bytes_each, most, bytes: most * bytes_each }
}

fn on_gpu(device: DeviceKind) -> bool {
    match device {
        DeviceKind::Cpu => false,
        DeviceKind::Cuda => true,
        DeviceKind::Auto => torch_ext::load_cuda().is_ok() && tch::Cuda::is_available(),
    }
}

/// Bytes of this machine's memory, as the kernel counts them.
fn machine_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(1_024 * line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?)
}

/// Bytes that are free on the file system of a folder that may not be there yet.
fn free_disk(folder: &Path) -> Option<u64> {
    let there = folder.ancestors().find(|path| path.exists()).unwrap_or(Path::new("."));
    let there = if there.as_os_str().is_empty() { Path::new(".") } else { there };
    let found = rustix::fs::statvfs(there).ok()?;
    Some(found.f_bavail * found.f_frsize)
}

/// The rate that `backpack bench --json` measured, for so many processes: as many times that of
/// one of its own as there are, which several reach at best.
///
/// # Errors
/// When the file is no report of `bench`.
pub fn measured_throughput(path: &Path, processes: u64) -> Result<f64> {
    let what = || format!("{} is no report of `backpack bench --json`", path.display());
    let text = std::fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
    let report: serde_json::Value = serde_json::from_str(&text).with_context(what)?;
    let number = |key: &str| report.get(key).and_then(serde_json::Value::as_f64);
    let rate = number("tokens_per_s").filter(|rate| *rate > 0.0).with_context(what)?;
    Ok(rate / number("world_size").unwrap_or(1.0).max(1.0) * processes as f64)
}

#[cfg(test)]
mod tests;
