// Softmax cross-entropy of rows of logits; the gradient overwrites the logits.
#pragma once

#include <math.h>

#include "vec.h"

namespace BPX_ISA {

// losses[i] = log(sum(exp(z))) - z[target]; with grad, z becomes scale * (softmax(z) -
// onehot(target)). Computes in fp32, whatever the type of the logits.
template <class E>
void cross_entropy(void* logits, const int64_t* targets, float* losses, float scale, int grad, int64_t n,
                   int64_t begin, int64_t end) {
  const F k = all(LOG2_E);
  for (int64_t row = begin; row < end; row++) {
    E* z = static_cast<E*>(logits) + row * n;
    // Several independent sums: with one sum, each addition would wait for the previous one.
    constexpr int64_t WIDE = 4 * LANES;
    const int64_t whole = n / WIDE * WIDE;
    F top[4] = {all(-__builtin_inff()), all(-__builtin_inff()), all(-__builtin_inff()), all(-__builtin_inff())};
    for (int64_t j = 0; j < whole; j += WIDE)
      for (int i = 0; i < 4; i++) top[i] = larger(top[i], load(z + j + i * LANES, All{}));
    columns(n - whole, [&](int64_t j, auto lanes) {
      top[0] = larger(top[0], keep(load(z + whole + j, lanes), top[0], lanes));
    });
    const float most = largest(larger(larger(top[0], top[1]), larger(top[2], top[3])));
    const F shift = all(-most * LOG2_E);
    F totals[4] = {};
    for (int64_t j = 0; j < whole; j += WIDE)
      for (int i = 0; i < 4; i++) totals[i] += exp2(load(z + j + i * LANES, All{}) * k + shift);
    columns(n - whole, [&](int64_t j, auto lanes) {
      totals[0] += keep(exp2(load(z + whole + j, lanes) * k + shift), F{}, lanes);
    });
    const float log_sum = most + logf(sum((totals[0] + totals[1]) + (totals[2] + totals[3])));
    const float at_target = one(z[targets[row]]);
    losses[row] = log_sum - at_target;
    if (!grad) continue;
    const F less = all(-log_sum * LOG2_E), s = all(scale);
    for (int64_t j = 0; j < whole; j += WIDE)
      for (int i = 0; i < 4; i++) {
        E* p = z + j + i * LANES;
        store(p, exp2(load(p, All{}) * k + less) * s, All{});
      }
    columns(n - whole, [&](int64_t j, auto lanes) {
      E* p = z + whole + j;
      store(p, exp2(load(p, lanes) * k + less) * s, lanes);
    });
    // p - 1 of the target is computed in fp32: bf16(p) - 1 would lose the gradient of a confident
    // token.
    put(z + targets[row], scale * expm1f(at_target - log_sum));
  }
}

}  // namespace BPX_ISA
