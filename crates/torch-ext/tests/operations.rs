//! Tests of the fused operations: the results and all gradients are compared with a composition of
//! libtorch's operations and its autograd. The shapes include sizes that are not multiples of the
//! kernels' vectors and blocks.

mod common;

use common::{distance, leaf, random, sum_of_senses_by_definition, with_weight};
use tch::{Device, Kind, Tensor};
use torch_ext::{
    LayerOutput, MatmulWeight, add_layer_norm, attention, embedding, linear, linear_cross_entropy, mlp, share_gradient,
    weighted_sum_of_senses,
};

/// Compares the results and gradients of two implementations on the fp32 tensors `inputs`. The fused
/// one runs in fp32, and then with the inputs of the indexes `low` in bf16.
fn compare(
    name: &str,
    inputs: &[Tensor],
    low: &[usize],
    reference: impl Fn(&[Tensor]) -> Tensor,
    fused: impl Fn(&[Tensor]) -> Tensor,
) {
    for (kind, tolerance) in [(Kind::Float, 2e-5), (Kind::BFloat16, 2.5e-2)] {
        let cast = |i: usize, t: &Tensor| if low.contains(&i) { t.to_kind(kind) } else { t.shallow_clone() };
        // The reference computes in fp32 from the same rounded values.
        let rounded: Vec<Tensor> = inputs.iter().enumerate().map(|(i, t)| cast(i, t).to_kind(t.kind())).collect();
        let a: Vec<Tensor> = rounded.iter().map(|t| if t.kind() == Kind::Float { leaf(t) } else { t.copy() }).collect();
        let b: Vec<Tensor> = rounded
            .iter()
            .enumerate()
            .map(|(i, t)| if t.kind() == Kind::Float { leaf(&cast(i, t)) } else { t.copy() })
            .collect();
        let (want, got) = (reference(&a), fused(&b));
        let error = distance(&got, &want);
        assert!(error < tolerance, "{name} in {kind:?}: the result differs by {error:.1e}");
        let direction = random(&want.size(), 1.0);
        (want * &direction).sum(Kind::Float).backward();
        (got.to_kind(Kind::Float) * &direction).sum(Kind::Float).backward();
        for (i, (x, y)) in a.iter().zip(&b).enumerate().filter(|(_, (x, _))| x.kind() == Kind::Float) {
            assert_eq!(y.grad().kind(), y.kind());
            let error = distance(&y.grad(), &x.grad());
            assert!(error < tolerance, "{name} in {kind:?}: the gradient of input {i} differs by {error:.1e}");
        }
    }
}

#[test]
fn linear_with_and_without_transposed_weight() {
    // A product of one row has a separate kernel.
    for (rows, inputs, outputs) in [(7, 5, 9), (33, 48, 16), (1, 37, 300), (1, 64, 129), (1, 3, 2)] {
        let x = random(&[rows, inputs], 1.0);
        for transposed in [false, true] {
            let shape = if transposed { [outputs, inputs] } else { [inputs, outputs] };
            compare(
                "linear",
                &[x.copy(), random(&shape, 0.5)],
                &[0],
                |i| i[0].matmul(&if transposed { i[1].tr() } else { i[1].shallow_clone() }),
                |i| with_weight(&i[0], &i[1], |w| linear(&i[0], w, transposed, None)).unwrap(),
            );
        }
    }
}

#[test]
fn mlp_with_odd_widths() {
    for (rows, width, inner) in [(5, 6, 19), (40, 32, 128)] {
        compare(
            "mlp",
            &[
                random(&[rows, width], 1.0),
                random(&[width, inner], 1.0),
                random(&[inner], 1.0),
                random(&[inner, width], 1.0),
            ],
            &[0],
            |i| (i[0].matmul(&i[1]) + &i[2]).gelu("tanh").matmul(&i[3]),
            |i| with_weight(&i[0], &i[1], |fc| with_weight(&i[0], &i[3], |proj| mlp(&i[0], fc, &i[2], proj))).unwrap(),
        );
    }
}

#[test]
fn gelu_of_extreme_values_is_finite() {
    let x = Tensor::from_slice(&[-1e4f32, -100.0, -10.0, 0.0, 10.0, 1e4]).view([6, 1]).set_requires_grad(true);
    let one = Tensor::ones([1, 1], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let w = MatmulWeight { master: &one, operand: &one };
    let y = mlp(&x, w, &Tensor::zeros([1], (Kind::Float, Device::Cpu)), w).unwrap();
    y.sum(Kind::Float).backward();
    assert!(distance(&y.view([6]), &x.view([6]).gelu("tanh")) < 1e-6);
    assert_eq!(x.grad().isfinite().all().int64_value(&[]), 1);
}

#[test]
fn add_layer_norm_with_and_without_a_layer_output() {
    for width in [1, 7, 16, 50] {
        let width = width.max(2);
        let inputs = [
            random(&[9, width], 2.0),
            random(&[9, width], 1.0),
            random(&[width], 1.0),
            random(&[width], 1.0),
            random(&[width], 0.5),
        ];
        let reference = |x: &Tensor, i: &[Tensor]| {
            let h = x.layer_norm([width], Some(&i[3]), Some(&i[4]), 1e-5, false);
            Tensor::cat(&[x.shallow_clone(), h], 1)
        };
        compare(
            "add_layer_norm",
            &inputs,
            &[1],
            |i| reference(&(&i[0] + &i[1] + &i[2]), i),
            |i| {
                let output = LayerOutput { value: i[1].shallow_clone(), bias: Some(i[2].shallow_clone()) };
                let (sum, h) = add_layer_norm(&i[0], Some(&output), &i[3], &i[4], 1e-5, 0.0, i[1].kind()).unwrap();
                Tensor::cat(&[sum, h.to_kind(Kind::Float)], 1)
            },
        );
        let (x, w, b) = (leaf(&inputs[0]), leaf(&inputs[3]), leaf(&inputs[4]));
        let (sum, h) = add_layer_norm(&x, None, &w, &b, 1e-5, 0.0, Kind::Float).unwrap();
        assert!(sum == x);
        h.square().sum(Kind::Float).backward();
        let (x2, w2, b2) = (leaf(&inputs[0]), leaf(&inputs[3]), leaf(&inputs[4]));
        x2.layer_norm([width], Some(&w2), Some(&b2), 1e-5, false).square().sum(Kind::Float).backward();
        for (got, want) in [(x, x2), (w, w2), (b, b2)] {
            assert!((got.grad() - want.grad()).abs().max().double_value(&[]) < 1e-4 * width as f64);
        }
    }
}

#[test]
fn attention_across_blocks() {
    // Lengths below, at and above the block size of 128 queries. Heads are narrower than a vector.
    for (sequences, length, heads, size) in [(2, 1, 1, 4), (3, 37, 2, 8), (1, 128, 2, 16), (2, 300, 3, 20)] {
        let width = heads * size;
        compare(
            "attention",
            &[random(&[sequences * length, 3 * width], 1.0), random(&[3 * width], 0.5)],
            &[0],
            |i| {
                let qkv = (&i[0] + &i[1]).view([sequences, length, 3, heads, size]).permute([2, 0, 3, 1, 4]);
                let scores = qkv.get(0).matmul(&qkv.get(1).transpose(2, 3)) * 0.3;
                let future = Tensor::ones([length, length], (Kind::Bool, Device::Cpu)).triu(1);
                let weights = scores.masked_fill(&future, f64::NEG_INFINITY).softmax(-1, Kind::Float);
                weights.matmul(&qkv.get(2)).transpose(1, 2).reshape([sequences * length, width])
            },
            |i| attention(&i[0], &i[1], sequences, heads, 0.3, 0.0).unwrap(),
        );
    }
}

#[test]
fn weighted_sum_of_senses_for_every_number_of_senses() {
    let cases = [
        (1, 1, 1, 4),   // all sizes 1
        (2, 9, 1, 24),  // a vector holds 16 positions
        (2, 37, 2, 13), // a vector holds 8 positions; 12 + 1 channels
        (1, 140, 4, 9), // more than one block
        (2, 21, 8, 4),
        (3, 133, 16, 24), // the number of senses of the paper
        (1, 30, 3, 5),    // not a divisor of 16
        (2, 11, 12, 4),
        (1, 19, 20, 3), // more than one vector
        (2, 18, 32, 5),
        (1, 13, 64, 2),
    ];
    for (sequences, length, num_senses, channels) in cases {
        let (width, tokens) = (num_senses * channels, sequences * length);
        let distinct = (tokens + 1) / 2;
        let rows = Tensor::arange(tokens, (Kind::Int64, Device::Cpu)).remainder(distinct);
        compare(
            &format!("weighted_sum_of_senses of {num_senses} x {channels}, T = {length}"),
            &[
                random(&[tokens, 2 * width], 1.5),
                random(&[2 * width], 0.5),
                random(&[distinct, num_senses * width], 1.0),
                random(&[num_senses * width], 0.5),
                rows,
            ],
            &[0, 2],
            |i| sum_of_senses_by_definition(i, sequences, length, num_senses),
            |i| weighted_sum_of_senses(&i[0], &i[1], &i[2], &i[3], &i[4], sequences, num_senses).unwrap(),
        );
    }
}

#[test]
fn linear_cross_entropy_for_every_chunk() {
    for (rows, vocabulary, chunk) in [(10, 13, 1), (10, 13, 3), (10, 141, 10), (64, 131, 48), (3, 64, 64)] {
        let targets = Tensor::arange(rows, (Kind::Int64, Device::Cpu)).remainder(vocabulary);
        compare(
            "linear_cross_entropy",
            &[random(&[rows, 6], 1.0), random(&[vocabulary, 6], 1.0), targets],
            &[0],
            |i| i[0].matmul(&i[1].tr()).cross_entropy_for_logits(&i[2]) * 0.25,
            |i| with_weight(&i[0], &i[1], |w| linear_cross_entropy(&i[0], w, &i[2], chunk)).unwrap() * 0.25,
        );
    }
}

#[test]
fn tied_embedding_gets_the_sum_of_all_gradients() {
    let ids = Tensor::from_slice(&[3i64, 0, 3, 11, 12, 3]);
    let scale_rows = |rows: &Tensor, ids: &Tensor| rows * (ids + 1).to_kind(Kind::Float).unsqueeze(-1);
    // The widths include rows with more columns than one thread processes. The embedding is used twice
    // as rows, with and without the head.
    for (width, head) in [(70, true), (3, true), (130, false)] {
        let first = ids.view([2, 3]);
        compare(
            "tied embedding",
            &[random(&[13, width], 1.0), ids.copy()],
            &[],
            |i| {
                let rows = scale_rows(&i[0].index_select(0, &i[1]), &i[1]);
                let more = i[0].index_select(0, &i[1].get(0).unsqueeze(0));
                let hidden = rows + more;
                if head { hidden.matmul(&i[0].tr()).cross_entropy_for_logits(&i[1]) } else { hidden }
            },
            |i| {
                let tied = share_gradient(&i[0]).unwrap();
                let rows = scale_rows(&embedding(&tied, &first).unwrap().view([6, width]), &i[1]);
                let more = embedding(&tied, &i[1].get(0).unsqueeze(0)).unwrap();
                let hidden = rows + more;
                let weight = MatmulWeight { master: &tied, operand: &i[0].detach() };
                if head { linear_cross_entropy(&hidden, weight, &i[1], 4).unwrap() } else { hidden }
            },
        );
    }
}

#[test]
fn tied_weight_works_without_gradients() {
    let w = leaf(&random(&[5, 4], 1.0));
    let ids = Tensor::from_slice(&[1i64]);
    assert!(embedding(&w, &ids).unwrap_err().to_string().contains("share_gradient"));
    let rows = tch::no_grad(|| embedding(&share_gradient(&w).unwrap(), &ids)).unwrap();
    assert!(!rows.requires_grad() && rows == w.get(1).unsqueeze(0));
    // The gradients of two backward passes are summed.
    for _ in 0..2 {
        embedding(&share_gradient(&w).unwrap(), &ids).unwrap().sum(Kind::Float).backward();
    }
    assert_eq!(w.grad().get(1), Tensor::from_slice(&[2f32; 4]));
    assert_eq!(w.grad().sum(Kind::Float).double_value(&[]), 8.0);
}

#[test]
fn linear_cross_entropy_is_equal_without_gradients() {
    let (h, w) = (random(&[10, 6], 1.0), leaf(&random(&[13, 6], 1.0)));
    let targets = Tensor::zeros([10], (Kind::Int64, Device::Cpu));
    let weight = MatmulWeight { master: &w, operand: &w };
    let with = linear_cross_entropy(&h, weight, &targets, 4).unwrap();
    let without = tch::no_grad(|| linear_cross_entropy(&h, weight, &targets, 4)).unwrap();
    assert!(with.requires_grad() && !without.requires_grad());
    assert_eq!(with.double_value(&[]), without.double_value(&[]));
}

#[test]
fn nan_logit_makes_the_loss_nan() {
    let h = random(&[2, 3], 1.0);
    let w = random(&[40, 3], 1.0);
    let _ = w.get(7).fill_(f64::NAN);
    let targets = Tensor::zeros([2], (Kind::Int64, Device::Cpu));
    let loss = linear_cross_entropy(&h, MatmulWeight { master: &w, operand: &w }, &targets, 8).unwrap();
    assert!(loss.double_value(&[]).is_nan());
}

#[test]
fn wrong_shapes_and_targets_are_errors_of_one_line() {
    let w = random(&[4, 3], 1.0);
    let weight = MatmulWeight { master: &w, operand: &w };
    let zero = Tensor::from_slice(&[0i64]);
    let text = linear_cross_entropy(&random(&[2, 3], 1.0), weight, &zero, 8).unwrap_err().to_string();
    assert!(text.starts_with("libtorch: linear_cross_entropy needs") && !text.contains('\n'), "{text}");
    let outside = Tensor::from_slice(&[0i64, 4]);
    let text = linear_cross_entropy(&random(&[2, 3], 1.0), weight, &outside, 8).unwrap_err().to_string();
    assert!(text.contains("target 4 at row 1 is outside the vocabulary of 4"), "{text}");
    let text = attention(&random(&[5, 12], 1.0), &random(&[12], 1.0), 2, 2, 1.0, 0.0).unwrap_err().to_string();
    assert!(text.contains("is not 2 sequences"), "{text}");
    let (qk, senses) = (random(&[4, 8], 1.0), random(&[1, 8], 1.0));
    let rows = Tensor::zeros([4], (Kind::Int64, Device::Cpu));
    let error = weighted_sum_of_senses(&qk, &random(&[8], 1.0), &senses, &random(&[8], 1.0), &rows, 1, 3).unwrap_err();
    assert!(error.to_string().contains("do not make 1 sequences with 3 senses"), "{error}");
}

/// Dropout keeps the expected fraction, scales it, and uses the same mask in the backward pass.
#[test]
fn dropout_mask_is_equal_in_both_passes() {
    let (rows, width, p) = (64, 100, 0.3);
    let zero = Tensor::zeros([rows, width], (Kind::Float, Device::Cpu));
    let value = leaf(&zero.ones_like());
    let (w, b) = (leaf(&Tensor::ones([width], (Kind::Float, Device::Cpu))), leaf(&zero.get(0)));
    let output = LayerOutput { value: value.shallow_clone(), bias: None };
    let (sum, _) = add_layer_norm(&zero, Some(&output), &w, &b, 1e-5, p, Kind::Float).unwrap();
    let kept = sum.gt(0.0).to_kind(Kind::Float).mean(Kind::Float).double_value(&[]);
    assert!((kept - (1.0 - p)).abs() < 0.03, "{kept}");
    assert!((sum.max().double_value(&[]) - 1.0 / (1.0 - p)).abs() < 1e-5);
    sum.sum(Kind::Float).backward();
    assert!(value.grad() == sum);

    // Attention: all values are 1, so without dropout each output would be 1.
    let (sequences, size) = (2, 16); // of 150 tokens
    let qkv = leaf(&Tensor::cat(&[random(&[300, 32], 1.0), Tensor::ones([300, 16], (Kind::Float, Device::Cpu))], 1));
    let bias = leaf(&Tensor::zeros([48], (Kind::Float, Device::Cpu)));
    let y = attention(&qkv, &bias, sequences, 1, 0.25, p).unwrap();
    assert!((y.mean(Kind::Float).double_value(&[]) - 1.0).abs() < 0.05);
    assert!(y.std(true).double_value(&[]) > 0.01);
    // y is linear in the values. With the same mask, the gradient of its sum gives the sum again.
    y.sum(Kind::Float).backward();
    let sum = (qkv.grad() * &qkv).narrow(1, 2 * size, size).sum(Kind::Double).double_value(&[]);
    assert!((sum - y.sum(Kind::Double).double_value(&[])).abs() < 1e-2, "{sum}");
}

/// Runs all tests above with the kernels of the other instruction sets. Each set needs a process,
/// because a process selects the kernels once.
#[test]
fn kernels_of_other_instruction_sets_agree() {
    if std::env::var_os("BACKPACK_CPU").is_some() {
        return; // such a process does not start others
    }
    let program = std::env::current_exe().unwrap();
    for set in ["avx2", "baseline"] {
        let output = std::process::Command::new(&program).env("BACKPACK_CPU", set).output().unwrap();
        assert!(output.status.success(), "{set}: {}", String::from_utf8_lossy(&output.stdout));
    }
}

/// `BACKPACK_CPU` selects an instruction set if the CPU supports it.
#[test]
fn named_kernels_are_selected() {
    let kernels = torch_ext::build_info().unwrap().kernels;
    match std::env::var("BACKPACK_CPU").as_deref() {
        Ok("baseline") => assert_eq!(kernels, "baseline"),
        Ok("avx2") => assert!(["avx2", "baseline"].contains(&kernels.as_str()), "{kernels}"),
        _ => assert!(["avx512", "avx2", "baseline"].contains(&kernels.as_str()), "{kernels}"),
    }
}
