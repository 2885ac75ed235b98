// Causal attention by blocks of queries. Elements above the diagonal are not computed, except
// inside a block, and only the weights of one block exist at a time. The backward pass computes
// them again, as flash attention does.
#include "ops.h"

namespace ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

struct Shape {
  int64_t sequences, n_head, length, size;
  int64_t pairs() const { return sequences * n_head; }
  int64_t rows() const { return sequences * length; }
  int64_t width() const { return n_head * size; }
};

// Returns the softmax of the scores of a block: [pairs, rows, keys].
Tensor weights_of(const Tensor& query, const Tensor& key, const Shape& s, const CausalBlock& b, double scale) {
  const auto& k = kernels_for(query.scalar_type());
  const Tensor p = at::empty({s.pairs(), b.rows, b.keys}, query.options());
  bmm(p, query.narrow(1, b.first, b.rows).contiguous(), key.narrow(1, 0, b.keys).transpose(1, 2));
  parallel(s.pairs() * b.rows, ROW_GRAIN, [&](int64_t begin, int64_t end) {
    k.softmax(p.data_ptr(), static_cast<float>(scale), b.rows, b.keys, b.first, begin, end);
  });
  return p;
}

Tensor dropped(const Tensor& weights, const Shape& s, const CausalBlock& b, Dropout drop) {
  if (!drop.threshold) return weights;
  const Tensor out = at::empty_like(weights);
  const auto& k = kernels_for(weights.scalar_type());
  parallel(s.pairs() * b.rows, ROW_GRAIN, [&](int64_t begin, int64_t end) {
    k.drop_weights(weights.data_ptr(), out.data_ptr(), drop, b.offset, b.keys, begin, end);
  });
  return out;
}

struct Attention : Function<Attention> {
  static Tensor forward(AutogradContext* ctx, const Tensor& qkv, const Tensor& bias, int64_t sequences, int64_t n_head,
                        double scale, double dropout) {
    const Shape s{sequences, n_head, qkv.size(0) / sequences, qkv.size(1) / 3 / n_head};
    const auto& k = kernels_for(qkv.scalar_type());
    const Tensor heads = at::empty({3, s.pairs(), s.length, s.size}, qkv.options());
    parallel(s.rows(), ROW_GRAIN, [&](int64_t begin, int64_t end) {
      k.split_heads(qkv.data_ptr(), bias.data_ptr<float>(), heads.data_ptr(), 3, s.sequences, s.n_head, s.length,
                    s.size, begin, end);
    });
    const Tensor query = heads[0], key = heads[1], value = heads[2];
    const auto blocks = causal_blocks(s.length, s.pairs());
    const Tensor mixed = at::empty({s.pairs(), s.length, s.size}, qkv.options());
    const int64_t seed = draw_seed(dropout);
    const Dropout drop = dropout_of(dropout, seed);
    for (const CausalBlock& b : blocks) {
      const Tensor p = weights_of(query, key, s, b, scale);
      const Tensor out = at::empty({s.pairs(), b.rows, s.size}, qkv.options());
      bmm(out, dropped(p, s, b, drop), value.narrow(1, 0, b.keys));
      mixed.narrow(1, b.first, b.rows).copy_(out);
    }
    const Tensor y = at::empty({s.rows(), s.width()}, qkv.options());
    parallel(s.rows(), ROW_GRAIN, [&](int64_t begin, int64_t end) {
      k.merge_heads(mixed.data_ptr(), y.data_ptr(), nullptr, 1, s.sequences, s.n_head, s.length, s.size, begin, end);
    });
    ctx->save_for_backward({heads});
    ctx->saved_data["sequences"] = sequences;
    ctx->saved_data["n_head"] = n_head;
    ctx->saved_data["scale"] = scale;
    ctx->saved_data["dropout"] = dropout;
    ctx->saved_data["seed"] = seed;
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &heads = saved[0], dy = grads[0].contiguous();
    const int64_t sequences = ctx->saved_data["sequences"].toInt(), n_head = ctx->saved_data["n_head"].toInt();
    const Shape s{sequences, n_head, heads.size(2), heads.size(3)};
    const double scale = ctx->saved_data["scale"].toDouble(), dropout = ctx->saved_data["dropout"].toDouble();
    const Dropout drop = dropout_of(dropout, ctx->saved_data["seed"].toInt());
    const auto& k = kernels_for(heads.scalar_type());
    const Tensor query = heads[0], key = heads[1], value = heads[2];
    const Tensor d_mixed = at::empty({s.pairs(), s.length, s.size}, heads.options());
    parallel(s.rows(), ROW_GRAIN, [&](int64_t begin, int64_t end) {
      k.split_heads(dy.data_ptr(), nullptr, d_mixed.data_ptr(), 1, s.sequences, s.n_head, s.length, s.size, begin, end);
    });
    const Tensor d_heads = at::empty_like(heads);
    // The gradients of keys and values are sums over all blocks, in fp32. The last block covers all
    // positions.
    Tensor d_key, d_value;
    const auto blocks = causal_blocks(s.length, s.pairs());
    for (auto b = blocks.rbegin(); b != blocks.rend(); ++b) {
      const Tensor p = weights_of(query, key, s, *b, scale);
      const Tensor out = d_mixed.narrow(1, b->first, b->rows).contiguous();
      const Tensor d = at::empty_like(p);
      bmm(d, out, value.narrow(1, 0, b->keys).transpose(1, 2));
      const Tensor to_value = at::empty({s.pairs(), b->keys, s.size}, heads.options());
      bmm(to_value, dropped(p, s, *b, drop).transpose(1, 2), out);
      parallel(s.pairs() * b->rows, ROW_GRAIN, [&](int64_t begin, int64_t end) {
        k.softmax_backward(p.data_ptr(), d.data_ptr(), static_cast<float>(scale), drop, b->offset, b->rows, b->keys,
                           b->first, begin, end);
      });
      const Tensor to_query = at::empty({s.pairs(), b->rows, s.size}, heads.options());
      bmm(to_query, d, key.narrow(1, 0, b->keys));
      d_heads[0].narrow(1, b->first, b->rows).copy_(to_query);
      const Tensor to_key = at::empty({s.pairs(), b->keys, s.size}, heads.options());
      bmm(to_key, d.transpose(1, 2), query.narrow(1, b->first, b->rows).contiguous());
      if (!d_key.defined()) {
        d_key = to_key.to(at::kFloat);
        d_value = to_value.to(at::kFloat);
      } else {
        d_key.narrow(1, 0, b->keys).add_(to_key);
        d_value.narrow(1, 0, b->keys).add_(to_value);
      }
    }
    d_heads[1].copy_(d_key);
    d_heads[2].copy_(d_value);
    const Tensor d_qkv = at::empty({s.rows(), 3 * s.width()}, heads.options());
    const Tensor d_bias = parallel_sums(s.rows(), ROW_GRAIN, 3 * s.width(), [&](float* sums, int64_t begin, int64_t end) {
      k.merge_heads(d_heads.data_ptr(), d_qkv.data_ptr(), sums, 3, s.sequences, s.n_head, s.length, s.size, begin, end);
    });
    return {d_qkv, d_bias, Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

Tensor attention(const Tensor& qkv, const Tensor& bias, int64_t sequences, int64_t n_head, double scale,
                 double dropout) {
  check_kind(qkv, "attention's input");
  TORCH_CHECK(sequences > 0 && qkv.size(0) % sequences == 0 && qkv.size(1) % (3 * n_head) == 0,
              "attention: ", qkv.sizes(), " is not ", sequences, " sequences of three times ", n_head, " heads");
  return Attention::apply(qkv, bias, sequences, n_head, scale, dropout);
}

}  // namespace ops
