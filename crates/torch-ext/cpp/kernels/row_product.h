// The product of one row and a matrix, for text generation. Reads each element of the matrix once.
#pragma once

#include "vec.h"

namespace BPX_ISA {

// out[j] = sum over i of row[i] * matrix[i, j], for columns begin..end. Eight vectors of sums stay
// in registers during the loop over the rows of the matrix.
template <class E>
void row_times_matrix(const void* row, const void* matrix, void* out, int64_t inner, int64_t stride, int64_t begin,
                      int64_t end) {
  const E *x = static_cast<const E*>(row), *m = static_cast<const E*>(matrix);
  E* to = static_cast<E*>(out);
  constexpr int64_t WIDE = 8;
  int64_t j = begin;
  for (; j + WIDE * LANES <= end; j += WIDE * LANES) {
    F total[WIDE] = {};
    for (int64_t i = 0; i < inner; i++) {
      const F scale = all(one(x[i]));
      for (int w = 0; w < WIDE; w++) total[w] += scale * load(m + i * stride + j + w * LANES, All{});
    }
    for (int w = 0; w < WIDE; w++) store(to + j + w * LANES, total[w], All{});
  }
  columns(end - j, [&](int64_t offset, auto lanes) {
    F total{};
    for (int64_t i = 0; i < inner; i++) total += all(one(x[i])) * load(m + i * stride + j + offset, lanes);
    store(to + j + offset, total, lanes);
  });
}

// out[j] = row . rows[j], for rows begin..end.
template <class E>
void row_times_rows(const void* row, const void* rows, void* out, int64_t inner, int64_t stride, int64_t begin,
                    int64_t end) {
  const E* x = static_cast<const E*>(row);
  for (int64_t j = begin; j < end; j++) {
    const E* r = static_cast<const E*>(rows) + j * stride;
    F first{}, second{};
    int64_t i = 0;
    for (; i + 2 * LANES <= inner; i += 2 * LANES) {
      first += load(x + i, All{}) * load(r + i, All{});
      second += load(x + i + LANES, All{}) * load(r + i + LANES, All{});
    }
    columns(inner - i, [&](int64_t offset, auto lanes) { first += load(x + i + offset, lanes) * load(r + i + offset, lanes); });
    put(static_cast<E*>(out) + j, sum(first + second));
  }
}

}  // namespace BPX_ISA
