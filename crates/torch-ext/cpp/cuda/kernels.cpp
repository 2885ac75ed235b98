// The table of loaded CUDA kernels, and their launch.
#include "kernels.h"

#include <ATen/record_function.h>

#include <atomic>
#include <map>
#include <mutex>
#include <shared_mutex>
#include <string>

#include "../shim.h"

namespace cuda {
namespace {

// Kernels by name, shape and device. A kernel is never removed, so that its name stays valid.
struct Key {
  std::string name;
  std::vector<int64_t> shape;
  int device;  // index of the GPU; -1 for the CPU
  bool operator<(const Key& other) const {
    return std::tie(name, shape, device) < std::tie(other.name, other.shape, other.device);
  }
};
std::shared_mutex mutex;
std::map<Key, Kernel> kernels;
std::atomic<bool> runs_on_cpu = false;

int index_of(const Tensor& t) { return t.is_cuda() ? t.get_device() : -1; }

}  // namespace

bool is_used_for(const Tensor& t) { return t.is_cuda() || runs_on_cpu; }

std::optional<Kernel> find(const char* name, at::IntArrayRef shape, const Tensor& t) {
  const std::shared_lock lock(mutex);
  const auto found = kernels.find(Key{name, shape.vec(), index_of(t)});
  return found == kernels.end() ? std::nullopt : std::optional(found->second);
}

Kernel get(const char* name, at::IntArrayRef shape, const Tensor& t) {
  const auto kernel = find(name, shape, t);
  TORCH_CHECK(kernel, "the CUDA kernel ", name, " is not loaded for shape ", shape, " on ", t.device());
  return *kernel;
}

void launch(const Kernel& kernel, int64_t grid_x, int64_t grid_y, void** parameters) {
  if (grid_x == 0 || grid_y == 0) return;
  // Profilers of libtorch show the kernel by its name.
  RECORD_FUNCTION(kernel.name, c10::ArrayRef<const c10::IValue>{});
  const int code = kernel.launch(kernel.function, static_cast<unsigned>(grid_x), static_cast<unsigned>(grid_y), 1,
                                 kernel.threads, 1, 1, 0, /*stream=*/nullptr, parameters, nullptr);
  if (code == 0) return;
  const char* why = kernel.error();
  TORCH_CHECK(false, "the CUDA kernel ", kernel.name, " cannot be launched with ", grid_x, " x ", grid_y,
              " blocks: error ", code, " (", why ? why : "no description", ")");
}

}  // namespace cuda

extern "C" {

// Adds a loaded kernel to the table. `device` is -1 for the CPU.
char* bpx_register_cuda_kernel(const char* name, const int64_t* shape, size_t dimensions, int device, void* function,
                               unsigned threads, cuda::LaunchFunction launch, cuda::ErrorFunction error) {
  BPX_GUARD({
    const std::unique_lock lock(cuda::mutex);
    const auto [entry, is_new] = cuda::kernels.try_emplace(
        cuda::Key{name, std::vector<int64_t>(shape, shape + dimensions), device}, cuda::Kernel{});
    if (is_new) entry->second = {entry->first.name.c_str(), function, threads, launch, error};
  })
}

// Decides whether the fused operations use the CUDA kernels for tensors on the CPU, too.
void bpx_run_cuda_kernels_on_cpu(int on) { cuda::runs_on_cpu = on != 0; }
}
