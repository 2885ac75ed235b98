// Checks gelu.cu.
#include "check.h"

namespace {

// The tanh approximation and its derivative.
void gelu(double x, double& value, double& slope) {
  const double u = sqrt(2 / M_PI) * (x + 0.044715 * x * x * x), du = sqrt(2 / M_PI) * (1 + 3 * 0.044715 * x * x);
  const double sigmoid = 1 / (1 + exp(-2 * u));
  value = x * sigmoid;
  // exp(-2u) / (1 + exp(-2u))^2 is 0 for large |u|, where du may be infinite.
  const double bell = 1 / (2 + exp(2 * u) + exp(-2 * u));
  slope = sigmoid + (bell == 0 ? 0 : 2 * x * bell * du);
}

void check(const EmulatedLibrary& library, unsigned threads, int width, size_t rows, unsigned blocks) {
  Case c("gelu, " + std::to_string(rows) + " rows of " + std::to_string(width) + ", " + std::to_string(blocks) +
         " blocks");
  const size_t count = rows * width;
  Random random;
  Buffer<Bf16> x(count), d(count), y(count), y_again(count);
  Buffer<float> bias(width), partials(blocks * width);
  random.fill(x, 3.f);
  random.fill(d, 1.f);
  random.fill(bias, 0.5f);
  const float specials[] = {0.f, -0.f, 30.f, -30.f, 1e9f, -1e9f, 3e38f, -3e38f, -5.f, NAN};
  for (size_t i = 0; i < sizeof specials / sizeof *specials && i < count; i++)
    x[i * 7919 % count] = to_bf16(specials[i]);
  std::vector<double> value(count), gradient(count), sums(width, 0.), magnitudes(width, 0.);
  for (size_t i = 0; i < count; i++) {
    double slope;
    gelu(static_cast<double>(x.at(i) + bias[i % width]), value[i], slope);
    gradient[i] = d.at(i) * slope;
    sums[i % width] += gradient[i];
    magnitudes[i % width] += fabs(gradient[i]);
  }
  const Grid grid{(width + 8 * threads - 1) / (8 * threads), blocks};
  const long long num_rows = rows;
  const Bf16* const input = x.data();
  const float* const offset = bias.data();
  c.require_success(library.launch("bias_gelu", grid, {threads}, input, offset, y.data(), num_rows, width));
  c.require_success(library.launch("bias_gelu_backward", grid, {threads}, input, offset, d.data(), y_again.data(),
                                   partials.data(), num_rows, width));
  for (size_t i = 0; i < count; i++) {
    c.require_close("y", i, y.at(i), value[i], BF16_ROUNDING, 1e-9);
    c.require_close("gradient", i, d.at(i), gradient[i], BF16_ROUNDING, 1e-6);
  }
  c.require(!memcmp(y.data(), y_again.data(), count * sizeof(Bf16)), "the backward pass computes another y");
  for (int j = 0; j < width; j++) {
    double sum = 0.;
    for (unsigned b = 0; b < blocks; b++) sum += partials[b * width + j];
    c.require_close("gradient of the bias", j, sum, sums[j], 0, 4e-6 * magnitudes[j] + 1e-6);
  }
  c.require_guards(x, d, y, y_again, bias, partials);
}

}  // namespace

void check_gelu(const EmulatedLibrary& library, const Sizes& sizes) {
  const unsigned threads = sizes[0];
  for (const int width : {1, 7, 8, 33, 64, 1536, 2049, 3072}) check(library, threads, width, 5, 2);
  check(library, threads, 24, 1, 4);  // more blocks than rows
  check(library, threads, 130, 61, 3);
}
