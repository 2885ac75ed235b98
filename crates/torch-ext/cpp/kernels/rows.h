// Kernels that gather rows, sum rows and convert rows to fp32.
#pragma once

#include "vec.h"

namespace BPX_ISA {

// out[i] = values[rows[i]] + bias.
template <class E>
void gather(const void* values, const float* bias, const int64_t* rows, void* out, int64_t n, int64_t begin,
            int64_t end) {
  for (int64_t i = begin; i < end; i++) {
    const E* from = static_cast<const E*>(values) + rows[i] * n;
    E* to = static_cast<E*>(out) + i * n;
    columns(n, [&](int64_t j, auto lanes) { store(to + j, load(from + j, lanes) + load(bias + j, lanes), lanes); });
  }
}

// The transpose of gather: out[u] is the sum of values[positions[s]] for s in starts[u]..starts[u +
// 1] (never empty), and column_sums the sum of all out[u]. Computes columns begin..end of all rows,
// so that no two threads share a sum.
template <class E>
void segment_sums(const void* values, const int64_t* starts, const int64_t* positions, void* out, float* column_sums,
                  int64_t rows, int64_t n, int64_t begin, int64_t end) {
  const E* v = static_cast<const E*>(values);
  columns(end - begin, [&](int64_t offset, auto lanes) { store(column_sums + begin + offset, F{}, lanes); });
  for (int64_t u = 0; u < rows; u++) {
    E* to = static_cast<E*>(out) + u * n;
    columns(end - begin, [&](int64_t offset, auto lanes) {
      const int64_t j = begin + offset;
      F total{};
      for (int64_t s = starts[u]; s < starts[u + 1]; s++) total += load(v + positions[s] * n + j, lanes);
      store(to + j, total, lanes);
      store(column_sums + j, load(column_sums + j, lanes) + total, lanes);
    });
  }
}

template <class E>
void column_sums(const void* x, float* sums, int64_t n, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; row++) {
    const E* p = static_cast<const E*>(x) + row * n;
    columns(n, [&](int64_t j, auto lanes) { store(sums + j, load(sums + j, lanes) + load(p + j, lanes), lanes); });
  }
}

inline void add_widened(const Bf16* x, float* total, int overwrite, int64_t begin, int64_t end) {
  columns(end - begin, [&](int64_t offset, auto lanes) {
    const int64_t i = begin + offset;
    const F v = load(x + i, lanes);
    store(total + i, overwrite ? v : v + load(total + i, lanes), lanes);
  });
}

}  // namespace BPX_ISA
