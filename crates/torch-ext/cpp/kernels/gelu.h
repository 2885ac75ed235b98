// act = gelu(pre + bias) with the tanh approximation, computed as x * sigmoid(2u) with
// u = sqrt(2 / pi) (x + 0.044715 x^3).
#pragma once

#include "vec.h"

namespace BPX_ISA {

constexpr float GELU_LINEAR = 2 * 0.7978845608028654f;
constexpr float GELU_CUBIC = GELU_LINEAR * 0.044715f;

BPX_INLINE F sigmoid_2u(F x) {
  F t = x * (x * x * all(-LOG2_E * GELU_CUBIC) + all(-LOG2_E * GELU_LINEAR));
  t = t > all(126.f) ? all(126.f) : t;  // for x far below 0, the sigmoid is 2^-126
  return all(1.f) / (all(1.f) + exp2(t));
}

template <class E>
void gelu(const void* pre, const float* bias, void* act, int64_t n, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; row++) {
    const E* p = static_cast<const E*>(pre) + row * n;
    E* out = static_cast<E*>(act) + row * n;
    columns(n, [&](int64_t j, auto lanes) {
      const F x = load(p + j, lanes) + load(bias + j, lanes);
      store(out + j, x * sigmoid_2u(x), lanes);
    });
  }
}

// On input, grad is the gradient of act; on output, of pre. Computes act again, and adds the
// gradient of the bias to bias_sums.
template <class E>
void gelu_backward(const void* pre, const float* bias, void* grad, void* act, float* bias_sums, int64_t n,
                   int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; row++) {
    const E* p = static_cast<const E*>(pre) + row * n;
    E *d = static_cast<E*>(grad) + row * n, *out = static_cast<E*>(act) + row * n;
    columns(n, [&](int64_t j, auto lanes) {
      const F x = load(p + j, lanes) + load(bias + j, lanes), s = sigmoid_2u(x);
      const F slope = s + x * s * (1.f - s) * (x * x * all(3 * GELU_CUBIC) + all(GELU_LINEAR));
      const F g = load(d + j, lanes) * slope;
      store(out + j, x * s, lanes);
      store(d + j, g, lanes);
      store(bias_sums + j, load(bias_sums + j, lanes) + g, lanes);
    });
  }
}

}  // namespace BPX_ISA
