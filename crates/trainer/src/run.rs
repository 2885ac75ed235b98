//! The training run, top to bottom: what is set up, then a step in the order it happens.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use data_prep::{SequenceOrder, TokenSplit};
use evals::Validated;
use model::{GPT2_END_OF_TEXT, LanguageModel, Pass, derive_seed};

use crate::batches::Batches;
use crate::checkpoint::{self, Store};
use crate::config::Config;
use crate::console::{Console, human_duration};
use crate::matmul_peak::matmul_peak;
use crate::metrics::{Metrics, Record, Training, Validation};
use crate::optimizer::Optimizer;
use crate::plan::Plan;
use crate::prefetch::Prefetch;
use crate::run_folder::RunFolder;
use crate::setup::select_device;
use crate::state::{self, State};
use crate::step::{StepResult, training_step};
use crate::stop::Stop;
use crate::tensorboard::EventWriter;
use crate::threads::set_threads;
use crate::world::World;

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
pub struct Request {
    /// Who this process is among those of the run.
    pub world: World,
    /// The run folder.
    pub run_dir: PathBuf,
    /// Where to start.
    pub resume: Resume,
    /// Save a checkpoint after this step and stop.
    pub stop_after: Option<u64>,
    /// Check everything, say what would run, and run nothing.
    pub dry_run: bool,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// All steps are done.
    Finished,
    /// Stopped early; a checkpoint is saved.
    Stopped,
    /// Nothing was to be run.
    DryRun,
}

/// The data of a run, checked.
struct Data {
    train: TokenSplit,
    val: TokenSplit,
    order: SequenceOrder,
}

/// Trains until `schedule.max_steps`, a stop signal, or `request.stop_after`.
///
/// # Errors
/// In one sentence; what was saved before stays usable.
pub fn train(config: &Config, request: &Request, stop: &Stop) -> Result<Outcome> {
    let threads = set_threads(config.run.threads, config.run.pin_threads, request.world.local)?;
    let device = select_device(config.run.device)?;
    let machine = format!("machine     {}, {threads}", if device.is_cuda() { "cuda" } else { "cpu" });
    let data = open_data(config)?;
    let sequences = data.train.sequences(config.data.sequence_length);
    let plan = Plan::new(config, &config.model, sequences, 1)?;
    let store = Store::new(&request.run_dir, &config.checkpoint);
    if let (Some(init), true) = (&config.checkpoint.init_from, store.list()?.is_empty()) {
        require_shape(config, init, &model::load_config(init).context("checkpoint.init_from")?)?;
    }
    if request.dry_run {
        eprintln!("{plan}\n{machine}");
        return Ok(Outcome::DryRun);
    }

    let folder = RunFolder::open(&request.run_dir)?;
    let mut notes = Vec::new();
    let found = find_checkpoint(&store, &request.resume, &mut notes)?;
    if let Some((_, saved)) = &found
        && saved.step >= config.schedule.max_steps
    {
        // Not a line of the log either: a finished run stays as it is.
        eprintln!("this run is finished: {} of {} steps are done", saved.step, config.schedule.max_steps);
        return Ok(Outcome::Finished);
    }
    let mut console = Console::open(folder.path())?;
    for line in notes {
        console.line(&line);
    }
    store.remove_partial()?;
    // What cannot be gone on from is kept, under a name that no run takes up.
    for folder in store.set_aside_after(found.as_ref().map(|(_, saved)| saved.step))? {
        console.line(&format!("set aside   {}", folder.display()));
    }
    let fresh_state = State::new(config, data.train.manifest_sha256().map(str::to_owned), data.train.tokens())?;
    let (mut model, optimizer, state) = match found {
        Some((from, saved)) => resume(config, &from, saved, fresh_state, device, &mut console)?,
        None => start(config, &data, fresh_state, device)?,
    };
    model.set_dropout(config.model.dropout);
    let plan = Plan::new(config, model.config(), sequences, 1)?;
    folder.write("config.toml", &config.to_toml()?)?;

    console.line(&plan.to_string());
    if !data.train.is_checked() {
        console.line("warning     the data has no manifest.json: nothing about it could be checked");
    }
    let precision = config.run.precision.kind();
    let peak = matmul_peak(precision, device)?;
    console.line(&format!("{machine}, {} products at {:.0} GFLOP/s at most", config.run.precision, peak / 1e9));
    let events = match config.logging.tensorboard {
        false => EventWriter::none(),
        true => {
            EventWriter::create(folder.path(), if state.step == 0 { 0 } else { state.step + 1 }).unwrap_or_else(|e| {
                console.line(&format!("warning     TensorBoard: {e:#}"));
                EventWriter::none()
            })
        }
    };
    let metrics = Metrics::open(folder.path(), state.step)?;
    let batches = Batches::new(data.train, data.order, config.data.sequence_length);
    let passes = plan.split.passes(state.sequences, config.schedule.max_steps.saturating_sub(state.step));
    let batches = Prefetch::start(batches, passes, plan.split.micro_batch, device)?;
    let clock = Clock { since: Instant::now(), tokens: 0, run: Instant::now(), first_step: state.step };
    let mut run = Run {
        config,
        plan,
        pass: config.pass(),
        model,
        optimizer,
        state,
        batches,
        val: data.val,
        store,
        metrics,
        events,
        console,
        peak,
        clock,
        stop,
    };
    run.steps(request.stop_after)
}

/// Opens both splits and the order of the training sequences.
fn open_data(config: &Config) -> Result<Data> {
    let (path, length) = (&config.data.path, config.data.sequence_length);
    let open = |which| -> Result<TokenSplit> {
        let split = TokenSplit::open(path, which, config.model.vocab_size as usize)?;
        split.require_sequence(length)?;
        Ok(split)
    };
    let (train, val) = (open(data_prep::Split::Train)?, open(data_prep::Split::Val)?);
    let order = SequenceOrder::new(config.data.order, train.sequences(length), config.run.seed);
    Ok(Data { train, val, order })
}

/// The checkpoint to resume from, verified; `notes` gets a line for each that is not.
fn find_checkpoint(store: &Store, resume: &Resume, notes: &mut Vec<String>) -> Result<Option<(PathBuf, State)>> {
    let present = store.list()?;
    match resume {
        Resume::Never => {
            if let Some((_, newest)) = present.last() {
                bail!(
                    "the run folder already holds checkpoints (the newest is {}): go on from it with --resume auto, or use another --run-dir",
                    newest.display()
                );
            }
            Ok(None)
        }
        Resume::Auto => {
            let found = store.newest(|folder, error| {
                notes.push(format!("passed over {}: {error:#}", folder.display()));
            })?;
            if found.is_none() && !present.is_empty() {
                notes.push(format!("warning     none of {} checkpoints verifies: starting afresh", present.len()));
            }
            Ok(found)
        }
        Resume::From(folder) => {
            ensure!(folder.is_dir(), "the checkpoint {} is not there", folder.display());
            Ok(Some((folder.clone(), checkpoint::verify(folder)?)))
        }
    }
}

fn require_shape(config: &Config, folder: &Path, shape: &model::ModelConfig) -> Result<()> {
    // A Backpack's body may start from a GPT-2, of which more may differ: see `graft_body`.
    if (config.model.kind, shape.kind) == (model::Kind::Backpack, model::Kind::Gpt2) {
        return Ok(());
    }
    let same = config.model.require_same_shapes(shape);
    same.with_context(|| format!("checkpoint.init_from {} is not of [model]'s shape", folder.display()))
}

/// Takes up a checkpoint: weights, moments, place in the data.
fn resume(
    config: &Config,
    from: &Path,
    saved: State,
    fresh: State,
    device: tch::Device,
    console: &mut Console,
) -> Result<(LanguageModel, Optimizer, State)> {
    let differing = state::compare(&saved, &fresh).with_context(|| format!("{} cannot be resumed", from.display()))?;
    for change in differing {
        console.line(&format!("changed     {change} since the checkpoint"));
    }
    let (model, moments) = checkpoint::load(from, device)?;
    config.model.require_same_shapes(model.config()).context("the checkpoint's model is not the config's")?;
    let model = model.prepare_for(config.pass());
    let mut optimizer = Optimizer::new(config.optimizer.clone(), &model);
    optimizer.restore(moments, saved.step).with_context(|| format!("{} cannot be resumed", from.display()))?;
    console.line(&format!("resuming    {} at step {}", from.display(), saved.step));
    let state = State { config: fresh.config, config_sha256: fresh.config_sha256, versions: fresh.versions, ..saved };
    Ok((model, optimizer, state))
}

/// Fresh weights, or those of `checkpoint.init_from`.
fn start(config: &Config, data: &Data, state: State, device: tch::Device) -> Result<(LanguageModel, Optimizer, State)> {
    let fresh = || {
        let mut shape = config.model.clone();
        // Plain nanoGPT data is GPT-2's where the vocabulary has room for it.
        let assumed = (shape.vocab_size > GPT2_END_OF_TEXT).then_some(GPT2_END_OF_TEXT);
        shape.end_of_text = data.train.end_of_text().map(i64::from).or(assumed);
        LanguageModel::initialise(shape, config.run.seed, device)
    };
    let model = match &config.checkpoint.init_from {
        Some(folder) => {
            checkpoint::verify_model(folder)?;
            let given = model::load_folder(folder, device)?;
            require_shape(config, folder, given.config())?;
            if given.config().kind == config.model.kind {
                given
            } else {
                let model = fresh()?;
                let grafted = model::graft_body(&model, &given);
                grafted.with_context(|| format!("the body cannot start from {}", folder.display()))?;
                model
            }
        }
        None => fresh()?,
    };
    let model = model.prepare_for(config.pass());
    let optimizer = Optimizer::new(config.optimizer.clone(), &model);
    Ok((model, optimizer, state))
}

/// Times training alone: restarted after validations and checkpoints.
struct Clock {
    since: Instant,
    tokens: u64,
    run: Instant,
    first_step: u64,
}

struct Run<'a> {
    config: &'a Config,
    plan: Plan,
    pass: Pass,
    model: LanguageModel,
    optimizer: Optimizer,
    state: State,
    batches: Prefetch,
    val: TokenSplit,
    store: Store,
    metrics: Metrics,
    events: EventWriter,
    console: Console,
    peak: f64,
    clock: Clock,
    stop: &'a Stop,
}

fn due(every: u64, step: u64) -> bool {
    every > 0 && step.is_multiple_of(every)
}

impl Run<'_> {
    fn steps(&mut self, stop_after: Option<u64>) -> Result<Outcome> {
        let max_steps = self.config.schedule.max_steps;
        let reached = |step: u64| stop_after.is_some_and(|after| step >= after);
        if reached(self.state.step) {
            self.save()?;
            return Ok(self.stopped());
        }
        while self.state.step < max_steps {
            let learning_rate =
                self.config.schedule.learning_rate(self.config.optimizer.learning_rate, self.state.step);
            let result = self.step(learning_rate)?;
            self.state.step += 1;
            self.state.sequences += self.plan.split.sequences;
            self.state.tokens += self.config.batch.tokens;
            self.state.val_loss = None;
            self.clock.tokens += self.config.batch.tokens;

            let (step, last) = (self.state.step, self.state.step == max_steps);
            if last || due(self.config.logging.every, step) {
                self.log(&result, learning_rate)?;
            }
            if last || due(self.config.validation.every, step) {
                self.validate(last)?;
            }
            let stopping = !last && (self.stop.requested() || reached(step));
            if last || stopping || due(self.config.checkpoint.every, step) {
                // Broken weights are never saved, however seldom the run logs.
                self.wait_for(&result)?;
                self.save()?;
            }
            if stopping {
                return Ok(self.stopped());
            }
        }
        let seconds = self.clock.run.elapsed().as_secs_f64();
        self.console.line(&format!("finished    {max_steps} steps, {} here", human_duration(seconds)));
        Ok(Outcome::Finished)
    }

    fn stopped(&mut self) -> Outcome {
        self.console.line(&format!("stopped     after step {}; --resume auto goes on from there", self.state.step));
        Outcome::Stopped
    }

    /// Step k takes the sequences numbered from k times the batch.
    fn step(&mut self, learning_rate: f64) -> Result<StepResult> {
        let (split, step, seed) = (self.plan.split, self.state.step, self.config.run.seed);
        let rank = 0;
        training_step(
            &self.model,
            &mut self.optimizer,
            self.pass,
            learning_rate,
            split.accumulation,
            |_| self.batches.next_batch(),
            |i| derive_seed(seed, &[step, rank, i]),
        )
        .with_context(|| format!("step {} failed", step + 1))
    }

    /// Loss and gradient norm of a step. The one place where the host waits for the device.
    fn wait_for(&self, result: &StepResult) -> Result<(f64, f64)> {
        let (loss, grad_norm) = (result.loss.f_double_value(&[])?, result.grad_norm.f_double_value(&[])?);
        ensure!(
            loss.is_finite() && grad_norm.is_finite(),
            "step {} has loss {loss} and gradient norm {grad_norm}: lower optimizer.learning_rate or lengthen the warm-up, and go on from the last checkpoint, if there is one",
            self.state.step
        );
        Ok((loss, grad_norm))
    }

    fn log(&mut self, result: &StepResult, lr: f64) -> Result<()> {
        let (loss, grad_norm) = self.wait_for(result)?;
        let step = self.state.step;
        let tokens_per_s = self.clock.tokens as f64 / self.clock.since.elapsed().as_secs_f64();
        let mfu = tokens_per_s * self.plan.flops_per_token / self.peak;
        self.restart_clock();
        let training = Training { loss, lr, grad_norm, tokens_per_s, mfu };
        self.metrics.write(&Record { step, tokens: self.state.tokens, training: Some(training), validation: None })?;
        let scalars = [
            ("train/loss", loss),
            ("train/learning_rate", lr),
            ("train/grad_norm", grad_norm),
            ("speed/tokens_per_s", tokens_per_s),
            ("speed/mfu", mfu),
        ];
        self.events(|events| events.scalars(step, &scalars));
        let (max_steps, clock) = (self.config.schedule.max_steps, &self.clock);
        let each = clock.run.elapsed().as_secs_f64() / (step - clock.first_step) as f64;
        self.console.progress(step == max_steps, || {
            format!(
                "step {step}/{max_steps}  loss {loss:.4}  lr {lr:.2e}  grad norm {grad_norm:.2}  {tokens_per_s:.0} tok/s  mfu {:.0}%  ETA {}",
                100.0 * mfu,
                human_duration(each * (max_steps - step) as f64)
            )
        });
        Ok(())
    }

    /// Mean loss over the validation split. A stop signal cuts it short, save for the last
    /// step's: the checkpoint comes first.
    fn validate(&mut self, last: bool) -> Result<()> {
        let pass = Pass { dropout: 0.0, ..self.pass };
        let (length, batch) = (self.config.data.sequence_length, self.plan.split.micro_batch);
        let (stop, console) = (self.stop, &mut self.console);
        let validated = evals::validate(
            &self.model,
            &self.val,
            length,
            batch,
            self.config.validation.max_sequences,
            pass,
            &mut |done, all| {
                console.progress(false, || format!("validating  {done} of {all} sequences"));
                last || !stop.requested()
            },
        )?;
        let Some(Validated { loss, .. }) = validated else {
            self.console.line("validation  left out: the run is asked to stop");
            return Ok(());
        };
        let (step, ppl) = (self.state.step, loss.exp());
        self.state.val_loss = Some(loss);
        if self.state.best_val_loss.is_none_or(|best| loss < best) {
            (self.state.best_val_loss, self.state.best_step) = (Some(loss), Some(step));
        }
        let validation = Validation { val_loss: loss, val_ppl: ppl };
        self.metrics.write(&Record {
            step,
            tokens: self.state.tokens,
            training: None,
            validation: Some(validation),
        })?;
        self.events(|events| events.scalars(step, &[("val/loss", loss), ("val/perplexity", ppl)]));
        self.console.line(&format!("validation  step {step}: loss {loss:.4}, perplexity {ppl:.2}"));
        self.restart_clock();
        Ok(())
    }

    fn save(&mut self) -> Result<()> {
        self.events(EventWriter::flush);
        let path = self.store.save(&self.model, &self.optimizer, self.state.clone())?;
        self.console.line(&format!("checkpoint  {}", path.display()));
        self.restart_clock();
        Ok(())
    }

    fn restart_clock(&mut self) {
        (self.clock.since, self.clock.tokens) = (Instant::now(), 0);
    }

    /// Does something with the events; a failure is a warning.
    fn events(&mut self, act: impl FnOnce(&mut EventWriter) -> Result<()>) {
        if let Err(error) = act(&mut self.events) {
            self.console.line(&format!("warning     TensorBoard: {error:#}; the run goes on without it"));
        }
    }
}
