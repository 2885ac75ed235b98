//! `batch.micro_batch_size = "auto"` on a GPU: the largest micro-batch that its memory holds, found by
//! trying passes before the first step.

use std::panic::{self, AssertUnwindSafe};

use anyhow::{Result, anyhow};
use model::{ForwardOptions, LanguageModel, derive_seed};
use tch::{Device, Kind, Tensor};
use torch_ext::profiler;

use crate::config::Config;
use crate::data::batch_reader::{BatchConfig, MicroBatch};
use crate::distributed::collectives::Collectives;
use crate::optim::adamw::Optimizer;
use crate::runtime::watchdog::Watchdog;

/// Share of the GPU that a trial leaves free: what the allocator cannot use for its cuts, and the
/// buffers of the exchange between ranks beside the gradients' copy.
const HEADROOM: f64 = 0.05;

/// What a trial is done with.
pub(crate) struct FitAttempt<'a> {
    pub(crate) config: &'a Config,
    pub(crate) model: &'a LanguageModel,
    pub(crate) optimizer: &'a Optimizer,
    pub(crate) device: Device,
    pub(crate) watchdog: &'a Watchdog,
}

/// The batch with a micro-batch of a number where it is to be found: on a GPU the largest that
/// fits on every rank; else as it is. All ranks call it.
///
/// # Errors
/// When not even one sequence fits, or a pass fails for another reason.
pub(crate) fn fit(trial: &FitAttempt<'_>, ranks: &Collectives) -> Result<BatchConfig> {
    let batch = trial.config.batch.clone();
    if batch.micro_batch_size != MicroBatch::Auto || trial.device == Device::Cpu {
        return Ok(batch);
    }
    let split = batch.split(trial.config.data.sequence_length as u64, ranks.size())?;
    let own = split.micro_batch * split.accumulation;
    let found = largest_that_fits(own, |n| {
        trial.watchdog.progress("trying how large a micro-batch fits");
        trial.fits(n, n < own, ranks.size() > 1)
    });
    let found = found.and_then(|found| {
        found.ok_or_else(|| {
            anyhow!(
                "not even one sequence of {} tokens fits on the GPU: use a smaller model, shorter sequences, or a GPU with more memory",
                trial.config.data.sequence_length
            )
        })
    });
    let smallest = ranks.min(ranks.try_all(found)?)?;
    Ok(BatchConfig { micro_batch_size: MicroBatch::Sequences(smallest), ..batch })
}

impl FitAttempt<'_> {
    /// Whether passes over `n` sequences fit beside what there is for good. Weights and moments
    /// stay as they are.
    fn fits(&self, n: u64, accumulates: bool, reduces: bool) -> Result<bool> {
        let parameters = self.model.config().num_parameters();
        let total = profiler::device_memory(self.device)?.map_or(0, |memory| memory.total);
        // Where ranks exchange gradients, these lie in the Reducer's buckets a second time.
        let kept = (HEADROOM * total as f64) as i64 + if reduces { 4 * parameters } else { 0 };
        let fitted = within_memory(|| {
            let _kept = Tensor::f_empty([kept], (Kind::Uint8, self.device))?;
            for pass in 0..if accumulates { 2 } else { 1 } {
                self.pass(n, pass)?;
            }
            Ok(())
        });
        self.optimizer.zero_grad()?;
        fitted
    }

    /// Forward and backward over ids that differ as far as they can.
    fn pass(&self, n: u64, number: u64) -> Result<()> {
        let Config { data, run, model, .. } = self.config;
        let (rows, length) = (n as i64, data.sequence_length as i64);
        let ids = Tensor::f_arange(rows * length, (Kind::Int64, self.device))?.f_remainder(model.vocab_size)?;
        let ids = ids.f_view([rows, length])?;
        let pass: ForwardOptions = self.config.forward_options();
        tch::manual_seed(derive_seed(run.seed, &[number]) as i64);
        self.model.loss(&ids, &ids, pass)?.f_backward().map_err(torch_ext::Error::from)?;
        Ok(profiler::synchronise()?)
    }
}

/// Whether the work ends without a lack of memory, told apart from other failures by libtorch's
/// words. tch's short-hand methods panic with them.
fn within_memory(work: impl FnOnce() -> Result<()>) -> Result<bool> {
    // The program's own hook would report the panic and end the process.
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| ()));
    let outcome = panic::catch_unwind(AssertUnwindSafe(work));
    panic::set_hook(hook);
    let error = match outcome {
        Ok(Ok(())) => return Ok(true),
        Ok(Err(error)) => error,
        Err(payload) => {
            anyhow!("a trial pass failed: {}", torch_ext::panic_text(payload.as_ref()))
        }
    };
    if format!("{error:#}").contains("out of memory") { Ok(false) } else { Err(error) }
}

/// The largest divisor of `all` that fits, where what is larger than one that does not fit does
/// not either: about twice as large each time until one does not, then by halves between. `None`
/// when not even 1 fits.
///
/// # Errors
/// Those of `fits`.
pub(crate) fn largest_that_fits(all: u64, mut fits: impl FnMut(u64) -> Result<bool>) -> Result<Option<u64>> {
    let divisors: Vec<u64> = (1..=all).filter(|n| all.is_multiple_of(*n)).collect();
    // Places in the list: `good` is below the best that fits, `bad` at the first known not to.
    let (mut good, mut bad) = (0, divisors.len());
    while good < bad {
        let twice = good.checked_sub(1).map_or(1, |best| 2 * divisors[best]);
        let next = if bad == divisors.len() {
            // The largest of at most twice the best so far, or the next one.
            divisors.partition_point(|n| *n <= twice).saturating_sub(1).max(good)
        } else {
            good + (bad - good) / 2
        };
        if fits(divisors[next])? {
            good = next + 1;
        } else {
            bad = next;
        }
    }
    Ok(good.checked_sub(1).map(|best| divisors[best]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What was tried, and the result, where at most `room` fit.
    fn search(all: u64, room: u64) -> (Vec<u64>, Option<u64>) {
        let mut tried = Vec::new();
        let found = largest_that_fits(all, |n| {
            tried.push(n);
            Ok(n <= room)
        });
        (tried, found.unwrap())
    }

    #[test]
    fn it_doubles_until_one_does_not_fit() {
        assert_eq!(search(256, 40), (vec![1, 2, 4, 8, 16, 32, 64], Some(32)));
        assert_eq!(search(8, 100), (vec![1, 2, 4, 8], Some(8)));
        assert_eq!(search(1, 1), (vec![1], Some(1)));
        assert_eq!(search(12, 0), (vec![1], None));
    }

    #[test]
    fn it_halves_what_lies_between() {
        // Divisors of 360: 1 2 3 4 5 6 8 9 10 12 15 18 20 24 30 36 40 45 60 ...
        assert_eq!(search(360, 23), (vec![1, 2, 4, 8, 15, 30, 20, 24], Some(20)));
        // A prime has nothing between 1 and itself.
        assert_eq!(search(97, 50), (vec![1, 97], Some(1)));
    }

    proptest! {
        #[test]
        fn it_finds_the_largest_divisor_that_fits(all in 1u64..3_000, room in 0u64..4_000) {
            let (tried, found) = search(all, room);
            prop_assert_eq!(found, (1..=room.min(all)).rev().find(|n| all % n == 0));
            // Never far beyond what fits: a trial that fails may take long.
            let mut sorted = tried.clone();
            sorted.sort_unstable();
            sorted.dedup();
            prop_assert_eq!(sorted.len(), tried.len());
            prop_assert!(tried.len() <= 24);
        }
    }

    #[test]
    fn a_lack_of_memory_is_told_from_other_failures() {
        assert!(within_memory(|| Ok(())).unwrap());
        assert!(!within_memory(|| Err(anyhow!("CUDA out of memory. Tried to allocate 2.00 GiB"))).unwrap());
        assert!(!within_memory(|| panic!("called `Result::unwrap()`: Torch(\"CUDA out of memory.\")")).unwrap());
        assert!(within_memory(|| Err(anyhow!("no kernel image"))).unwrap_err().to_string().contains("no kernel"));
        let error = within_memory(|| panic!("shapes differ")).unwrap_err().to_string();
        assert_eq!(error, "a trial pass failed: shapes differ");
    }
}
