// Checks layer_norm.cu.
#include "check.h"

namespace {

constexpr float EPSILON = 1e-5f, DROPOUT_SCALE = 1.f / 0.9f;
constexpr unsigned THRESHOLD = 429496729;  // 0.1 * 2^32
constexpr unsigned long long SEED = 0x123456789abcdef0ull;

// The hash of cpp/kernels/vec.h.
bool is_kept(uint32_t index, unsigned threshold) {
  const auto mix = [](uint32_t x) {
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    return x ^ (x >> 16);
  };
  return mix(mix(index ^ static_cast<uint32_t>(SEED)) + static_cast<uint32_t>(SEED >> 32)) >= threshold;
}

struct Options {
  bool has_output = true, has_output_bias = true, has_d_normed = true, has_d_sum = true, has_d_output = true;
  unsigned threshold = THRESHOLD;
};

struct Shape {
  size_t width, rows;
  unsigned warps, blocks;
};

template <class Output, class Normed>
void check(const EmulatedLibrary& library, const Shape& shape, const Options& options, bool has_nan = false) {
  const size_t width = shape.width, rows = shape.rows, count = rows * width;
  const unsigned warps = shape.warps, blocks = shape.blocks, threads = 32 * warps, threshold = options.threshold;
  const auto text = [](bool is, const char* name) { return std::string(is ? ", " : ", no ") + name; };
  Case c("layer_norm, D = " + std::to_string(width) + ", output " + std::to_string(sizeof(Output)) + " bytes, normed " +
         std::to_string(sizeof(Normed)) + " bytes" + text(options.has_output, "output") +
         text(options.has_output_bias, "bias") + text(options.has_d_normed, "d_normed") +
         text(options.has_d_sum, "d_sum") + text(options.has_d_output, "d_output") + text(threshold, "dropout") +
         (has_nan ? ", NaN" : ""));
  Random random;
  Buffer<float> stream(count), output_bias(width), sum(count), weight(width), bias(width), stats(2 * rows),
      d_sum(count), d_stream(count), partials(blocks * 3 * width);
  Buffer<Output> output(count), d_output(count);
  Buffer<Normed> normed(count), d_normed(count);
  random.fill(stream, 1.f);
  random.fill(output, 1.f);
  random.fill(output_bias, 1.f);
  random.fill(weight, 0.1f, 1.f);
  random.fill(bias, 0.1f);
  random.fill(d_normed, 1.f);
  random.fill(d_sum, 1.f);
  if (has_nan) stream[width / 2] = NAN;
  const int output_is_float = sizeof(Output) == 4, normed_is_float = sizeof(Normed) == 4, num_rows = rows;
  const void* const no_matrix = nullptr;
  const float* const no_floats = nullptr;

  c.require_success(library.launch("add_layer_norm", {static_cast<unsigned>((rows + warps - 1) / warps)}, {threads},
                                   static_cast<const float*>(stream.data()),
                                   options.has_output ? static_cast<const void*>(output.data()) : no_matrix,
                                   output_is_float,
                                   options.has_output_bias ? static_cast<const float*>(output_bias.data()) : no_floats,
                                   sum.data(), static_cast<const float*>(weight.data()),
                                   static_cast<const float*>(bias.data()), static_cast<void*>(normed.data()),
                                   normed_is_float, stats.data(), num_rows, EPSILON, threshold, DROPOUT_SCALE, SEED));
  const Buffer<float>& total = options.has_output ? sum : stream;
  std::vector<double> normal(count), inverse(rows);
  for (size_t row = 0; row < rows; row++) {
    double mean = 0., squares = 0.;
    for (size_t j = 0; j < width; j++) {
      const size_t i = row * width + j;
      if (options.has_output) {
        const double y = output.at(i) + (options.has_output_bias ? output_bias[j] : 0.f);
        const double kept = threshold == 0 ? y : is_kept(i, threshold) ? y * DROPOUT_SCALE : 0.;
        c.require_close("sum", i, sum[i], stream[i] + kept, FLOAT_ROUNDING, 1e-6);
      }
      mean += total[i];
    }
    mean /= width;
    for (size_t j = 0; j < width; j++) squares += (total[row * width + j] - mean) * (total[row * width + j] - mean);
    inverse[row] = 1 / sqrt(squares / width + EPSILON);
    c.require_close("mean", row, stats[2 * row], mean, FLOAT_ROUNDING, 1e-6);
    c.require_close("1 / deviation", row, stats[2 * row + 1], inverse[row], 1e-5, 0);
    for (size_t j = 0; j < width; j++) {
      const size_t i = row * width + j;
      normal[i] = (total[i] - mean) * inverse[row];
      c.require_close("normed", i, normed.at(i), normal[i] * weight[j] + bias[j], rounding_of<Normed>(), 1e-5);
    }
  }
  if (!options.has_output)
    for (size_t i = 0; i < count; i++) c.require(isnan(sum[i]), "sum was written without an output");

  const bool has_d_output = options.has_output && options.has_d_output;
  c.require_success(library.launch("add_layer_norm_backward", {blocks}, {threads},
                                   static_cast<const float*>(options.has_output ? sum.data() : stream.data()),
                                   static_cast<const float*>(stats.data()), static_cast<const float*>(weight.data()),
                                   options.has_d_normed ? static_cast<const void*>(d_normed.data()) : no_matrix,
                                   normed_is_float,
                                   options.has_d_sum ? static_cast<const float*>(d_sum.data()) : no_floats,
                                   d_stream.data(), has_d_output ? static_cast<void*>(d_output.data()) : nullptr,
                                   output_is_float, partials.data(), num_rows, threshold, DROPOUT_SCALE, SEED));
  // Sums over the rows, and the errors that fp32 permits.
  std::vector<double> sums(3 * width, 0.), errors(3 * width, 0.);
  const auto add = [&](size_t which, size_t j, double x, double error) {
    sums[which * width + j] += x;
    errors[which * width + j] += error + 2e-6 * fabs(x);
  };
  for (size_t row = 0; row < rows; row++) {
    // The error of x - mean, which the factor 1 / deviation increases.
    const double normal_error = 1e-6 * inverse[row];
    double mean_g = 0., mean_gn = 0.;
    for (size_t j = 0; j < width && options.has_d_normed; j++) {
      const size_t i = row * width + j;
      mean_g += d_normed.at(i) * weight[j] / width;
      mean_gn += d_normed.at(i) * weight[j] * normal[i] / width;
      add(0, j, d_normed.at(i) * normal[i], normal_error * fabs(d_normed.at(i)));
      add(1, j, d_normed.at(i), 0.);
    }
    for (size_t j = 0; j < width; j++) {
      const size_t i = row * width + j;
      double d = 0., error = 0.;
      if (options.has_d_normed) {
        const double g = d_normed.at(i) * weight[j];
        d = (g - mean_g - normal[i] * mean_gn) * inverse[row];
        const double terms = fabs(g) + fabs(mean_g) + fabs(normal[i] * mean_gn);
        error = inverse[row] * (1e-6 * terms + normal_error * (fabs(mean_gn) + fabs(normal[i])));
      }
      if (options.has_d_sum) d += d_sum[i];
      c.require_close("d_stream", i, d_stream[i], d, FLOAT_ROUNDING, error);
      if (!has_d_output) continue;
      const double factor = threshold == 0 ? 1. : is_kept(i, threshold) ? DROPOUT_SCALE : 0.;
      if (factor == 0.) d = error = 0.;
      c.require_close("d_output", i, d_output.at(i), factor * d, rounding_of<Output>(), factor * error);
      add(2, j, factor * d, factor * error);
    }
  }
  for (size_t k = 0; k < 3 * width; k++) {
    double x = 0.;
    for (unsigned b = 0; b < blocks; b++) x += partials[b * 3 * width + k];
    c.require_close("partials", k, x, sums[k], 0, errors[k]);
  }
  c.require_guards(stream, output_bias, sum, weight, bias, stats, d_sum, d_stream, partials, output, d_output, normed,
                   d_normed);
}

}  // namespace

void check_layer_norm(const EmulatedLibrary& library, const Sizes& sizes) {
  const Shape shape{static_cast<size_t>(sizes[0]), 11, static_cast<unsigned>(sizes[1]), 2};
  Options all;
  check<Bf16, Bf16>(library, shape, all);
  check<Bf16, Bf16>(library, shape, all, true);
  check<float, float>(library, shape, all);
  check<Bf16, float>(library, {shape.width, 1, shape.warps, 3}, all);
  Options norm_only;
  norm_only.has_output = norm_only.has_d_sum = false;
  check<Bf16, Bf16>(library, shape, norm_only);
  Options sum_only;
  sum_only.has_d_normed = false;
  check<float, Bf16>(library, shape, sum_only);
  Options plain;
  plain.has_output_bias = plain.has_d_sum = false;
  plain.threshold = 0;
  check<Bf16, Bf16>(library, shape, plain);
  Options no_gradients;
  no_gradients.has_d_normed = no_gradients.has_d_sum = no_gradients.has_d_output = false;
  check<Bf16, Bf16>(library, shape, no_gradients);
}
