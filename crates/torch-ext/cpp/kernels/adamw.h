// AdamW in one pass over the moments, the parameter and its bf16 copy.
#pragma once

#include "vec.h"

namespace BPX_ISA {

inline double sum_of_squares(const float* x, int64_t begin, int64_t end) {
  double total = 0;
  // Short sums in fp32, added in double precision.
  constexpr int64_t SHORT = 4096;
  for (int64_t i = begin; i < end; i += SHORT) {
    F squares{};
    columns(end - i < SHORT ? end - i : SHORT, [&](int64_t j, auto lanes) {
      const F v = load(x + i + j, lanes);
      squares += v * v;
    });
    total += sum(squares);
  }
  return total;
}

inline void adamw(float* parameter, const float* grad, float* exp_avg, float* exp_avg_sq, Bf16* copy,
                  const AdamWStep& s, int64_t begin, int64_t end) {
  columns(end - begin, [&](int64_t offset, auto lanes) {
    const int64_t i = begin + offset;
    const F g = load(grad + i, lanes) * s.grad_scale;
    const F m = load(exp_avg + i, lanes) * s.beta1 + g * s.rest1;
    const F v = load(exp_avg_sq + i, lanes) * s.beta2 + g * g * s.rest2;
    store(exp_avg + i, m, lanes);
    store(exp_avg_sq + i, v, lanes);
    const F p = load(parameter + i, lanes) * s.decay - m / (root(v) * s.root_scale + s.eps) * s.step_size;
    store(parameter + i, p, lanes);
    if (copy) store(copy + i, p, lanes);
  });
}

}  // namespace BPX_ISA
