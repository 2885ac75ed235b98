//! The start of a run: at step 0, from given weights, or at a checkpoint.
//!
//! Rank 0 reads the files and sends state, weights and moments to the other ranks, so that these need
//! no access to its disk.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use model::{GPT2_END_OF_TEXT, LanguageModel, ModelConfig};
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

use crate::checkpoint::checkpoint_dir::CheckpointDir;
use crate::checkpoint::state::{TrainState, check_resumable};
use crate::checkpoint::{self, verify, verify_model};
use crate::config::Config;
use crate::data::DataSplits;
use crate::distributed::collectives::Collectives;
use crate::logging::run_dir::RunDir;
use crate::logging::run_logger::RunLogger;
use crate::optim::adamw::Optimizer;
use crate::train::checks::require_shape;
use crate::train::options::{Resume, TrainOptions};

/// The objects that a rank needs before the first step. Model, optimizer and state are equal on all ranks.
pub(crate) struct Startup {
    pub(crate) model: LanguageModel,
    pub(crate) optimizer: Optimizer,
    pub(crate) state: TrainState,
    /// Disabled except on rank 0.
    pub(crate) log: RunLogger,
    /// The step and path of the checkpoint that the run resumes from, on rank 0.
    pub(crate) resumed_from: Option<(u64, PathBuf)>,
}

/// Rank 0's message to the other ranks. `None` is sent for a run that is finished.
#[derive(Serialize, Deserialize)]
struct StartMessage {
    /// The model's `config.json`.
    model_config: String,
    state: TrainState,
    /// Whether the optimizer's moments follow the weights. Those of a new run are zero.
    has_moments: bool,
}

/// Returns model, optimizer and state of this run, equal on all ranks, or `None` if the run is
/// finished. Existing checkpoints are not changed; see [`archive_abandoned`]. Collective.
///
/// # Errors
/// Rank 0's error, on every rank: the run directory is in use, or the checkpoint does not fit.
pub(crate) fn initialize(
    config: &Config,
    options: &TrainOptions,
    checkpoints: &CheckpointDir,
    data: &DataSplits,
    collectives: &Collectives,
    device: Device,
) -> Result<Option<Startup>> {
    let mut loaded = None;
    let message = collectives.broadcast_from_first(|| {
        loaded = load_start(config, options, checkpoints, data, device)?;
        let message = |startup: &Startup| StartMessage {
            model_config: startup.model.config().to_hugging_face().to_string(),
            state: startup.state.clone(),
            has_moments: startup.resumed_from.is_some(),
        };
        Ok(serde_json::to_string(&loaded.as_ref().map(message))?)
    })?;
    let message: Option<StartMessage> = serde_json::from_str(&message).context("invalid start message from rank 0")?;
    let Some(message) = message else { return Ok(None) };
    let has_moments = message.has_moments;
    let startup = loaded.map_or_else(|| allocate(config, message, device), Ok)?;
    let (model, optimizer) = (&startup.model, &startup.optimizer);
    let mut tensors: Vec<Tensor> = model.parameters().iter().map(|(_, tensor)| tensor.shallow_clone()).collect();
    if has_moments {
        tensors.extend(optimizer.state().into_iter().map(|(_, moment)| moment));
    }
    collectives.broadcast(tensors)?;
    collectives.require_equal_tensors("weights at the start", model.parameters().iter())?;
    if !collectives.is_first() {
        model.parameters().update_low_precision_copies()?;
    }
    Ok(Some(startup))
}

/// Archives the checkpoints that do not belong to the branch of the run that continues, and deletes
/// partial ones. Only the holder of the run directory's lock may call it.
///
/// # Errors
/// Returns an error if a checkpoint cannot be renamed or deleted.
pub(crate) fn archive_abandoned(
    checkpoints: &CheckpointDir,
    resumed_from: Option<&(u64, PathBuf)>,
    log: &mut RunLogger,
) -> Result<()> {
    checkpoints.delete_partial()?;
    for path in checkpoints.archive(resumed_from.map(|(step, path)| (*step, path.as_path())))? {
        log.info(&format!("archived    {} (from an abandoned branch of this run)", path.display()));
    }
    Ok(())
}

/// Does the work of rank 0: takes the run directory, and loads or creates model, optimizer and
/// state. Returns `None` for a run that is finished.
fn load_start(
    config: &Config,
    options: &TrainOptions,
    checkpoints: &CheckpointDir,
    data: &DataSplits,
    device: Device,
) -> Result<Option<Startup>> {
    let run_dir = RunDir::open(&options.run_dir)?;
    checkpoints.recover_replaced()?;
    let mut notes = Vec::new();
    let checkpoint = locate_start(checkpoints, &options.resume, &mut notes)?;
    if let Some((_, saved)) = &checkpoint
        && saved.step >= config.schedule.max_steps
    {
        // Not logged to a file, because a finished run is not changed.
        eprintln!("this run is finished: {} of {} steps are done", saved.step, config.schedule.max_steps);
        return Ok(None);
    }
    let mut log = RunLogger::open(run_dir)?;
    for line in notes {
        log.info(&line);
    }
    let manifest = data.train.manifest_sha256().map(str::to_owned);
    let new = TrainState::new(&config.to_toml()?, serde_json::to_value(config)?, manifest, data.train.num_tokens())?;
    let new = TrainState { world_size: options.world.size as u64, ..new };
    let Some((path, saved)) = checkpoint else {
        let (model, optimizer) = prepare(config, initial_model(config, data, device)?);
        return Ok(Some(Startup { model, optimizer, state: new, log, resumed_from: None }));
    };
    let (model, moments, state) = load_checkpoint(config, &path, saved, new, device, &mut log)?;
    let (model, mut optimizer) = prepare(config, model);
    optimizer.restore(moments, state.updates()).with_context(|| format!("{} cannot be resumed", path.display()))?;
    log.info(&format!("resuming    {} at step {}", path.display(), state.step));
    Ok(Some(Startup { resumed_from: Some((state.step, path)), model, optimizer, state, log }))
}

/// Allocates model and optimizer on a rank that receives their values.
fn allocate(config: &Config, message: StartMessage, device: Device) -> Result<Startup> {
    let StartMessage { model_config, state, has_moments } = message;
    let shape = ModelConfig::from_hugging_face(&model_config)?;
    let (model, mut optimizer) = prepare(config, LanguageModel::initialize(shape, config.run.seed, device)?);
    if has_moments {
        optimizer.set_update_count(state.updates())?;
    }
    Ok(Startup { model, optimizer, state, log: RunLogger::disabled(), resumed_from: None })
}

/// Returns a model that is ready for training, and its optimizer with zero moments.
fn prepare(config: &Config, model: LanguageModel) -> (LanguageModel, Optimizer) {
    let mut model = model.with_low_precision_copies(config.forward_options());
    model.set_dropout(config.model.dropout);
    let optimizer = Optimizer::new(config.optimizer.clone(), &model);
    (model, optimizer)
}

/// Returns the checkpoint to resume from, verified. Appends a log line for each one that does not
/// verify to `notes`.
fn locate_start(
    checkpoints: &CheckpointDir,
    resume: &Resume,
    notes: &mut Vec<String>,
) -> Result<Option<(PathBuf, TrainState)>> {
    match resume {
        Resume::Never => {
            if let Some((_, newest)) = checkpoints.list()?.last() {
                bail!(
                    "the run directory already holds checkpoints (the newest is {}): resume with --resume auto, or use another --run-dir",
                    newest.display()
                );
            }
            Ok(None)
        }
        Resume::Auto => {
            let newest = checkpoints.newest(|path, error| {
                notes.push(format!("skipping    {}: {error:#}", path.display()));
            })?;
            if newest.is_none() && !notes.is_empty() {
                notes.push(format!("warning     none of {} checkpoints verifies: starting at step 0", notes.len()));
            }
            Ok(newest)
        }
        Resume::From(path) => {
            ensure!(path.is_dir(), "the checkpoint {} does not exist", path.display());
            Ok(Some((path.clone(), verify(path)?)))
        }
    }
}

/// Loads the model and moments of a checkpoint, and returns them with the state that continues it.
fn load_checkpoint(
    config: &Config,
    path: &Path,
    saved: TrainState,
    new: TrainState,
    device: Device,
    log: &mut RunLogger,
) -> Result<(LanguageModel, BTreeMap<String, Tensor>, TrainState)> {
    let changes = check_resumable(&saved, &new).with_context(|| format!("{} cannot be resumed", path.display()))?;
    for change in changes {
        log.info(&format!("changed     {change} since the checkpoint"));
    }
    let (model, moments) = checkpoint::load(path, device)?;
    config
        .model
        .require_same_shapes(model.config())
        .with_context(|| format!("the model of {} differs from [model]", path.display()))?;
    let TrainState { config, config_sha256, versions, world_size, .. } = new;
    Ok((model, moments, TrainState { config, config_sha256, versions, world_size, ..saved }))
}

/// Returns a model with new weights, or with those of `checkpoint.init_from`.
fn initial_model(config: &Config, data: &DataSplits, device: Device) -> Result<LanguageModel> {
    let new_model = || {
        let mut shape = config.model.clone();
        // Data without a manifest is assumed to use GPT-2's tokenizer if the vocabulary is large
        // enough for it.
        let gpt2 = (shape.vocab_size > GPT2_END_OF_TEXT).then_some(GPT2_END_OF_TEXT);
        shape.end_of_text = data.train.end_of_text().map(i64::from).or(gpt2);
        LanguageModel::initialize(shape, config.run.seed, device)
    };
    let Some(path) = &config.checkpoint.init_from else { return new_model() };
    verify_model(path)?;
    let given = model::load_model(path, device)?;
    require_shape(config, path, given.config())?;
    ensure!(
        given.edited_tokens().is_empty(),
        "checkpoint.init_from {} has edited senses, which training would lose: use the model before its edits",
        path.display()
    );
    if given.config().architecture == config.model.architecture {
        return Ok(given);
    }
    let model = new_model()?;
    let initialized = model::init_from_gpt2(&model, &given);
    initialized.with_context(|| format!("the trunk cannot start from {}", path.display()))?;
    Ok(model)
}
