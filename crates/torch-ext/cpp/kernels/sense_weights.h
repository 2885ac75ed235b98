// The contextualization weights: alpha[t, s, l] = softmax over s <= t of q[t, l] . k[s, l] /
// sqrt(channels) is the weight of sense l of the token at position s in the output at position t.
// The sense is the innermost index, so that a row t is the left operand of one matrix product over
// all (position, sense) pairs up to t.
//
// The 16 lanes of a vector hold 16 adjacent elements of such a row. With 16 senses, these are all
// senses of one position. With 1, 2, 4 or 8 senses, they are the senses of several positions. With
// other numbers of senses, a position has one or more vectors, and the last one is padded. Queries
// and keys are first copied to a matching layout in fp32: queries [rows, vectors, channels, 16],
// and per sequence the keys and their gradient [key_vectors, channels, 16].
//
// Queries and keys come from qk [rows, 2 * senses * channels], queries first, sense-major.
#pragma once

#include "vec.h"

namespace BPX_ISA {

// A compile-time constant.
template <int N>
struct Count {
  static constexpr int value = N;
};

constexpr int64_t MAX_VECTORS = MAX_SENSES / LANES;  // of a position

BPX_INLINE int64_t used_vectors(const SenseShape& s, int64_t t) {
  return s.per_vector > 1 ? t / s.per_vector + 1 : (t + 1) * s.vectors;
}
// start_of returns the index in a row of weights at which a vector starts. is_whole returns whether
// no vector is padded. lanes_of returns the number of lanes of a vector that hold elements.
BPX_INLINE int64_t start_of(const SenseShape& s, int64_t v) {
  return s.per_vector > 1 ? v * LANES : v / s.vectors * s.senses + v % s.vectors * LANES;
}
BPX_INLINE bool is_whole(const SenseShape& s) {
  return s.per_vector > 1 ? s.senses * s.per_vector == LANES && s.positions % s.per_vector == 0
                          : s.senses == s.vectors * LANES;
}
BPX_INLINE int64_t lanes_of(const SenseShape& s, int64_t v) {
  if (s.per_vector > 1) {
    const int64_t left = (s.positions - v * s.per_vector) * s.senses;
    return left < LANES ? left : LANES;
  }
  const int64_t left = s.senses - v % s.vectors * LANES;
  return left < LANES ? left : LANES;
}
template <class E>
BPX_INLINE F load_weights(const E* row, const SenseShape& s, int64_t v, bool whole) {
  return whole ? load(row + v * LANES, All{}) : load(row + start_of(s, v), Some{lanes_of(s, v)});
}
template <class E>
BPX_INLINE void store_weights(E* row, F x, const SenseShape& s, int64_t v, bool whole) {
  if (whole) {
    store(row + v * LANES, x, All{});
  } else {
    store(row + start_of(s, v), x, Some{lanes_of(s, v)});
  }
}
// Returns x, with `other` in the lanes of positions after t.
BPX_INLINE F until(const SenseShape& s, int64_t v, int64_t t, F x, F other) {
  if (s.per_vector == 1) return x;
  const int64_t visible = (t + 1 - v * s.per_vector) * s.senses;
  return visible >= LANES ? x : keep(x, other, Some{visible});
}
// Sets each lane to the sum (or maximum) of the lanes of its sense.
template <class Join>
BPX_INLINE F over_positions(const SenseShape& s, F x, Join join) {
  if (s.per_vector == 1) return x;
  float lane[LANES];
  store(lane, x, All{});
  for (int64_t l = 0; l < s.senses; l++) {
    float joined = lane[l];
    for (int64_t i = l + s.senses; i < LANES; i += s.senses) joined = join(joined, lane[i]);
    for (int64_t i = l; i < LANES; i += s.senses) lane[i] = joined;
  }
  return load(lane, All{});
}

// Copies the queries of rows begin..end, scaled so that exp2 computes the softmax.
template <class E>
void sense_queries(const void* qk, const float* bias, float* queries, SenseShape s, int64_t begin, int64_t end) {
  const float scale = LOG2_E / __builtin_sqrtf((float)s.channels);
  for (int64_t row = begin; row < end; row++) {
    const E* from = static_cast<const E*>(qk) + row * 2 * s.senses * s.channels;
    float* to = queries + row * s.vectors * s.channels * LANES;
    for (int64_t v = 0; v < s.vectors; v++)
      for (int64_t lane = 0; lane < LANES; lane++) {
        const int64_t l = s.per_vector > 1 ? lane % s.senses : v * LANES + lane;
        for (int64_t c = 0; c < s.channels; c++) {
          const int64_t i = l * s.channels + c;
          to[(v * s.channels + c) * LANES + lane] = l < s.senses ? (one(from[i]) + bias[i]) * scale : 0.f;
        }
      }
  }
}

// Copies the keys of vectors begin..end, counted over all sequences.
template <class E>
void sense_keys(const void* qk, const float* bias, float* keys, SenseShape s, int64_t begin, int64_t end) {
  const int64_t width = s.senses * s.channels;
  for (int64_t vector = begin; vector < end; vector++) {
    const int64_t sequence = vector / s.key_vectors, v = vector % s.key_vectors;
    float* to = keys + vector * s.channels * LANES;
    for (int64_t lane = 0; lane < LANES; lane++) {
      const int64_t position = s.per_vector > 1 ? v * s.per_vector + lane / s.senses : v / s.vectors;
      const int64_t l = s.per_vector > 1 ? lane % s.senses : v % s.vectors * LANES + lane;
      const bool exists = position < s.positions && l < s.senses;
      const E* from = static_cast<const E*>(qk) + (sequence * s.positions + position) * 2 * width + width;
      for (int64_t c = 0; c < s.channels; c++)
        to[c * LANES + lane] = exists ? one(from[l * s.channels + c]) + bias[width + l * s.channels + c] : 0.f;
    }
  }
}

constexpr int64_t TILE = 4;  // number of queries, and of key vectors, that share loads

// Computes the scores of `rows` <= TILE queries and `count` <= TILE key vectors; q_step and k_step
// are their distances.
BPX_INLINE void scores(const float* q, int64_t q_step, int64_t rows, const float* k, int64_t k_step, int64_t count,
                       int64_t channels, F out[TILE][TILE]) {
  if (rows == TILE && count == TILE) {
    F total[TILE][TILE] = {};
    for (int64_t c = 0; c < channels; c++) {
      F key[TILE];
      for (int j = 0; j < TILE; j++) key[j] = load(k + j * k_step + c * LANES, All{});
      for (int i = 0; i < TILE; i++) {
        const F query = load(q + i * q_step + c * LANES, All{});
        for (int j = 0; j < TILE; j++) total[i][j] += query * key[j];
      }
    }
    memcpy(out, total, sizeof total);
    return;
  }
  for (int64_t i = 0; i < rows; i++)
    for (int64_t j = 0; j < count; j++) {
      F total{};
      for (int64_t c = 0; c < channels; c++)
        total += load(q + i * q_step + c * LANES, All{}) * load(k + j * k_step + c * LANES, All{});
      out[i][j] = total;
    }
}

// Computes the weights of a block of one sequence, for the queries first + begin .. first + end, in
// tiles. `weights` and `queries` start at the first row of the block. A row holds the keys up to
// the end of the block; those after the position of the row become 0.
template <class E>
void sense_weights(const float* queries, const float* keys, void* weights, int64_t row_size, int64_t first,
                   SenseShape s, int64_t begin, int64_t end) {
  const int64_t query_size = s.vectors * s.channels * LANES, key_size = s.channels * LANES;
  const bool whole = is_whole(s);
  // One buffer per thread, as large as the largest request so far.
  static thread_local float* buffer = nullptr;
  static thread_local int64_t buffer_size = 0;
  const int64_t longest = used_vectors(s, first + end - 1), size = TILE * longest * LANES;
  if (size > buffer_size) {
    __builtin_free(buffer);
    buffer = static_cast<float*>(__builtin_malloc(size * sizeof(float)));
    if (!buffer) __builtin_trap();
    buffer_size = size;
  }
  for (int64_t row = begin; row < end; row += TILE) {
    const int64_t rows = end - row < TILE ? end - row : TILE;
    const int64_t vectors = used_vectors(s, first + row + rows - 1);
    for (int64_t lead = 0; lead < s.vectors; lead++) {
      const float* q = queries + row * query_size + lead * key_size;
      for (int64_t v = lead; v < vectors; v += TILE * s.vectors) {
        const int64_t left = (vectors - v + s.vectors - 1) / s.vectors, count = left < TILE ? left : TILE;
        F out[TILE][TILE];
        scores(q, query_size, rows, keys + v * key_size, s.vectors * key_size, count, s.channels, out);
        for (int64_t i = 0; i < rows; i++)
          for (int64_t j = 0; j < count; j++)
            store(buffer + (i * longest + v + j * s.vectors) * LANES, out[i][j], All{});
      }
    }
    for (int64_t i = 0; i < rows; i++) {
      const int64_t t = first + row + i, used = used_vectors(s, t);
      float* line = buffer + i * longest * LANES;
      F top[MAX_VECTORS], total[MAX_VECTORS];
      for (int64_t lead = 0; lead < s.vectors; lead++) {
        F m = all(-__builtin_inff());
        for (int64_t v = lead; v < used; v += s.vectors)
          m = larger(m, until(s, v, t, load(line + v * LANES, All{}), m));
        top[lead] = over_positions(s, m, [](float a, float b) { return a > b ? a : b; });
        F z{};
        for (int64_t v = lead; v < used; v += s.vectors) {
          const F e = until(s, v, t, exp2(load(line + v * LANES, All{}) - top[lead]), F{});
          store(line + v * LANES, e, All{});
          z += e;
        }
        total[lead] = all(1.f) / over_positions(s, z, [](float a, float b) { return a + b; });
      }
      E* to = static_cast<E*>(weights) + (row + i) * row_size;
      if (s.vectors == 1) {
        for (int64_t v = 0; v < used; v++) store_weights(to, load(line + v * LANES, All{}) * total[0], s, v, whole);
      } else {
        for (int64_t v = 0; v < used; v++)
          store_weights(to, load(line + v * LANES, All{}) * total[v % s.vectors], s, v, whole);
      }
      const int64_t visible = (t + 1) * s.senses;
      memset(to + visible, 0, (row_size - visible) * sizeof(E));
    }
  }
}

// Calls body(c, N) for groups of N channels that together cover all channels. Groups of 12 channels
// keep the sums of two rows in registers.
template <class Body>
BPX_INLINE void runs_of_channels(int64_t channels, Body body) {
  int64_t c = 0;
  for (; c + 12 <= channels; c += 12) body(c, Count<12>{});
  for (; c + 4 <= channels; c += 4) body(c, Count<4>{});
  for (; c < channels; c++) body(c, Count<1>{});
}

// sums[i][c] += ds[i][v] * k[v][c] over the vectors v of a row, for ROWS rows and C channels.
template <int ROWS, int C, class E>
BPX_INLINE void query_gradient(const E* ds, int64_t row_size, const float* keys, int64_t lead, const SenseShape& s,
                               const int64_t* used, bool whole, F out[ROWS][C]) {
  F total[ROWS][C] = {};
  // After the last position of a row, the gradient of the scores is 0.
  for (int64_t v = lead; v < used[ROWS - 1]; v += s.vectors) {
    F d[ROWS];
    for (int i = 0; i < ROWS; i++) d[i] = load_weights(ds + i * row_size, s, v, whole);
    const float* k = keys + v * s.channels * LANES;
    for (int c = 0; c < C; c++) {
      const F key = load(k + c * LANES, All{});
      for (int i = 0; i < ROWS; i++) total[i][c] += d[i] * key;
    }
  }
  memcpy(out, total, sizeof total);
}

template <int ROWS, int C, class E>
BPX_INLINE void query_channels(const E* ds, int64_t row_size, const float* keys, const SenseShape& s, int64_t c0,
                               const int64_t* used, bool whole, E* grad_qk, float scale) {
  for (int64_t lead = 0; lead < s.vectors; lead++) {
    F total[ROWS][C];
    query_gradient<ROWS, C>(ds, row_size, keys + c0 * LANES, lead, s, used, whole, total);
    for (int i = 0; i < ROWS; i++)
      for (int c = 0; c < C; c++) {
        float lane[LANES];
        store(lane, over_positions(s, total[i][c], [](float a, float b) { return a + b; }) * scale, All{});
        const int64_t l0 = lead * LANES, left = s.senses - l0, count = left < LANES ? left : LANES;
        E* to = grad_qk + i * 2 * s.senses * s.channels + l0 * s.channels + c0 + c;
        for (int64_t l = 0; l < count; l++) put(to + l * s.channels, lane[l]);
      }
  }
}

// The backward pass of sense_weights for a block. On input, grad is the gradient of the weights; on
// output, of the scores. Writes the gradient of the queries to grad_qk, which starts at the first
// row of the block.
template <class E>
void sense_scores_backward(const void* weights, void* grad, const float* keys, void* grad_qk, int64_t row_size,
                           int64_t first, SenseShape s, int64_t begin, int64_t end) {
  const bool whole = is_whole(s);
  const float scale = 1.f / __builtin_sqrtf((float)s.channels);
  const int64_t width = 2 * s.senses * s.channels;
  for (int64_t row = begin; row < end; row += 2) {
    const int64_t rows = end - row < 2 ? 1 : 2;
    int64_t used[2] = {0, 0};
    E* d0 = static_cast<E*>(grad) + row * row_size;
    for (int64_t i = 0; i < rows; i++) {
      const E* a = static_cast<const E*>(weights) + (row + i) * row_size;
      E* d = d0 + i * row_size;
      used[i] = used_vectors(s, first + row + i);
      for (int64_t lead = 0; lead < s.vectors; lead++) {
        F dot{};
        for (int64_t v = lead; v < used[i]; v += s.vectors)
          dot += load_weights(a, s, v, whole) * load_weights(d, s, v, whole);
        dot = over_positions(s, dot, [](float x, float y) { return x + y; });
        for (int64_t v = lead; v < used[i]; v += s.vectors)
          store_weights(d, load_weights(a, s, v, whole) * (load_weights(d, s, v, whole) - dot), s, v, whole);
      }
      const int64_t visible = (first + row + i + 1) * s.senses;
      memset(d + visible, 0, (row_size - visible) * sizeof(E));
    }
    E* to = static_cast<E*>(grad_qk) + row * width;
    runs_of_channels(s.channels, [&](int64_t c, auto count) {
      constexpr int C = decltype(count)::value;
      if (rows == 2) {
        query_channels<2, C>(d0, row_size, keys, s, c, used, whole, to, scale);
      } else {
        query_channels<1, C>(d0, row_size, keys, s, c, used, whole, to, scale);
      }
    });
  }
}

template <int KEYS, int C, class E>
BPX_INLINE void key_channels(const E* ds, int64_t row_size, const float* queries, const SenseShape& s, int64_t v,
                             int64_t c0, int64_t rows, bool whole, float* grad_keys) {
  const int64_t query_size = s.vectors * s.channels * LANES;
  F total[KEYS][C];
  for (int i = 0; i < KEYS; i++)
    for (int c = 0; c < C; c++)
      total[i][c] = load(grad_keys + ((v + i * s.vectors) * s.channels + c0 + c) * LANES, All{});
  const float* q = queries + (v % s.vectors * s.channels + c0) * LANES;
  for (int64_t t = 0; t < rows; t++) {
    F d[KEYS];
    for (int i = 0; i < KEYS; i++) d[i] = load_weights(ds + t * row_size, s, v + i * s.vectors, whole);
    for (int c = 0; c < C; c++) {
      const F query = load(q + t * query_size + c * LANES, All{});
      for (int i = 0; i < KEYS; i++) total[i][c] += d[i] * query;
    }
  }
  for (int i = 0; i < KEYS; i++)
    for (int c = 0; c < C; c++)
      store(grad_keys + ((v + i * s.vectors) * s.channels + c0 + c) * LANES, total[i][c], All{});
}

// Adds the contribution of a block of `rows` queries to the gradient of the key vectors begin..end
// of its sequence. The queries already contain the scale of the softmax, and also the factor
// LOG2_E, which sense_keys_store removes.
template <class E>
void sense_keys_backward(const void* grad_scores, const float* queries, float* grad_keys, int64_t row_size,
                         int64_t rows, SenseShape s, int64_t begin, int64_t end) {
  const bool whole = is_whole(s);
  const E* ds = static_cast<const E*>(grad_scores);
  // Pairs of vectors of the same senses share the loads of the queries.
  for (int64_t v = begin, step; v < end; v += step) {
    step = s.vectors == 1 && v + 2 <= end ? 2 : 1;
    runs_of_channels(s.channels, [&](int64_t c, auto count) {
      constexpr int C = decltype(count)::value;
      if (step == 2) {
        key_channels<2, C>(ds, row_size, queries, s, v, c, rows, whole, grad_keys);
      } else {
        key_channels<1, C>(ds, row_size, queries, s, v, c, rows, whole, grad_keys);
      }
    });
  }
}

// Writes the half of grad_qk that belongs to the keys, from the gradient of the key vectors
// begin..end over all sequences.
template <class E>
void sense_keys_store(const float* grad_keys, void* grad_qk, SenseShape s, int64_t begin, int64_t end) {
  const int64_t width = s.senses * s.channels;
  for (int64_t vector = begin; vector < end; vector++) {
    const int64_t sequence = vector / s.key_vectors, v = vector % s.key_vectors;
    const float* from = grad_keys + vector * s.channels * LANES;
    for (int64_t lane = 0; lane < LANES; lane++) {
      const int64_t position = s.per_vector > 1 ? v * s.per_vector + lane / s.senses : v / s.vectors;
      const int64_t l = s.per_vector > 1 ? lane % s.senses : v % s.vectors * LANES + lane;
      if (position >= s.positions || l >= s.senses) continue;
      E* to = static_cast<E*>(grad_qk) + (sequence * s.positions + position) * 2 * width + width;
      for (int64_t c = 0; c < s.channels; c++) put(to + l * s.channels + c, from[c * LANES + lane] * LN_2);
    }
  }
}

}  // namespace BPX_ISA
