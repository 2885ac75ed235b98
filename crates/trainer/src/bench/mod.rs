//! `backpack bench`: the training speed of a configuration on this machine. It runs real training
//! steps on ids that need no prepared data.

pub(crate) mod synthetic_data;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use model::{Kernels, LanguageModel, derive_seed};
use serde::{Serialize, Serializer};
use tch::Device;
use torch_ext::{cuda_memory, profiler};

use crate::bench::synthetic_data::SyntheticRows;
use crate::config::{Config, Precision};
use crate::data::batch::BatchLayout;
use crate::distributed::collectives::Collectives;
use crate::distributed::grad_reducer::GradReducer;
use crate::distributed::world::World;
use crate::optim::adamw::Optimizer;
use crate::optim::step_guard::StepGuard;
use crate::perf::flops::flops_per_token;
use crate::perf::matmul_peak::{BENCH_BUDGET, measure_matmul_peak, product};
use crate::runtime::device::{device_type, select_device};
use crate::runtime::memory::peak_resident_memory;
use crate::runtime::threads::set_threads;
use crate::stats::median;
use crate::train::step::{MicroBatch, StepContext, StepResult, training_step};

/// The options of a benchmark that are not part of the configuration.
#[derive(Debug, Clone)]
pub struct BenchOptions {
    /// The rank of this process and the world size.
    pub world: World,
    /// A file of uint16 little-endian ids. Row r is the T + 1 ids from index r T on. `None` for random
    /// ids.
    pub tokens_file: Option<PathBuf>,
    /// Number of steps before the timed ones.
    pub warmup: u64,
    /// Number of timed steps.
    pub steps: u64,
    /// Number of steps after the timed ones whose time is measured by part.
    pub profile_steps: u64,
}

/// The results of a benchmark.
#[derive(Debug, Clone, Serialize)]
pub struct BenchReport {
    /// Tokens per second: the median of the timed steps.
    pub tokens_per_s: f64,
    /// Tokens per second of the fastest timed step.
    pub tokens_per_s_best: f64,
    /// Seconds of each timed step, in order.
    pub step_seconds: Vec<f64>,
    /// Model FLOPs utilization: `tokens_per_s` x `flops_per_token` / `matmul_peak_flops`.
    pub mfu: f64,
    /// Peak throughput of matrix products, summed over the ranks, in FLOP/s.
    pub matmul_peak_flops: f64,
    /// Training FLOPs per token.
    pub flops_per_token: f64,
    /// Peak resident memory of the process until the last timed step.
    pub peak_memory_bytes: u64,
    /// Peak memory of tensors on the GPU until the last timed step; `None` on a CPU.
    pub peak_device_memory_bytes: Option<u64>,
    /// Loss of each step before its update, in order, warm-up included.
    pub losses: Vec<f64>,
    /// Seconds per step by part: means over the steps after the timed ones.
    #[serde(serialize_with = "as_object")]
    pub seconds_by_part: Vec<(String, f64)>,
    /// Data type of matrix products.
    pub precision: Precision,
    /// Implementation of the operations.
    pub kernels: Kernels,
    /// CPU threads per process.
    pub threads: usize,
    /// `cpu` or `cuda`.
    pub device: &'static str,
    /// World size.
    pub world_size: u64,
    /// Times of the gradient reduction; `None` for one process, and without overlap.
    pub communication: Option<Communication>,
    /// Sequences per micro-batch.
    pub micro_batch: u64,
    /// Micro-batches per step and rank.
    pub accumulation: u64,
    /// Tokens per sequence.
    pub sequence_length: usize,
    /// Trained parameters.
    pub parameters: i64,
    /// Version of this program.
    pub version: &'static str,
    /// Version of libtorch.
    pub libtorch: String,
}

/// Times of the gradient reduction on rank 0: means over the steps that libtorch times.
#[derive(Debug, Clone, Serialize)]
pub struct Communication {
    /// Bytes of gradients in each bucket, in the order of reduction.
    pub bucket_bytes: Vec<usize>,
    /// The last backward pass of a step, which reduces.
    pub backward_seconds: f64,
    /// From the start of the first bucket's reduction to the end of the last one's.
    pub communication_seconds: f64,
    /// The part of the communication that ran during the backward pass.
    pub overlap_seconds: f64,
}

/// Serializes the parts as a JSON object in their order.
fn as_object<S: Serializer>(parts: &[(String, f64)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(parts.iter().map(|(name, seconds)| (name, seconds)))
}

/// Trains a new model for a few steps and measures them. `on_line` receives one line per step. The
/// learning rate is the peak rate, because the first step of a warm-up would have no update.
///
/// Every rank calls it. The results are those of rank 0, except that throughput and peak are those of
/// all ranks.
///
/// The measurements follow one another so that none affects another: timed steps, memory, parts,
/// and then the peak of matrix products.
///
/// # Errors
/// No steps are timed, the batch does not divide, the tokens file does not fit, or a loss is not
/// finite.
pub fn bench(config: &Config, options: &BenchOptions, on_line: &mut dyn FnMut(&str)) -> Result<BenchReport> {
    ensure!(options.steps > 0, "--steps is 0: at least one step has to be timed");
    let world = &options.world;
    let device = select_device(config.run.device, world.local)?;
    let threads = set_threads(config.run.threads, config.run.pin_threads, world.local)?;
    let layout = config.batch.layout(config.data.sequence_length as u64, world.size as u64)?;
    let num_steps = options.warmup + options.steps;
    let rows = SyntheticRows::open(
        options.tokens_file.as_deref(),
        config.data.sequence_length,
        config.model.vocab_size,
        (num_steps + options.profile_steps) * layout.sequences,
    )?;
    if config.checkpoint.init_from.is_some() {
        on_line("warning: checkpoint.init_from is not used: the weights are random");
    }
    let collectives = Collectives::join(world, &config.distributed, device)?;
    let forward_options = config.forward_options();
    let model = LanguageModel::initialize(config.model.clone(), config.run.seed, device)?
        .with_low_precision_copies(forward_options);
    for problem in model.load_cuda_kernels(forward_options, config.data.sequence_length as i64) {
        on_line(&format!("warning: {problem}"));
    }
    let optimizer = Optimizer::new(config.optimizer.clone(), &model);
    let context = StepContext {
        step_guard: StepGuard::new(&config.step_guard, config.run.precision == Precision::Fp16, device)?,
        grad_reducer: GradReducer::new(&collectives, &config.distributed, &optimizer)?,
        model,
        optimizer,
        collectives: &collectives,
        forward_options,
    };
    let mut bench = BenchRun { config, layout, context, rows, device, step: 0 };

    let (mut losses, mut step_seconds) = (Vec::new(), Vec::new());
    for step in 0..num_steps {
        let started = Instant::now();
        let result = bench.step()?;
        profiler::synchronize()?;
        let seconds = started.elapsed().as_secs_f64();
        let loss = result.loss.f_double_value(&[])?;
        ensure!(loss.is_finite(), "step {} has loss {loss}: lower optimizer.learning_rate", step + 1);
        losses.push(loss);
        let timed = step >= options.warmup;
        if timed {
            step_seconds.push(seconds);
        }
        on_line(&format!(
            "step {}/{num_steps}  loss {loss:.4}  {seconds:.3} s  {:.0} tok/s{}",
            step + 1,
            config.batch.tokens_per_step as f64 / seconds,
            if timed { "" } else { "  (warm-up)" }
        ));
    }
    let peak_memory_bytes = peak_resident_memory()?;
    let peak_device_memory_bytes = cuda_memory::peak_device_memory(device)?;
    let seconds_by_part = bench.seconds_by_part(options.profile_steps)?;
    on_line("measuring matrix products");
    let communication = bench.context.grad_reducer.statistics()?.map(|s| Communication {
        bucket_bytes: s.bucket_bytes,
        backward_seconds: s.backward_seconds,
        communication_seconds: s.communication_seconds,
        overlap_seconds: s.overlap_seconds,
    });
    let shape = bench.context.model.config().clone();
    drop(bench); // frees the memory for the matrix products
    let [matmul_peak_flops] =
        collectives.sum([measure_matmul_peak(config.run.precision.kind(), device, BENCH_BUDGET, product)?])?;
    let world_size = collectives.size();
    collectives.shutdown()?;
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
        device: device_type(device.is_cuda()),
        world_size,
        communication,
        micro_batch: layout.micro_batch,
        accumulation: layout.accumulation,
        sequence_length: config.data.sequence_length,
        parameters: shape.num_parameters(),
        version: env!("CARGO_PKG_VERSION"),
        libtorch: torch_ext::build_info()?.version,
    })
}

/// The training steps of a benchmark.
struct BenchRun<'a> {
    config: &'a Config,
    layout: BatchLayout,
    context: StepContext<'a>,
    rows: SyntheticRows,
    device: Device,
    step: u64,
}

impl BenchRun<'_> {
    /// Runs the next step.
    fn step(&mut self) -> Result<StepResult> {
        let (step, seed, rank) = (self.step, self.config.run.seed, self.context.collectives.rank());
        let BatchLayout { sequences, micro_batch, accumulation } = self.layout;
        let first = step * sequences + rank * micro_batch * accumulation;
        let shares_senses = self.context.model.shares_senses(self.context.forward_options);
        let micro_batches = (0..accumulation as usize).map(|i| {
            let i = i as u64;
            let (inputs, targets) =
                self.rows.read(first + i * micro_batch, micro_batch, shares_senses).to_device(self.device)?;
            Ok(MicroBatch { inputs, targets, dropout_seed: derive_seed(seed, &[step, rank, i]) })
        });
        let result = training_step(&mut self.context, self.config.optimizer.learning_rate, micro_batches)
            .with_context(|| format!("step {} failed", step + 1))?;
        self.step += 1;
        Ok(result)
    }

    /// Returns the mean seconds by part over the next `steps` steps.
    fn seconds_by_part(&mut self, steps: u64) -> Result<Vec<(String, f64)>> {
        profiler::start();
        for _ in 0..steps {
            let _ = self.step()?;
        }
        profiler::stop();
        let sums = profiler::take_totals();
        Ok(sums.into_iter().map(|(part, seconds)| (part.to_string(), seconds / steps as f64)).collect())
    }
}
