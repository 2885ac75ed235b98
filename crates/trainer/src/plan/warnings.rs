//! Settings that can be meant, and seldom are.

use crate::config::Config;
use crate::optim::adamw::OptimizerConfig;
use crate::plan::RunPlan;

/// A warm-up of more than this share of the run: the published one is 5%.
const LONG_WARMUP: f64 = 0.25;
/// Validations that take more than this share of the whole computing.
const COSTLY_VALIDATION: f64 = 0.15;
/// Seconds of work that a crash may cost.
const LONG_WITHOUT_CHECKPOINT: f64 = 2.0 * 3_600.0;
/// Passes over the data after which more of them teach next to nothing (Muennighoff et al.,
/// "Scaling Data-Constrained Language Models", 2023: about 16).
const MANY_EPOCHS: f64 = 16.0;

/// A sentence for each setting that is likely a mistake.
pub(crate) fn warnings(config: &Config, forecast: &RunPlan) -> Vec<String> {
    let mut found = Vec::new();
    let schedule = &config.schedule;
    let warmup = schedule.warmup_steps as f64 / schedule.max_steps as f64;
    if warmup > LONG_WARMUP {
        found.push(format!(
            "schedule.warmup_steps {} is {:.0}% of schedule.max_steps {} (published: 5%): the peak rate is hardly used",
            schedule.warmup_steps,
            100.0 * warmup,
            schedule.max_steps
        ));
    }
    let published = (OptimizerConfig::default().learning_rate, 524_288);
    if config.optimizer.learning_rate == published.0 && config.batch.tokens_per_step != published.1 {
        found.push(format!(
            "batch.tokens_per_step is {}, and optimizer.learning_rate 6e-4 was chosen for 524288 a step: another batch wants another rate",
            config.batch.tokens_per_step
        ));
    }
    let (validation, checkpoint) = (&config.validation, &config.checkpoint);
    if let Some(share) = forecast.validation_share.filter(|share| *share > COSTLY_VALIDATION) {
        let more = if share > 0.5 { ", more than training" } else { "" };
        found.push(format!(
            "validation takes {:.0}% of the computing{more}: raise validation.every_steps or set validation.max_sequences",
            100.0 * share
        ));
    }
    if validation.every_steps > schedule.max_steps {
        found.push(format!(
            "validation.every_steps {} is more than schedule.max_steps {}: only the last step is validated (0 says so without this warning)",
            validation.every_steps, schedule.max_steps
        ));
    }
    let saves = |every: u64| every > 0 && every <= schedule.max_steps;
    if saves(checkpoint.every_steps) && saves(validation.every_steps) && checkpoint.keep_best > 0 {
        let both = lcm(checkpoint.every_steps, validation.every_steps);
        if both > schedule.max_steps {
            found.push(format!(
                "checkpoint.keep_best keeps none but the last: no step before is a multiple of both checkpoint.every_steps {} and validation.every_steps {}",
                checkpoint.every_steps, validation.every_steps
            ));
        }
    }
    let between = if saves(checkpoint.every_steps) { checkpoint.every_steps } else { schedule.max_steps };
    if let Some(seconds) = forecast.seconds_per_step.map(|step| step * between as f64)
        && seconds > LONG_WITHOUT_CHECKPOINT
        && checkpoint.every_minutes == 0
    {
        found.push(format!(
            "{between} steps pass between checkpoints, {:.1} hours of work that a crash costs: lower checkpoint.every_steps or set checkpoint.every_minutes",
            seconds / 3_600.0
        ));
    }
    if let Some(epochs) = forecast.epochs.filter(|epochs| *epochs > MANY_EPOCHS) {
        found.push(format!(
            "the run goes over its data {epochs:.0} times: the model will repeat it rather than learn from it; take more text or fewer steps"
        ));
    }
    if let (Some(total), needed) = (forecast.machine_memory, forecast.memory.total * forecast.local_processes)
        && needed > total
    {
        found.push(format!(
            "{:.1} GB are needed on this machine, which has {:.1}: lower batch.micro_batch_size",
            needed as f64 / 1e9,
            total as f64 / 1e9
        ));
    }
    if let Some(free) = forecast.free_disk.filter(|free| *free < forecast.disk.bytes) {
        found.push(format!(
            "checkpoints need {:.1} GB, and {:.1} are free where the run folder will be: make room, or keep fewer",
            forecast.disk.bytes as f64 / 1e9,
            free as f64 / 1e9
        ));
    }
    found
}

fn lcm(a: u64, b: u64) -> u64 {
    let gcd = |mut a: u64, mut b: u64| {
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    (a / gcd(a, b)).saturating_mul(b)
}
