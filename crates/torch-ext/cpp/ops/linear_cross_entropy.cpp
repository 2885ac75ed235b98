// The output head and the loss in one operation: only `chunk` rows of logits exist at a time. With
// the vocabulary of GPT-2, the whole [N, V] matrix and its gradient would be by far the largest
// tensors of a training step. The gradient of the cross-entropy, softmax(z) - onehot(target), is
// known as soon as the logits z are. Therefore both products with it are computed while the chunk
// is still in the cache, and the backward pass only scales them.
#include "../cuda/kernels.h"
#include "ops.h"

namespace ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

struct Result {
  Tensor loss;         // fp32 scalar, mean over rows
  Tensor grad_hidden;  // like hidden; undefined without gradients
  Tensor grad_weight;  // [V, D] fp32; undefined without gradients
  double unit = 1;     // factor that is still to be applied to both gradients
};

void check_targets(const Tensor& targets, int64_t vocabulary) {
  const int64_t* y = targets.data_ptr<int64_t>();
  for (int64_t i = 0; i < targets.numel(); i++)
    TORCH_CHECK(y[i] >= 0 && y[i] < vocabulary, "linear_cross_entropy: target ", y[i], " at row ", i,
                " is outside the vocabulary of ", vocabulary);
}

// Number of rows of the weight gradient that are computed at once. Their product, 6 MB of bf16 for
// a width of 768, is still in the cache when it is added to the sum.
constexpr int64_t GRADIENT_ROWS = 4096;

// On the CPU. The gradient overwrites the logits in place.
Result compute_fused(const Tensor& hidden, const Tensor& w, const Tensor& targets, int64_t chunk, bool with_grad) {
  const int64_t rows = hidden.size(0), vocabulary = w.size(0);
  check_targets(targets, vocabulary);
  const auto& k = kernels_for(hidden.scalar_type());
  const float per_row = 1.f / static_cast<float>(rows);
  Result out;
  const Tensor losses = at::empty({rows}, hidden.options().dtype(at::kFloat));
  Tensor part;
  if (with_grad) {
    out.grad_hidden = at::empty_like(hidden);
    out.grad_weight = at::empty(w.sizes(), w.options().dtype(at::kFloat));
    part = at::empty({std::min(GRADIENT_ROWS, vocabulary), w.size(1)}, w.options());
  }
  // Allocated after the tensors that outlive it, so that its gap merges with adjacent gaps.
  const Tensor logits = at::empty({std::min(chunk, rows), vocabulary}, hidden.options());
  for (int64_t start = 0; start < rows; start += chunk) {
    const int64_t n = std::min(chunk, rows - start);
    const Tensor h = hidden.narrow(0, start, n), z = logits.narrow(0, 0, n);
    mm(z, h, w.t());
    parallel(n, 1, [&](int64_t begin, int64_t end) {
      k.cross_entropy(z.data_ptr(), targets.data_ptr<int64_t>() + start, losses.data_ptr<float>() + start, per_row,
                      with_grad, vocabulary, begin, end);
    });
    if (!with_grad) continue;
    mm(out.grad_hidden.narrow(0, start, n), z, w);
    for (int64_t first = 0; first < vocabulary; first += GRADIENT_ROWS) {
      const int64_t count = std::min(GRADIENT_ROWS, vocabulary - first);
      const Tensor product = part.narrow(0, 0, count), sum = out.grad_weight.narrow(0, first, count);
      mm(product, z.narrow(1, first, count).t(), h);
      // The product of a chunk may be rounded to bf16; the sum over chunks is fp32.
      if (product.scalar_type() == at::kBFloat16) {
        parallel(product.numel(), 4096, [&](int64_t begin, int64_t end) {
          kernels().add_widened(reinterpret_cast<const Bf16*>(product.data_ptr()), sum.data_ptr<float>(), start == 0,
                                begin, end);
        });
      } else if (start == 0) {
        sum.copy_(product);
      } else {
        sum.add_(product);
      }
    }
  }
  out.loss = losses.mean(at::kDouble).to(at::kFloat);
  return out;
}

// On a GPU with bf16. One kernel replaces the logits by their gradient.
Result compute_on_gpu(const cuda::Kernel& kernel, const Tensor& hidden, const Tensor& w, const Tensor& targets,
                      int64_t chunk, bool with_grad) {
  const int64_t rows = hidden.size(0), vocabulary = w.size(0);
  const float per_row = 1.f / static_cast<float>(rows);
  Result out;
  const Tensor losses = at::empty({rows}, hidden.options().dtype(at::kFloat));
  if (with_grad) out.grad_hidden = at::empty_like(hidden);
  const Tensor logits = at::empty({std::min(chunk, rows), vocabulary}, hidden.options());
  for (int64_t start = 0; start < rows; start += chunk) {
    const int64_t n = std::min(chunk, rows - start);
    const Tensor h = hidden.narrow(0, start, n), z = logits.narrow(0, 0, n);
    mm(z, h, w.t());
    cuda::launch(kernel, n, 1, z.data_ptr(), targets.const_data_ptr<int64_t>() + start,
                 losses.data_ptr<float>() + start, per_row, static_cast<int>(with_grad));
    if (!with_grad) continue;
    mm(out.grad_hidden.narrow(0, start, n), z, w);
    if (start == 0) {
      out.grad_weight = weight_gradient(z.t(), h);
    } else {
      add_product(out.grad_weight, z.t(), h);
    }
  }
  out.loss = losses.mean(at::kDouble).to(at::kFloat);
  return out;
}

// On any device: the same computation with operations of libtorch.
Result compute(const Tensor& hidden, const Tensor& w, const Tensor& targets, int64_t chunk, bool with_grad) {
  const int64_t rows = hidden.size(0);
  const double per_row = 1.0 / static_cast<double>(rows);
  const bool half = hidden.scalar_type() == at::kHalf;
  Result out;
  if (half) out.unit = per_row;
  Tensor total = at::zeros({}, hidden.options().dtype(at::kDouble));
  if (with_grad) {
    out.grad_hidden = at::empty_like(hidden);
    out.grad_weight = at::zeros(w.sizes(), w.options().dtype(at::kFloat));
  }
  for (int64_t start = 0; start < rows; start += chunk) {
    const int64_t n = std::min(chunk, rows - start);
    const Tensor h = hidden.narrow(0, start, n);
    const Tensor target = targets.narrow(0, start, n).unsqueeze(1);
    // The softmax and the loss are always fp32. On a GPU, log_softmax reads the logits as they are,
    // and converts them on the way.
    Tensor z = at::log_softmax(at::mm(h, w.t()), 1, at::kFloat);
    total -= z.gather(1, target).sum(at::kDouble);
    if (!with_grad) continue;
    z.exp_().scatter_add_(1, target, at::full({n, 1}, -1.0, z.options()));
    // In fp16, the factor 1/N of the mean would underflow before the backward pass applies the loss
    // scale.
    Tensor grad_z = at::empty({n, w.size(0)}, hidden.options());
    if (half) {
      grad_z.copy_(z);
    } else {
      at::mul_out(grad_z, z, at::scalar_tensor(per_row, at::kFloat));
    }
    Tensor grad_h = out.grad_hidden.narrow(0, start, n);
    at::mm_out(grad_h, grad_z, w);
    add_product(out.grad_weight, grad_z.t(), h);
  }
  out.loss = (total * per_row).to(at::kFloat);
  return out;
}

Result compute_on(const Tensor& hidden, const Tensor& w, const Tensor& targets, int64_t chunk, bool with_grad) {
  if (cuda::is_used_for(hidden) && hidden.scalar_type() == at::kBFloat16 && hidden.is_contiguous()) {
    // Without the kernel, for example for a larger vocabulary, libtorch computes it.
    if (const auto kernel = cuda::find("cross_entropy", {w.size(0)}, hidden))
      return compute_on_gpu(*kernel, hidden, w, targets.contiguous(), chunk, with_grad);
  }
  if (hidden.device().is_cpu() && hidden.is_contiguous() && targets.is_contiguous() &&
      (hidden.scalar_type() == at::kFloat || hidden.scalar_type() == at::kBFloat16))
    return compute_fused(hidden, w, targets, chunk, with_grad);
  return compute(hidden, w, targets, chunk, with_grad);
}

struct LinearCrossEntropy : Function<LinearCrossEntropy> {
  static Tensor forward(AutogradContext* ctx, const Tensor& hidden, const Tensor& master, const Tensor& operand,
                        const Tensor& targets, int64_t chunk) {
    Result r = compute_on(hidden, operand, targets, chunk, /*with_grad=*/true);
    ctx->saved_data["hidden"] = r.grad_hidden;
    ctx->saved_data["weight"] = r.grad_weight;
    ctx->saved_data["unit"] = r.unit;
    return r.loss;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    Tensor hidden = ctx->saved_data["hidden"].toTensor(), weight = ctx->saved_data["weight"].toTensor();
    TORCH_CHECK(hidden.defined(), "linear_cross_entropy: the backward pass can run only once");
    const double unit = ctx->saved_data["unit"].toDouble();
    // Moved, not copied: the gradient of the weight is as large as the embedding.
    ctx->saved_data.clear();
    const Tensor& scale = grads[0];
    if (hidden.scalar_type() == at::kHalf) {
      // A loss scale often exceeds the range of fp16; its product with the gradient does not.
      const Tensor scaled = scale.to(at::kFloat) * unit;
      hidden = hidden.to(at::kFloat).mul_(scaled).to(at::kHalf);
      weight.mul_(scaled);
    } else if (!scale.device().is_cpu() || scale.item<double>() != 1.0) {
      // In two dimensions, the factor is not rounded to bf16 first.
      hidden.mul_(scale.view({1, 1}));
      weight.mul_(scale);
    }
    return {hidden, weight, Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

Tensor linear_cross_entropy(const Tensor& hidden, const MatmulWeight& weight, const Tensor& targets, int64_t chunk) {
  const Tensor& w = weight.operand;
  TORCH_CHECK(hidden.dim() == 2 && w.dim() == 2 && targets.dim() == 1 && hidden.size(1) == w.size(1) &&
                  hidden.size(0) == targets.size(0) && hidden.size(0) > 0 && chunk > 0,
              "linear_cross_entropy needs hidden [N, D], weight [V, D] and targets [N] with N > 0, got ",
              hidden.sizes(), ", ", w.sizes(), ", ", targets.sizes());
  const bool with_grad = at::GradMode::is_enabled() && (hidden.requires_grad() || weight.master.requires_grad());
  if (with_grad) return LinearCrossEntropy::apply(hidden, weight.master, w, targets, chunk);
  return compute_on(hidden, w, targets, chunk, /*with_grad=*/false).loss;
}

}  // namespace ops
