//! The training run, top to bottom: what is set up, then a step in the order it happens.

pub(crate) mod checkpointing;
pub(crate) mod find_micro_batch;
pub(crate) mod startup;
pub(crate) mod step;
pub(crate) mod summary;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use data_prep::TokenSplit;
use evals::{RankShard, Sequences};
use model::{ForwardOptions, LanguageModel, derive_seed};
use tch::Device;

use crate::checkpoint::CheckpointDir;
use crate::checkpoint::async_writer::CheckpointWriter;
use crate::checkpoint::manager::{CheckpointManager, Heard};
use crate::checkpoint::state::TrainState;
use crate::config::{Config, Precision};
use crate::data::DataSplits;
use crate::data::batch_reader::BatchReader;
use crate::data::prefetch::Prefetch;
use crate::distributed::collectives::Collectives;
use crate::distributed::grad_reducer::GradReducer;
use crate::distributed::world::World;
use crate::logging::metrics::{TrainingMetrics, ValidationMetrics};
use crate::logging::run_logger::RunLogger;
use crate::logging::sessions::{HardwareInfo, SessionOutcome};
use crate::optim::adamw::Optimizer;
use crate::optim::step_guard::{StepGuard, StepStats};
use crate::perf::matmul_peak::matmul_peak;
use crate::perf::profiler::Profiler;
use crate::runtime::device::select_device;
use crate::runtime::signals::Stop;
use crate::runtime::threads::set_threads;
use crate::runtime::time_limit::{TimeLimit, slurm_time_left};
use crate::runtime::watchdog::Watchdog;
use crate::time::human_duration;
use crate::train::find_micro_batch::{FitAttempt, fit};
use crate::train::startup::{Startup, begin, require_shape};
use crate::train::step::{StepContext, StepResult, training_step};
use crate::train::summary::RunSummary;

/// Where a run starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resume {
    /// Afresh; a run folder that holds checkpoints is refused.
    Never,
    /// From the newest checkpoint that verifies, else afresh.
    Auto,
    /// From this checkpoint.
    From(PathBuf),
}

/// What to run, besides the configuration.
#[derive(Debug, Clone)]
pub struct TrainOptions {
    /// Who this process is among those of the run.
    pub world: World,
    /// The run folder.
    pub run_dir: PathBuf,
    /// Where to start.
    pub resume: Resume,
    /// Save a checkpoint after this step and stop.
    pub stop_after: Option<u64>,
    /// Save a checkpoint and stop before this much time is over; beside it, the end of the
    /// Slurm job counts.
    pub time_limit: Option<Duration>,
    /// Write where the time of so many steps goes, after the first ones; 0 for none.
    pub profile: u64,
    /// Check everything, say what would run, and run nothing.
    pub dry_run: bool,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TrainOutcome {
    /// All steps are done.
    Finished,
    /// Stopped early; a checkpoint is saved.
    Stopped,
    /// Nothing was to be run.
    DryRun,
}

/// Trains until `schedule.max_steps`, a stop signal, `request.stop_after` or the time limit.
/// Every rank of a run calls it; all end alike.
///
/// # Errors
/// In one sentence; what was saved before stays usable.
pub fn train(config: &Config, request: &TrainOptions, stop: &Stop) -> Result<TrainOutcome> {
    let world = &request.world;
    let deadline = TimeLimit::new(request.time_limit, slurm_time_left());
    let threads = set_threads(config.run.threads, config.run.pin_threads, world.local)?;
    let device = select_device(config.run.device, world.local)?;
    let machine = format!("machine     {}, {threads}", if device.is_cuda() { "cuda" } else { "cpu" });
    if request.dry_run {
        let data = DataSplits::open(config)?;
        require_shape_of_start(config, request)?;
        let plan = RunSummary::new(config, &config.model, data.sequences(config), world.size as u64)?;
        if world.rank == 0 {
            eprintln!("{plan}\n{machine}");
        }
        return Ok(TrainOutcome::DryRun);
    }
    let watchdog = Watchdog::start(world, Duration::from_secs(config.run.watchdog_seconds)).context(
        "the thread that watches over this process cannot be started: check the limit on processes (ulimit -u)",
    )?;
    watchdog.progress("meeting the other processes");
    let ranks = Collectives::join(world, &config.distributed, device)?;
    let session = HardwareInfo {
        processes: world.size as u64,
        threads: threads.count,
        device: if device.is_cuda() { "cuda" } else { "cpu" },
        host: world.host.clone(),
    };
    let outcome = train_with(&ranks, config, request, Runtime { device, machine, session, deadline, watchdog, stop })?;
    ranks.shutdown()?;
    Ok(outcome)
}

/// What a run has besides its configuration and its ranks.
struct Runtime<'a> {
    device: Device,
    machine: String,
    session: HardwareInfo,
    deadline: TimeLimit,
    watchdog: Watchdog,
    stop: &'a Stop,
}

fn train_with(
    ranks: &Collectives,
    config: &Config,
    request: &TrainOptions,
    means: Runtime<'_>,
) -> Result<TrainOutcome> {
    let Runtime { device, machine, session, deadline, watchdog, stop } = means;
    let world = &request.world;
    watchdog.progress("opening data and checkpoint");
    let data = ranks.try_all(DataSplits::open(config))?;
    ranks.require_equal("settings", &settings_digest(config, world, &data)?)?;
    ranks.try_all(if ranks.is_first() { require_shape_of_start(config, request) } else { Ok(()) })?;
    let sequences = data.sequences(config);
    // Before a run folder is made: what does not divide is refused.
    RunSummary::new(config, &config.model, sequences, ranks.size())?;
    let Some(beginning) = begin(config, &request.run_dir, &request.resume, &data, ranks, device)? else {
        return Ok(TrainOutcome::Finished);
    };
    let Startup { model, optimizer, state, mut recorder } = beginning;
    let trial = FitAttempt { config, model: &model, optimizer: &optimizer, device, watchdog: &watchdog };
    let fitting = Config { batch: fit(&trial, ranks)?, ..config.clone() };
    let plan = RunSummary::new(&fitting, model.config(), sequences, ranks.size())?;
    let precision = config.run.precision.kind();
    let [peak] = ranks.sum([matmul_peak(precision, device)?])?;
    let written = recorder.as_mut().map_or(Ok(()), |recorder| {
        recorder.line(&plan.to_string());
        if !data.train.has_manifest() {
            recorder.line("warning     the data has no manifest.json: nothing about it could be checked");
        }
        recorder.line(&format!("{machine}, {} products at {:.0} GFLOP/s at most", config.run.precision, peak / 1e9));
        if ranks.size() > 1 {
            recorder.line(&format!("processes   {}, rank 0 on {}", world.size, world.host));
        }
        if deadline != TimeLimit::new(None, None) {
            recorder.line(&format!("time        {deadline}: the run stops with a checkpoint before"));
        }
        recorder.begin(config, session, state.step)
    });
    ranks.try_all(written)?;
    let batches = BatchReader::new(data.train, data.order, config.data.sequence_length);
    let left = config.schedule.max_steps.saturating_sub(state.step);
    let passes = plan.split.passes(state.sequences, left, ranks.rank());
    let batches = Prefetch::start(batches, passes, plan.split.micro_batch, device)?;
    let writer = recorder.as_ref().map(|recorder| CheckpointWriter::new(recorder.store().clone(), &model, &optimizer));
    let saving = CheckpointManager::new(&config.checkpoint, ranks, ranks.try_all(writer.transpose())?, state.step);
    let reduction = GradReducer::new(ranks, &config.distributed, &optimizer)?;
    let scaled = config.run.precision == Precision::Fp16;
    let stability = StepGuard::from_state(&config.step_guard, scaled, device, &state.step_guard)?;
    let clock = ThroughputTimer { since: Instant::now(), tokens: 0, run: Instant::now(), first_step: state.step };
    let mut run = Trainer {
        config,
        plan,
        pass: config.forward_options(),
        model,
        optimizer,
        told: (state.step_guard.skipped, state.step_guard.stats.spikes),
        stability,
        state,
        batches,
        val: data.val,
        recorder,
        peak,
        clock,
        ranks,
        reduction,
        stop,
        deadline,
        watchdog,
        longest_step: Duration::ZERO,
        saving,
        // One rank's time stands for all.
        profiler: Profiler::new(if ranks.is_first() { request.profile } else { 0 }),
    };
    let outcome = run.steps(request.stop_after).map_err(|error| {
        let mut heard = Heard { recorder: &mut run.recorder, watchdog: &run.watchdog };
        run.saving.close(error, &mut heard)
    });
    run.end(&outcome);
    outcome
}

/// Refuses weights of another shape, where the run would start from them.
fn require_shape_of_start(config: &Config, request: &TrainOptions) -> Result<()> {
    let store = CheckpointDir::new(&request.run_dir, &config.checkpoint);
    match &config.checkpoint.init_from {
        Some(init) if store.list()?.is_empty() => {
            require_shape(config, init, &model::load_config(init).context("checkpoint.init_from")?)
        }
        _ => Ok(()),
    }
}

/// What has to be equal on all ranks, by name: every key but those of a process's own machine.
fn settings_digest(config: &Config, world: &World, data: &DataSplits) -> Result<BTreeMap<String, String>> {
    const OWN: [&str; 2] = ["run.threads", "run.pin_threads"];
    let mut settings_digest = BTreeMap::from([
        ("the program's version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ("libtorch".to_owned(), torch_ext::describe()?.version),
        ("the attempt".to_owned(), world.launch_id.clone()),
        ("the data's manifest".to_owned(), data.train.manifest_sha256().unwrap_or("none").to_owned()),
        ("training tokens".to_owned(), data.train.num_tokens().to_string()),
        ("validation tokens".to_owned(), data.val.num_tokens().to_string()),
    ]);
    let resolved = serde_json::to_value(config)?;
    for (section, keys) in resolved.as_object().into_iter().flatten() {
        for (key, value) in keys.as_object().into_iter().flatten() {
            settings_digest.insert(format!("{section}.{key}"), value.to_string());
        }
    }
    settings_digest.retain(|key, _| !OWN.contains(&key.as_str()));
    Ok(settings_digest)
}

/// Times training alone: restarted after validations and checkpoints.
struct ThroughputTimer {
    since: Instant,
    tokens: u64,
    run: Instant,
    first_step: u64,
}

struct Trainer<'a> {
    config: &'a Config,
    plan: RunSummary,
    pass: ForwardOptions,
    model: LanguageModel,
    optimizer: Optimizer,
    stability: StepGuard,
    /// Skipped steps and spikes that a person has been told of.
    told: (u64, u64),
    state: TrainState,
    batches: Prefetch,
    val: TokenSplit,
    /// Rank 0's.
    recorder: Option<RunLogger>,
    /// Of all ranks together, in FLOP/s.
    peak: f64,
    clock: ThroughputTimer,
    ranks: &'a Collectives,
    reduction: GradReducer<'a>,
    stop: &'a Stop,
    deadline: TimeLimit,
    watchdog: Watchdog,
    longest_step: Duration,
    saving: CheckpointManager<'a>,
    profiler: Profiler,
}

fn due(every: u64, step: u64) -> bool {
    every > 0 && step.is_multiple_of(every)
}

impl<'a> Trainer<'a> {
    fn steps(&mut self, stop_after: Option<u64>) -> Result<TrainOutcome> {
        let max_steps = self.config.schedule.max_steps;
        let reached = |step: u64| stop_after.is_some_and(|after| step >= after);
        if reached(self.state.step) {
            self.state.by_time = false;
            self.save_last()?;
            return self.stopped();
        }
        while self.state.step < max_steps {
            let begun = Instant::now();
            let learning_rate =
                self.config.schedule.learning_rate(self.config.optimizer.learning_rate, self.state.step);
            self.profiler.begin_step();
            let result = self.step(learning_rate)?;
            self.state.step += 1;
            self.state.sequences += self.plan.split.sequences;
            self.state.tokens += self.config.batch.tokens_per_step;
            self.state.val_loss = None;
            self.clock.tokens += self.config.batch.tokens_per_step;

            let (step, last) = (self.state.step, self.state.step == max_steps);
            self.profile(step, last || reached(step))?;
            self.beat("training");
            if last || due(self.config.logging.every_steps, step) {
                self.log(&result, learning_rate)?;
            }
            if last || due(self.config.validation.every_steps, step) {
                self.validate(last)?;
            }
            self.longest_step = self.longest_step.max(begun.elapsed());
            self.saving.look(&mut self.recorder);
            // One rank's reason is every rank's: all stop, and save, after the same step.
            let asked = self.stop.requested() || self.deadline.is_reached(self.longest_step, self.saving.reckoned());
            let [asked, late] = self.ranks.any([asked, self.saving.is_due_by_time()])?;
            let stopping = (asked || reached(step)) && !last;
            let by_step = last || stopping || due(self.config.checkpoint.every_steps, step);
            if by_step || late {
                // However seldom the run logs.
                self.look(&result)?;
                self.state.by_time = !by_step;
                if last || stopping {
                    self.save_last()?;
                } else {
                    self.save()?;
                }
            }
            if stopping {
                return self.stopped();
            }
        }
        let seconds = self.clock.run.elapsed().as_secs_f64();
        self.line(|| format!("finished    {max_steps} steps, {} here", human_duration(seconds)));
        Ok(TrainOutcome::Finished)
    }

    fn stopped(&mut self) -> Result<TrainOutcome> {
        let step = self.state.step;
        self.line(|| format!("stopped     after step {step}; --resume auto goes on from there"));
        Ok(TrainOutcome::Stopped)
    }

    /// Step k takes the sequences numbered from k times the batch, whoever computes them.
    fn step(&mut self, learning_rate: f64) -> Result<StepResult> {
        let (split, step, seed) = (self.plan.split, self.state.step, self.config.run.seed);
        let (rank, batches, watchdog) = (self.ranks.rank(), &mut self.batches, &self.watchdog);
        watchdog.step(step + 1);
        let (ranks, failed) = (self.ranks, || format!("step {} failed", step + 1));
        let trained = StepContext {
            model: &self.model,
            optimizer: &mut self.optimizer,
            reduction: &self.reduction,
            stability: &mut self.stability,
            pass: self.pass,
        };
        let result = training_step(
            trained,
            learning_rate,
            split.accumulation,
            |_| {
                watchdog.progress("in a pass over a micro-batch");
                batches.next_batch()
            },
            |i| derive_seed(seed, &[step, rank, i]),
            |loss| ranks.average(loss),
        )
        .with_context(failed)?;
        if step == self.clock.first_step {
            // The first step may have to wait for a slow start elsewhere; no later one.
            self.ranks.use_run_timeout()?;
        }
        Ok(result)
    }

    fn log(&mut self, result: &StepResult, lr: f64) -> Result<()> {
        let seen = self.look(result)?;
        let (step, max_steps) = (self.state.step, self.config.schedule.max_steps);
        let tokens_per_s = self.clock.tokens as f64 / self.clock.since.elapsed().as_secs_f64();
        let mfu = tokens_per_s * self.plan.flops_per_token / self.peak;
        self.restart_clock();
        let Some(recorder) = &mut self.recorder else { return Ok(()) };
        let StepStats { loss, grad_norm, skipped, scale_search_skips, spikes, loss_scale, .. } = seen;
        let finite = |value: f64| value.is_finite().then_some(value);
        let training = TrainingMetrics {
            loss: finite(loss),
            lr,
            grad_norm: finite(grad_norm),
            tokens_per_s,
            mfu,
            skipped,
            scale_search_skips,
            spikes,
            loss_scale,
        };
        recorder.training(step, self.state.tokens, training);
        let each = self.clock.run.elapsed().as_secs_f64() / (step - self.clock.first_step) as f64;
        let saved = recorder.newest_checkpoint();
        recorder.progress(step == max_steps, || {
            format!(
                "step {step}/{max_steps}  loss {loss:.4}  lr {lr:.2e}  grad norm {grad_norm:.2}  {tokens_per_s:.0} tok/s  mfu {:.0}%  ETA {}{}",
                100.0 * mfu,
                human_duration(each * (max_steps - step) as f64),
                saved.map(|step| format!("  saved {step}")).unwrap_or_default()
            )
        });
        Ok(())
    }

    /// Mean loss over the validation split, of which each rank takes its share. A stop signal
    /// cuts it short, save for the last step's: the checkpoint comes first.
    fn validate(&mut self, last: bool) -> Result<()> {
        self.watchdog.progress("validating");
        self.beat("validating");
        let step = self.state.step;
        let (ranks, stop, watchdog, recorder) = (self.ranks, self.stop, &self.watchdog, &mut self.recorder);
        let sequences = Sequences {
            length: self.config.data.sequence_length,
            most: self.config.validation.max_sequences,
            batch: self.plan.split.micro_batch,
            share: RankShard { rank: ranks.rank(), of: ranks.size() },
        };
        let validated = evals::validate(
            &self.model,
            &self.val,
            sequences,
            ForwardOptions { dropout: 0.0, ..self.pass },
            &mut |done, all| {
                watchdog.progress("validating");
                if let Some(recorder) = recorder {
                    recorder.beat(step, "validating", false);
                    recorder.progress(false, || format!("validating  {done} of {all} sequences"));
                }
                Ok(last || !ranks.any([stop.requested()])?[0])
            },
        )?;
        let Some(own) = validated else {
            self.line(|| "validation  left out: the run is asked to stop".to_owned());
            return Ok(());
        };
        let [sum, sequences] = ranks.sum([own.sum, own.sequences as f64])?;
        let loss = sum / sequences;
        // The weights follow from the same gradients on every rank: if they did not, this is
        // where it shows, before they are saved.
        ranks.require_equal_tensors("weights", self.model.parameters().iter())?;
        self.state.val_loss = Some(loss);
        if self.state.best_val_loss.is_none_or(|best| loss < best) {
            (self.state.best_val_loss, self.state.best_step) = (Some(loss), Some(step));
        }
        if let Some(recorder) = &mut self.recorder {
            recorder.validation(step, self.state.tokens, ValidationMetrics { val_loss: loss, val_ppl: loss.exp() });
        }
        self.restart_clock();
        Ok(())
    }

    fn restart_clock(&mut self) {
        (self.clock.since, self.clock.tokens) = (Instant::now(), 0);
    }

    fn profile(&mut self, step: u64, ends: bool) -> Result<()> {
        let profile = self.profiler.end_step(step, ends)?;
        if let (Some(profile), Some(recorder)) = (profile, &mut self.recorder) {
            recorder.profile(&profile);
        }
        Ok(())
    }

    /// A sign of life for `backpack status`.
    fn beat(&mut self, phase: &str) {
        if let Some(recorder) = &mut self.recorder {
            recorder.beat(self.state.step, phase, false);
        }
    }

    /// How this session ended, for `backpack status` and the log.
    fn end(&mut self, outcome: &Result<TrainOutcome>) {
        let (end, error) = match outcome {
            Ok(TrainOutcome::Finished | TrainOutcome::DryRun) => (SessionOutcome::Finished, None),
            Ok(TrainOutcome::Stopped) => (SessionOutcome::Stopped, None),
            Err(error) => (SessionOutcome::Failed, Some(format!("{error:#}"))),
        };
        if let Some(recorder) = &mut self.recorder {
            recorder.end(self.state.step, end, error);
        }
    }

    /// A line for a person, once a run.
    fn line(&mut self, text: impl FnOnce() -> String) {
        if let Some(recorder) = &mut self.recorder {
            recorder.line(&text());
        }
    }
}
