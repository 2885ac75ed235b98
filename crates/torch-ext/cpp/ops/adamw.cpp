// Gradient clipping and AdamW: one pass over the gradients for the norm, and a second for the rest.
#include <ATen/ops/_foreach_copy.h>
#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/_fused_adamw.h>

#include <cmath>

#include "ops.h"

namespace ops {
namespace {

constexpr int64_t GRAIN = 1 << 14;

bool on_cpu(const std::vector<Tensor>& tensors) {
  for (const Tensor& t : tensors)
    if (!t.device().is_cpu() || t.scalar_type() != at::kFloat || !t.is_contiguous()) return false;
  return true;
}

double norm_of(const std::vector<Tensor>& grads) {
  const Kernels& k = kernels();
  double total = 0;
  for (const Tensor& g : grads) {
    const float* x = g.data_ptr<float>();
    // Pieces of fixed size, added in order, give the same sum for every number of threads.
    const int64_t pieces = (g.numel() + GRAIN - 1) / GRAIN;
    std::vector<double> sums(pieces);
    parallel(pieces, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++)
        sums[i] = k.sum_of_squares(x, i * GRAIN, std::min((i + 1) * GRAIN, g.numel()));
    });
    for (const double s : sums) total += s;
  }
  return std::sqrt(total);
}

}  // namespace

UpdateStats clipped_adamw(const std::vector<Tensor>& params, const std::vector<Tensor>& grads,
                          const std::vector<Tensor>& exp_avgs, const std::vector<Tensor>& exp_avg_sqs,
                          const std::vector<Tensor>& copies, const std::vector<double>& weight_decays,
                          const Tensor& updates, const Tensor& loss_scale, const Tensor& skip, double max_norm,
                          double lr, double beta1, double beta2, double eps) {
  at::NoGradGuard no_grad;
  const size_t n = params.size();
  TORCH_CHECK(n > 0, "AdamW has no parameters");
  TORCH_CHECK(updates.numel() == 1 && updates.scalar_type() == at::kFloat, "AdamW: updates must be one fp32 number");
  for (size_t i = 0; i < n; i++)
    TORCH_CHECK(params[i].sizes() == grads[i].sizes() && params[i].sizes() == exp_avgs[i].sizes() &&
                    params[i].sizes() == exp_avg_sqs[i].sizes(),
                "AdamW: parameter ", i, " has shape ", params[i].sizes(), ", its gradient ", grads[i].sizes());
  // 1e-6 avoids a division by zero, as in torch.nn.utils.clip_grad_norm_.
  if (on_cpu(params) && on_cpu(grads) && on_cpu(exp_avgs) && on_cpu(exp_avg_sqs)) {
    const double scale = loss_scale.defined() ? loss_scale.item<double>() : 1;
    const double norm = norm_of(grads) / scale;
    const bool overflow = !std::isfinite(norm);
    const UpdateStats out = {at::scalar_tensor(norm, at::kFloat), at::scalar_tensor(overflow, at::kBool)};
    if (overflow || (skip.defined() && skip.item<bool>())) return out;
    Tensor(updates).add_(1);
    const double step = updates.item<double>();
    const double correction1 = 1 - std::pow(beta1, step), correction2 = 1 - std::pow(beta2, step);
    for (size_t i = 0; i < n; i++) {
      AdamWStep s;
      const double clip = max_norm / (norm + 1e-6);
      s.grad_scale = static_cast<float>((clip > 1 ? 1 : clip) / scale);
      s.decay = static_cast<float>(1 - lr * weight_decays[i]);
      s.step_size = static_cast<float>(lr / correction1);
      s.root_scale = static_cast<float>(1 / std::sqrt(correction2));
      s.eps = static_cast<float>(eps);
      s.beta1 = static_cast<float>(beta1);
      s.beta2 = static_cast<float>(beta2);
      s.rest1 = static_cast<float>(1 - beta1);
      s.rest2 = static_cast<float>(1 - beta2);
      Bf16* copy = copies[i].defined() ? reinterpret_cast<Bf16*>(copies[i].data_ptr()) : nullptr;
      parallel(params[i].numel(), GRAIN, [&](int64_t begin, int64_t end) {
        kernels().adamw(params[i].data_ptr<float>(), grads[i].data_ptr<float>(), exp_avgs[i].data_ptr<float>(),
                        exp_avg_sqs[i].data_ptr<float>(), copy, s, begin, end);
      });
    }
    return out;
  }
  // On a GPU, the norm, the scale and the decision to skip stay on the device, so that the host
  // does not wait for them.
  Tensor norm = at::linalg_vector_norm(at::stack(at::_foreach_norm(grads, 2)));
  if (loss_scale.defined()) norm = norm / loss_scale;
  const Tensor overflow = norm.isfinite().logical_not();
  const Tensor found_inf = (skip.defined() ? overflow.logical_or(skip) : overflow).to(at::kFloat);
  Tensor divisor = ((norm + 1e-6) / max_norm).clamp_min(1.0);
  if (loss_scale.defined()) divisor = divisor * loss_scale;
  Tensor(updates).add_(1 - found_inf);
  for (size_t i = 0; i < n;) {
    // One call per sequence of parameters with equal weight decay.
    size_t j = i + 1;
    while (j < n && weight_decays[j] == weight_decays[i]) j++;
    const auto run = [&](const std::vector<Tensor>& v) { return std::vector<Tensor>(v.begin() + i, v.begin() + j); };
    at::_fused_adamw_(run(params), run(grads), run(exp_avgs), run(exp_avg_sqs), /*max_exp_avg_sqs=*/{},
                      std::vector<Tensor>(j - i, updates), lr, beta1, beta2, weight_decays[i], eps, /*amsgrad=*/false,
                      /*maximize=*/false, /*grad_scale=*/divisor.to(at::kFloat), found_inf);
    i = j;
  }
  std::vector<Tensor> copied, sources;
  for (size_t i = 0; i < n; i++) {
    if (!copies[i].defined()) continue;
    copied.push_back(copies[i]);
    sources.push_back(params[i]);
  }
  if (!copied.empty()) at::_foreach_copy_(copied, sources);
  return {norm, overflow};
}

}  // namespace ops
