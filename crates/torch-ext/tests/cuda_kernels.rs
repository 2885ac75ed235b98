//! Tests of the CUDA kernels and the operations that launch them. On a machine without a GPU, the
//! kernels run on the CPU by emulation, so that the same code is tested. `BACKPACK_TEST_DEVICE=cuda`
//! runs the tests on a GPU. Results and all gradients are compared with a composition of libtorch's
//! operations in fp32.
#![allow(clippy::unwrap_used)] // helpers of tests; clippy exempts only test functions

mod common;

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use common::{distance, leaf, random, sum_of_senses_by_definition, with_weight};
use tch::{Device, Kind, Tensor};
use torch_ext::cuda_kernels::{self, CudaKernel, Emulation};
use torch_ext::{LayerOutput, add_layer_norm, linear, linear_cross_entropy, mlp, weighted_sum_of_senses_on_gpu};

/// The tests run one by one, because one of them needs the CPU kernels, which the emulation of another
/// test would replace.
fn lock() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

fn device() -> Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    *DEVICE.get_or_init(|| match std::env::var("BACKPACK_TEST_DEVICE").as_deref() {
        Err(_) | Ok("cpu") => Device::Cpu,
        Ok("cuda") => {
            torch_ext::load_cuda().unwrap();
            Device::Cuda(0)
        }
        Ok(other) => panic!("BACKPACK_TEST_DEVICE is {other:?}: use \"cpu\" or \"cuda\""),
    })
}

fn is_on_gpu() -> bool {
    device().is_cuda()
}

/// Turns the emulation on if the tests run on a CPU.
fn emulation() -> Option<Emulation> {
    (!is_on_gpu()).then(Emulation::start)
}

#[track_caller]
fn require(kernel: CudaKernel) {
    assert!(cuda_kernels::is_available(kernel, device()), "{:?}", cuda_kernels::problems());
}

/// Compares the results and gradients of a composition in fp32 and of an operation that receives the
/// inputs of the indexes `low` in bf16.
#[track_caller]
fn compare(
    name: &str,
    inputs: &[Tensor],
    low: &[usize],
    tolerance: f64,
    reference: impl Fn(&[Tensor]) -> Tensor,
    fused: impl Fn(&[Tensor]) -> Tensor,
) {
    let cast = |i: usize, t: &Tensor| if low.contains(&i) { t.to_kind(Kind::BFloat16) } else { t.shallow_clone() };
    let prepare = |t: Tensor| if t.is_floating_point() { leaf(&t.to_device(device())) } else { t.to_device(device()) };
    // Both compute from the same rounded values.
    let a: Vec<Tensor> = inputs.iter().enumerate().map(|(i, t)| prepare(cast(i, t).to_kind(t.kind()))).collect();
    let b: Vec<Tensor> = inputs.iter().enumerate().map(|(i, t)| prepare(cast(i, t))).collect();
    let (want, got) = (reference(&a), fused(&b));
    let error = distance(&got, &want);
    assert!(error < tolerance, "{name}: the result differs by {error:.1e}");
    let direction = random(&want.size(), 1.0).to_device(device());
    (want * &direction).sum(Kind::Float).backward();
    (got.to_kind(Kind::Float) * &direction).sum(Kind::Float).backward();
    for (i, (x, y)) in a.iter().zip(&b).enumerate().filter(|(_, (x, _))| x.is_floating_point()) {
        assert_eq!(y.grad().kind(), y.kind());
        let error = distance(&y.grad(), &x.grad());
        assert!(error < tolerance, "{name}: the gradient of input {i} differs by {error:.1e}");
    }
}

/// The relative error of bf16 results, which have 8 bits.
const BF16: f64 = 1.5e-2;

#[test]
fn linear_with_a_bias() {
    let (_lock, _emulation) = (lock(), emulation());
    for (transposed, shape) in [(false, [48, 20]), (true, [20, 48])] {
        let inputs = [random(&[33, 48], 1.0), random(&shape, 0.5), random(&[20], 1.0)];
        compare(
            "linear",
            &inputs,
            &[0],
            BF16,
            |i| i[0].matmul(&if transposed { i[1].tr() } else { i[1].shallow_clone() }) + &i[2],
            |i| with_weight(&i[0], &i[1], |w| linear(&i[0], w, transposed, Some(&i[2]))).unwrap(),
        );
    }
}

#[test]
fn mlp_with_odd_widths() {
    let (_lock, _emulation) = (lock(), emulation());
    require(CudaKernel::BiasGelu);
    for (rows, width, inner) in [(1, 8, 1), (5, 6, 19), (40, 32, 128), (19, 16, 1_032)] {
        let inputs = [
            random(&[rows, width], 1.0),
            random(&[width, inner], 1.0),
            random(&[inner], 1.0),
            random(&[inner, width], 1.0),
        ];
        compare(
            "mlp",
            &inputs,
            &[0],
            BF16,
            |i| (i[0].matmul(&i[1]) + &i[2]).gelu("tanh").matmul(&i[3]),
            |i| with_weight(&i[0], &i[1], |fc| with_weight(&i[0], &i[3], |proj| mlp(&i[0], fc, &i[2], proj))).unwrap(),
        );
    }
}

#[test]
fn add_layer_norm_for_every_combination_of_types() {
    let (_lock, _emulation) = (lock(), emulation());
    for width in [5, 7, 32, 50, 384] {
        require(CudaKernel::AddLayerNorm { width });
        let inputs = [
            random(&[9, width], 2.0),
            random(&[9, width], 1.0),
            random(&[width], 1.0),
            random(&[width], 1.0),
            random(&[width], 0.5),
        ];
        let normalize = |x: &Tensor, i: &[Tensor]| {
            let normed = x.layer_norm([width], Some(&i[3]), Some(&i[4]), 1e-5, false);
            Tensor::cat(&[x.shallow_clone(), normed], 1)
        };
        for (output_kind, kind) in [
            (Kind::BFloat16, Kind::BFloat16),
            (Kind::BFloat16, Kind::Float),
            (Kind::Float, Kind::BFloat16),
            (Kind::Float, Kind::Float),
        ] {
            let low: &[usize] = if output_kind == Kind::BFloat16 { &[1] } else { &[] };
            let tolerance = if (output_kind, kind) == (Kind::Float, Kind::Float) { 1e-5 } else { BF16 };
            for has_bias in [true, false] {
                compare(
                    &format!("add_layer_norm of {output_kind:?} in {kind:?}, width {width}, bias {has_bias}"),
                    &inputs,
                    low,
                    tolerance,
                    // The unused bias has a gradient of zero.
                    |i| normalize(&(&i[0] + &i[1] + &i[2] * f64::from(u8::from(has_bias))), i),
                    |i| {
                        let bias = has_bias.then(|| i[2].shallow_clone());
                        let output = LayerOutput { value: i[1].shallow_clone(), bias };
                        let (sum, normed) =
                            add_layer_norm(&i[0], Some(&output), &i[3], &i[4], 1e-5, 0.0, kind).unwrap();
                        Tensor::cat(&[sum + &i[2] * 0.0, normed.to_kind(Kind::Float)], 1)
                    },
                );
            }
            compare(
                &format!("layer_norm in {kind:?}, width {width}"),
                &[inputs[0].copy(), inputs[3].copy(), inputs[4].copy()],
                &[],
                if kind == Kind::Float { 1e-5 } else { BF16 },
                |i| i[0].layer_norm([width], Some(&i[1]), Some(&i[2]), 1e-5, false),
                |i| add_layer_norm(&i[0], None, &i[1], &i[2], 1e-5, 0.0, kind).unwrap().1,
            );
        }
    }
}

/// The mask of a seed is the same in the CUDA kernel and in the CPU kernel, and in both passes.
#[test]
fn dropout_masks_equal_those_of_the_cpu_kernels() {
    let _lock = lock();
    let (rows, width, p) = (13, 64, 0.3);
    let run = |device: Device| {
        tch::manual_seed(5);
        let on = |t: Tensor| leaf(&t.to_device(device));
        let value = on(Tensor::ones([rows, width], (Kind::BFloat16, Device::Cpu)));
        let (stream, weight, bias) =
            (on(random(&[rows, width], 1.0)), on(random(&[width], 1.0)), on(random(&[width], 1.0)));
        let output = LayerOutput { value: value.shallow_clone(), bias: None };
        let (sum, normed) = add_layer_norm(&stream, Some(&output), &weight, &bias, 1e-5, p, Kind::BFloat16).unwrap();
        (sum.sum(Kind::Float) + normed.square().sum(Kind::Float)).backward();
        let mask = (&sum - &stream).gt(0.5).to_device(Device::Cpu);
        (mask, sum.to_device(Device::Cpu), value.grad().to_device(Device::Cpu))
    };
    let (mask, sum, gradient) = run(Device::Cpu);
    let kept = mask.to_kind(Kind::Float).mean(Kind::Float).double_value(&[]);
    assert!((kept - (1.0 - p)).abs() < 0.05, "{kept}");
    let _emulation = emulation();
    require(CudaKernel::AddLayerNorm { width });
    let (own_mask, own_sum, own_gradient) = run(device());
    assert!(own_mask == mask);
    assert!(own_sum == sum);
    assert!(own_gradient.not_equal(0.0).to_kind(Kind::Bool) == mask);
    assert!(distance(&own_gradient, &gradient) < BF16);
}

#[test]
fn linear_cross_entropy_for_every_chunk_and_vocabulary() {
    let (_lock, _emulation) = (lock(), emulation());
    for (rows, vocab_size, chunk) in [(10, 13, 3), (10, 141, 10), (9, 1_000, 4), (3, 5_024, 64), (2, 1, 1)] {
        require(CudaKernel::CrossEntropy { vocab_size });
        let targets = (Tensor::arange(rows, (Kind::Int64, Device::Cpu)) * 7).remainder(vocab_size);
        compare(
            &format!("linear_cross_entropy of {vocab_size}"),
            &[random(&[rows, 6], 1.0), random(&[vocab_size, 6], 1.0), targets],
            &[0],
            BF16,
            |i| i[0].matmul(&i[1].tr()).cross_entropy_for_logits(&i[2]) * 0.25,
            |i| with_weight(&i[0], &i[1], |w| linear_cross_entropy(&i[0], w, &i[2], chunk)).unwrap() * 0.25,
        );
    }
}

#[test]
fn a_nan_logit_makes_the_loss_nan() {
    let (_lock, _emulation) = (lock(), emulation());
    require(CudaKernel::CrossEntropy { vocab_size: 40 });
    let on = |t: Tensor| t.to_kind(Kind::BFloat16).to_device(device());
    let (hidden, weight) = (on(random(&[2, 3], 1.0)), on(random(&[40, 3], 1.0)));
    let _ = weight.get(7).fill_(f64::NAN);
    let targets = Tensor::zeros([2], (Kind::Int64, device()));
    let loss = with_weight(&hidden, &weight, |w| linear_cross_entropy(&hidden, w, &targets, 8)).unwrap();
    assert!(loss.double_value(&[]).is_nan());
}

#[test]
fn weighted_sum_of_senses_for_every_number_of_senses() {
    let (_lock, _emulation) = (lock(), emulation());
    let cases = [
        (1, 1, 1, 4), // all sizes 1
        (2, 9, 1, 24),
        (2, 37, 2, 13),  // odd length
        (2, 140, 4, 9),  // several causal blocks
        (2, 133, 16, 8), // the number of senses of the paper
        (1, 30, 3, 5),   // not a power of 2
        (1, 19, 20, 3),
        (1, 13, 64, 2),
    ];
    for (sequences, length, num_senses, channels) in cases {
        require(CudaKernel::SenseWeights { num_senses, length });
        let (width, tokens) = (num_senses * channels, sequences * length);
        let distinct = (tokens + 1) / 2;
        let rows = Tensor::arange(tokens, (Kind::Int64, Device::Cpu)).remainder(distinct);
        let inputs = |senses: i64| {
            [
                random(&[tokens, 2 * width], 1.5),
                random(&[2 * width], 0.5),
                random(&[senses, num_senses * width], 1.0),
                random(&[num_senses * width], 0.5),
            ]
        };
        let case = format!("weighted sum of {num_senses} x {channels} senses, T = {length}");
        let with_rows: Vec<Tensor> = inputs(distinct).into_iter().chain([rows]).collect();
        // Products, scores and gradients are each rounded to bf16.
        let tolerance = 2.0 * BF16;
        let biased = |i: &[Tensor]| (&i[0] + &i[1]).to_kind(Kind::BFloat16);
        compare(
            &format!("{case}, distinct tokens"),
            &with_rows,
            &[0, 2],
            tolerance,
            |i| sum_of_senses_by_definition(i, sequences, length, num_senses),
            |i| {
                let (qk, rows) = (biased(i), Some(&i[4]));
                weighted_sum_of_senses_on_gpu(&qk, &i[2], Some(&i[3]), rows, sequences, num_senses).unwrap()
            },
        );
        let all = Tensor::arange(tokens, (Kind::Int64, device()));
        compare(
            &format!("{case}, every token"),
            &inputs(tokens),
            &[0, 2],
            tolerance,
            |i| {
                let with_rows: Vec<Tensor> = i.iter().chain([&all]).map(Tensor::shallow_clone).collect();
                sum_of_senses_by_definition(&with_rows, sequences, length, num_senses)
            },
            |i| {
                let senses = (&i[2] + &i[3]).to_kind(Kind::BFloat16);
                weighted_sum_of_senses_on_gpu(&biased(i), &senses, None, None, sequences, num_senses).unwrap()
            },
        );
    }
}

#[test]
fn a_kernel_that_is_not_loaded_is_an_error() {
    let (_lock, _emulation) = (lock(), emulation());
    let x = random(&[4, 66], 1.0).to_device(device());
    let (w, b) = (x.get(0), x.get(1));
    let error = add_layer_norm(&x, None, &w, &b, 1e-5, 0.0, Kind::Float).unwrap_err().to_string();
    assert!(error.contains("the CUDA kernel add_layer_norm is not loaded for shape [66]"), "{error}");
}
