//! The text of `backpack plan`.

use std::fmt;

use crate::plan::RunPlan;
use crate::plan::memory::gigabytes;
use crate::time::human_duration;

impl fmt::Display for RunPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "model       {} parameters", self.parameters)?;
        for part in &self.parameters_by_part {
            let share = 100.0 * part.parameters as f64 / self.parameters as f64;
            writeln!(f, "            {:>11}  {:4.1}%  {}", part.parameters, share, part.name)?;
        }
        writeln!(
            f,
            "step        {} tokens = {} sequences = {} x {} x {} (processes x accumulation x micro-batch)",
            self.tokens_per_step, self.sequences_per_step, self.processes, self.accumulation, self.micro_batch
        )?;
        write!(f, "run         {} steps, {} tokens", self.steps, self.tokens)?;
        match (self.epochs, self.train_tokens) {
            (Some(epochs), Some(tokens)) => writeln!(f, ", {epochs:.2} epochs of {tokens} tokens")?,
            _ => writeln!(
                f,
                "; the number of epochs is unknown: the data does not exist, and --train-tokens is not given"
            )?,
        }
        writeln!(f, "computing   {:.3e} FLOP = {:.1} MFLOP per token", self.flops, self.flops_per_token / 1e6)?;
        write!(f, "validation  {} times", self.validations)?;
        match self.validation_share {
            Some(share) => writeln!(f, ", {:.1}% of the computation", 100.0 * share)?,
            None => writeln!(f)?,
        }
        match (self.seconds, self.tokens_per_second, &self.cost) {
            (Some(seconds), Some(rate), Some(cost)) => {
                let hours = cost.describe(self.device == "cuda");
                writeln!(f, "time        {} at {rate:.0} tokens/s, {hours}", human_duration(seconds))?;
            }
            _ => writeln!(
                f,
                "time        unknown: use --tokens-per-second X, or --from-bench FILE with the output of `backpack bench --json`"
            )?,
        }
        let memory = &self.memory;
        writeln!(
            f,
            "memory      {:.2} GB per process on a {}: weights {:.2}, gradients {:.2}, optimizer {:.2}, activations {:.2}, logits {:.2}, copy for checkpoints {:.2}, other {:.2}",
            gigabytes(memory.total),
            if self.device == "cuda" { "GPU" } else { "CPU" },
            gigabytes(memory.weights),
            gigabytes(memory.gradients),
            gigabytes(memory.optimizer),
            gigabytes(memory.activations),
            gigabytes(memory.logits),
            gigabytes(memory.checkpoint),
            gigabytes(memory.overhead)
        )?;
        write!(
            f,
            "disk        {:.2} GB at most: {} checkpoints of {:.2}",
            gigabytes(self.disk.bytes),
            self.disk.max_checkpoints,
            gigabytes(self.disk.bytes_each)
        )?;
        for warning in &self.warnings {
            write!(f, "\nwarning     {warning}")?;
        }
        Ok(())
    }
}
