#include "shim.h"

#include "arena.h"
#include "cuda/kernels.h"
#include "ops/ops.h"

#include <ATen/Version.h>
#include <malloc.h>
#include <torch/headeronly/version.h>

#include <climits>
#include <string>

namespace {
std::vector<at::Tensor> list(TensorPtr const* tensors, size_t n) {
  std::vector<at::Tensor> out;
  out.reserve(n);
  for (size_t i = 0; i < n; i++) out.push_back(tensors[i] ? *tensors[i] : at::Tensor());
  return out;
}
at::Tensor optional(TensorPtr tensor) { return tensor ? *tensor : at::Tensor(); }
}  // namespace

extern "C" {

// One clipped AdamW update of n parameters in place, or no update (see ops.h). Entries of `copies`,
// `loss_scale` and `skip` may be null.
char* bpx_clipped_adamw(TensorPtr const* params, TensorPtr const* grads, TensorPtr const* exp_avgs,
                        TensorPtr const* exp_avg_sqs, TensorPtr const* copies, double const* weight_decays, size_t n,
                        TensorPtr updates, TensorPtr loss_scale, TensorPtr skip, double max_norm, double lr,
                        double beta1, double beta2, double eps, TensorPtr* grad_norm, TensorPtr* overflow) {
  BPX_GUARD({
    const ops::UpdateStats out =
        ops::clipped_adamw(list(params, n), list(grads, n), list(exp_avgs, n), list(exp_avg_sqs, n), list(copies, n),
                           std::vector<double>(weight_decays, weight_decays + n), *updates, optional(loss_scale),
                           optional(skip), max_norm, lr, beta1, beta2, eps);
    *grad_norm = new at::Tensor(out.grad_norm);
    *overflow = new at::Tensor(out.overflow);
  })
}

char* bpx_linear_cross_entropy(TensorPtr hidden, TensorPtr master, TensorPtr operand, TensorPtr targets, int64_t chunk,
                               TensorPtr* loss) {
  BPX_GUARD(*loss = new at::Tensor(ops::linear_cross_entropy(*hidden, {*master, *operand}, *targets, chunk)))
}

char* bpx_share_gradient(TensorPtr weight, TensorPtr* shared) {
  BPX_GUARD(*shared = new at::Tensor(ops::share_gradient(*weight)))
}

char* bpx_embedding(TensorPtr shared, TensorPtr ids, TensorPtr* rows) {
  BPX_GUARD(*rows = new at::Tensor(ops::embedding(*shared, *ids)))
}

// `bias` may be null.
char* bpx_linear(TensorPtr x, TensorPtr master, TensorPtr operand, int transposed, TensorPtr bias, TensorPtr* y) {
  BPX_GUARD(*y = new at::Tensor(ops::linear(*x, {*master, *operand}, transposed, optional(bias))))
}

char* bpx_mlp(TensorPtr x, TensorPtr fc, TensorPtr fc_operand, TensorPtr fc_bias, TensorPtr proj,
              TensorPtr proj_operand, TensorPtr* y) {
  BPX_GUARD(*y = new at::Tensor(ops::mlp(*x, {*fc, *fc_operand}, *fc_bias, {*proj, *proj_operand})))
}

char* bpx_attention(TensorPtr qkv, TensorPtr bias, int64_t sequences, int64_t n_head, double scale, double dropout,
                    TensorPtr* y) {
  BPX_GUARD(*y = new at::Tensor(ops::attention(*qkv, *bias, sequences, n_head, scale, dropout)))
}

char* bpx_add_layer_norm(TensorPtr stream, TensorPtr output, TensorPtr output_bias, TensorPtr weight, TensorPtr bias,
                         double eps, double dropout, int bf16, TensorPtr* sum, TensorPtr* normed) {
  BPX_GUARD({
    const ops::Normed out =
        ops::add_layer_norm(*stream, optional(output), optional(output_bias), *weight, *bias, eps, dropout,
                            bf16 ? at::kBFloat16 : at::kFloat);
    *sum = new at::Tensor(out.sum);
    *normed = new at::Tensor(out.normed);
  })
}

char* bpx_weighted_sum_of_senses(TensorPtr qk, TensorPtr qk_bias, TensorPtr senses, TensorPtr senses_bias,
                                 TensorPtr rows, int64_t sequences, int64_t num_senses, TensorPtr* y) {
  BPX_GUARD(*y = new at::Tensor(
                ops::weighted_sum_of_senses(*qk, *qk_bias, *senses, *senses_bias, *rows, sequences, num_senses)))
}

// The same on a GPU: the biases of queries and keys are part of `qk`, and `senses_bias` and `rows`
// may be null.
char* bpx_cuda_weighted_sum_of_senses(TensorPtr qk, TensorPtr senses, TensorPtr senses_bias, TensorPtr rows,
                                      int64_t sequences, int64_t num_senses, TensorPtr* y) {
  BPX_GUARD(*y = new at::Tensor(cuda::weighted_sum_of_senses(*qk, *senses, optional(senses_bias), optional(rows),
                                                             sequences, num_senses)))
}

// Removes the gradient of a parameter, so that the next backward pass stores its gradient instead
// of adding to the old one.
char* bpx_clear_grad(TensorPtr parameter) { BPX_GUARD(parameter->mutable_grad().reset()) }

// Writes a matrix product to `out`, with the implementation that the fused operations use.
char* bpx_product(TensorPtr out, TensorPtr a, TensorPtr b) {
  BPX_GUARD({
    at::NoGradGuard no_grad;
    ops::mm(*out, *a, *b);
  })
}

// Keeps freed blocks in this process: those of large tensors in the arena, others in the heap of
// malloc. Otherwise each block is returned to the kernel and soon mapped again, with a page fault
// per page. Returns whether both settings succeeded.
int bpx_keep_freed_memory() {
  return use_arena() && mallopt(M_MMAP_THRESHOLD, INT_MAX) && mallopt(M_TRIM_THRESHOLD, INT_MAX);
}

// Describes libtorch in lines: version, vector extensions, oneDNN, MKL, and the kernels of this
// crate.
char* bpx_build_info(char** text) {
  BPX_GUARD({
    const std::string s = std::string(TORCH_VERSION) + "\n" + at::get_cpu_capability() + "\n" +
                          at::get_mkldnn_version() + "\n" + at::get_mkl_version() + "\n" + kernels().name;
    *text = strdup(s.c_str());
  })
}
}
