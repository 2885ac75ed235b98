// The Backpack's sum on a GPU: output_t = sum over tokens s <= t and senses l of
// alpha[t, s, l] C[s, l]. Two kernels compute the weights alpha and their gradient, and the matrix
// products are those of libtorch. The products with alpha, [T, T L], run by causal blocks of
// positions, so that 3/8 of the products with zeros are left out.
#include "kernels.h"

#include <torch/csrc/autograd/custom_function.h>

namespace cuda {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// Number of causal blocks. More blocks save less than 1/8 of the products, and make them smaller.
constexpr int64_t BLOCKS = 4;
constexpr int64_t MIN_BLOCK_ROWS = 64;

struct Shape {
  int64_t sequences, length, num_senses, width;
  int64_t channels() const { return width / num_senses; }
  // Positions per causal block, a multiple of 8, so that products read aligned rows.
  int64_t block_rows() const { return std::max(ceil_div(ceil_div(length, BLOCKS), 8) * 8, MIN_BLOCK_ROWS); }
  float scale() const { return static_cast<float>(1.0 / std::sqrt(static_cast<double>(channels()))); }

  // Calls f(first, rows) for the positions of each block.
  template <class F>
  void for_each_block(const F& f) const {
    for (int64_t first = 0; first < length; first += block_rows()) f(first, std::min(block_rows(), length - first));
  }
};

// Writes the batched product a b to `out`, which may be a view.
void multiply(Tensor out, const Tensor& a, const Tensor& b) { at::bmm_out(out, a, b); }

// Splits qk [N, 2 D] into queries and keys, each [B L, T, D/L] and contiguous.
std::pair<Tensor, Tensor> split(const Tensor& qk, const Shape& s) {
  const Tensor heads = qk.view({s.sequences, s.length, 2, s.num_senses, s.channels()}).permute({2, 0, 3, 1, 4});
  const auto part = [&](int64_t i) {
    return heads[i].reshape({s.sequences * s.num_senses, s.length, s.channels()}).contiguous();
  };
  return {part(0), part(1)};
}

// Adds the rows of `d` [N, W] that belong to one of `count` distinct rows: [count, W]. Unlike
// index_add, it sums in a fixed order.
Tensor sum_by_row(const Tensor& d, const Tensor& rows, int64_t count) {
  // libtorch rounds the sums of a few rows to bf16 several times.
  constexpr int64_t FEW_ROWS = 3'072;
  const Tensor values = d.size(0) <= FEW_ROWS ? d.to(at::kFloat) : d;
  // Its kernel counts up to 1.1 N W elements in 32 bits, and stores them in fp32.
  constexpr int64_t MAX_ELEMENTS = int64_t{1} << 30;
  const int64_t columns = std::max<int64_t>(MAX_ELEMENTS / d.size(0), 1);
  std::vector<Tensor> parts;
  for (int64_t first = 0; first < d.size(1); first += columns) {
    const Tensor part = values.narrow(1, first, std::min(columns, d.size(1) - first)).contiguous();
    parts.push_back(at::embedding_dense_backward(part, rows, count, -1, false).to(d.scalar_type()));
  }
  return parts.size() == 1 ? parts[0] : at::cat(parts, 1);
}

struct WeightedSumOfSenses : Function<WeightedSumOfSenses> {
  static Tensor forward(AutogradContext* ctx, const Tensor& qk, const Tensor& senses,
                        const std::optional<Tensor>& senses_bias, const std::optional<Tensor>& rows,
                        int64_t sequences, int64_t num_senses) {
    const Shape s{sequences, qk.size(0) / sequences, num_senses, qk.size(1) / 2};
    const auto [query, key] = split(qk, s);
    const Tensor alpha = at::empty({s.sequences, s.length, s.length * s.num_senses}, qk.options());
    {
      const Tensor scores = at::bmm(query, key.transpose(1, 2));
      launch(get("sense_weights", {s.num_senses, s.length}, qk), s.length, s.sequences,
             static_cast<const void*>(scores.data_ptr()), alpha.data_ptr(), s.scale(), static_cast<int>(s.length),
             static_cast<int>(s.block_rows()));
    }
    // One row per pair of token and sense.
    const Tensor pairs =
        (rows ? senses.index_select(0, *rows) : senses).view({s.sequences, s.length * s.num_senses, s.width});
    const Tensor out = at::empty({s.sequences, s.length, s.width}, qk.options());
    s.for_each_block([&](int64_t first, int64_t count) {
      const int64_t visible = (first + count) * s.num_senses;
      multiply(out.narrow(1, first, count), alpha.narrow(1, first, count).narrow(2, 0, visible),
               pairs.narrow(1, 0, visible));
    });
    // The weights of each sense sum to 1, so that its bias is added once.
    if (senses_bias) out.add_(senses_bias->view({s.num_senses, s.width}).sum(0));
    ctx->save_for_backward({query, key, alpha, pairs, rows.value_or(Tensor())});
    ctx->saved_data["sequences"] = sequences;
    ctx->saved_data["num_senses"] = num_senses;
    ctx->saved_data["distinct"] = senses.size(0);
    ctx->saved_data["has_bias"] = senses_bias.has_value();
    return out.view({qk.size(0), s.width});
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &query = saved[0], &key = saved[1], &alpha = saved[2], &pairs = saved[3], &rows = saved[4];
    const int64_t sequences = ctx->saved_data["sequences"].toInt();
    const Shape s{sequences, alpha.size(1), ctx->saved_data["num_senses"].toInt(), pairs.size(2)};
    const Tensor dy = grads[0].contiguous().view({s.sequences, s.length, s.width});
    Tensor d_alpha = at::empty_like(alpha);
    s.for_each_block([&](int64_t first, int64_t count) {
      const int64_t visible = (first + count) * s.num_senses;
      multiply(d_alpha.narrow(1, first, count).narrow(2, 0, visible), dy.narrow(1, first, count),
               pairs.narrow(1, 0, visible).transpose(1, 2));
    });
    const Tensor d_scores = at::empty({s.sequences * s.num_senses, s.length, s.length}, alpha.options());
    launch(get("sense_weights_backward", {s.num_senses, s.length}, alpha), s.length, s.sequences,
           static_cast<const void*>(alpha.data_ptr()), static_cast<const void*>(d_alpha.data_ptr()),
           d_scores.data_ptr(), s.scale(), static_cast<int>(s.length));
    d_alpha.reset();
    const Tensor d_qk = at::empty({s.sequences, s.length, 2, s.num_senses, s.channels()}, alpha.options());
    const auto store = [&](int64_t part, const Tensor& d) {
      d_qk.select(2, part).copy_(d.view({s.sequences, s.num_senses, s.length, s.channels()}).transpose(1, 2));
    };
    store(0, at::bmm(d_scores, key));
    store(1, at::bmm(d_scores.transpose(1, 2), query));
    // The senses of the tokens of a block receive gradients from the positions from its first on.
    const Tensor d_pairs = at::empty_like(pairs);
    s.for_each_block([&](int64_t first, int64_t count) {
      const int64_t from = first * s.num_senses, size = count * s.num_senses, later = s.length - first;
      multiply(d_pairs.narrow(1, from, size), alpha.narrow(1, first, later).narrow(2, from, size).transpose(1, 2),
               dy.narrow(1, first, later));
    });
    Tensor d_senses = d_pairs.view({s.sequences * s.length, s.num_senses * s.width});
    if (rows.defined()) d_senses = sum_by_row(d_senses, rows, ctx->saved_data["distinct"].toInt());
    Tensor d_bias;
    if (ctx->saved_data["has_bias"].toBool())
      d_bias = dy.view({-1, s.width}).sum(0, /*keepdim=*/false, at::kFloat).expand({s.num_senses, s.width}).reshape(-1);
    return {d_qk.view({s.sequences * s.length, 2 * s.width}), d_senses, d_bias, Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

Tensor weighted_sum_of_senses(const Tensor& qk, const Tensor& senses, const Tensor& senses_bias, const Tensor& rows,
                              int64_t sequences, int64_t num_senses) {
  TORCH_CHECK(sequences > 0 && num_senses > 0 && qk.size(0) % sequences == 0 && qk.size(1) % (2 * num_senses) == 0 &&
                  senses.dim() == 2 && senses.size(1) == qk.size(1) / 2 * num_senses &&
                  (rows.defined() ? rows.numel() : senses.size(0)) == qk.size(0),
              "weighted_sum_of_senses: qk ", qk.sizes(), " and senses ", senses.sizes(), " do not make ", sequences,
              " sequences with ", num_senses, " senses");
  for (const Tensor& t : {qk, senses})
    TORCH_CHECK(t.scalar_type() == at::kBFloat16 && t.is_contiguous(),
                "weighted_sum_of_senses needs contiguous bf16 tensors on a GPU, got ", t.toString());
  return WeightedSumOfSenses::apply(qk, senses, if_defined(senses_bias), if_defined(rows), sequences, num_senses);
}

}  // namespace cuda
