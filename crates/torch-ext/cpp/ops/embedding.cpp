// The token embedding [V, D], which the output head shares: its rows are looked up, and the
// whole matrix is a factor of a product. libtorch adds the gradients of the rows, dense or sparse,
// to a new [V, D] tensor per use. Here they are added in place to the gradient of the head, when
// all of them are known.
#include "ops.h"

namespace ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::CppNode;
using torch::autograd::Function;
using torch::autograd::variable_list;

// The gradients of the looked-up rows, kept until the gradient of the weight is known.
struct Rows : torch::CustomClassHolder {
  struct Part {
    Tensor ids;   // [n]
    Tensor grad;  // [n, D] fp32
  };
  std::vector<Part> parts;
};

constexpr const char* ROWS = "rows";

c10::intrusive_ptr<Rows> rows_of(AutogradContext& ctx) {
  return c10::static_intrusive_pointer_cast<Rows>(ctx.saved_data[ROWS].toCapsule());
}

// The weight itself. Its backward pass runs after those of all its uses.
struct SharedWeight : Function<SharedWeight> {
  static Tensor forward(AutogradContext* ctx, const Tensor& weight) {
    ctx->set_materialize_grads(false);
    ctx->saved_data[ROWS] = c10::IValue::make_capsule(c10::make_intrusive<Rows>());
    ctx->saved_data["vocabulary"] = weight.size(0);
    return weight.view_as(weight);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto rows = rows_of(*ctx);
    Tensor total = std::move(grads[0]);
    grads.clear();
    if (rows->parts.empty()) return {total};
    const int64_t width = rows->parts[0].grad.size(1);
    if (!total.defined()) {
      total = at::zeros({ctx->saved_data["vocabulary"].toInt(), width}, rows->parts[0].grad.options());
    } else if (!total.is_contiguous() || total.storage().use_count() > 1) {
      total = total.clone(at::MemoryFormat::Contiguous);  // another tensor shares the storage
    }
    float* to = total.data_ptr<float>();
    constexpr int64_t COLUMNS = 64;  // share of a thread: whole cache lines
    for (const Rows::Part& part : rows->parts) {
      const int64_t* ids = part.ids.data_ptr<int64_t>();
      const float* from = part.grad.data_ptr<float>();
      parallel((width + COLUMNS - 1) / COLUMNS, 1, [&](int64_t begin, int64_t end) {
        const int64_t first = begin * COLUMNS, last = std::min(end * COLUMNS, width);
        for (int64_t i = 0; i < part.ids.numel(); i++)
          for (int64_t j = first; j < last; j++) to[ids[i] * width + j] += from[i * width + j];
      });
    }
    rows->parts.clear();
    return {total};
  }
};

struct LookUp : Function<LookUp> {
  static Tensor forward(AutogradContext* ctx, const Tensor& shared, const Tensor& ids, const c10::IValue& rows) {
    ctx->set_materialize_grads(false);
    ctx->saved_data["ids"] = ids;
    ctx->saved_data[ROWS] = rows;
    return at::embedding(shared, ids);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    if (grads[0].defined()) {
      const Tensor ids = ctx->saved_data["ids"].toTensor();
      rows_of(*ctx)->parts.push_back({ids, grads[0].reshape({ids.numel(), -1}).contiguous()});
    }
    return {Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

Tensor share_gradient(const Tensor& weight) {
  check_kind(weight, "share_gradient's weight");
  TORCH_CHECK(weight.dim() == 2 && weight.scalar_type() == at::kFloat,
              "share_gradient: the weight must be an fp32 matrix, got ", weight.toString(), " ", weight.sizes());
  return SharedWeight::apply(weight);
}

Tensor embedding(const Tensor& shared, const Tensor& ids) {
  if (!at::GradMode::is_enabled() || !shared.requires_grad()) return at::embedding(shared, ids);
  const auto node = dynamic_cast<CppNode<SharedWeight>*>(shared.grad_fn().get());
  TORCH_CHECK(node, "embedding: the weight does not come from share_gradient");
  return LookUp::apply(shared, ids.contiguous(), node->ctx_.saved_data[ROWS]);
}

}  // namespace ops
