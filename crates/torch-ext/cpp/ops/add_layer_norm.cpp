// Residual sum and LayerNorm: one pass forward and one backward.
#include "../cuda/kernels.h"
#include "ops.h"

namespace ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::CppNode;
using torch::autograd::Function;
using torch::autograd::variable_list;

int index_of(const Tensor& t) { return t.defined() && t.scalar_type() == at::kBFloat16; }
template <class T>
T* data_or_null(const Tensor& t) {
  return t.defined() ? t.data_ptr<T>() : nullptr;
}

// Computes `a` for rows whose output of a layer and result have these types (1: bf16).
void add_norm(const AddNorm& a, int64_t rows, int output_type, const Tensor& normed) {
  if (cuda::is_used_for(normed)) {
    const auto kernel = cuda::get("add_layer_norm", {a.columns}, normed);
    cuda::launch(kernel, cuda::ceil_div(rows, kernel.warps()), 1, a.stream, a.output, int(output_type == 0),
                 a.output_bias, a.sum, a.weight, a.bias, a.normed, int(index_of(normed) == 0), a.stats,
                 static_cast<int>(rows), a.eps, a.dropout.threshold, a.dropout.scale,
                 static_cast<unsigned long long>(a.dropout.seed));
    return;
  }
  const auto kernel = kernels().add_norm[output_type][index_of(normed)];
  parallel(rows, ROW_GRAIN, [&](int64_t begin, int64_t end) { kernel(a, begin, end); });
}

// Computes the gradients of `a`, and returns those of weight, bias and bias of the output, [3, D].
Tensor add_norm_backward(const AddNormBackward& a, int64_t rows, int output_type, const Tensor& grad_normed) {
  if (cuda::is_used_for(grad_normed)) {
    const auto kernel = cuda::get("add_layer_norm_backward", {a.columns}, grad_normed);
    // More blocks than a GPU runs at once would only add partial sums.
    constexpr int64_t MAX_BLOCKS = 512;
    const int64_t blocks = std::clamp<int64_t>(cuda::ceil_div(rows, kernel.warps()), 1, MAX_BLOCKS);
    const Tensor partial_sums = at::empty({blocks, 3, a.columns}, grad_normed.options().dtype(at::kFloat));
    cuda::launch(kernel, blocks, 1, a.sum, a.stats, a.weight, a.grad_normed, int(index_of(grad_normed) == 0),
                 a.grad_sum, a.grad_stream, a.grad_output, int(output_type == 0), partial_sums.data_ptr<float>(),
                 static_cast<int>(rows), a.dropout.threshold, a.dropout.scale,
                 static_cast<unsigned long long>(a.dropout.seed));
    return partial_sums.sum(0);
  }
  const auto kernel = kernels().add_norm_backward[output_type][index_of(grad_normed)];
  return parallel_sums(rows, ROW_GRAIN, 3 * a.columns, [&](float* own, int64_t begin, int64_t end) {
           kernel(a, own, begin, end);
         }).view({3, a.columns});
}

// Returns {sum, normed}, or {normed} without an output of a layer.
struct AddLayerNorm : Function<AddLayerNorm> {
  static variable_list forward(AutogradContext* ctx, const Tensor& stream,
                               const std::optional<Tensor>& optional_output,
                               const std::optional<Tensor>& output_bias, const Tensor& weight, const Tensor& bias,
                               double eps, double dropout, int64_t kind) {
    const Tensor output = optional_output.value_or(Tensor());
    const int64_t rows = stream.size(0), width = stream.size(1);
    const Tensor sum = output.defined() ? at::empty_like(stream) : stream;
    const Tensor normed = at::empty({rows, width}, stream.options().dtype(static_cast<at::ScalarType>(kind)));
    const Tensor stats = at::empty({rows, 2}, stream.options());
    const double share = output.defined() ? dropout : 0;
    const int64_t seed = draw_seed(share);
    const AddNorm args{width,
                       stream.data_ptr<float>(),
                       output.defined() ? output.data_ptr() : nullptr,
                       output_bias ? output_bias->data_ptr<float>() : nullptr,
                       sum.data_ptr<float>(),
                       weight.data_ptr<float>(),
                       bias.data_ptr<float>(),
                       normed.data_ptr(),
                       stats.data_ptr<float>(),
                       static_cast<float>(eps),
                       dropout_of(share, seed)};
    add_norm(args, rows, index_of(output), normed);
    ctx->set_materialize_grads(false);
    ctx->save_for_backward({sum, stats, weight, bias});
    ctx->saved_data["eps"] = eps;
    ctx->saved_data["kind"] = kind;
    ctx->saved_data["output_bias"] = output_bias.has_value();
    ctx->saved_data["output"] = output.defined() ? static_cast<int64_t>(output.scalar_type()) : -1;
    ctx->saved_data["dropout"] = share;
    ctx->saved_data["seed"] = seed;
    if (output.defined()) return {sum, normed};
    return {normed};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &sum = saved[0], &stats = saved[1], &weight = saved[2];
    const int64_t output_kind = ctx->saved_data["output"].toInt();
    const bool has_output = output_kind >= 0;
    const Tensor& incoming = grads[has_output ? 1 : 0];
    const Tensor grad_normed = incoming.defined() ? incoming.contiguous() : at::zeros_like(sum);
    const Tensor grad_sum = has_output && grads[0].defined() ? grads[0].contiguous() : Tensor();
    const int64_t rows = sum.size(0), width = sum.size(1);
    const Tensor grad_stream = at::empty_like(sum);
    Tensor grad_output;
    if (has_output)
      grad_output = at::empty({rows, width}, sum.options().dtype(static_cast<at::ScalarType>(output_kind)));
    const AddNormBackward args{width,
                               sum.data_ptr<float>(),
                               stats.data_ptr<float>(),
                               weight.data_ptr<float>(),
                               grad_normed.data_ptr(),
                               data_or_null<float>(grad_sum),
                               grad_stream.data_ptr<float>(),
                               has_output ? grad_output.data_ptr() : nullptr,
                               dropout_of(ctx->saved_data["dropout"].toDouble(), ctx->saved_data["seed"].toInt())};
    const Tensor sums = add_norm_backward(args, rows, index_of(grad_output), grad_normed);
    return {grad_stream,
            grad_output,
            ctx->saved_data["output_bias"].toBool() ? sums[2] : Tensor(),
            sums[0],
            sums[1],
            Tensor(),
            Tensor(),
            Tensor()};
  }
};

// A reference to a node of the graph, which later nodes keep.
struct Source : torch::CustomClassHolder {
  // std::shared_ptr<Node> up to torch 2.12, and c10::intrusive_ptr<Node> from torch 2.13 on.
  using Pointer = std::decay_t<decltype(std::declval<const Tensor&>().grad_fn())>;
  explicit Source(Pointer n) : node(std::move(n)) {}
  Pointer node;
};

}  // namespace

c10::IValue normed_by(const Tensor& x) {
  // A GPU has the memory to keep the rows, and computing them again would take longer.
  if (cuda::is_used_for(x)) return {};
  const auto node = x.grad_fn();
  const auto creator = dynamic_cast<CppNode<AddLayerNorm>*>(node.get());
  // The normalized rows are its last output.
  if (!creator || x.output_nr() + 1 != creator->num_inputs()) return {};
  return c10::IValue::make_capsule(c10::make_intrusive<Source>(node));
}

Tensor normed_again(const c10::IValue& source) {
  const auto node = c10::static_intrusive_pointer_cast<Source>(source.toCapsule())->node;
  auto& ctx = static_cast<CppNode<AddLayerNorm>*>(node.get())->ctx_;
  const auto saved = ctx.get_saved_variables();
  const Tensor &sum = saved[0], &weight = saved[2], &bias = saved[3];
  const int64_t rows = sum.size(0), width = sum.size(1);
  const auto kind = static_cast<at::ScalarType>(ctx.saved_data["kind"].toInt());
  const Tensor normed = at::empty({rows, width}, sum.options().dtype(kind));
  const Tensor stats = at::empty({rows, 2}, sum.options());
  const AddNorm args{width,
                     sum.data_ptr<float>(),
                     nullptr,
                     nullptr,
                     sum.data_ptr<float>(),
                     weight.data_ptr<float>(),
                     bias.data_ptr<float>(),
                     normed.data_ptr(),
                     stats.data_ptr<float>(),
                     static_cast<float>(ctx.saved_data["eps"].toDouble()),
                     {}};
  add_norm(args, rows, 0, normed);
  return normed;
}

Normed add_layer_norm(const Tensor& stream, const Tensor& output, const Tensor& output_bias, const Tensor& weight,
                      const Tensor& bias, double eps, double dropout, at::ScalarType kind) {
  TORCH_CHECK(stream.scalar_type() == at::kFloat && stream.is_contiguous(),
              "add_layer_norm's stream must be a contiguous fp32 tensor, got ", stream.toString());
  TORCH_CHECK(!output.defined() || (output.is_contiguous() && (output.scalar_type() == at::kFloat ||
                                                                output.scalar_type() == at::kBFloat16)),
              "add_layer_norm's output of a layer must be a contiguous fp32 or bf16 tensor, got ", output.toString());
  auto out = AddLayerNorm::apply(stream, cuda::if_defined(output), cuda::if_defined(output_bias), weight, bias, eps, dropout,
                                 static_cast<int64_t>(kind));
  return output.defined() ? Normed{out[0], out[1]} : Normed{stream, out[0]};
}

}  // namespace ops
