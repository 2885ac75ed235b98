// sum = stream + dropout(output + bias), normed = LayerNorm(sum), where `output` is that of a
// layer: the end of one block and the start of the next in one pass. All arithmetic is fp32.
#pragma once

#include "vec.h"

namespace BPX_ISA {

template <class OutputType, class NormedType>
void add_norm(const AddNorm& a, int64_t begin, int64_t end) {
  const int64_t n = a.columns;
  for (int64_t row = begin; row < end; row++) {
    const float* x = a.stream + row * n;
    const OutputType* output = a.output ? static_cast<const OutputType*>(a.output) + row * n : nullptr;
    float* out = a.sum + row * n;
    F total{};
    if (!output) {
      columns(n, [&](int64_t j, auto lanes) { total += load(x + j, lanes); });
    } else {
      columns(n, [&](int64_t j, auto lanes) {
        F y = load(output + j, lanes);
        if (a.output_bias) y += load(a.output_bias + j, lanes);
        if (a.dropout.threshold) y = drop(y, a.dropout, row * n + j);
        const F v = load(x + j, lanes) + y;
        store(out + j, v, lanes);
        total += keep(v, F{}, lanes);
      });
      x = out;
    }
    const float mean = sum(total) / n;
    F squares{};
    columns(n, [&](int64_t j, auto lanes) {
      const F v = keep(load(x + j, lanes) - mean, F{}, lanes);
      squares += v * v;
    });
    const float inverse = 1.f / __builtin_sqrtf(sum(squares) / n + a.eps);
    a.stats[2 * row] = mean;
    a.stats[2 * row + 1] = inverse;
    NormedType* normed = static_cast<NormedType*>(a.normed) + row * n;
    columns(n, [&](int64_t j, auto lanes) {
      const F v = (load(x + j, lanes) - mean) * inverse;
      store(normed + j, v * load(a.weight + j, lanes) + load(a.bias + j, lanes), lanes);
    });
  }
}

// Adds the gradients of the weight, the bias and the bias of the output to sums [3, columns].
template <class OutputType, class NormedType>
void add_norm_backward(const AddNormBackward& a, float* sums, int64_t begin, int64_t end) {
  const int64_t n = a.columns;
  float *to_weight = sums, *to_bias = sums + n, *to_output_bias = sums + 2 * n;
  for (int64_t row = begin; row < end; row++) {
    const float* x = a.sum + row * n;
    const NormedType* dy = static_cast<const NormedType*>(a.grad_normed) + row * n;
    const float mean = a.stats[2 * row], inverse = a.stats[2 * row + 1];
    F first{}, second{};
    columns(n, [&](int64_t j, auto lanes) {
      const F d = load(dy + j, lanes), normal = keep((load(x + j, lanes) - mean) * inverse, F{}, lanes);
      store(to_weight + j, load(to_weight + j, lanes) + d * normal, lanes);
      store(to_bias + j, load(to_bias + j, lanes) + d, lanes);
      const F g = d * load(a.weight + j, lanes);
      first += g;
      second += g * normal;
    });
    const float mean_g = sum(first) / n, mean_gn = sum(second) / n;
    columns(n, [&](int64_t j, auto lanes) {
      const F normal = (load(x + j, lanes) - mean) * inverse;
      F g = (load(dy + j, lanes) * load(a.weight + j, lanes) - mean_g - normal * mean_gn) * inverse;
      if (a.grad_sum) g += load(a.grad_sum + row * n + j, lanes);
      store(a.grad_stream + row * n + j, g, lanes);
      if (a.grad_output) {
        if (a.dropout.threshold) g = drop(g, a.dropout, row * n + j);
        store(static_cast<OutputType*>(a.grad_output) + row * n + j, g, lanes);
        store(to_output_bias + j, load(to_output_bias + j, lanes) + g, lanes);
      }
    });
  }
}

}  // namespace BPX_ISA
