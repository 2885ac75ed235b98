// The parts of attention between its matrix products: splitting and merging heads, and the causal
// softmax. Scores are stored by blocks of queries. Block i has `rows` queries, from position
// `first`, and `columns` keys, up to its last query. Elements above the diagonal inside a block are
// 0 after the softmax.
#pragma once

#include "vec.h"

namespace BPX_ISA {

// Copies x [sequences * length, groups * n_head * size] + bias to heads [groups, sequences, n_head,
// length, size], for rows begin..end of x.
template <class E>
void split_heads(const void* x, const float* bias, void* heads, int64_t groups, int64_t sequences, int64_t n_head,
                 int64_t length, int64_t size, int64_t begin, int64_t end) {
  const int64_t n = groups * n_head * size;
  for (int64_t row = begin; row < end; row++) {
    const int64_t b = row / length, t = row % length;
    for (int64_t gh = 0; gh < groups * n_head; gh++) {
      const E* from = static_cast<const E*>(x) + row * n + gh * size;
      const int64_t g = gh / n_head, h = gh % n_head;
      E* to = static_cast<E*>(heads) + (((g * sequences + b) * n_head + h) * length + t) * size;
      columns(size, [&](int64_t j, auto lanes) {
        F v = load(from + j, lanes);
        if (bias) v += load(bias + gh * size + j, lanes);
        store(to + j, v, lanes);
      });
    }
  }
}

// The inverse of split_heads, without a bias. Adds the columns of x to column_sums, unless it is
// null.
template <class E>
void merge_heads(const void* heads, void* x, float* column_sums, int64_t groups, int64_t sequences, int64_t n_head,
                 int64_t length, int64_t size, int64_t begin, int64_t end) {
  const int64_t n = groups * n_head * size;
  for (int64_t row = begin; row < end; row++) {
    const int64_t b = row / length, t = row % length;
    for (int64_t gh = 0; gh < groups * n_head; gh++) {
      const int64_t g = gh / n_head, h = gh % n_head;
      const E* from = static_cast<const E*>(heads) + (((g * sequences + b) * n_head + h) * length + t) * size;
      E* to = static_cast<E*>(x) + row * n + gh * size;
      columns(size, [&](int64_t j, auto lanes) {
        const F v = load(from + j, lanes);
        store(to + j, v, lanes);
        if (column_sums) {
          float* sums = column_sums + gh * size + j;
          store(sums, load(sums, lanes) + v, lanes);
        }
      });
    }
  }
}

// Rows begin..end of scores [.., rows, columns], in place: softmax(scale * scores).
template <class E>
void softmax(void* scores, float scale, int64_t rows, int64_t n, int64_t first, int64_t begin, int64_t end) {
  const F k = all(scale * LOG2_E);
  for (int64_t row = begin; row < end; row++) {
    E* p = static_cast<E*>(scores) + row * n;
    const int64_t visible = first + row % rows + 1;
    F top = all(-__builtin_inff());
    columns(visible, [&](int64_t j, auto lanes) { top = larger(top, keep(load(p + j, lanes), top, lanes)); });
    const F shift = all(-largest(top) * scale * LOG2_E);
    F total{};
    columns(visible, [&](int64_t j, auto lanes) {
      total += keep(exp2(load(p + j, lanes) * k + shift), F{}, lanes);
    });
    // Computing the exponentials again, with the division included, is cheaper than a buffer of
    // floats.
    const F weight = all(1.f / sum(total));
    columns(visible, [&](int64_t j, auto lanes) {
      store(p + j, exp2(load(p + j, lanes) * k + shift) * weight, lanes);
    });
    memset(p + visible, 0, (n - visible) * sizeof(E));
  }
}

// On input, grad is the gradient of the weights after dropout; on output, of the unscaled scores.
// `index` is the dropout index of the first element of the block.
template <class E>
void softmax_backward(const void* weights, void* grad, float scale, Dropout dropout, int64_t index, int64_t rows,
                      int64_t n, int64_t first, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; row++) {
    const E* p = static_cast<const E*>(weights) + row * n;
    E* d = static_cast<E*>(grad) + row * n;
    const int64_t visible = first + row % rows + 1;
    const auto incoming = [&](int64_t j, auto lanes) {
      const F g = load(d + j, lanes);
      return dropout.threshold ? drop(g, dropout, index + row * n + j) : g;
    };
    F total{};
    columns(visible, [&](int64_t j, auto lanes) { total += load(p + j, lanes) * incoming(j, lanes); });
    const F mean = all(sum(total));
    columns(visible, [&](int64_t j, auto lanes) {
      store(d + j, load(p + j, lanes) * (incoming(j, lanes) - mean) * scale, lanes);
    });
    memset(d + visible, 0, (n - visible) * sizeof(E));
  }
}

template <class E>
void drop_weights(const void* weights, void* dropped, Dropout dropout, int64_t index, int64_t n, int64_t begin,
                  int64_t end) {
  for (int64_t row = begin; row < end; row++) {
    const E* p = static_cast<const E*>(weights) + row * n;
    E* out = static_cast<E*>(dropped) + row * n;
    columns(n, [&](int64_t j, auto lanes) {
      store(out + j, drop(load(p + j, lanes), dropout, index + row * n + j), lanes);
    });
  }
}

}  // namespace BPX_ISA
