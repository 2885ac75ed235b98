//! A run's configuration: the TOML file's sections, each defined beside its user.

pub(crate) mod file;

use std::fmt;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use data_prep::DataConfig;
use model::{ForwardOptions, Kernels, ModelConfig};
use serde::{Deserialize, Serialize};

use crate::checkpoint::CheckpointConfig;
use crate::data::batch_reader::BatchConfig;
use crate::distributed::config::DistributedConfig;
use crate::logging::metrics::LoggingConfig;
use crate::optim::adamw::OptimizerConfig;
use crate::optim::lr_schedule::ScheduleConfig;
use crate::optim::step_guard::StepGuardConfig;
use crate::runtime::device::DeviceKind;

/// Type of matrix products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// bfloat16 products over fp32 weights: no loss scaler needed.
    Bf16,
    /// Everything in fp32.
    Fp32,
    /// fp16 products over fp32 weights, with a dynamic loss scale.
    Fp16,
}

impl Precision {
    /// libtorch's name for it.
    pub fn kind(self) -> tch::Kind {
        match self {
            Precision::Bf16 => tch::Kind::BFloat16,
            Precision::Fp32 => tch::Kind::Float,
            Precision::Fp16 => tch::Kind::Half,
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Precision::Bf16 => "bf16",
            Precision::Fp32 => "fp32",
            Precision::Fp16 => "fp16",
        })
    }
}

/// The `[run]` section.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RunConfig {
    /// Names the run folder, `runs/NAME`, and the plots.
    pub name: String,
    /// Seeds initialisation, data order and dropout.
    pub seed: u64,
    /// Type of matrix products.
    pub precision: Precision,
    /// Where to compute.
    pub device: DeviceKind,
    /// CPU threads of this process; 0 for physical cores / local ranks.
    pub threads: usize,
    /// Give each of several local ranks physical cores of its own.
    pub pin_threads: bool,
    /// Which implementation computes what both can.
    pub kernels: Kernels,
    /// With dropout and fused kernels: make the senses of a token that a micro-batch repeats
    /// once, its places sharing their dropout masks. Faster, and not quite the published run.
    pub share_sense_dropout: bool,
    /// Seconds without progress after which a process ends itself; 0 for never.
    pub watchdog_seconds: u64,
}

impl Default for RunConfig {
    fn default() -> Self {
        RunConfig {
            name: "backpack".to_owned(),
            seed: 1111, // the published run's
            precision: Precision::Bf16,
            device: DeviceKind::Auto,
            threads: 0,
            pin_threads: true,
            kernels: Kernels::default(),
            share_sense_dropout: false,
            watchdog_seconds: 1_800, // far above any pass, batch of a validation or checkpoint
        }
    }
}

/// The `[validation]` section.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ValidationConfig {
    /// Steps between validations; 0 for the last step alone.
    pub every_steps: u64,
    /// Validate on the first so many sequences; 0 for the whole split.
    pub max_sequences: u64,
}

impl Default for ValidationConfig {
    fn default() -> Self {
        // The published run: every 1,000 steps on the whole split.
        ValidationConfig { every_steps: 1_000, max_sequences: 0 }
    }
}

/// A whole configuration, defaults filled in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `[run]`
    #[serde(default)]
    pub run: RunConfig,
    /// `[model]`
    #[serde(default)]
    pub model: ModelConfig,
    /// `[data]`, the only section without a default: its path.
    pub data: DataConfig,
    /// `[optimizer]`
    #[serde(default)]
    pub optimizer: OptimizerConfig,
    /// `[step_guard]`
    #[serde(default)]
    pub step_guard: StepGuardConfig,
    /// `[schedule]`
    #[serde(default)]
    pub schedule: ScheduleConfig,
    /// `[batch]`
    #[serde(default)]
    pub batch: BatchConfig,
    /// `[validation]`
    #[serde(default)]
    pub validation: ValidationConfig,
    /// `[checkpoint]`
    #[serde(default)]
    pub checkpoint: CheckpointConfig,
    /// `[logging]`
    #[serde(default)]
    pub logging: LoggingConfig,
    /// `[distributed]`
    #[serde(default)]
    pub distributed: DistributedConfig,
}

impl Config {
    /// Every key with a value of its type: what a file may hold.
    pub(crate) fn example() -> Self {
        Config {
            run: RunConfig::default(),
            model: ModelConfig { n_inner: Some(3_072), sense_block_inner: Some(3_072), ..ModelConfig::default() },
            data: DataConfig {
                path: PathBuf::from("data/owt"),
                sequence_length: 512,
                order: data_prep::DataOrder::Shuffled,
            },
            optimizer: OptimizerConfig::default(),
            step_guard: StepGuardConfig::default(),
            schedule: ScheduleConfig::default(),
            batch: BatchConfig::default(),
            validation: ValidationConfig::default(),
            checkpoint: CheckpointConfig { init_from: Some(PathBuf::from("model")), ..CheckpointConfig::default() },
            logging: LoggingConfig::default(),
            distributed: DistributedConfig::default(),
        }
    }

    /// How a training pass is done.
    pub fn forward_options(&self) -> ForwardOptions {
        ForwardOptions {
            kind: self.run.precision.kind(),
            dropout: self.model.dropout,
            kernels: self.run.kernels,
            share_sense_dropout: self.run.share_sense_dropout,
        }
    }

    /// Refuses what cannot be meant, before anything starts.
    ///
    /// # Errors
    /// Naming the key.
    pub fn validate(&self) -> Result<()> {
        ensure!(
            !self.run.name.is_empty() && !self.run.name.contains(['/', '\0']) && !self.run.name.starts_with('.'),
            "run.name is \"{}\": it must be a plain folder name",
            self.run.name
        );
        self.model.validate().context("[model] makes no network")?;
        self.optimizer.validate()?;
        self.step_guard.validate()?;
        self.schedule.validate(self.optimizer.learning_rate)?;
        self.checkpoint.validate()?;
        self.logging.validate()?;
        self.distributed.validate()?;
        let (length, positions) = (self.data.sequence_length as i64, self.model.n_positions);
        ensure!(length > 0, "data.sequence_length is 0: a sequence needs at least one token");
        ensure!(
            length <= positions,
            "data.sequence_length {length} is more than model.n_positions {positions}: the model has no more positions"
        );
        Ok(())
    }
}
