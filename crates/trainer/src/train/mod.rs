//! The training run: its start, the training loop, validation and checkpoints.

pub(crate) mod checkpointing;
pub(crate) mod checks;
pub(crate) mod find_micro_batch;
pub(crate) mod options;
pub(crate) mod runtime;
pub(crate) mod skip_reporter;
pub(crate) mod startup;
pub(crate) mod step;
pub(crate) mod summary;
pub(crate) mod throughput;
pub(crate) mod validation;

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use data_prep::TokenSplit;
use model::derive_seed;

use crate::checkpoint::checkpoint_dir::CheckpointDir;
use crate::checkpoint::manager::CheckpointManager;
use crate::checkpoint::state::TrainState;
use crate::config::{Config, Precision};
use crate::data::DataSplits;
use crate::data::batch_reader::BatchReader;
use crate::data::prefetch::Prefetch;
use crate::distributed::collectives::Collectives;
use crate::distributed::grad_reducer::GradReducer;
use crate::logging::metrics::TrainingMetrics;
use crate::logging::run_logger::RunLogger;
use crate::logging::sessions::SessionOutcome;
use crate::optim::step_guard::{StepGuard, StepStats};
use crate::perf::matmul_peak::matmul_peak;
use crate::perf::profiler::Profiler;
use crate::runtime::signals::Stop;
use crate::time::human_duration;
use crate::train::checks::{check_inputs, shared_settings};
use crate::train::find_micro_batch::{FitAttempt, find_micro_batch};
use crate::train::options::{TrainOptions, TrainOutcome};
use crate::train::runtime::Runtime;
use crate::train::skip_reporter::SkipReporter;
use crate::train::startup::{archive_abandoned, initialize};
use crate::train::step::{MicroBatch, StepContext, StepResult, training_step};
use crate::train::summary::{RunSummary, log_start};
use crate::train::throughput::ThroughputTimer;

/// Trains until `schedule.max_steps`, a stop signal, `options.stop_after` or the time limit. Every
/// rank of a run calls it, and all return the same outcome.
///
/// # Errors
/// The run cannot start or continue. Checkpoints that are complete stay usable.
pub fn train(config: &Config, options: &TrainOptions, stop: &Stop) -> Result<TrainOutcome> {
    let runtime = Runtime::start(config, options, stop)?;
    runtime.watchdog.progress("opening the data");
    let checkpoints = CheckpointDir::new(&options.run_dir, &config.checkpoint);
    let checked = check_inputs(config, options, &checkpoints);
    if options.dry_run {
        let (_, summary) = checked?;
        if options.world.rank == 0 {
            eprintln!("{summary}\n{}", runtime.describe());
        }
        return Ok(TrainOutcome::DryRun);
    }
    runtime.watchdog.progress("connecting to the other ranks");
    let collectives = Collectives::join(&options.world, &config.distributed, runtime.device)?;
    runtime.watchdog.progress("opening the checkpoint");
    let (data, _) = collectives.try_all(checked)?;
    collectives.require_equal("settings", &shared_settings(config, &options.world, &data)?)?;
    let outcome = match Trainer::start(config, options, &runtime, &collectives, data, checkpoints)? {
        Some(trainer) => trainer.run(options.stop_after)?,
        None => TrainOutcome::Finished,
    };
    // The watchdog ends first, because shutdown waits for the slowest rank.
    drop(runtime);
    collectives.shutdown()?;
    Ok(outcome)
}

/// A run that is ready for its next step.
struct Trainer<'a> {
    config: &'a Config,
    summary: RunSummary,
    runtime: &'a Runtime<'a>,
    context: StepContext<'a>,
    state: TrainState,
    batches: Prefetch,
    validation_data: TokenSplit,
    log: RunLogger,
    skip_reporter: SkipReporter,
    checkpoints: CheckpointManager<'a>,
    timer: ThroughputTimer,
    longest_step: Duration,
    /// Peak throughput of matrix products over all ranks, in FLOP/s.
    peak_flops: f64,
    profiler: Profiler,
}

impl<'a> Trainer<'a> {
    /// Prepares the first step. Returns `None` for a run that is finished.
    fn start(
        config: &'a Config,
        options: &TrainOptions,
        runtime: &'a Runtime<'a>,
        collectives: &'a Collectives,
        data: DataSplits,
        checkpoint_dir: CheckpointDir,
    ) -> Result<Option<Self>> {
        let device = runtime.device;
        let Some(startup) = initialize(config, options, &checkpoint_dir, &data, collectives, device)? else {
            return Ok(None);
        };
        let (model, optimizer, state, mut log) = (startup.model, startup.optimizer, startup.state, startup.log);
        let kernel_problems = model.load_cuda_kernels(config.forward_options(), config.data.sequence_length as i64);
        if !collectives.is_first() {
            for problem in &kernel_problems {
                eprintln!("rank {}: warning: {problem}", collectives.rank());
            }
        }
        let attempt = FitAttempt { config, model: &model, optimizer: &optimizer, device, watchdog: &runtime.watchdog };
        let batch = find_micro_batch(&attempt, collectives)?;
        let fitted = Config { batch, ..config.clone() };
        let summary = RunSummary::new(&fitted, model.config(), data.sequences_per_epoch, collectives.size())?;
        let [peak_flops] = collectives.sum([matmul_peak(config.run.precision.kind(), device)?])?;
        // As late as possible: a start that fails before this does not change existing checkpoints.
        let opened = if collectives.is_first() {
            archive_abandoned(&checkpoint_dir, startup.resumed_from.as_ref(), &mut log).and_then(|()| {
                log_start(config, options, runtime, &data, &summary, peak_flops, &mut log);
                for problem in &kernel_problems {
                    log.info(&format!("warning     {problem}"));
                }
                let hardware = runtime.hardware(&options.world);
                log.open_session(&config.to_toml()?, &config.logging, hardware, state.step)
            })
        } else {
            Ok(())
        };
        collectives.try_all(opened)?;
        let reader = BatchReader::new(data.train, data.order, config.data.sequence_length);
        let steps = config.schedule.max_steps.saturating_sub(state.step);
        let micro_batches = summary.layout.micro_batches(state.sequences, steps, collectives.rank());
        let shares_senses = model.shares_senses(config.forward_options());
        let batches = Prefetch::start(reader, micro_batches, summary.layout.micro_batch, shares_senses, device)?;
        let checkpoints = CheckpointManager::new(
            &config.checkpoint,
            checkpoint_dir,
            collectives,
            &runtime.watchdog,
            &model,
            &optimizer,
            state.step,
        )?;
        let is_scaled = config.run.precision == Precision::Fp16;
        let context = StepContext {
            grad_reducer: GradReducer::new(collectives, &config.distributed, &optimizer)?,
            step_guard: StepGuard::from_state(&config.step_guard, is_scaled, device, &state.step_guard)?,
            forward_options: config.forward_options(),
            model,
            optimizer,
            collectives,
        };
        Ok(Some(Trainer {
            skip_reporter: SkipReporter::new(state.step, &state.step_guard),
            timer: ThroughputTimer::start(state.step),
            // Only rank 0 is profiled.
            profiler: Profiler::new(if collectives.is_first() { options.profile } else { 0 }),
            config,
            summary,
            runtime,
            context,
            state,
            batches,
            validation_data: data.val,
            log,
            checkpoints,
            longest_step: Duration::ZERO,
            peak_flops,
        }))
    }

    /// Trains, and records how the session ended.
    fn run(mut self, stop_after: Option<u64>) -> Result<TrainOutcome> {
        let result = self.training_loop(stop_after);
        let result = result.map_err(|error| self.checkpoints.finish(error, &mut self.log));
        let (outcome, error) = match &result {
            Ok(TrainOutcome::Finished | TrainOutcome::DryRun) => (SessionOutcome::Finished, None),
            Ok(TrainOutcome::Stopped) => (SessionOutcome::Stopped, None),
            Err(error) => (SessionOutcome::Failed, Some(format!("{error:#}"))),
        };
        self.log.close_session(self.state.step, outcome, error);
        result
    }

    fn training_loop(&mut self, stop_after: Option<u64>) -> Result<TrainOutcome> {
        let config = self.config;
        let max_steps = config.schedule.max_steps;
        let is_stop_step = |step: u64| stop_after.is_some_and(|stop_after| step >= stop_after);
        if is_stop_step(self.state.step) {
            self.state.by_time = false;
            self.save_last()?;
            return Ok(self.stopped());
        }
        while self.state.step < max_steps {
            let started = Instant::now();
            let learning_rate = config.schedule.learning_rate(config.optimizer.learning_rate, self.state.step);
            self.profiler.begin_step();
            let result = self.step(learning_rate)?;
            self.advance();
            let step = self.state.step;
            let is_last = step == max_steps;
            if let Some(profile) = self.profiler.end_step(step, is_last || is_stop_step(step))? {
                self.log.profile(&profile);
            }
            self.log.heartbeat(step, "training");
            if is_last || is_due(config.logging.every_steps, step) {
                self.log_step(&result, learning_rate)?;
            }
            if is_last || is_due(config.validation.every_steps, step) {
                self.validate(is_last)?;
            }
            self.longest_step = self.longest_step.max(started.elapsed());
            self.checkpoints.poll(&mut self.log);
            // If one rank must stop or save, all ranks do so after the same step.
            let [stop, is_due_by_time] =
                self.context.collectives.any([self.stop_requested(), self.checkpoints.is_due_by_time()])?;
            let is_stopping = (stop || is_stop_step(step)) && !is_last;
            let is_due_by_step = is_last || is_stopping || is_due(config.checkpoint.every_steps, step);
            if is_due_by_step || is_due_by_time {
                // Detects bad steps before a save, even if the run logs less often.
                self.read_step_stats(&result)?;
                self.state.by_time = !is_due_by_step;
                if is_last || is_stopping { self.save_last() } else { self.save() }?;
            }
            if is_stopping {
                return Ok(self.stopped());
            }
        }
        let duration = human_duration(self.timer.session_seconds());
        self.log.info(&format!("finished    {max_steps} steps; this session took {duration}"));
        Ok(TrainOutcome::Finished)
    }

    /// Runs the next step. Step k uses the sequences from number k x N on, with N sequences
    /// per step, for any world size.
    fn step(&mut self, learning_rate: f64) -> Result<StepResult> {
        let Trainer { batches, runtime, .. } = self;
        let (step, seed, rank) = (self.state.step, self.config.run.seed, self.context.collectives.rank());
        runtime.watchdog.step(step + 1);
        let micro_batches = (0..self.summary.layout.accumulation as usize).map(|i| {
            runtime.watchdog.progress("computing a micro-batch");
            let (inputs, targets) = batches.next_batch()?;
            Ok(MicroBatch { inputs, targets, dropout_seed: derive_seed(seed, &[step, rank, i as u64]) })
        });
        let result = training_step(&mut self.context, learning_rate, micro_batches)
            .with_context(|| format!("step {} failed", step + 1))?;
        if self.timer.is_first_step(step) {
            // Only the first step may have to wait for a rank that starts slowly.
            self.context.collectives.use_run_timeout()?;
        }
        Ok(result)
    }

    /// Counts a step that is done.
    fn advance(&mut self) {
        self.state.step += 1;
        self.state.sequences += self.summary.layout.sequences;
        self.state.tokens += self.config.batch.tokens_per_step;
        self.state.val_loss = None;
        self.timer.add_tokens(self.config.batch.tokens_per_step);
    }

    /// Returns whether this rank must stop: after a signal, or before the time limit.
    fn stop_requested(&self) -> bool {
        let Runtime { stop, time_limit, .. } = self.runtime;
        stop.requested() || time_limit.is_reached(self.longest_step, self.checkpoints.estimated_save_time())
    }

    /// Writes the metrics of a step and the progress line.
    fn log_step(&mut self, result: &StepResult, learning_rate: f64) -> Result<()> {
        let StepStats { loss, grad_norm, skipped, scale_search_skips, spikes, loss_scale, .. } =
            self.read_step_stats(result)?;
        let (step, max_steps) = (self.state.step, self.config.schedule.max_steps);
        let tokens_per_s = self.timer.tokens_per_s();
        let mfu = tokens_per_s * self.summary.flops_per_token / self.peak_flops;
        self.timer.restart_interval();
        let finite = |value: f64| value.is_finite().then_some(value);
        let metrics = TrainingMetrics {
            loss: finite(loss),
            lr: learning_rate,
            grad_norm: finite(grad_norm),
            tokens_per_s,
            mfu,
            skipped,
            scale_search_skips,
            spikes,
            loss_scale,
        };
        self.log.training(step, self.state.tokens, metrics);
        let remaining = self.timer.seconds_per_step(step) * (max_steps - step) as f64;
        let saved = self.checkpoints.newest_step();
        self.log.progress(step == max_steps, || {
            format!(
                "step {step}/{max_steps}  loss {loss:.4}  lr {learning_rate:.2e}  grad norm {grad_norm:.2}  {tokens_per_s:.0} tok/s  mfu {:.0}%  ETA {}{}",
                100.0 * mfu,
                human_duration(remaining),
                saved.map(|step| format!("  saved {step}")).unwrap_or_default()
            )
        });
        Ok(())
    }

    /// Logs that the run stops early.
    fn stopped(&mut self) -> TrainOutcome {
        self.log.info(&format!("stopped     after step {}; resume with --resume auto", self.state.step));
        TrainOutcome::Stopped
    }
}

/// Returns whether something that happens every `every` steps is due after this step; 0 for never.
fn is_due(every: u64, step: u64) -> bool {
    every > 0 && step.is_multiple_of(every)
}
