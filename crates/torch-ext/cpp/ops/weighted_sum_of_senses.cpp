// The Backpack's sum: output_t = sum over tokens s <= t and senses l of alpha[t, s, l] C[s, l].
// Computed by causal blocks of positions, with one product over all (token, sense) pairs of a
// block. The outputs of single senses are not stored, and neither are elements above the diagonal,
// except inside a block.
#include "ops.h"

namespace ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

SenseShape shape_of(int64_t senses, int64_t channels, int64_t length) {
  SenseShape s{senses, channels, length, 1, 1, 0};
  if (16 % senses == 0) {
    s.per_vector = 16 / senses;
  } else {
    s.vectors = (senses + 15) / 16;
  }
  s.key_vectors = s.per_vector > 1 ? (length + s.per_vector - 1) / s.per_vector : length * s.vectors;
  return s;
}

// The positions of each distinct token: `positions` lists them token by token, and `starts` holds
// the index of the first position of each token.
struct Segments {
  Tensor starts, positions;
};
Segments segments_of(const Tensor& rows, int64_t distinct) {
  const int64_t tokens = rows.size(0);
  Segments s{at::zeros({distinct + 1}, at::kLong), at::empty({tokens}, at::kLong)};
  const int64_t* row = rows.data_ptr<int64_t>();
  int64_t *starts = s.starts.data_ptr<int64_t>(), *positions = s.positions.data_ptr<int64_t>();
  for (int64_t i = 0; i < tokens; i++) starts[row[i] + 1]++;
  for (int64_t u = 0; u < distinct; u++) starts[u + 1] += starts[u];
  std::vector<int64_t> next(starts, starts + distinct);
  for (int64_t i = 0; i < tokens; i++) positions[next[row[i]]++] = i;
  return s;
}

struct WeightedSumOfSenses : Function<WeightedSumOfSenses> {
  static Tensor forward(AutogradContext* ctx, const Tensor& qk, const Tensor& qk_bias, const Tensor& senses,
                        const Tensor& senses_bias, const Tensor& rows, int64_t sequences, int64_t num_senses) {
    const int64_t tokens = qk.size(0), width = qk.size(1) / 2, length = tokens / sequences;
    const SenseShape s = shape_of(num_senses, width / num_senses, length);
    const auto& k = kernels_for(qk.scalar_type());
    const auto fp32 = qk.options().dtype(at::kFloat);
    const Tensor queries = at::empty({tokens, s.vectors * s.channels * 16}, fp32);
    const Tensor keys = at::empty({sequences, s.key_vectors * s.channels * 16}, fp32);
    parallel(tokens, ROW_GRAIN, [&](int64_t begin, int64_t end) {
      k.sense_queries(qk.data_ptr(), qk_bias.data_ptr<float>(), queries.data_ptr<float>(), s, begin, end);
    });
    parallel(sequences * s.key_vectors, ROW_GRAIN, [&](int64_t begin, int64_t end) {
      k.sense_keys(qk.data_ptr(), qk_bias.data_ptr<float>(), keys.data_ptr<float>(), s, begin, end);
    });
    const auto blocks = causal_blocks(length, num_senses);
    const Tensor weights = at::empty({sequences, blocks.back().end}, qk.options());
    const Tensor out = at::empty({tokens, width}, qk.options());
    const Tensor gathered = at::empty({length * num_senses, width}, qk.options());
    for (int64_t b = 0; b < sequences; b++) {
      gather_senses(gathered, senses, senses_bias, rows, b, length);
      for (const CausalBlock& block : blocks) {
        const Tensor alpha = view_of(weights, b, block, num_senses);
        const float* q = queries.data_ptr<float>() + (b * length + block.first) * queries.size(1);
        constexpr int64_t TILE = 4;  // of the kernel; no two threads share a tile
        parallel((block.rows + TILE - 1) / TILE, 1, [&](int64_t begin, int64_t end) {
          k.sense_weights(q, keys[b].data_ptr<float>(), alpha.data_ptr(), block.keys * num_senses, block.first, s,
                          begin * TILE, std::min(end * TILE, block.rows));
        });
        mm(out.narrow(0, b * length + block.first, block.rows), alpha, gathered.narrow(0, 0, block.keys * num_senses));
      }
    }
    ctx->save_for_backward({senses, senses_bias, rows, queries, keys, weights});
    ctx->saved_data["sequences"] = sequences;
    ctx->saved_data["num_senses"] = num_senses;
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &senses = saved[0], &senses_bias = saved[1], &rows = saved[2], &queries = saved[3], &keys = saved[4],
                 &weights = saved[5];
    const int64_t sequences = ctx->saved_data["sequences"].toInt();
    const int64_t num_senses = ctx->saved_data["num_senses"].toInt();
    const Tensor dy = grads[0].contiguous();
    const int64_t tokens = dy.size(0), width = dy.size(1), length = tokens / sequences;
    const SenseShape s = shape_of(num_senses, width / num_senses, length);
    const auto& k = kernels_for(dy.scalar_type());
    const auto blocks = causal_blocks(length, num_senses);
    const Tensor gathered = at::empty({length * num_senses, width}, dy.options());
    const Tensor d_gathered = at::empty({tokens * num_senses, width}, dy.options());
    const Tensor d_qk = at::empty({tokens, 2 * width}, dy.options());
    const Tensor d_keys = at::zeros_like(keys);
    for (int64_t b = 0; b < sequences; b++) {
      gather_senses(gathered, senses, senses_bias, rows, b, length);
      for (const CausalBlock& block : blocks) {
        const int64_t pairs = block.keys * num_senses, row = b * length + block.first;
        const Tensor alpha = view_of(weights, b, block, num_senses), d = at::empty_like(alpha);
        mm(d, dy.narrow(0, row, block.rows), gathered.narrow(0, 0, pairs).t());
        const float* q = queries.data_ptr<float>() + row * queries.size(1);
        const Tensor to_queries = d_qk.narrow(0, row, block.rows);
        parallel((block.rows + 1) / 2, 1, [&](int64_t begin, int64_t end) {
          k.sense_scores_backward(alpha.data_ptr(), d.data_ptr(), keys[b].data_ptr<float>(), to_queries.data_ptr(),
                                  pairs, block.first, s, begin * 2, std::min(end * 2, block.rows));
        });
        const int64_t visible =
            s.per_vector > 1 ? (block.keys + s.per_vector - 1) / s.per_vector : block.keys * s.vectors;
        parallel(visible, 8, [&](int64_t begin, int64_t end) {
          k.sense_keys_backward(d.data_ptr(), q, d_keys[b].data_ptr<float>(), pairs, block.rows, s, begin, end);
        });
      }
      // The senses of a token receive gradients from all later positions. One product per block of
      // tokens rounds each sum only once.
      for (const CausalBlock& block : blocks) {
        const int64_t from = block.first * num_senses, pairs = block.rows * num_senses;
        std::vector<Tensor> later;
        for (const CausalBlock& other : blocks)
          if (other.first >= block.first)
            later.push_back(view_of(weights, b, other, num_senses).narrow(1, from, pairs));
        const Tensor alpha = later.size() == 1 ? later[0].contiguous() : at::cat(later, 0);
        mm(d_gathered.narrow(0, b * length * num_senses + from, pairs), alpha.t(),
           dy.narrow(0, b * length + block.first, length - block.first));
      }
    }
    parallel(sequences * s.key_vectors, ROW_GRAIN, [&](int64_t begin, int64_t end) {
      k.sense_keys_store(d_keys.data_ptr<float>(), d_qk.data_ptr(), s, begin, end);
    });
    const Tensor d_qk_bias = parallel_sums(tokens, ROW_GRAIN, 2 * width, [&](float* sums, int64_t begin, int64_t end) {
      k.column_sums(d_qk.data_ptr(), sums, 2 * width, begin, end);
    });
    const Segments segments = segments_of(rows, senses.size(0));
    const Tensor d_senses = at::empty_like(senses), d_senses_bias = at::empty_like(senses_bias);
    constexpr int64_t COLUMNS = 512;  // share of a thread: whole cache lines
    const int64_t all = senses.size(1);
    parallel((all + COLUMNS - 1) / COLUMNS, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++)
        k.segment_sums(d_gathered.data_ptr(), segments.starts.data_ptr<int64_t>(),
                       segments.positions.data_ptr<int64_t>(), d_senses.data_ptr(), d_senses_bias.data_ptr<float>(),
                       senses.size(0), all, i * COLUMNS, std::min((i + 1) * COLUMNS, all));
    });
    return {d_qk, d_qk_bias, d_senses, d_senses_bias, Tensor(), Tensor(), Tensor()};
  }

  // Returns the weights of a block of one sequence: [rows, keys * senses].
  static Tensor view_of(const Tensor& weights, int64_t b, const CausalBlock& block, int64_t senses) {
    return weights[b].narrow(0, block.offset, block.end - block.offset).view({block.rows, block.keys * senses});
  }

  // Gathers the senses of the tokens of one sequence, one row per pair: [length * senses, D].
  static void gather_senses(const Tensor& gathered, const Tensor& senses, const Tensor& bias, const Tensor& rows,
                            int64_t b, int64_t length) {
    const auto& k = kernels_for(senses.scalar_type());
    const int64_t* first = rows.data_ptr<int64_t>() + b * length;
    parallel(length, ROW_GRAIN, [&](int64_t begin, int64_t end) {
      k.gather(senses.data_ptr(), bias.data_ptr<float>(), first, gathered.data_ptr(), senses.size(1), begin, end);
    });
  }
};

}  // namespace

Tensor weighted_sum_of_senses(const Tensor& qk, const Tensor& qk_bias, const Tensor& senses,
                              const Tensor& senses_bias, const Tensor& rows, int64_t sequences,
                              int64_t num_senses) {
  check_kind(qk, "weighted_sum_of_senses' queries and keys");
  check_kind(senses, "weighted_sum_of_senses' senses");
  TORCH_CHECK(sequences > 0 && num_senses > 0 && num_senses <= MAX_SENSES && qk.size(0) % sequences == 0 &&
                  qk.size(1) % (2 * num_senses) == 0 && senses.size(1) == qk.size(1) / 2 * num_senses &&
                  rows.numel() == qk.size(0),
              "weighted_sum_of_senses: qk ", qk.sizes(), ", senses ", senses.sizes(), " and rows ", rows.sizes(),
              " do not make ", sequences, " sequences with ", num_senses, " senses (at most ", MAX_SENSES, ")");
  return WeightedSumOfSenses::apply(qk, qk_bias, senses, senses_bias, rows.contiguous(), sequences, num_senses);
}

}  // namespace ops
