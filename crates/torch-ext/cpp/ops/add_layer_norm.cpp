// Residual sum and LayerNorm: one pass forward and one backward.
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
    const auto kernel = kernels().add_norm[index_of(output)][index_of(normed)];
    parallel(rows, ROW_GRAIN, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
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
    const auto kernel = kernels().add_norm_backward[index_of(grad_output)][index_of(grad_normed)];
    const Tensor sums = parallel_sums(rows, ROW_GRAIN, 3 * width, [&](float* own, int64_t begin, int64_t end) {
      kernel(args, own, begin, end);
    }).view({3, width});
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
  const auto kernel = kernels().add_norm[0][index_of(normed)];
  parallel(rows, ROW_GRAIN, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  return normed;
}

Normed add_layer_norm(const Tensor& stream, const Tensor& output, const Tensor& output_bias, const Tensor& weight,
                      const Tensor& bias, double eps, double dropout, at::ScalarType kind) {
  TORCH_CHECK(stream.scalar_type() == at::kFloat, "add_layer_norm's stream must be fp32, got ", stream.toString());
  check_kind(stream, "add_layer_norm's stream");
  if (output.defined()) check_kind(output, "add_layer_norm's output of a layer");
  // A missing input must be an empty optional, because autograd reads the device of every tensor.
  const auto given = [](const Tensor& t) { return t.defined() ? std::optional<Tensor>(t) : std::nullopt; };
  auto out = AddLayerNorm::apply(stream, given(output), given(output_bias), weight, bias, eps, dropout,
                                 static_cast<int64_t>(kind));
  return output.defined() ? Normed{out[0], out[1]} : Normed{stream, out[0]};
}

}  // namespace ops
