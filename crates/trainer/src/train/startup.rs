//! Where a run begins: fresh, from given weights, or at a checkpoint. Rank 0 finds out and
//! reads; the others get its words and its values, so that no disk need be shared.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use model::{GPT2_END_OF_TEXT, LanguageModel, ModelConfig};
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

use crate::checkpoint::state::{self, TrainState};
use crate::checkpoint::{self, CheckpointDir};
use crate::config::Config;
use crate::data::DataSplits;
use crate::distributed::collectives::Collectives;
use crate::logging::run_dir::RunDir;
use crate::logging::run_logger::RunLogger;
use crate::optim::adamw::Optimizer;
use crate::train::Resume;

/// What every rank has before the first step; the recorder is rank 0's.
pub(crate) struct Startup {
    pub(crate) model: LanguageModel,
    pub(crate) optimizer: Optimizer,
    pub(crate) state: TrainState,
    pub(crate) recorder: Option<RunLogger>,
}

/// What rank 0 found.
struct LoadedStart {
    model: LanguageModel,
    /// Those of a checkpoint.
    moments: Option<BTreeMap<String, Tensor>>,
    state: TrainState,
    recorder: RunLogger,
    /// The step and folder of a checkpoint.
    from: Option<(u64, PathBuf)>,
}

/// What it tells the others of it; nothing of a run that is finished.
#[derive(Serialize, Deserialize)]
struct StartMessage {
    /// The model's `config.json`.
    shape: String,
    state: TrainState,
    has_moments: bool,
}

/// The beginning of this run, the same on all ranks; `None` for one that is finished.
///
/// # Errors
/// Rank 0's, on every rank: a folder in use, a checkpoint that does not fit.
pub(crate) fn begin(
    config: &Config,
    run_dir: &Path,
    resume: &Resume,
    data: &DataSplits,
    ranks: &Collectives,
    device: Device,
) -> Result<Option<Startup>> {
    let mut found = None;
    let told = ranks.broadcast_from_first(|| {
        found = find(config, run_dir, resume, data, ranks.size(), device)?;
        let tell = |found: &LoadedStart| StartMessage {
            shape: found.model.config().to_hugging_face().to_string(),
            state: found.state.clone(),
            has_moments: found.moments.is_some(),
        };
        Ok(serde_json::to_string(&found.as_ref().map(tell))?)
    })?;
    let told: Option<StartMessage> = serde_json::from_str(&told).context("what rank 0 says of the start is no JSON")?;
    let Some(StartMessage { shape, state, has_moments }) = told else { return Ok(None) };
    let (model, moments, state, recorded) = match found {
        Some(LoadedStart { model, moments, state, recorder, from }) => (model, moments, state, Some((recorder, from))),
        None => {
            let shape = ModelConfig::from_hugging_face(&shape)?;
            (LanguageModel::initialise(shape, config.run.seed, device)?, None, state, None)
        }
    };
    ranks.broadcast(model.parameters().iter().map(|(_, parameter)| parameter.shallow_clone()))?;
    ranks.require_equal_tensors("weights at the start", model.parameters().iter())?;
    let mut model = model.prepare_for(config.forward_options());
    model.set_dropout(config.model.dropout);
    let mut optimizer = Optimizer::new(config.optimizer.clone(), &model);
    let restored = moments.map_or(Ok(()), |moments| optimizer.restore(moments, state.updates()));
    ranks.try_all(restored.context("the checkpoint cannot be resumed"))?;
    if has_moments {
        ranks.broadcast(optimizer.state().into_iter().map(|(_, moment)| moment))?;
        optimizer.set_update_count(state.updates())?;
    }
    // Only now: where the start is refused, checkpoints stay as they were.
    let tidied = recorded.map(|(recorder, from)| tidy(recorder, from.as_ref())).transpose();
    Ok(Some(Startup { model, optimizer, state, recorder: ranks.try_all(tidied)? }))
}

/// Sets aside what cannot be gone on from, under a name that no run takes up.
fn tidy(mut recorder: RunLogger, from: Option<&(u64, PathBuf)>) -> Result<RunLogger> {
    recorder.store().remove_partial()?;
    for folder in recorder.store().set_aside(from.map(|(step, from)| (*step, from.as_path())))? {
        recorder.line(&format!("set aside   {}", folder.display()));
    }
    Ok(recorder)
}

/// Rank 0's part; `None` for a run that is finished.
fn find(
    config: &Config,
    run_dir: &Path,
    resume: &Resume,
    data: &DataSplits,
    world_size: u64,
    device: Device,
) -> Result<Option<LoadedStart>> {
    let store = CheckpointDir::new(run_dir, &config.checkpoint);
    let folder = RunDir::open(run_dir)?;
    store.restore_replaced()?;
    let mut notes = Vec::new();
    let checkpoint = find_checkpoint(&store, resume, &mut notes)?;
    if let Some((_, saved)) = &checkpoint
        && saved.step >= config.schedule.max_steps
    {
        // Not a line of the log either: a finished run stays as it is.
        eprintln!("this run is finished: {} of {} steps are done", saved.step, config.schedule.max_steps);
        return Ok(None);
    }
    let mut recorder = RunLogger::new(folder, store)?;
    for line in notes {
        recorder.line(&line);
    }
    let manifest = data.train.manifest_sha256().map(str::to_owned);
    let fresh = TrainState { world_size, ..TrainState::new(config, manifest, data.train.num_tokens())? };
    Ok(Some(match checkpoint {
        Some((from, saved)) => take_up(config, &from, saved, fresh, device, recorder)?,
        None => {
            LoadedStart { model: fresh_model(config, data, device)?, moments: None, state: fresh, recorder, from: None }
        }
    }))
}

/// The checkpoint to resume from, verified; `notes` gets a line for each that is not.
fn find_checkpoint(
    store: &CheckpointDir,
    resume: &Resume,
    notes: &mut Vec<String>,
) -> Result<Option<(PathBuf, TrainState)>> {
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

/// A checkpoint's weights and moments, and its place in the data.
fn take_up(
    config: &Config,
    from: &Path,
    saved: TrainState,
    fresh: TrainState,
    device: Device,
    mut recorder: RunLogger,
) -> Result<LoadedStart> {
    let differing = state::compare(&saved, &fresh).with_context(|| format!("{} cannot be resumed", from.display()))?;
    for change in differing {
        recorder.line(&format!("changed     {change} since the checkpoint"));
    }
    let (model, moments) = checkpoint::load(from, device)?;
    config.model.require_same_shapes(model.config()).context("the checkpoint's model is not the config's")?;
    recorder.line(&format!("resuming    {} at step {}", from.display(), saved.step));
    let TrainState { config: now, config_sha256, versions, world_size, .. } = fresh;
    let state = TrainState { config: now, config_sha256, versions, world_size, ..saved };
    let from = Some((state.step, from.to_owned()));
    Ok(LoadedStart { model, moments: Some(moments), state, recorder, from })
}

/// Fresh weights, or those of `checkpoint.init_from`.
fn fresh_model(config: &Config, data: &DataSplits, device: Device) -> Result<LanguageModel> {
    let fresh = || {
        let mut shape = config.model.clone();
        // Plain nanoGPT data is GPT-2's where the vocabulary has room for it.
        let assumed = (shape.vocab_size > GPT2_END_OF_TEXT).then_some(GPT2_END_OF_TEXT);
        shape.end_of_text = data.train.end_of_text().map(i64::from).or(assumed);
        LanguageModel::initialise(shape, config.run.seed, device)
    };
    let Some(folder) = &config.checkpoint.init_from else { return fresh() };
    checkpoint::verify_model(folder)?;
    let given = model::load_folder(folder, device)?;
    require_shape(config, folder, given.config())?;
    ensure!(
        given.backpack().is_none_or(|backpack| backpack.edited().is_none()),
        "checkpoint.init_from {} has edited senses, which training would lose: start from the model before its edits",
        folder.display()
    );
    if given.config().architecture == config.model.architecture {
        return Ok(given);
    }
    let model = fresh()?;
    let grafted = model::graft_body(&model, &given);
    grafted.with_context(|| format!("the body cannot start from {}", folder.display()))?;
    Ok(model)
}

/// Refuses weights to start from that are not of `[model]`'s shape.
pub(crate) fn require_shape(config: &Config, folder: &Path, shape: &ModelConfig) -> Result<()> {
    // A Backpack's body may start from a GPT-2, of which more may differ: see `graft_body`.
    if (config.model.architecture, shape.architecture) == (model::Architecture::Backpack, model::Architecture::Gpt2) {
        return Ok(());
    }
    let same = config.model.require_same_shapes(shape);
    same.with_context(|| format!("checkpoint.init_from {} is not of [model]'s shape", folder.display()))
}
