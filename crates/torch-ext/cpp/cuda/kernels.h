// The CUDA kernels of ../../cuda, which src/cuda_kernels compiles, loads and registers here. The
// fused operations launch them for tensors on a GPU.
#pragma once

#include <ATen/ATen.h>

#include <optional>

namespace cuda {

using at::Tensor;

// Whether the fused operations use the CUDA kernels for this tensor: it is on a GPU, or a test runs
// the kernels on the CPU.
bool is_used_for(const Tensor& t);

// The signature of cuLaunchKernel of the CUDA driver.
using LaunchFunction = int (*)(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                               unsigned block_y, unsigned block_z, unsigned shared_bytes, void* stream,
                               void** parameters, void** extra);
// Returns a description of the last failed launch, or null.
using ErrorFunction = const char* (*)();

// A kernel that is loaded on one device for one shape.
struct Kernel {
  const char* name;
  void* function;
  unsigned threads;  // per block
  LaunchFunction launch;
  ErrorFunction error;

  int64_t warps() const { return threads / 32; }
};

// Returns the kernel for a shape on the device of `t`; none if it was not loaded.
std::optional<Kernel> find(const char* name, at::IntArrayRef shape, const Tensor& t);
// The same, but an error if it was not loaded.
Kernel get(const char* name, at::IntArrayRef shape, const Tensor& t);

// Queues a kernel on the default stream, which all operations of libtorch use here. `parameters`
// points to the values of the parameters.
void launch(const Kernel& kernel, int64_t grid_x, int64_t grid_y, void** parameters);

// The same with the parameters themselves. Their types must be those of the kernel.
template <class... Parameters>
void launch(const Kernel& kernel, int64_t grid_x, int64_t grid_y, Parameters... parameters) {
  void* pointers[] = {const_cast<void*>(static_cast<const void*>(&parameters))...};
  launch(kernel, grid_x, grid_y, static_cast<void**>(pointers));
}

// Returns an empty optional for an undefined tensor, because autograd reads the device of every
// tensor that an operation receives.
inline std::optional<Tensor> if_defined(const Tensor& t) { return t.defined() ? std::optional<Tensor>(t) : std::nullopt; }

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Mixes the senses on a GPU; see ops::weighted_sum_of_senses for the parameters. The biases of
// queries and keys are part of `qk`. `senses_bias` and `rows` may be undefined: then `senses`
// contains its bias, and has one row per token.
Tensor weighted_sum_of_senses(const Tensor& qk, const Tensor& senses, const Tensor& senses_bias, const Tensor& rows,
                              int64_t sequences, int64_t num_senses);

}  // namespace cuda
