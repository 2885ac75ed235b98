// Matrix products, and helpers of the operations.
#include <ATen/CPUGeneratorImpl.h>

#include "../arena.h"
#include "../cuda/kernels.h"
#include "ops.h"

// The interface of libtorch to oneDNN. On AMD processors, its fp32 products are a quarter faster
// than those of MKL, which at::mm uses. The function is exported but internal. If a version of
// libtorch lacks it, the weak reference is null, and at::mm is used.
namespace at::native {
__attribute__((weak)) void mkldnn_matmul(const Tensor&, const Tensor&, const Tensor&, float beta, float alpha);
}

namespace ops {

namespace {
bool has_onednn() {
  // Tests one small product, because a different signature would give wrong results.
  static const bool works = [] {
    if (!at::native::mkldnn_matmul) return false;
    try {
      at::NoGradGuard no_grad;
      const Tensor a = at::arange(12, at::kFloat).view({3, 4}), b = at::arange(8, at::kFloat).view({4, 2});
      const Tensor out = at::zeros({3, 2}, at::kFloat);
      at::native::mkldnn_matmul(a, b, out, 0.f, 1.f);
      return out.equal(at::mm(a, b));
    } catch (...) {
      return false;
    }
  }();
  return works;
}

// Reading the matrix dominates the time of a product of one row and a matrix. This kernel reads the
// matrix once, by adjacent columns or along its rows, while general products rearrange it first.
bool multiply_row(const Tensor& out, const Tensor& a, const Tensor& b) {
  if (!out.device().is_cpu() || out.dim() != 2 || a.size(0) != 1 || a.stride(1) != 1 || out.stride(1) != 1) return false;
  if (out.scalar_type() != at::kFloat && out.scalar_type() != at::kBFloat16) return false;
  const int64_t inner = b.size(0), columns = b.size(1);
  const auto& k = kernels_for(out.scalar_type());
  if (b.stride(1) == 1) {
    parallel((columns + 63) / 64, 1, [&](int64_t begin, int64_t end) {
      k.row_times_matrix(a.data_ptr(), b.data_ptr(), out.data_ptr(), inner, b.stride(0), begin * 64,
                         std::min(end * 64, columns));
    });
    return true;
  }
  if (b.stride(0) == 1) {
    parallel(columns, 64, [&](int64_t begin, int64_t end) {
      k.row_times_rows(a.data_ptr(), b.data_ptr(), out.data_ptr(), inner, b.stride(1), begin, end);
    });
    return true;
  }
  return false;
}

void multiply(const Tensor& out, const Tensor& a, const Tensor& b) {
  if (multiply_row(out, a, b)) return;
  if (out.device().is_cpu() && out.scalar_type() == at::kFloat && has_onednn()) {
    at::native::mkldnn_matmul(a, b, out, 0.f, 1.f);
    return;
  }
  Tensor to = out;
  if (out.dim() == 2) {
    at::mm_out(to, a, b);
  } else {
    at::bmm_out(to, a, b);
  }
}
}  // namespace

void mm(const Tensor& out, const Tensor& a, const Tensor& b) { multiply(out, a, b); }
void bmm(const Tensor& out, const Tensor& a, const Tensor& b) { multiply(out, a, b); }

namespace {
// Whether the products of libtorch on this device read bf16 and write fp32. Not every version of
// libtorch supports this on every GPU, so one small product is tested. The result is kept for the
// process, which uses one low-precision type.
bool writes_fp32(const Tensor& a) {
  if (!a.is_cuda() || a.scalar_type() == at::kFloat) return false;
  static const bool works = [&] {
    try {
      const Tensor ones = at::ones({16, 16}, a.options());
      Tensor sum = at::ones({16, 16}, a.options().dtype(at::kFloat));
      at::addmm_out(sum, sum, ones, ones, at::kFloat);
      return at::mm(ones, ones, at::kFloat).eq(16).all().item<bool>() && sum.eq(17).all().item<bool>();
    } catch (const c10::OutOfMemoryError&) {
      throw;
    } catch (const c10::Error& error) {
      TORCH_WARN("gradients of weights are rounded to bf16, because libtorch cannot write them in fp32: ",
                 error.what_without_backtrace());
      return false;
    }
  }();
  return works;
}
}  // namespace

void add_product(const Tensor& sum, const Tensor& a, const Tensor& b) {
  Tensor to = sum;
  if (writes_fp32(a)) {
    at::addmm_out(to, sum, a, b, at::kFloat);
  } else {
    to.add_(at::mm(a, b));
  }
}

Tensor weight_gradient(const Tensor& a, const Tensor& b) {
  if (a.is_cuda()) return writes_fp32(a) ? at::mm(a, b, at::kFloat) : at::mm(a, b).to(at::kFloat);
  const int64_t rows = a.size(0), columns = b.size(1);
  const Tensor gradient = [&] {
    const FromTheEnd placed;
    return at::empty({rows, columns}, a.options().dtype(at::kFloat));
  }();
  if (a.scalar_type() != at::kBFloat16) {
    mm(gradient, a, b);
    return gradient;
  }
  // In slices of 8 MB, so that each product is converted to fp32 while it is in the cache.
  const int64_t slice = std::max<int64_t>((1 << 22) / columns / 64 * 64, 64);
  const Tensor buffer = at::empty({std::min(slice, rows), columns}, a.options());
  for (int64_t first = 0; first < rows; first += slice) {
    const int64_t n = std::min(slice, rows - first);
    const Tensor product = buffer.narrow(0, 0, n);
    mm(product, a.narrow(0, first, n), b);
    float* to = gradient.data_ptr<float>() + first * columns;
    parallel(n * columns, 4096, [&](int64_t begin, int64_t end) {
      kernels().add_widened(static_cast<const Bf16*>(product.data_ptr()), to, /*overwrite=*/1, begin, end);
    });
  }
  return gradient;
}

const TypedKernels& kernels_for(at::ScalarType kind) {
  return kind == at::kBFloat16 ? kernels().bf16 : kernels().f32;
}

void check_kind(const Tensor& t, const char* name) {
  const bool is_covered = t.scalar_type() == at::kBFloat16 || (t.scalar_type() == at::kFloat && t.device().is_cpu());
  TORCH_CHECK(is_covered && t.is_contiguous(), name,
              " must be a contiguous tensor: fp32 or bf16 on the CPU, bf16 on a GPU; got ", t.toString(), " ",
              t.sizes());
}

Dropout dropout_of(double probability, int64_t seed) {
  return {static_cast<uint32_t>(probability * 4294967296.0), static_cast<float>(1.0 / (1.0 - probability)),
          static_cast<uint64_t>(seed)};
}

int64_t draw_seed(double probability) {
  if (probability <= 0) return 0;
  auto generator = at::detail::getDefaultCPUGenerator();
  const std::lock_guard<std::mutex> lock(generator.mutex());
  return static_cast<int64_t>(at::check_generator<at::CPUGeneratorImpl>(generator)->random64());
}

std::vector<CausalBlock> causal_blocks(int64_t length, int64_t depth) {
  constexpr int64_t ROWS = 128;
  std::vector<CausalBlock> blocks;
  int64_t offset = 0;
  for (int64_t first = 0; first < length; first += ROWS) {
    const int64_t rows = std::min(ROWS, length - first), keys = first + rows, end = offset + rows * keys * depth;
    blocks.push_back({first, rows, keys, offset, end});
    offset = end;
  }
  return blocks;
}

}  // namespace ops
