//! The configuration of a run, assembled from all sections of the TOML file.
//!
//! The struct of a section is defined next to the code that it configures.

pub(crate) mod file;

use std::fmt;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use data_prep::DataConfig;
use model::{ForwardOptions, Kernels, ModelConfig};
use serde::{Deserialize, Serialize};

use crate::checkpoint::config::CheckpointConfig;
use crate::data::batch::BatchConfig;
use crate::distributed::config::DistributedConfig;
use crate::logging::metrics::LoggingConfig;
use crate::optim::adamw::OptimizerConfig;
use crate::optim::lr_schedule::ScheduleConfig;
use crate::optim::step_guard::StepGuardConfig;
use crate::runtime::device::DeviceKind;

/// The type of matrix products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// bfloat16 products with fp32 weights. It needs no loss scale.
    Bf16,
    /// fp32 products.
    Fp32,
    /// fp16 products with fp32 weights and a dynamic loss scale.
    Fp16,
}

impl Precision {
    /// Returns the type in libtorch.
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

/// The `[run]` section: name, seed, precision, device and kernels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RunConfig {
    /// Name of the run directory, `runs/NAME`.
    pub name: String,
    /// Seed of the initialization, the data order and dropout.
    pub seed: u64,
    /// Type of matrix products.
    pub precision: Precision,
    /// Device that computes.
    pub device: DeviceKind,
    /// CPU threads per process. 0: physical cores divided by local ranks.
    pub threads: usize,
    /// Pins each local rank to different physical cores.
    pub pin_threads: bool,
    /// Implementation of the operations.
    pub kernels: Kernels,
    /// Shares dropout masks among repeated tokens of a micro-batch, so that their senses are
    /// computed once. It is faster, but not exactly the published run. It needs dropout and fused
    /// kernels.
    pub share_sense_dropout: bool,
    /// Seconds without progress after which a process exits. 0: never.
    pub watchdog_seconds: u64,
}

impl Default for RunConfig {
    fn default() -> Self {
        RunConfig {
            name: "backpack".to_owned(),
            seed: 1111, // published run
            precision: Precision::Bf16,
            device: DeviceKind::Auto,
            threads: 0,
            pin_threads: true,
            kernels: Kernels::default(),
            share_sense_dropout: false,
            watchdog_seconds: 1_800, // much longer than any micro-batch, validation batch or checkpoint
        }
    }
}

/// The `[validation]` section: interval and size of validations.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ValidationConfig {
    /// Interval between validations in steps. 0: only after the last step.
    pub every_steps: u64,
    /// Number of sequences used, from the start of the validation split. 0: the whole split.
    pub max_sequences: u64,
}

impl Default for ValidationConfig {
    fn default() -> Self {
        // The published run validates every 1,000 steps on the whole split.
        ValidationConfig { every_steps: 1_000, max_sequences: 0 }
    }
}

/// A complete configuration, including defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `[run]`
    #[serde(default)]
    pub run: RunConfig,
    /// `[model]`
    #[serde(default)]
    pub model: ModelConfig,
    /// `[data]`, whose path has no default.
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
    /// Returns a configuration in which every key has a value of its type. It serves as the schema
    /// of a file.
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

    /// Returns the options of a forward pass in training.
    pub fn forward_options(&self) -> ForwardOptions {
        ForwardOptions {
            kind: self.run.precision.kind(),
            dropout: self.model.dropout,
            kernels: self.run.kernels,
            share_sense_dropout: self.run.share_sense_dropout,
        }
    }

    /// Checks the values of all sections.
    ///
    /// # Errors
    /// Names the key whose value is invalid.
    pub fn validate(&self) -> Result<()> {
        ensure!(
            !self.run.name.is_empty() && !self.run.name.contains(['/', '\0']) && !self.run.name.starts_with('.'),
            "run.name is \"{}\": it must be a plain directory name",
            self.run.name
        );
        self.model.validate().context("invalid [model] section")?;
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
            "data.sequence_length {length} is more than model.n_positions {positions}: lower the length or raise n_positions"
        );
        Ok(())
    }
}
