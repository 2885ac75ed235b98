// Checks sense_weights.cu.
#include "check.h"

namespace {

constexpr float SCALE = 0.3f;

struct Shape {
  size_t senses, length, sequences;
  unsigned warps;
  int block_rows;
  bool has_nan = false;
};

void check(const EmulatedLibrary& library, const Shape& s) {
  const size_t L = s.senses, T = s.length, count = s.sequences * L * T * T;
  Case c("sense_weights, L = " + std::to_string(L) + ", T = " + std::to_string(T) + ", " + std::to_string(s.warps) +
         " warps, blocks of " + std::to_string(s.block_rows) + (s.has_nan ? ", NaN" : ""));
  Random random;
  Buffer<Bf16> scores(count), alpha(count), d_alpha(count), d_scores(count);
  const auto score_index = [&](size_t b, size_t t, size_t w, size_t l) { return ((b * L + l) * T + t) * T + w; };
  const auto alpha_index = [&](size_t b, size_t t, size_t w, size_t l) { return ((b * T + t) * T + w) * L + l; };
  const auto end_of = [&](size_t t) {
    const size_t end = (t / s.block_rows + 1) * s.block_rows;
    return end < T ? end : T;
  };
  // What the kernels must not use stays NaN.
  for (size_t b = 0; b < s.sequences; b++)
    for (size_t t = 0; t < T; t++)
      for (size_t w = 0; w <= t; w++)
        for (size_t l = 0; l < L; l++) {
          scores[score_index(b, t, w, l)] = to_bf16(random.normal(4.f));
          d_alpha[alpha_index(b, t, w, l)] = to_bf16(random.normal(1.f));
        }
  if (s.has_nan) scores[score_index(0, T / 2, T / 4, L - 1)] = to_bf16(NAN);

  const Grid grid{static_cast<unsigned>(T), static_cast<unsigned>(s.sequences)}, block{32 * s.warps};
  const int length = static_cast<int>(T);
  c.require_success(library.launch("sense_weights", grid, block, static_cast<const Bf16*>(scores.data()), alpha.data(),
                                   SCALE, length, s.block_rows));
  for (size_t b = 0; b < s.sequences; b++)
    for (size_t t = 0; t < T; t++)
      for (size_t l = 0; l < L; l++) {
        double largest = -INFINITY, sum = 0.;
        for (size_t w = 0; w <= t; w++) largest = fmax(largest, SCALE * scores.at(score_index(b, t, w, l)));
        for (size_t w = 0; w <= t; w++) sum += exp(SCALE * scores.at(score_index(b, t, w, l)) - largest);
        for (size_t w = 0; w < T; w++) {
          const size_t i = alpha_index(b, t, w, l);
          if (w <= t) {
            const double weight = exp(SCALE * scores.at(score_index(b, t, w, l)) - largest) / sum;
            c.require_close("alpha", i, alpha.at(i), weight, BF16_ROUNDING, 1e-30);
          } else if (w < end_of(t)) {
            c.require(alpha[i] == 0, "a weight after the position is not 0");
          } else {
            c.require(alpha[i] == 0xffff, "alpha was written after the end of its block");
          }
        }
      }

  for (size_t b = 0; b < s.sequences; b++)  // what the backward pass must not use
    for (size_t t = 0; t < T; t++)
      for (size_t i = alpha_index(b, t, t + 1, 0); i < alpha_index(b, t, T, 0); i++) alpha[i] = 0xffff;
  c.require_success(library.launch("sense_weights_backward", grid, block, static_cast<const Bf16*>(alpha.data()),
                                   static_cast<const Bf16*>(d_alpha.data()), d_scores.data(), SCALE, length));
  for (size_t b = 0; b < s.sequences; b++)
    for (size_t t = 0; t < T; t++)
      for (size_t l = 0; l < L; l++) {
        double dot = 0., magnitude = 0.;
        for (size_t w = 0; w <= t; w++) {
          const double product =
              static_cast<double>(alpha.at(alpha_index(b, t, w, l))) * d_alpha.at(alpha_index(b, t, w, l));
          dot += product;
          magnitude += fabs(product);
        }
        for (size_t w = 0; w < T; w++) {
          const size_t i = score_index(b, t, w, l);
          if (w > t) {
            c.require(d_scores[i] == 0, "the gradient of a score after the position is not 0");
            continue;
          }
          const double a = alpha.at(alpha_index(b, t, w, l)), d = d_alpha.at(alpha_index(b, t, w, l));
          c.require_close("d_scores", i, d_scores.at(i), a * (d - dot) * SCALE, BF16_ROUNDING,
                          1e-6 * a * magnitude + 1e-30);
        }
      }
  c.require_guards(scores, alpha, d_alpha, d_scores);
}

}  // namespace

void check_sense_weights(const EmulatedLibrary& library, const Sizes& sizes) {
  const size_t senses = sizes[0];
  const unsigned warps = sizes[2];
  for (size_t i = 3; i < sizes.size(); i++) {
    const size_t length = sizes[i], sequences = length * senses < 300 ? 2 : 1;
    check(library, {senses, length, sequences, warps, length > 4 ? 4 : 1});
    if (length > 128) continue;
    check(library, {senses, length, sequences, warps, 128});
    check(library, {senses, length, sequences, warps, 3, true});
  }
}
