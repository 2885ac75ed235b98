// The head and its loss in one: logits exist only `chunk` rows at a time. For a GPT-2
// vocabulary the whole [N, V] matrix and its gradient would be the largest tensors of a
// training step by far. The gradient of a mean cross-entropy is known as soon as the
// logits are, softmax(z) - onehot(target), so both products with it are done while the
// chunk is still in the cache, and the backward pass only scales them.
#include "shim.h"

namespace {

struct Result {
  at::Tensor loss;         // fp32 scalar, mean over rows
  at::Tensor grad_hidden;  // like hidden; undefined without gradients
  at::Tensor grad_weight;  // [V, D] fp32; undefined without gradients
};

Result compute(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& targets,
               int64_t chunk, bool with_grad) {
  const int64_t rows = hidden.size(0);
  const at::Tensor w = weight.to(hidden.scalar_type());
  const double per_row = 1.0 / static_cast<double>(rows);
  Result out;
  at::Tensor total = at::zeros({}, hidden.options().dtype(at::kDouble));
  if (with_grad) {
    out.grad_hidden = at::empty_like(hidden);
    out.grad_weight = at::zeros(weight.sizes(), weight.options().dtype(at::kFloat));
  }
  for (int64_t start = 0; start < rows; start += chunk) {
    const int64_t n = std::min(chunk, rows - start);
    const at::Tensor h = hidden.narrow(0, start, n);
    const at::Tensor target = targets.narrow(0, start, n).unsqueeze(1);
    // The softmax and the loss are fp32 whatever the products are in.
    at::Tensor z = at::mm(h, w.t()).to(at::kFloat);
    const at::Tensor log_sum = at::logsumexp(z, 1, /*keepdim=*/true);
    total += (log_sum - z.gather(1, target)).sum(at::kDouble);
    if (!with_grad) continue;
    z.sub_(log_sum).exp_();
    z.scatter_add_(1, target, at::full({n, 1}, -1.0, z.options()));
    z.mul_(per_row);
    const at::Tensor grad_z = z.to(hidden.scalar_type());
    at::Tensor grad_h = out.grad_hidden.narrow(0, start, n);
    at::mm_out(grad_h, grad_z, w);
    if (grad_z.scalar_type() == at::kFloat) {
      out.grad_weight.addmm_(grad_z.t(), h);
    } else {
      out.grad_weight.add_(at::mm(grad_z.t(), h));
    }
  }
  out.loss = (total * per_row).to(at::kFloat);
  return out;
}

struct LinearCrossEntropy : torch::autograd::Function<LinearCrossEntropy> {
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& hidden,
                            const at::Tensor& weight, const at::Tensor& targets, int64_t chunk) {
    Result r = compute(hidden, weight, targets, chunk, /*with_grad=*/true);
    ctx->save_for_backward({r.grad_hidden, r.grad_weight});
    return r.loss;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const at::Tensor& scale = grads[0];
    return {saved[0] * scale.to(saved[0].scalar_type()), saved[1] * scale, at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor linear_cross_entropy(const at::Tensor& hidden, const at::Tensor& weight,
                                const at::Tensor& targets, int64_t chunk) {
  TORCH_CHECK(hidden.dim() == 2 && weight.dim() == 2 && targets.dim() == 1 &&
                  hidden.size(1) == weight.size(1) && hidden.size(0) == targets.size(0) &&
                  hidden.size(0) > 0 && chunk > 0,
              "linear_cross_entropy wants hidden [N, D], weight [V, D] and targets [N] with N > 0, got ",
              hidden.sizes(), ", ", weight.sizes(), ", ", targets.sizes());
  const bool with_grad =
      at::GradMode::is_enabled() && (hidden.requires_grad() || weight.requires_grad());
  if (with_grad) return LinearCrossEntropy::apply(hidden, weight, targets, chunk);
  return compute(hidden, weight, targets, chunk, /*with_grad=*/false).loss;
}
