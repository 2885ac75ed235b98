//! The number of operations of a forward and a backward pass with the CUDA kernels, counted without a
//! GPU: the kernels run by emulation on the CPU, and libtorch reports what it dispatches. Some
//! operations of libtorch are therefore those of a CPU. The number must not grow unnoticed, because
//! each operation reads and writes memory, and the host needs time to queue it.
#![allow(clippy::unwrap_used)] // helpers of tests; clippy exempts only test functions

use std::collections::BTreeMap;

use model::{ForwardOptions, HostBatch, LanguageModel, ModelConfig};
use tch::{Device, Kind};
use torch_ext::cuda_kernels::{self, Emulation};
use torch_ext::{OperationCount, count_operations};

const WIDTH: i64 = 32;
const LENGTH: i64 = 16;

/// Counts the operations of a forward and a backward pass that add to existing gradients.
fn operations(n_layer: i64, sequences: i64) -> Vec<OperationCount> {
    let config = ModelConfig {
        vocab_size: 64,
        n_embd: WIDTH,
        n_head: 2,
        num_senses: 4,
        n_positions: LENGTH,
        n_layer,
        ..ModelConfig::default()
    };
    let options = ForwardOptions { kind: Kind::BFloat16, ..ForwardOptions::evaluation() };
    let model = LanguageModel::initialize(config, 1, Device::Cpu).unwrap().with_low_precision_copies(options);
    let rows: Vec<i64> = (0..sequences * (LENGTH + 1)).map(|i| i % 60).collect();
    let batch = HostBatch::new(rows, LENGTH as usize, model.shares_senses(options));
    let pass = || {
        let (inputs, targets) = batch.to_device(Device::Cpu).unwrap();
        model.loss(inputs, &targets, options).unwrap().backward();
    };
    pass(); // compiles the kernels, and creates the gradients
    let ((), counts) = count_operations(pass).unwrap();
    assert!(cuda_kernels::problems().is_empty(), "{:?}", cuda_kernels::problems());
    counts
}

fn calls(counts: &[OperationCount]) -> BTreeMap<&str, i64> {
    counts.iter().map(|count| (count.name.as_str(), count.calls as i64)).collect()
}

/// The limits are the counts of 2026-11-28 with libtorch 2.13.0. If a change lowers a count, lower
/// the limit.
#[test]
fn a_pass_has_a_limited_number_of_operations() {
    const PER_BLOCK: i64 = 41;
    const OTHERS: i64 = 106;
    const BYTES_PER_TOKEN_AND_BLOCK: i64 = 194;
    let _emulation = Emulation::start();
    let (two, three) = (operations(2, 2), operations(3, 2));
    let total = |counts: &[OperationCount]| counts.iter().map(|count| count.calls as i64).sum::<i64>();
    let per_block = total(&three) - total(&two);
    let others = total(&two) - 2 * per_block;
    assert!(per_block <= PER_BLOCK, "{per_block} operations per block: {:?} and {:?}", calls(&two), calls(&three));
    assert!(others <= OTHERS, "{others} operations outside of the blocks: {:?}", calls(&two));
    // More sequences only make the operations larger.
    let more = operations(2, 4);
    assert_eq!(calls(&more), calls(&two));
    let bytes = |counts: &[OperationCount]| counts.iter().map(|count| count.bytes as i64).sum::<i64>();
    let per_token_and_block =
        (bytes(&operations(3, 4)) - bytes(&more) - bytes(&three) + bytes(&two)) / (2 * LENGTH) / WIDTH;
    assert!(
        per_token_and_block <= BYTES_PER_TOKEN_AND_BLOCK,
        "{per_token_and_block} bytes per token, block and column"
    );
}

/// The one result that the host reads is the gradient of the loss, and only if it is on the CPU.
#[test]
fn the_host_waits_for_no_result_on_a_gpu() {
    let _emulation = Emulation::start();
    let counts = operations(1, 2);
    let read: Vec<(&str, u64)> =
        counts.iter().filter(|c| c.is_read_by_host).map(|c| (c.name.as_str(), c.calls)).collect();
    assert_eq!(read, [("aten::_local_scalar_dense", 1)]);
}
