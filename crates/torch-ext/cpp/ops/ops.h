// The fused operations of a training step. Each is an autograd function that uses the kernels in
// ../kernels on a CPU or those in ../../cuda on a GPU, and libtorch for matrix products. Activations
// are fp32 or bf16 (`kind` below), on a GPU bf16. Parameters are fp32 masters, which receive fp32
// gradients. If kind is bf16, the products read a bf16 copy of a parameter. Rows are tokens: N = B T.
//
// share_gradient, embedding and attention run on the CPU only. linear_cross_entropy and
// clipped_adamw run on any device, the former also in fp16.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "../kernels/table.h"

namespace ops {

using at::Tensor;

// A weight matrix: the parameter, and the tensor that products read (in fp32, the same tensor).
struct MatmulWeight {
  Tensor master;
  Tensor operand;
};

// share_gradient prepares an fp32 weight [V, D] for several uses in one forward pass. embedding
// returns its rows `ids` [..] as [.., D]. The gradients of the rows are added in place to the
// gradient of the other uses.
Tensor share_gradient(const Tensor& weight);
Tensor embedding(const Tensor& shared, const Tensor& ids);

// Returns x W for a weight stored as [in, out], or x W^T for one stored as [out, in]. `bias` [out]
// is added if it is defined.
Tensor linear(const Tensor& x, const MatmulWeight& weight, bool transposed, const Tensor& bias);

// Returns gelu(x W1 + b1) W2 for weights [in, out]. The caller adds the second bias.
Tensor mlp(const Tensor& x, const MatmulWeight& fc, const Tensor& fc_bias, const MatmulWeight& proj);

// Returns the causal attention [N, D] of qkv [N, 3 D], to which `bias` is added first.
Tensor attention(const Tensor& qkv, const Tensor& bias, int64_t sequences, int64_t n_head, double scale,
                 double dropout);

// Adds the output of a layer to the residual stream, and normalizes the sum.
struct Normed {
  Tensor sum;     // [N, D] fp32; the stream itself without an output
  Tensor normed;  // [N, D] of kind
};
Normed add_layer_norm(const Tensor& stream, const Tensor& output, const Tensor& output_bias, const Tensor& weight,
                      const Tensor& bias, double eps, double dropout, at::ScalarType kind);

// Returns the Backpack's sum over senses [N, D]. qk [N, 2 D] holds the queries and keys of the
// contextualization, senses [U, L D] the senses of the distinct tokens; their biases are added
// first. rows [N] holds the row in `senses` of each token. On the CPU only; on a GPU, see
// cuda::weighted_sum_of_senses.
Tensor weighted_sum_of_senses(const Tensor& qk, const Tensor& qk_bias, const Tensor& senses,
                              const Tensor& senses_bias, const Tensor& rows, int64_t sequences,
                              int64_t num_senses);

// Returns the mean cross-entropy of the logits hidden [N, D] x weight [V, D]^T and the targets [N].
// Computes `chunk` rows of logits at a time, and the gradients in the forward pass.
Tensor linear_cross_entropy(const Tensor& hidden, const MatmulWeight& weight, const Tensor& targets, int64_t chunk);

// Results of an update: scalars on the device of the parameters.
struct UpdateStats {
  Tensor grad_norm;  // norm of the gradients before clipping, without the loss scale
  Tensor overflow;   // bool: the norm is not finite
};

// One AdamW update with gradients scaled by min(1, max_norm / norm) / loss_scale, where `norm` is
// the global norm. `updates` (fp32 scalar) counts the updates for the bias correction. If the norm
// is not finite or `skip` (bool scalar) is true, nothing is changed. `loss_scale` and `skip` may be
// undefined.
UpdateStats clipped_adamw(const std::vector<Tensor>& params, const std::vector<Tensor>& grads,
                          const std::vector<Tensor>& exp_avgs, const std::vector<Tensor>& exp_avg_sqs,
                          const std::vector<Tensor>& copies, const std::vector<double>& weight_decays,
                          const Tensor& updates, const Tensor& loss_scale, const Tensor& skip, double max_norm,
                          double lr, double beta1, double beta2, double eps);

// Helpers that the implementations share.

// Returns the kernels for elements of this type.
const TypedKernels& kernels_for(at::ScalarType kind);
void check_kind(const Tensor& t, const char* name);
// normed_by returns a reference to the add_layer_norm that computed `x`, or none. normed_again
// computes its normalized rows again, bit for bit, so that products need not keep them for the
// backward pass.
c10::IValue normed_by(const Tensor& x);
Tensor normed_again(const c10::IValue& source);
// Write a product to `out`, with oneDNN for both types.
void mm(const Tensor& out, const Tensor& a, const Tensor& b);
void bmm(const Tensor& out, const Tensor& a, const Tensor& b);
// Returns the product a b, the gradient of a weight, in fp32; a and b may be bf16.
Tensor weight_gradient(const Tensor& a, const Tensor& b);
// Adds the product a b to the fp32 matrix `sum`. On a GPU, the product is not rounded to bf16 first.
void add_product(const Tensor& sum, const Tensor& a, const Tensor& b);
// dropout_of returns the mask of a seed. draw_seed takes a seed from the generator of libtorch (0
// without dropout).
Dropout dropout_of(double probability, int64_t seed);
int64_t draw_seed(double probability);

// Rows first .. first + rows of a causal square of `length` positions, and the number of keys they
// attend to. Elements above the diagonal are neither computed nor stored, except inside a block.
struct CausalBlock {
  int64_t first, rows, keys;
  int64_t offset;  // of the first element of the block, which has `depth` elements per (row, key)
  int64_t end;     // offset after the last element
};
std::vector<CausalBlock> causal_blocks(int64_t length, int64_t depth);

// Runs f(begin, end) over 0..n on all threads.
template <class F>
void parallel(int64_t n, int64_t grain, const F& f) {
  at::parallel_for(0, n, grain, f);
}

// Runs f(sums, begin, end) over 0..n, where each thread has its own zeroed row of `width` sums.
// Returns the sum of the rows, in the order of the threads.
template <class F>
Tensor parallel_sums(int64_t n, int64_t grain, int64_t width, const F& f) {
  const int64_t threads = at::get_num_threads();
  Tensor parts = at::zeros({threads, width}, at::kFloat);
  float* rows = parts.data_ptr<float>();
  at::parallel_for(0, n, grain, [&](int64_t begin, int64_t end) { f(rows + at::get_thread_num() * width, begin, end); });
  return threads == 1 ? parts.squeeze(0) : parts.sum(0);
}

// Minimum number of tokens per thread.
constexpr int64_t ROW_GRAIN = 16;

}  // namespace ops
