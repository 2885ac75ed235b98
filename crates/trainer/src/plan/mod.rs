//! `backpack plan`: an estimate of the time, memory, disk space and cost of a run. It trains
//! nothing and needs no data.

pub(crate) mod display;
pub(crate) mod memory;
pub(crate) mod warnings;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use data_prep::Manifest;
use model::ModelConfig;
use serde::Serialize;

use crate::config::Config;
use crate::data::batch::BatchLayout;
use crate::perf::cost::{CostRates, RunCost};
use crate::perf::flops::flops_per_token;
use crate::plan::warnings::{Estimates, warnings};
use crate::runtime::device::{DeviceKind, device_type};
use crate::runtime::memory::machine_memory;

use memory::MemoryEstimate;

/// The inputs of a plan in addition to the configuration.
#[derive(Debug, Clone, Default)]
pub struct PlanOptions {
    /// Number of training tokens. `None`: read from the data if it exists.
    pub train_tokens: Option<u64>,
    /// Number of processes, all on the same kind of GPU or host.
    pub processes: u64,
    /// Throughput of all processes together, in tokens per second.
    pub tokens_per_second: Option<f64>,
    /// Power and price of a process.
    pub rates: CostRates,
    /// Run directory.
    pub run_dir: std::path::PathBuf,
}

/// The number of parameters in one part of the model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ModelPart {
    /// Name of the part.
    pub name: &'static str,
    /// Number of parameters.
    pub parameters: i64,
}

/// The largest disk space of the checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct DiskEstimate {
    /// Bytes of one checkpoint: weights and two moments in fp32.
    pub bytes_each: u64,
    /// Largest number of checkpoints, including the one that is being written.
    #[serde(rename = "most")]
    pub max_checkpoints: u64,
    /// Bytes of all checkpoints.
    pub bytes: u64,
}

/// The plan of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunPlan {
    /// Number of parameters.
    pub parameters: i64,
    /// Parameters by part of the model.
    pub parameters_by_part: Vec<ModelPart>,
    /// Training FLOPs per token.
    pub flops_per_token: f64,
    /// FLOPs of the whole run without validation.
    pub flops: f64,
    /// Optimizer steps.
    pub steps: u64,
    /// Tokens per step.
    pub tokens_per_step: u64,
    /// Sequences per step, over all processes.
    pub sequences_per_step: u64,
    /// Sequences per process and micro-batch.
    pub micro_batch: u64,
    /// Micro-batches per step and process.
    pub accumulation: u64,
    /// Tokens of the whole run.
    pub tokens: u64,
    /// Training tokens of the data. `None` if unknown.
    pub train_tokens: Option<u64>,
    /// Epochs. `None` if the size of the data is unknown.
    pub epochs: Option<f64>,
    /// Number of validations.
    pub validations: u64,
    /// Fraction of the computation that validation takes. `None` if the size of the validation
    /// split is unknown.
    pub validation_share: Option<f64>,
    /// Number of processes.
    pub processes: u64,
    /// Device, `cpu` or `cuda`.
    pub device: &'static str,
    /// Throughput of all processes together in tokens per second. `None` if not given.
    pub tokens_per_second: Option<f64>,
    /// Seconds per step at this throughput.
    pub seconds_per_step: Option<f64>,
    /// Seconds of the whole run, including validations.
    pub seconds: Option<f64>,
    /// Cost of the run.
    pub cost: Option<RunCost>,
    /// Memory of one process.
    pub memory: MemoryEstimate,
    /// Memory of this machine in bytes. `None` for a GPU.
    pub machine_memory: Option<u64>,
    /// Disk space of the checkpoints.
    pub disk: DiskEstimate,
    /// Free bytes on the file system of the run directory.
    pub free_disk: Option<u64>,
    /// Warnings about settings that are probably mistakes.
    pub warnings: Vec<String>,
}

impl RunPlan {
    /// Plans a run.
    ///
    /// # Errors
    /// Returns an error if the batch size is not divisible as required, or if an option is out of
    /// range.
    pub fn new(config: &Config, options: &PlanOptions) -> Result<Self> {
        let for_gpu = will_use_gpu(config.run.device);
        let machine_memory = if for_gpu { None } else { machine_memory().ok() };
        let tokens = count_tokens(config, options)?;
        Self::with_machine(config, options, for_gpu, tokens, machine_memory, free_disk(&options.run_dir))
    }

    /// Plans a run on a machine with this memory and free disk space.
    fn with_machine(
        config: &Config,
        options: &PlanOptions,
        for_gpu: bool,
        tokens: TokenCount,
        machine_memory: Option<u64>,
        free_disk: Option<u64>,
    ) -> Result<Self> {
        options.rates.validate()?;
        let rate = options.tokens_per_second;
        ensure!(rate.is_none_or(|r| r.is_finite() && r > 0.0), "--tokens-per-second must be a finite number above 0");
        let length = config.data.sequence_length as u64;
        let BatchLayout { sequences, micro_batch, accumulation } = config.batch.layout(length, options.processes)?;
        let model = &config.model;
        let (steps, flops_per_token) = (config.schedule.max_steps, flops_per_token(model, length));
        let run_tokens = steps * config.batch.tokens_per_step;
        let validations = match config.validation.every_steps {
            0 => 1,
            // The last step always has a validation.
            every => steps / every + u64::from(!steps.is_multiple_of(every)),
        };
        // A forward pass is a third of the computation of a training step.
        let validation_share = tokens.validation.map(|each| {
            let cost = (validations * each) as f64 / 3.0;
            cost / (cost + run_tokens as f64)
        });
        let seconds_per_step = rate.map(|rate| config.batch.tokens_per_step as f64 / rate);
        let seconds = rate.map(|rate| run_tokens as f64 / rate / (1.0 - validation_share.unwrap_or(0.0)));
        let hours = seconds.map(|seconds| seconds / 3_600.0 * options.processes as f64);
        let cost = hours.map(|hours| {
            let threads = (!for_gpu).then_some(config.run.threads as f64).filter(|threads| *threads > 0.0);
            options.rates.cost(hours, threads.map(|threads| threads * hours))
        });
        let epochs = tokens.training.map(|training| {
            let blocks = (training.saturating_sub(1) / length).max(1);
            (steps * sequences) as f64 / blocks as f64
        });
        let memory = MemoryEstimate::new(config, micro_batch, accumulation, for_gpu);
        let disk = estimate_disk(config);
        let estimates = Estimates {
            validation_share,
            seconds_per_step,
            epochs,
            memory: memory.total * options.processes,
            machine_memory,
            disk: disk.bytes,
            free_disk,
        };
        Ok(RunPlan {
            parameters: model.num_parameters(),
            parameters_by_part: parameters_by_part(model),
            flops_per_token,
            flops: flops_per_token * run_tokens as f64,
            steps,
            tokens_per_step: config.batch.tokens_per_step,
            sequences_per_step: sequences,
            micro_batch,
            accumulation,
            tokens: run_tokens,
            train_tokens: tokens.training,
            epochs,
            validations,
            validation_share,
            processes: options.processes,
            device: device_type(for_gpu),
            tokens_per_second: rate,
            seconds_per_step,
            seconds,
            cost,
            memory,
            machine_memory,
            disk,
            free_disk,
            warnings: warnings(config, &estimates),
        })
    }
}

/// The number of tokens of the data. `None` if unknown.
#[derive(Debug, Clone, Copy, Default)]
struct TokenCount {
    /// Tokens of the training split.
    training: Option<u64>,
    /// Tokens of one validation.
    validation: Option<u64>,
}

/// Returns the number of tokens from the options, the manifest or the sizes of the data files.
fn count_tokens(config: &Config, options: &PlanOptions) -> Result<TokenCount> {
    let path = &config.data.path;
    let file_tokens = |name: &str| std::fs::metadata(path.join(name)).ok().map(|file| file.len() / 2);
    let manifest = if path.is_dir() { Manifest::load(path)? } else { None };
    let (training, validation) = match manifest {
        Some((manifest, _)) => (Some(manifest.train.tokens), Some(manifest.val.tokens)),
        None => (file_tokens("train.bin"), file_tokens("val.bin")),
    };
    let limit = match config.validation.max_sequences {
        0 => None,
        n => Some(n * config.data.sequence_length as u64),
    };
    let validation = match (validation, limit) {
        (Some(all), Some(limit)) => Some(all.min(limit)),
        (all, limit) => all.or(limit),
    };
    Ok(TokenCount { training: options.train_tokens.or(training), validation })
}

/// Returns the parameters of each part of the model, in the order of the forward pass.
fn parameters_by_part(model: &ModelConfig) -> Vec<ModelPart> {
    let mut parts = [
        "token embedding and output layer (shared)",
        "position embedding",
        "trunk",
        "sense network",
        "contextualization",
    ]
    .map(|name| ModelPart { name, parameters: 0 });
    for parameter in model.parameters() {
        let name = &parameter.name;
        // Layers of the sense network have the same names as layers of the trunk, so they are
        // tested first.
        let part = if name.contains("sense_network.") {
            3
        } else if name.contains("sense_weight_net.") {
            4
        } else if name.contains(".wte.") {
            0
        } else if name.contains(".wpe.") {
            1
        } else {
            2
        };
        parts[part].parameters += parameter.shape.iter().product::<i64>();
    }
    parts.into_iter().filter(|part| part.parameters > 0).collect()
}

/// Estimates the disk space of the checkpoints. The newest, the best and the permanent ones may all
/// be different.
fn estimate_disk(config: &Config) -> DiskEstimate {
    let (checkpoint, steps) = (&config.checkpoint, config.schedule.max_steps);
    let saved = match checkpoint.every_steps {
        0 => 1,
        every => steps.div_ceil(every),
    };
    let permanent =
        if checkpoint.keep_every > 0 && checkpoint.every_steps > 0 { steps / checkpoint.keep_every } else { 0 };
    let kept = (checkpoint.keep_last + checkpoint.keep_best) as u64 + permanent;
    // A checkpoint is written before another one is deleted. One more may exist because of
    // `every_minutes`.
    let max_checkpoints = kept.min(saved) + 1 + u64::from(checkpoint.every_minutes > 0);
    let bytes_each = 12 * config.model.num_parameters() as u64;
    DiskEstimate { bytes_each, max_checkpoints, bytes: max_checkpoints * bytes_each }
}

/// Returns whether a run with this setting would use a GPU of this machine.
fn will_use_gpu(device: DeviceKind) -> bool {
    match device {
        DeviceKind::Cpu => false,
        DeviceKind::Cuda => true,
        DeviceKind::Auto => torch_ext::usable_gpus().is_ok_and(|gpus| gpus > 0),
    }
}

/// Returns the free bytes on the file system of a directory, which need not exist yet.
fn free_disk(dir: &Path) -> Option<u64> {
    let existing = dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("."));
    let existing = if existing.as_os_str().is_empty() { Path::new(".") } else { existing };
    let stat = rustix::fs::statvfs(existing).ok()?;
    Some(stat.f_bavail * stat.f_frsize)
}

/// Returns the throughput of `processes` processes in tokens per second, from the output of
/// `backpack bench --json`.
///
/// It is the measured throughput per process times `processes`, an upper limit for several
/// processes.
///
/// # Errors
/// Returns an error if the file is not an output of `backpack bench --json`.
pub fn measured_throughput(path: &Path, processes: u64) -> Result<f64> {
    let invalid = || format!("{} is not an output of `backpack bench --json`", path.display());
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let report: serde_json::Value = serde_json::from_str(&text).with_context(invalid)?;
    let number = |key: &str| report.get(key).and_then(serde_json::Value::as_f64);
    let rate = number("tokens_per_s").filter(|rate| *rate > 0.0).with_context(invalid)?;
    Ok(rate / number("world_size").unwrap_or(1.0).max(1.0) * processes as f64)
}

#[cfg(test)]
mod tests;
