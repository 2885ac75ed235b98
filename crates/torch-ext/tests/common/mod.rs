//! Inputs and comparisons that the tests of the operations share.

use tch::{Kind, Tensor};
use torch_ext::MatmulWeight;

/// Returns pseudo-random values in -scale..scale, the same for every call with this shape.
pub(crate) fn random(shape: &[i64], scale: f64) -> Tensor {
    // All tests of the process share libtorch's generator, so it is not used.
    let n: i64 = shape.iter().product();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ (n as u64);
    let values: Vec<f32> = (0..n)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f32 / (1 << 23) as f32 - 1.0) * scale as f32
        })
        .collect();
    Tensor::from_slice(&values).view(shape)
}

/// Returns a copy that receives a gradient.
pub(crate) fn leaf(t: &Tensor) -> Tensor {
    t.detach().copy().set_requires_grad(true)
}

/// Returns the largest absolute difference, relative to the largest absolute value of `want`.
pub(crate) fn distance(got: &Tensor, want: &Tensor) -> f64 {
    assert_eq!(got.size(), want.size());
    let (got, want) = (got.to_kind(Kind::Double), want.to_kind(Kind::Double));
    let worst = (&got - &want).abs().max().double_value(&[]);
    worst / want.abs().max().double_value(&[]).max(1e-30)
}

/// Calls `f` with a weight whose operand is a copy of `master` in the type of `x`.
pub(crate) fn with_weight<R>(x: &Tensor, master: &Tensor, f: impl FnOnce(MatmulWeight<'_>) -> R) -> R {
    let operand = master.detach().to_kind(x.kind());
    f(MatmulWeight { master, operand: &operand })
}

/// Computes the sum of the outputs of all senses by definition.
pub(crate) fn sum_of_senses_by_definition(i: &[Tensor], sequences: i64, length: i64, num_senses: i64) -> Tensor {
    let width = i[0].size()[1] / 2;
    let channels = width / num_senses;
    let qk = (&i[0] + &i[1]).view([sequences, length, 2, num_senses, channels]).permute([2, 0, 3, 1, 4]);
    let scores = qk.get(0).matmul(&qk.get(1).transpose(2, 3)) * (channels as f64).powf(-0.5);
    let future = Tensor::ones([length, length], (Kind::Bool, i[0].device())).triu(1);
    let alpha = scores.masked_fill(&future, f64::NEG_INFINITY).softmax(-1, Kind::Float);
    let senses = (&i[2] + &i[3]).index_select(0, &i[4]).view([sequences, length, num_senses, width]);
    let outputs = alpha.matmul(&senses.permute([0, 2, 1, 3]));
    outputs.sum_dim_intlist(1, false, Kind::Float).view([sequences * length, width])
}
