// The fused operations of a training step on a CPU: each an autograd function over the
// kernels of ../kernels, with its products in libtorch. Activations are fp32 or bf16 (`kind`
// below); parameters come as fp32 masters, which receive fp32 gradients, and where kind is
// bf16 with a bf16 copy that the products read. Rows are tokens: N = B T.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "../kernels/table.h"

namespace ops {

using at::Tensor;

// A weight matrix: the parameter, and what products read (the parameter itself in fp32).
struct Weight {
  Tensor master;
  Tensor value;
};

// An fp32 weight [V, D] for several uses in one pass, and its rows `ids` [..]: [.., D]. The rows'
// gradients are added to the other uses' where it is.
Tensor tie(const Tensor& weight);
Tensor embedding(const Tensor& tied, const Tensor& ids);

// x W for a weight stored [in, out], or x W^T for one stored [out, in].
Tensor linear(const Tensor& x, const Weight& weight, bool transposed);

// gelu(x W1 + b1) W2, both weights [in, out]; the second bias is left to who adds the result.
Tensor mlp(const Tensor& x, const Weight& fc, const Tensor& fc_bias, const Weight& proj);

// The causal attention of qkv [N, 3 D] (without its bias): [N, D].
Tensor attention(const Tensor& qkv, const Tensor& bias, int64_t sequences, int64_t n_head, double scale,
                 double dropout);

// The pending branch onto the residual stream, and the sum normalised.
struct Normed {
  Tensor sum;     // [N, D] fp32; the stream itself where there is no branch
  Tensor normed;  // [N, D] of kind
};
Normed add_layer_norm(const Tensor& stream, const Tensor& branch, const Tensor& branch_bias, const Tensor& weight,
                      const Tensor& bias, double eps, double dropout, at::ScalarType kind);

// The Backpack's sum over senses: qk [N, 2 D] of the contextualisation (without its bias),
// senses [U, L D] of distinct words (without theirs), place [N] of each token's: [N, D].
Tensor mix_senses(const Tensor& qk, const Tensor& qk_bias, const Tensor& senses, const Tensor& senses_bias,
                  const Tensor& place, int64_t sequences, int64_t num_senses);

// Mean cross-entropy of hidden [N, D] times weight [V, D] transposed against targets [N],
// `chunk` rows of logits at a time; gradients are made in the forward pass.
Tensor linear_cross_entropy(const Tensor& hidden, const Weight& weight, const Tensor& targets, int64_t chunk);

// What an update tells: scalars on the parameters' device.
struct Update {
  Tensor norm;      // of the gradients before clipping, without the loss scale
  Tensor overflow;  // bool: the norm is no finite number
};

// AdamW over gradients scaled by min(1, max_norm / norm) / loss_scale, where the norm is the global
// one; `updates` (fp32 scalar) counts, for the bias correction. With a norm that is no finite
// number, or where `veto` (bool scalar) says so, nothing is changed. `loss_scale` and `veto` may be
// undefined.
Update clipped_adamw(const std::vector<Tensor>& params, const std::vector<Tensor>& grads,
                     const std::vector<Tensor>& exp_avgs, const std::vector<Tensor>& exp_avg_sqs,
                     const std::vector<Tensor>& copies, const std::vector<double>& weight_decays,
                     const Tensor& updates, const Tensor& loss_scale, const Tensor& veto, double max_norm, double lr,
                     double beta1, double beta2, double eps);

// Shared by the implementations.

// The kernels for elements of this type.
const TypedKernels& kernels_for(at::ScalarType kind);
void check_kind(const Tensor& t, const char* name);
// What made `x`, where that was add_layer_norm, else none; and its normed rows made again, bit
// for bit, so that the products over them need not keep them until the backward pass.
c10::IValue normed_by(const Tensor& x);
Tensor normed_again(const c10::IValue& source);
// Products into `out`, through oneDNN in either type.
void mm(const Tensor& out, const Tensor& a, const Tensor& b);
void bmm(const Tensor& out, const Tensor& a, const Tensor& b);
// The fp32 gradient a b of a weight, where a and b may be bf16.
Tensor weight_gradient(const Tensor& a, const Tensor& b);
// The mask that this seed stands for, and a seed from libtorch's generator (0 without dropout).
Dropout dropout_of(double probability, int64_t seed);
int64_t draw_seed(double probability);

// Rows first .. first + rows of a causal square of `length`, and the keys that they see. What
// lies above the diagonal is neither computed nor held, save inside a block.
struct CausalBlock {
  int64_t first, rows, keys;
  int64_t offset;  // of its elements, `depth` for each (row, key)
  int64_t end;     // of them
};
std::vector<CausalBlock> causal_blocks(int64_t length, int64_t depth);

// f(begin, end) over 0..n on all threads.
template <class F>
void parallel(int64_t n, int64_t grain, const F& f) {
  at::parallel_for(0, n, grain, f);
}

// Runs f(sums, begin, end) over 0..n, each thread with its own zeroed row of `width` sums;
// gives the rows' sum, in the threads' order.
template <class F>
Tensor parallel_sums(int64_t n, int64_t grain, int64_t width, const F& f) {
  const int64_t threads = at::get_num_threads();
  Tensor parts = at::zeros({threads, width}, at::kFloat);
  float* rows = parts.data_ptr<float>();
  at::parallel_for(0, n, grain, [&](int64_t begin, int64_t end) { f(rows + at::get_thread_num() * width, begin, end); });
  return threads == 1 ? parts.squeeze(0) : parts.sum(0);
}

// Tokens that are worth a thread.
constexpr int64_t ROW_GRAIN = 16;

}  // namespace ops
