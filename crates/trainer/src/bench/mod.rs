//! How fast a configuration trains here: its very steps, timed, on ids that need no
//! prepared data.

pub(crate) mod synthetic_data;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use model::{ForwardOptions, Kernels, LanguageModel, derive_seed};
use serde::{Serialize, Serializer};
use tch::{Device, Tensor};
use torch_ext::profiler;

use crate::bench::synthetic_data::SyntheticRows;
use crate::config::{Config, Precision};
use crate::data::batch_reader::BatchLayout;
use crate::distributed::collectives::Collectives;
use crate::distributed::grad_reducer::GradReducer;
use crate::distributed::world::World;
use crate::optim::adamw::Optimizer;
use crate::optim::step_guard::StepGuard;
use crate::perf::flops::flops_per_token;
use crate::perf::matmul_peak::{BENCH_BUDGET, measure_matmul_peak, product};
use crate::runtime::device::select_device;
use crate::runtime::threads::set_threads;
use crate::stats::median;
use crate::train::step::{StepContext, training_step};

/// What to measure, besides the configuration.
#[derive(Debug, Clone)]
pub struct BenchOptions {
    /// Who this process is.
    pub world: World,
    /// Rows of T + 1 ids, uint16 little-endian, each beginning at a multiple of T; none for
    /// random ids.
    pub tokens_file: Option<PathBuf>,
    /// Steps before the timed ones.
    pub warmup: u64,
    /// Timed steps.
    pub steps: u64,
    /// Steps after the timed ones whose time is told by part.
    pub profile_steps: u64,
}

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub struct BenchReport {
    /// Median over the timed steps.
    pub tokens_per_s: f64,
    /// The fastest timed step's.
    pub tokens_per_s_best: f64,
    /// Each timed step's time, in order.
    pub step_seconds: Vec<f64>,
    /// `tokens_per_s` x `flops_per_token` / `matmul_peak_flops`.
    pub mfu: f64,
    /// Best rate of a matrix product in this process, in FLOP/s.
    pub matmul_peak_flops: f64,
    /// Training FLOPs per token, by the full formula.
    pub flops_per_token: f64,
    /// Most resident memory of the process up to the last timed step.
    pub peak_memory_bytes: u64,
    /// Most that tensors held on the GPU up to the last timed step; none on a CPU.
    pub peak_device_memory_bytes: Option<u64>,
    /// Each step's loss before its update, in order, warm-up included.
    pub losses: Vec<f64>,
    /// Seconds a step by part, means over the steps after the timed ones.
    #[serde(serialize_with = "as_object")]
    pub seconds_by_part: Vec<(String, f64)>,
    /// Type of matrix products.
    pub precision: Precision,
    /// The implementation.
    pub kernels: Kernels,
    /// CPU threads.
    pub threads: usize,
    /// `cpu` or `cuda`.
    pub device: &'static str,
    /// Processes.
    pub world_size: u64,
    /// How they reduced gradients; none for one process, or where that is not overlapped.
    pub communication: Option<Communication>,
    /// Sequences per pass.
    pub micro_batch: u64,
    /// Passes per step.
    pub accumulation: u64,
    /// Tokens of a sequence.
    pub sequence_length: usize,
    /// Trained values.
    pub parameters: i64,
    /// This program's.
    pub version: &'static str,
    /// libtorch's version.
    pub libtorch: String,
}

/// Rank 0's part in reducing gradients, means over the steps that libtorch times.
#[derive(Debug, Clone, Serialize)]
pub struct Communication {
    /// Bytes of gradients in each bucket, in the order in which they are reduced.
    pub bucket_bytes: Vec<usize>,
    /// The backward pass that reduces, the last of a step.
    pub backward_seconds: f64,
    /// From the first bucket's start to the last one's end.
    pub communication_seconds: f64,
    /// What of the communication ran while the backward pass did.
    pub overlap_seconds: f64,
}

/// A JSON object in this order.
fn as_object<S: Serializer>(parts: &[(String, f64)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(parts.iter().map(|(name, seconds)| (name, seconds)))
}

/// Trains fresh weights for a few steps at the peak learning rate (a warm-up would leave the
/// first steps without an update) and measures them. `say` gets a line a step.
///
/// Every rank calls it; the figures are rank 0's, and throughput and peak those of all.
///
/// The order keeps each figure free of the others: timed steps, memory, parts, and then the
/// products that utilisation is measured against.
///
/// # Errors
/// In one sentence: no steps, a batch that does not divide, a tokens file that does not fit,
/// a loss that is no number.
pub fn bench(config: &Config, request: &BenchOptions, say: &mut dyn FnMut(&str)) -> Result<BenchReport> {
    ensure!(request.steps > 0, "--steps is 0: at least one step has to be timed");
    let world = &request.world;
    let device = select_device(config.run.device, world.local)?;
    let threads = set_threads(config.run.threads, config.run.pin_threads, world.local)?;
    let split = config.batch.split(config.data.sequence_length as u64, world.size as u64)?;
    let all = request.warmup + request.steps;
    let rows = SyntheticRows::open(
        request.tokens_file.as_deref(),
        config.data.sequence_length,
        config.model.vocab_size,
        (all + request.profile_steps) * split.sequences,
    )?;
    if config.checkpoint.init_from.is_some() {
        say("warning: checkpoint.init_from is not used: the weights are drawn");
    }
    let ranks = Collectives::join(world, &config.distributed, device)?;
    let pass = config.forward_options();
    let model = LanguageModel::initialise(config.model.clone(), config.run.seed, device)?.prepare_for(pass);
    let optimizer = Optimizer::new(config.optimizer.clone(), &model);
    let precision = config.run.precision.kind();
    let reduction = GradReducer::new(&ranks, &config.distributed, &optimizer)?;
    let stability = StepGuard::new(&config.step_guard, config.run.precision == Precision::Fp16, device)?;
    let mut bench =
        BenchRun { config, split, pass, model, optimizer, stability, rows, device, ranks: &ranks, reduction, step: 0 };

    let (mut losses, mut step_seconds) = (Vec::new(), Vec::new());
    for step in 0..all {
        let begun = Instant::now();
        let loss = bench.step()?;
        profiler::synchronise()?;
        let seconds = begun.elapsed().as_secs_f64();
        let loss = loss.f_double_value(&[])?;
        ensure!(loss.is_finite(), "step {} has loss {loss}: lower optimizer.learning_rate", step + 1);
        losses.push(loss);
        let timed = step >= request.warmup;
        if timed {
            step_seconds.push(seconds);
        }
        say(&format!(
            "step {}/{all}  loss {loss:.4}  {seconds:.3} s  {:.0} tok/s{}",
            step + 1,
            config.batch.tokens_per_step as f64 / seconds,
            if timed { "" } else { "  (warm-up)" }
        ));
    }
    let peak_memory_bytes = peak_resident_memory()?;
    let peak_device_memory_bytes = profiler::peak_device_memory(device)?;
    let seconds_by_part = bench.seconds_by_part(request.profile_steps)?;
    say("measuring matrix products");
    let communication = bench.reduction.statistics()?.map(|s| Communication {
        bucket_bytes: s.bucket_bytes,
        backward_seconds: s.backward_seconds,
        communication_seconds: s.communication_seconds,
        overlap_seconds: s.overlap_seconds,
    });
    let shape = bench.model.config().clone();
    drop(bench); // makes room for them
    let [matmul_peak_flops] = ranks.sum([measure_matmul_peak(precision, device, BENCH_BUDGET, product)?])?;
    let world_size = ranks.size();
    ranks.shutdown()?;
    let rates: Vec<f64> = step_seconds.iter().map(|seconds| config.batch.tokens_per_step as f64 / seconds).collect();
    let tokens_per_s = median(&rates);
    let flops_per_token = flops_per_token(&shape, config.data.sequence_length as u64);
    Ok(BenchReport {
        tokens_per_s,
        tokens_per_s_best: rates.into_iter().fold(0.0, f64::max),
        step_seconds,
        mfu: tokens_per_s * flops_per_token / matmul_peak_flops,
        matmul_peak_flops,
        flops_per_token,
        peak_memory_bytes,
        peak_device_memory_bytes,
        losses,
        seconds_by_part,
        precision: config.run.precision,
        kernels: config.run.kernels,
        threads: threads.count,
        device: if device.is_cuda() { "cuda" } else { "cpu" },
        world_size,
        communication,
        micro_batch: split.micro_batch,
        accumulation: split.accumulation,
        sequence_length: config.data.sequence_length,
        parameters: shape.num_parameters(),
        version: env!("CARGO_PKG_VERSION"),
        libtorch: torch_ext::describe()?.version,
    })
}

/// A training without all that is around its steps.
struct BenchRun<'a> {
    config: &'a Config,
    split: BatchLayout,
    pass: ForwardOptions,
    model: LanguageModel,
    optimizer: Optimizer,
    stability: StepGuard,
    rows: SyntheticRows,
    device: Device,
    ranks: &'a Collectives,
    reduction: GradReducer<'a>,
    step: u64,
}

impl BenchRun<'_> {
    /// The next step's loss, on its device.
    fn step(&mut self) -> Result<Tensor> {
        let (step, seed, split) = (self.step, self.config.run.seed, self.split);
        let rank = self.ranks.rank();
        let first = step * split.sequences + rank * split.micro_batch * split.accumulation;
        let trained = StepContext {
            model: &self.model,
            optimizer: &mut self.optimizer,
            reduction: &self.reduction,
            stability: &mut self.stability,
            pass: self.pass,
        };
        let result = training_step(
            trained,
            self.config.optimizer.learning_rate,
            split.accumulation,
            |i| self.rows.read(first + i * split.micro_batch, split.micro_batch, self.device),
            |i| derive_seed(seed, &[step, rank, i]),
            |loss| self.ranks.average(loss),
        )
        .with_context(|| format!("step {} failed", step + 1))?;
        self.step += 1;
        Ok(result.loss)
    }

    /// Mean seconds by part over the next `steps` steps.
    fn seconds_by_part(&mut self, steps: u64) -> Result<Vec<(String, f64)>> {
        profiler::start();
        for _ in 0..steps {
            let _ = self.step()?;
        }
        profiler::stop();
        let sums = profiler::take();
        Ok(sums.into_iter().map(|(part, seconds)| (part, seconds / steps as f64)).collect())
    }
}

/// The most memory that the process has held at once, as the kernel counts it.
fn peak_resident_memory() -> Result<u64> {
    let path = "/proc/self/status";
    let status = std::fs::read_to_string(path).with_context(|| format!("{path} cannot be read"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    Ok(1024 * kib.with_context(|| format!("{path} holds no VmHWM in kB"))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_counted_in_bytes() {
        let before = peak_resident_memory().unwrap();
        let block = vec![1u8; 64 << 20];
        let after = peak_resident_memory().unwrap();
        assert!(after >= block.len() as u64 && after >= before);
    }
}
