//! Checks before a run starts. They write nothing.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use model::{Architecture, ModelConfig};

use crate::checkpoint::checkpoint_dir::CheckpointDir;
use crate::config::Config;
use crate::data::DataSplits;
use crate::distributed::world::World;
use crate::train::options::TrainOptions;
use crate::train::summary::RunSummary;

/// Opens the data and checks that the batch divides. Rank 0 checks the initial weights too, and in
/// a dry run every rank does.
///
/// # Errors
/// The data, the batch or the initial weights do not fit the configuration.
pub(crate) fn check_inputs(
    config: &Config,
    options: &TrainOptions,
    checkpoints: &CheckpointDir,
) -> Result<(DataSplits, RunSummary)> {
    let data = DataSplits::open(&config.data, config.model.vocab_size as usize, config.run.seed)?;
    if options.dry_run || options.world.rank == 0 {
        check_init_from(config, checkpoints)?;
    }
    let summary = RunSummary::new(config, &config.model, data.sequences_per_epoch, options.world.size as u64)?;
    Ok((data, summary))
}

/// Returns all values that must be equal on all ranks, by name: every configuration key except those
/// that may differ between machines, the data and the versions.
///
/// # Errors
/// The version of libtorch cannot be read.
pub(crate) fn shared_settings(config: &Config, world: &World, data: &DataSplits) -> Result<BTreeMap<String, String>> {
    const PER_MACHINE: [&str; 2] = ["run.threads", "run.pin_threads"];
    let mut settings = BTreeMap::from([
        ("the program's version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ("the libtorch version".to_owned(), torch_ext::build_info()?.version),
        ("the launch id".to_owned(), world.launch_id.clone()),
        ("the data's manifest".to_owned(), data.train.manifest_sha256().unwrap_or("none").to_owned()),
        ("the number of training tokens".to_owned(), data.train.num_tokens().to_string()),
        ("the number of validation tokens".to_owned(), data.val.num_tokens().to_string()),
    ]);
    let resolved = serde_json::to_value(config)?;
    for (section, keys) in resolved.as_object().into_iter().flatten() {
        for (key, value) in keys.as_object().into_iter().flatten() {
            settings.insert(format!("{section}.{key}"), value.to_string());
        }
    }
    settings.retain(|key, _| !PER_MACHINE.contains(&key.as_str()));
    Ok(settings)
}

/// Checks the shape of the weights that a new run would start from, without loading them.
fn check_init_from(config: &Config, checkpoints: &CheckpointDir) -> Result<()> {
    match &config.checkpoint.init_from {
        Some(path) if checkpoints.list()?.is_empty() => {
            require_shape(config, path, &model::load_config(path).context("checkpoint.init_from")?)
        }
        _ => Ok(()),
    }
}

/// Checks that initial weights have the shape of `[model]`.
///
/// # Errors
/// The shapes differ.
pub(crate) fn require_shape(config: &Config, path: &Path, shape: &ModelConfig) -> Result<()> {
    // The trunk of a Backpack may start from a GPT-2, whose shape may differ more. It is
    // checked when the weights are copied.
    if (config.model.architecture, shape.architecture) == (Architecture::Backpack, Architecture::Gpt2) {
        return Ok(());
    }
    let same = config.model.require_same_shapes(shape);
    same.with_context(|| format!("checkpoint.init_from {} is not of [model]'s shape", path.display()))
}
