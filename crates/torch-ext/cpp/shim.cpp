#include "shim.h"

#include <ATen/Version.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/_fused_adamw.h>
#include <dlfcn.h>
#include <malloc.h>

#include <climits>
#include <string>

namespace {
std::vector<at::Tensor> list(TensorPtr const* tensors, size_t n) {
  std::vector<at::Tensor> out;
  out.reserve(n);
  for (size_t i = 0; i < n; i++) out.push_back(*tensors[i]);
  return out;
}
}  // namespace

extern "C" {

// One AdamW update of n parameters in place; `step` counts from 1 (bias correction).
char* bpx_fused_adamw(TensorPtr const* params, TensorPtr const* grads, TensorPtr const* exp_avgs,
                      TensorPtr const* exp_avg_sqs, size_t n, double step, double lr, double beta1,
                      double beta2, double weight_decay, double eps) {
  BPX_GUARD({
    if (n > 0) {
      at::NoGradGuard no_grad;
      const auto options = params[0]->options().dtype(at::kFloat).requires_grad(false);
      const std::vector<at::Tensor> steps(n, at::full({}, step, options));
      at::_fused_adamw_(list(params, n), list(grads, n), list(exp_avgs, n), list(exp_avg_sqs, n),
                        /*max_exp_avg_sqs=*/{}, steps, lr, beta1, beta2, weight_decay, eps,
                        /*amsgrad=*/false, /*maximize=*/false);
    }
  })
}

// Scales the gradients in place so that their global L2 norm is at most max_norm, and
// gives the norm before that as a scalar tensor on their device: no host synchronisation.
char* bpx_clip_grad_norm(TensorPtr const* grads, size_t n, double max_norm, TensorPtr* norm) {
  BPX_GUARD({
    at::NoGradGuard no_grad;
    const auto g = list(grads, n);
    const at::Tensor total = at::linalg_vector_norm(at::stack(at::_foreach_norm(g, 2)));
    // 1e-6: torch.nn.utils.clip_grad_norm_'s guard against a zero norm.
    at::_foreach_mul_(g, (max_norm / (total + 1e-6)).clamp_max(1.0));
    *norm = new at::Tensor(total);
  })
}

char* bpx_linear_cross_entropy(TensorPtr hidden, TensorPtr weight, TensorPtr targets, int64_t chunk,
                               TensorPtr* loss) {
  BPX_GUARD(*loss = new at::Tensor(linear_cross_entropy(*hidden, *weight, *targets, chunk)))
}

// Keeps large freed blocks in this process instead of giving each back to the kernel and
// faulting it in again, page by page, a moment later. Returns whether malloc agreed.
int bpx_keep_freed_memory() {
  return mallopt(M_MMAP_THRESHOLD, INT_MAX) && mallopt(M_TRIM_THRESHOLD, INT_MAX);
}

// Loads libtorch's CUDA half into this process, which is linked against the CPU half.
char* bpx_load_cuda() {
  if (dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_GLOBAL)) return nullptr;
  const char* why = dlerror();
  return strdup(why ? why : "dlopen failed without a message");
}

// What libtorch says of itself: version, vector extensions, BLAS, threads.
char* bpx_describe(char** text) {
  BPX_GUARD({
    const std::string s = std::string(TORCH_VERSION) + "\n" + at::get_cpu_capability() + "\n" +
                          at::get_mkldnn_version() + "\n" + at::get_mkl_version();
    *text = strdup(s.c_str());
  })
}
}
