// Checks cross_entropy.cu.
#include "check.h"

namespace {

constexpr float SCALE = 0.25f;

struct Expected {
  std::vector<double> losses, gradient;
};

Expected compute(const Buffer<Bf16>& logits, const Buffer<long long>& targets, size_t columns) {
  Expected e;
  for (size_t row = 0; row < targets.size(); row++) {
    double largest = -INFINITY, sum = 0.;
    for (size_t j = 0; j < columns; j++) largest = fmax(largest, logits.at(row * columns + j));
    for (size_t j = 0; j < columns; j++) sum += exp(logits.at(row * columns + j) - largest);
    const long long target = targets[row];
    const bool is_valid = target >= 0 && target < static_cast<long long>(columns);
    const double log_sum = largest + log(sum);
    e.losses.push_back(is_valid ? log_sum - logits.at(row * columns + target) : NAN);
    for (size_t j = 0; j < columns; j++) {
      const double z = logits.at(row * columns + j) - log_sum;
      const double g = is_valid && static_cast<long long>(j) == target ? expm1(z) : exp(z);
      e.gradient.push_back(is_valid ? SCALE * g : NAN);
    }
  }
  return e;
}

void check(const EmulatedLibrary& library, const Sizes& sizes, const char* name, Buffer<Bf16>& logits,
           Buffer<long long>& targets) {
  const size_t columns = sizes[0], rows = targets.size();
  const unsigned num_rows = rows, num_threads = sizes[1];
  Case c("cross_entropy, V = " + std::to_string(columns) + ", " + std::to_string(num_threads) + " threads, " + name);
  const Expected expected = compute(logits, targets, columns);
  const std::vector<Bf16> before(logits.data(), logits.data() + logits.size());
  for (const int with_gradient : {0, 1}) {
    Buffer<float> losses(rows);
    c.require_success(library.launch("cross_entropy", {num_rows}, {num_threads}, logits.data(),
                                     static_cast<const long long*>(targets.data()), losses.data(), SCALE,
                                     with_gradient));
    for (size_t i = 0; i < rows; i++) c.require_close("losses", i, losses[i], expected.losses[i], 2e-6, 4e-6);
    if (!with_gradient)
      c.require(!memcmp(before.data(), logits.data(), logits.size() * sizeof(Bf16)),
                "logits changed without a gradient");
    c.require_guards(logits, targets, losses);
  }
  for (size_t i = 0; i < logits.size(); i++) {
    // p - 1 of the target has the absolute error of the loss.
    const bool is_target = static_cast<long long>(i % columns) == targets[i / columns];
    c.require_close("gradient", i, logits.at(i), expected.gradient[i], BF16_ROUNDING, is_target ? 4e-6 * SCALE : 1e-30);
  }
}

}  // namespace

void check_cross_entropy(const EmulatedLibrary& library, const Sizes& sizes) {
  const size_t columns = sizes[0], rows = columns > 20000 ? 1 : 5;
  Random random;
  Buffer<Bf16> logits(rows * columns);
  Buffer<long long> targets(rows);
  random.fill(logits, 4.f);
  for (size_t i = 0; i < rows; i++) targets[i] = random.below(columns);
  targets[0] = columns - 1;
  if (rows > 1) {
    logits[columns + targets[1]] = to_bf16(40.f);  // a confident token
    for (size_t j = 0; j < columns; j += 3) logits[2 * columns + j] = to_bf16(-INFINITY);
    logits[2 * columns + targets[2]] = to_bf16(0.f);
  }
  check(library, sizes, "random logits", logits, targets);
  if (rows == 1) return;

  random.fill(logits, 4.f);
  logits[1 * columns + columns / 2] = to_bf16(NAN);
  logits[2 * columns + columns - 1] = to_bf16(INFINITY);
  check(library, sizes, "NaN and infinity", logits, targets);

  random.fill(logits, 4.f);
  targets[0] = -1;
  targets[1] = columns;
  targets[2] = 1ll << 40;
  targets[3] = -(1ll << 40);
  check(library, sizes, "targets outside of the vocabulary", logits, targets);
}
