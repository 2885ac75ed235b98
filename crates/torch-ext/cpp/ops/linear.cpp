// Linear layers and the MLP.
#include "ops.h"

namespace ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

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
                        bool transposed) {
    keep_input(ctx, x, {operand});
    ctx->saved_data["transposed"] = transposed;
    const Tensor w = transposed ? operand.t() : operand;
    const Tensor y = at::empty({x.size(0), w.size(1)}, x.options());
    mm(y, x, w);
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
    return {dx, dw, Tensor(), Tensor()};
  }
};

struct Mlp : Function<Mlp> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& fc, const Tensor& fc_operand,
                        const Tensor& fc_bias, const Tensor& proj, const Tensor& proj_operand) {
    const int64_t rows = x.size(0), inner = fc_operand.size(1);
    const Tensor pre = at::empty({rows, inner}, x.options());
    mm(pre, x, fc_operand);
    const Tensor act = at::empty_like(pre);
    const auto& k = kernels_for(x.scalar_type());
    parallel(rows, ROW_GRAIN, [&](int64_t begin, int64_t end) {
      k.gelu(pre.data_ptr(), fc_bias.data_ptr<float>(), act.data_ptr(), inner, begin, end);
    });
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
    const int64_t rows = x.size(0), inner = fc.size(1);
    const Tensor d = at::empty_like(pre), act = at::empty_like(pre);
    mm(d, dy, proj.t());
    const auto& k = kernels_for(x.scalar_type());
    const Tensor d_bias = parallel_sums(rows, ROW_GRAIN, inner, [&](float* sums, int64_t begin, int64_t end) {
      k.gelu_backward(pre.data_ptr(), fc_bias.data_ptr<float>(), d.data_ptr(), act.data_ptr(), sums, inner, begin, end);
    });
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

Tensor linear(const Tensor& x, const MatmulWeight& weight, bool transposed) {
  check_kind(x, "linear's input");
  return Linear::apply(x, weight.master, weight.operand, transposed);
}

Tensor mlp(const Tensor& x, const MatmulWeight& fc, const Tensor& fc_bias, const MatmulWeight& proj) {
  check_kind(x, "mlp's input");
  return Mlp::apply(x, fc.master, fc.operand, fc_bias, proj.master, proj.operand);
}

}  // namespace ops
