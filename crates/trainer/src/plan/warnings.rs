//! Warnings about valid settings that are probably mistakes.

use crate::config::Config;
use crate::optim::adamw::OptimizerConfig;
use crate::plan::memory::gigabytes;

/// Longest warm-up without a warning, as a fraction of the run. The published run has 5%.
const LONG_WARMUP: f64 = 0.25;
/// Largest fraction of the computation that validation takes without a warning.
const COSTLY_VALIDATION: f64 = 0.15;
/// Longest interval in seconds between checkpoints without a warning.
const LONG_WITHOUT_CHECKPOINT: f64 = 2.0 * 3_600.0;
/// Largest number of epochs without a warning. More epochs bring little improvement (Muennighoff et
/// al., "Scaling Data-Constrained Language Models", 2023: about 16).
const MANY_EPOCHS: f64 = 16.0;

/// The estimates that warnings are based on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Estimates {
    /// Fraction of the computation that validation takes.
    pub(crate) validation_share: Option<f64>,
    /// Seconds per step.
    pub(crate) seconds_per_step: Option<f64>,
    /// Epochs of the run.
    pub(crate) epochs: Option<f64>,
    /// Bytes of memory that all processes need together.
    pub(crate) memory: u64,
    /// Bytes of memory that this machine has. `None` for a GPU.
    pub(crate) machine_memory: Option<u64>,
    /// Bytes of disk space that checkpoints need.
    pub(crate) disk: u64,
    /// Free bytes on the file system of the run directory.
    pub(crate) free_disk: Option<u64>,
}

/// Returns one sentence for each setting that is probably a mistake.
pub(crate) fn warnings(config: &Config, estimates: &Estimates) -> Vec<String> {
    let mut warnings = Vec::new();
    let schedule = &config.schedule;
    let warmup = schedule.warmup_steps as f64 / schedule.max_steps as f64;
    if warmup > LONG_WARMUP {
        warnings.push(format!(
            "schedule.warmup_steps {} is {:.0}% of schedule.max_steps {} (published run: 5%): few steps have the peak learning rate",
            schedule.warmup_steps,
            100.0 * warmup,
            schedule.max_steps
        ));
    }
    let published = (OptimizerConfig::default().learning_rate, 524_288);
    if config.optimizer.learning_rate == published.0 && config.batch.tokens_per_step != published.1 {
        warnings.push(format!(
            "batch.tokens_per_step is {}, but optimizer.learning_rate is 6e-4, which was chosen for 524288 tokens per step: adjust the learning rate",
            config.batch.tokens_per_step
        ));
    }
    let (validation, checkpoint) = (&config.validation, &config.checkpoint);
    if let Some(share) = estimates.validation_share.filter(|share| *share > COSTLY_VALIDATION) {
        let more = if share > 0.5 { ", more than training" } else { "" };
        warnings.push(format!(
            "validation takes {:.0}% of the computation{more}: raise validation.every_steps or set validation.max_sequences",
            100.0 * share
        ));
    }
    if validation.every_steps > schedule.max_steps {
        warnings.push(format!(
            "validation.every_steps {} is more than schedule.max_steps {}: only the last step is validated (0 has the same effect without this warning)",
            validation.every_steps, schedule.max_steps
        ));
    }
    let saves = |every: u64| every > 0 && every <= schedule.max_steps;
    if saves(checkpoint.every_steps) && saves(validation.every_steps) && checkpoint.keep_best > 0 {
        let both = lcm(checkpoint.every_steps, validation.every_steps);
        if both > schedule.max_steps {
            warnings.push(format!(
                "checkpoint.keep_best keeps only the last checkpoint: no earlier step is a multiple of both checkpoint.every_steps {} and validation.every_steps {}",
                checkpoint.every_steps, validation.every_steps
            ));
        }
    }
    let between = if saves(checkpoint.every_steps) { checkpoint.every_steps } else { schedule.max_steps };
    if let Some(seconds) = estimates.seconds_per_step.map(|step| step * between as f64)
        && seconds > LONG_WITHOUT_CHECKPOINT
        && checkpoint.every_minutes == 0
    {
        warnings.push(format!(
            "the interval between checkpoints is {between} steps, and a failure loses up to {:.1} hours of work: lower checkpoint.every_steps or set checkpoint.every_minutes",
            seconds / 3_600.0
        ));
    }
    if let Some(epochs) = estimates.epochs.filter(|epochs| *epochs > MANY_EPOCHS) {
        warnings.push(format!(
            "the run has {epochs:.0} epochs: the model will memorize the data; use more text or fewer steps"
        ));
    }
    if let Some(total) = estimates.machine_memory.filter(|total| estimates.memory > *total) {
        warnings.push(format!(
            "the run needs {:.1} GB of memory on this machine, which has {:.1} GB: lower batch.micro_batch_size",
            gigabytes(estimates.memory),
            gigabytes(total)
        ));
    }
    if let Some(free) = estimates.free_disk.filter(|free| *free < estimates.disk) {
        warnings.push(format!(
            "checkpoints need {:.1} GB, but {:.1} GB are free on the file system of the run directory: free disk space, or keep fewer checkpoints",
            gigabytes(estimates.disk),
            gigabytes(free)
        ));
    }
    warnings
}

/// Returns the least common multiple.
fn lcm(a: u64, b: u64) -> u64 {
    let gcd = |mut a: u64, mut b: u64| {
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    (a / gcd(a, b)).saturating_mul(b)
}
