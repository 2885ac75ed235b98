// Linear layers and the MLP.
#include "../cuda/kernels.h"
#include "ops.h"

namespace ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// The grid of the GELU kernels: a thread computes 8 columns of every gridDim.y-th row.
int64_t gelu_grid_x(const cuda::Kernel& kernel, int64_t columns) { return cuda::ceil_div(columns, 8 * kernel.threads); }
int64_t gelu_grid_y(int64_t rows) {
  constexpr int64_t ROWS_PER_BLOCK = 16, MAX_BLOCKS = 512;
  return std::clamp<int64_t>(cuda::ceil_div(rows, ROWS_PER_BLOCK), 1, MAX_BLOCKS);
}

// keep_input saves the input of a product (or a reference to the operation that can compute it
// again) and `others`; kept returns them.
void keep_input(AutogradContext* ctx, const Tensor& x, variable_list others) {
  const c10::IValue source = normed_by(x);
  ctx->saved_data["source"] = source;
  others.insert(others.begin(), source.isNone() ? x : Tensor());
  ctx->save_for_backward(std::move(others));
}
variable_list kept(AutogradContext* ctx) {
  variable_list saved = ctx->get_saved_variables();
  const c10::IValue source = ctx->saved_data["source"];
  if (!source.isNone()) saved[0] = normed_again(source);
  return saved;
}

struct Linear : Function<Linear> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& master, const Tensor& operand,
                        bool transposed, const std::optional<Tensor>& bias) {
    keep_input(ctx, x, {operand});
    ctx->saved_data["transposed"] = transposed;
    ctx->saved_data["has_bias"] = bias.has_value();
    const Tensor w = transposed ? operand.t() : operand;
    Tensor y = at::empty({x.size(0), w.size(1)}, x.options());
    if (bias) {
      at::addmm_out(y, bias->to(x.scalar_type()), x, w);
    } else {
      mm(y, x, w);
    }
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = kept(ctx);
    const Tensor &x = saved[0], &operand = saved[1], dy = grads[0].contiguous();
    const bool transposed = ctx->saved_data["transposed"].toBool();
    Tensor dx;
    if (ctx->needs_input_grad(0)) {
      dx = at::empty_like(x);
      mm(dx, dy, transposed ? operand : operand.t());
    }
    Tensor dw;
    if (ctx->needs_input_grad(1)) dw = transposed ? weight_gradient(dy.t(), x) : weight_gradient(x.t(), dy);
    Tensor d_bias;
    if (ctx->saved_data["has_bias"].toBool()) d_bias = dy.sum(0, /*keepdim=*/false, at::kFloat);
    return {dx, dw, Tensor(), Tensor(), d_bias};
  }
};

// Writes gelu(pre + bias) to `act`, for rows [N, D].
void gelu(const Tensor& pre, const Tensor& bias, const Tensor& act) {
  const int64_t rows = pre.size(0), columns = pre.size(1);
  if (cuda::is_used_for(pre)) {
    const auto kernel = cuda::get("bias_gelu", {}, pre);
    cuda::launch(kernel, gelu_grid_x(kernel, columns), gelu_grid_y(rows), pre.const_data_ptr(),
                 bias.const_data_ptr<float>(), act.data_ptr(), static_cast<long long>(rows), static_cast<int>(columns));
    return;
  }
  const auto& k = kernels_for(pre.scalar_type());
  parallel(rows, ROW_GRAIN, [&](int64_t begin, int64_t end) {
    k.gelu(pre.data_ptr(), bias.data_ptr<float>(), act.data_ptr(), columns, begin, end);
  });
}

// Replaces the gradient `d` of gelu(pre + bias) by the gradient of `pre`, writes the activations to
// `act`, and returns the gradient of the bias.
Tensor gelu_backward(const Tensor& pre, const Tensor& bias, const Tensor& d, const Tensor& act) {
  const int64_t rows = pre.size(0), columns = pre.size(1);
  if (cuda::is_used_for(pre)) {
    const auto kernel = cuda::get("bias_gelu_backward", {}, pre);
    const Tensor partial_sums = at::empty({gelu_grid_y(rows), columns}, bias.options());
    cuda::launch(kernel, gelu_grid_x(kernel, columns), gelu_grid_y(rows), pre.const_data_ptr(),
                 bias.const_data_ptr<float>(), d.data_ptr(), act.data_ptr(), partial_sums.data_ptr<float>(),
                 static_cast<long long>(rows), static_cast<int>(columns));
    return partial_sums.sum(0);
  }
  const auto& k = kernels_for(pre.scalar_type());
  return parallel_sums(rows, ROW_GRAIN, columns, [&](float* sums, int64_t begin, int64_t end) {
    k.gelu_backward(pre.data_ptr(), bias.data_ptr<float>(), d.data_ptr(), act.data_ptr(), sums, columns, begin, end);
  });
}

struct Mlp : Function<Mlp> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& fc, const Tensor& fc_operand,
                        const Tensor& fc_bias, const Tensor& proj, const Tensor& proj_operand) {
    const int64_t rows = x.size(0), inner = fc_operand.size(1);
    const Tensor pre = at::empty({rows, inner}, x.options());
    mm(pre, x, fc_operand);
    const Tensor act = at::empty_like(pre);
    gelu(pre, fc_bias, act);
    const Tensor y = at::empty({rows, proj_operand.size(1)}, x.options());
    mm(y, act, proj_operand);
    // The backward pass computes act again, because it reads pre anyway.
    keep_input(ctx, x, {fc_operand, fc_bias, proj_operand, pre});
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = kept(ctx);
    const Tensor &x = saved[0], &fc = saved[1], &fc_bias = saved[2], &proj = saved[3], &pre = saved[4];
    const Tensor dy = grads[0].contiguous();
    const Tensor d = at::empty_like(pre), act = at::empty_like(pre);
    mm(d, dy, proj.t());
    const Tensor d_bias = gelu_backward(pre, fc_bias, d, act);
    const Tensor d_proj = weight_gradient(act.t(), dy);
    const Tensor d_fc = weight_gradient(x.t(), d);
    Tensor dx;
    if (ctx->needs_input_grad(0)) {
      dx = at::empty_like(x);
      mm(dx, d, fc.t());
    }
    return {dx, d_fc, Tensor(), d_bias, d_proj, Tensor()};
  }
};

}  // namespace

Tensor linear(const Tensor& x, const MatmulWeight& weight, bool transposed, const Tensor& bias) {
  check_kind(x, "linear's input");
  return Linear::apply(x, weight.master, weight.operand, transposed,
                       cuda::if_defined(bias));
}

Tensor mlp(const Tensor& x, const MatmulWeight& fc, const Tensor& fc_bias, const MatmulWeight& proj) {
  check_kind(x, "mlp's input");
  return Mlp::apply(x, fc.master, fc.operand, fc_bias, proj.master, proj.operand);
}

}  // namespace ops
