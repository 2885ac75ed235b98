//! The search for the largest useful micro-batch that fits into GPU memory (`batch.micro_batch_size
//! = "auto"`), by forward and backward passes before the first step.

use std::panic::{self, AssertUnwindSafe};

use anyhow::{Result, anyhow};
use model::{LanguageModel, derive_seed};
use tch::{Device, Kind, Tensor};
use torch_ext::{cuda_memory, profiler};

use crate::config::Config;
use crate::data::batch::{BatchConfig, MicroBatchSize};
use crate::distributed::collectives::Collectives;
use crate::optim::adamw::Optimizer;
use crate::runtime::watchdog::Watchdog;

/// Fraction of the GPU memory that an attempt leaves free, for fragmentation and for communication
/// buffers other than the copy of the gradients.
const HEADROOM: f64 = 0.05;

/// Largest number of tokens of an automatic micro-batch on a GPU. For the small model, 128 sequences
/// of 512 tokens are predicted to give 2% more throughput than 64, for twice the memory. Larger
/// micro-batches give less, and a longer search.
const MAX_SEARCHED_TOKENS: u64 = 65_536;

/// The inputs of an attempt.
pub(crate) struct FitAttempt<'a> {
    pub(crate) config: &'a Config,
    pub(crate) model: &'a LanguageModel,
    pub(crate) optimizer: &'a Optimizer,
    pub(crate) device: Device,
    pub(crate) watchdog: &'a Watchdog,
}

/// Returns the batch configuration with the largest micro-batch of at most [`MAX_SEARCHED_TOKENS`]
/// that fits on every rank. Returns it unchanged on a CPU and if the size is configured. Collective.
///
/// # Errors
/// A single sequence does not fit, or a pass fails for another reason.
pub(crate) fn find_micro_batch(attempt: &FitAttempt<'_>, collectives: &Collectives) -> Result<BatchConfig> {
    let batch = attempt.config.batch.clone();
    if batch.micro_batch_size != MicroBatchSize::Auto || attempt.device == Device::Cpu {
        return Ok(batch);
    }
    let sequence_length = attempt.config.data.sequence_length as u64;
    let layout = batch.layout(sequence_length, collectives.size())?;
    let per_rank = layout.micro_batch * layout.accumulation;
    let mut smaller_fitted = false;
    let largest = largest_that_fits(per_rank, max_searched_sequences(sequence_length), |n| {
        attempt.watchdog.progress("searching for the largest micro-batch");
        let fits = attempt.fits(n, n < per_rank, collectives.size() > 1, smaller_fitted)?;
        smaller_fitted |= fits;
        Ok(fits)
    });
    // The attempts leave free blocks of other sizes than those of a step.
    cuda_memory::empty_cache(attempt.device)?;
    let largest = largest.and_then(|largest| {
        largest.ok_or_else(|| {
            anyhow!(
                "a single sequence of {sequence_length} tokens does not fit on the GPU: use a smaller model, shorter sequences, or a GPU with more memory"
            )
        })
    });
    let smallest = collectives.min(collectives.try_all(largest)?)?;
    Ok(BatchConfig { micro_batch_size: MicroBatchSize::Sequences(smallest), ..batch })
}

impl FitAttempt<'_> {
    /// Returns whether passes over `n` sequences fit into the free memory, with gradient
    /// accumulation if `accumulates`, and with a reduction over ranks if `reduces`. `smaller_fitted`
    /// is whether fewer sequences have fitted. Changes neither weights nor moments.
    fn fits(&self, n: u64, accumulates: bool, reduces: bool, smaller_fitted: bool) -> Result<bool> {
        let parameters = self.model.config().num_parameters();
        let total = cuda_memory::device_memory(self.device)?.map_or(0, |memory| memory.total);
        // With several ranks, the buckets of the Reducer hold a second copy of the gradients.
        let reserved_bytes = (HEADROOM * total as f64) as i64 + if reduces { 4 * parameters } else { 0 };
        let fitted = within_memory(smaller_fitted, || {
            let _reserved = Tensor::f_empty([reserved_bytes], (Kind::Uint8, self.device))?;
            for i in 0..if accumulates { 2 } else { 1 } {
                self.run_micro_batch(n, i)?;
            }
            Ok(())
        });
        self.optimizer.zero_grad()?;
        fitted
    }

    /// Runs forward and backward over as many distinct ids as possible.
    fn run_micro_batch(&self, n: u64, i: u64) -> Result<()> {
        let Config { data, run, model, .. } = self.config;
        let (rows, length) = (n as i64, data.sequence_length as i64);
        let ids = Tensor::f_arange(rows * length, (Kind::Int64, self.device))?.f_remainder(model.vocab_size)?;
        let ids = ids.f_view([rows, length])?;
        tch::manual_seed(derive_seed(run.seed, &[i]) as i64);
        self.model.loss(&ids, &ids, self.config.forward_options())?.f_backward().map_err(torch_ext::Error::from)?;
        Ok(profiler::synchronize()?)
    }
}

/// Runs `work` and returns whether it had enough memory. libtorch's message distinguishes a lack of
/// memory from other failures; some methods of tch panic with this message. `smaller_fitted` is
/// whether less work of this kind has succeeded.
///
/// # Errors
/// `work` fails for another reason.
fn within_memory(smaller_fitted: bool, work: impl FnOnce() -> Result<()>) -> Result<bool> {
    // The program's panic hook would print the panic and exit.
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| ()));
    let outcome = panic::catch_unwind(AssertUnwindSafe(work));
    panic::set_hook(hook);
    let error = match outcome {
        Ok(Ok(())) => return Ok(true),
        Ok(Err(error)) => error,
        Err(payload) => {
            anyhow!("a forward or backward pass failed: {}", torch_ext::panic_text(payload.as_ref()))
        }
    };
    if is_out_of_memory(&format!("{error:#}"), smaller_fitted) { Ok(false) } else { Err(error) }
}

/// Returns whether an error message reports a lack of memory. Without memory for their workspaces,
/// cuBLAS and cuDNN can also report other failures. After `smaller_fitted`, no other cause is likely.
fn is_out_of_memory(message: &str, smaller_fitted: bool) -> bool {
    let any = |parts: &[&str]| parts.iter().any(|part| message.contains(part));
    any(&["out of memory", "STATUS_ALLOC_FAILED"]) || (smaller_fitted && any(&["CUBLAS_STATUS_", "CUDNN_STATUS_"]))
}

/// Returns the largest number of sequences of this length that the search tries.
fn max_searched_sequences(sequence_length: u64) -> u64 {
    (MAX_SEARCHED_TOKENS / sequence_length).max(1)
}

/// Returns the largest divisor of `all` that is at most `max` and fits, or `None` if 1 does not fit.
/// Assumes that no divisor fits that is larger than one that does not. The search about doubles the
/// divisor until one does not fit, and then bisects.
///
/// # Errors
/// `fits` fails.
fn largest_that_fits(all: u64, max: u64, mut fits: impl FnMut(u64) -> Result<bool>) -> Result<Option<u64>> {
    let divisors: Vec<u64> = (1..=all.min(max)).filter(|n| all.is_multiple_of(*n)).collect();
    // Indices: `good` - 1 is the largest known to fit, `bad` the smallest known not to fit.
    let (mut good, mut bad) = (0, divisors.len());
    while good < bad {
        let twice = good.checked_sub(1).map_or(1, |best| 2 * divisors[best]);
        let next = if bad == divisors.len() {
            // The largest divisor of at most twice the best so far, or the next one.
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

    /// Returns the attempts and the result if at most `capacity` sequences fit.
    fn search(all: u64, capacity: u64) -> (Vec<u64>, Option<u64>) {
        search_up_to(all, u64::MAX, capacity)
    }

    /// Returns the attempts and the result if at most `max` sequences are tried.
    fn search_up_to(all: u64, max: u64, capacity: u64) -> (Vec<u64>, Option<u64>) {
        let mut tried = Vec::new();
        let found = largest_that_fits(all, max, |n| {
            tried.push(n);
            Ok(n <= capacity)
        });
        (tried, found.unwrap())
    }

    #[test]
    fn search_doubles_until_one_does_not_fit() {
        assert_eq!(search(256, 40), (vec![1, 2, 4, 8, 16, 32, 64], Some(32)));
        assert_eq!(search(8, 100), (vec![1, 2, 4, 8], Some(8)));
        assert_eq!(search(1, 1), (vec![1], Some(1)));
        assert_eq!(search(12, 0), (vec![1], None));
    }

    #[test]
    fn search_bisects_after_the_first_failure() {
        // Divisors of 360: 1 2 3 4 5 6 8 9 10 12 15 18 20 24 30 36 40 45 60 ...
        assert_eq!(search(360, 23), (vec![1, 2, 4, 8, 15, 30, 20, 24], Some(20)));
        // A prime has no divisor between 1 and itself.
        assert_eq!(search(97, 50), (vec![1, 97], Some(1)));
    }

    #[test]
    fn search_stops_at_the_maximum_number_of_tokens() {
        assert_eq!(max_searched_sequences(512), 128);
        assert_eq!(max_searched_sequences(1_024), 64);
        assert_eq!(max_searched_sequences(1_000), 65);
        // A longer sequence is tried, because a micro-batch has at least one.
        assert_eq!(max_searched_sequences(65_537), 1);
        let max = max_searched_sequences(512);
        assert_eq!(search_up_to(1_024, max, 1_024), (vec![1, 2, 4, 8, 16, 32, 64, 128], Some(128)));
        assert_eq!(search_up_to(1_024, max, 64), (vec![1, 2, 4, 8, 16, 32, 64, 128], Some(64)));
        // The largest divisor of 360 up to 128 is 120.
        assert_eq!(search_up_to(360, max, 360).1, Some(120));
    }

    proptest! {
        #[test]
        fn search_finds_the_largest_divisor_that_fits(
            all in 1u64..3_000,
            max in 1u64..4_000,
            capacity in 0u64..4_000,
        ) {
            let (tried, found) = search_up_to(all, max, capacity);
            prop_assert_eq!(found, (1..=capacity.min(all).min(max)).rev().find(|n| all % n == 0));
            prop_assert!(tried.iter().all(|n| *n <= max));
            // No attempt is repeated, and there are few: a failing one may take long.
            let mut sorted = tried.clone();
            sorted.sort_unstable();
            sorted.dedup();
            prop_assert_eq!(sorted.len(), tried.len());
            prop_assert!(tried.len() <= 24);
        }
    }

    #[test]
    fn out_of_memory_is_distinguished_from_other_failures() {
        assert!(within_memory(false, || Ok(())).unwrap());
        assert!(!within_memory(false, || Err(anyhow!("CUDA out of memory. Tried to allocate 2.00 GiB"))).unwrap());
        assert!(!within_memory(false, || panic!("called `Result::unwrap()`: Torch(\"CUDA out of memory.\")")).unwrap());
        assert!(
            within_memory(false, || Err(anyhow!("no kernel image"))).unwrap_err().to_string().contains("no kernel")
        );
        let error = within_memory(false, || panic!("shapes differ")).unwrap_err().to_string();
        assert_eq!(error, "a forward or backward pass failed: shapes differ");
        let failed = "CUDA error: CUBLAS_STATUS_INTERNAL_ERROR when calling `cublasGemmEx`";
        assert!(!within_memory(true, || Err(anyhow!(failed))).unwrap());
        assert!(within_memory(false, || Err(anyhow!(failed))).is_err());
        assert!(!within_memory(false, || Err(anyhow!("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"))).unwrap());
    }
}
