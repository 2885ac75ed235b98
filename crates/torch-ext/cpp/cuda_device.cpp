// Loading of CUDA, selection of the GPU that this process uses, and the memory of GPUs.
#include "shim.h"

#include <ATen/Context.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <dlfcn.h>

#include <typeinfo>

extern "C" {

// Loads the CUDA libraries of libtorch into this process, which links only the CPU libraries.
char* bpx_load_cuda() {
  if (dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_GLOBAL)) return nullptr;
  const char* why = dlerror();
  return strdup(why ? why : "dlopen failed without a message");
}

// Returns whether libtorch uses the functions ("hooks") that libtorch_cuda.so registers. libtorch
// creates the object with these functions once, at the first use. An object that is created before
// libtorch_cuda.so is loaded is of the base class, and has no GPU for the rest of the process.
char* bpx_has_cuda_hooks(int* result) {
  BPX_GUARD(*result = typeid(at::detail::getCUDAHooks()) != typeid(at::CUDAHooksInterface))
}

char* bpx_set_cuda_device(int64_t index) {
  BPX_GUARD({
    TORCH_CHECK(c10::impl::hasDeviceGuardImpl(c10::kCUDA), "CUDA is not loaded");
    const auto* cuda = c10::impl::getDeviceGuardImpl(c10::kCUDA);
    const int64_t count = cuda->deviceCount();
    TORCH_CHECK(index < count, "cuda:", index, " does not exist: this process can use ", count,
                count == 1 ? " GPU" : " GPUs");
    cuda->setDevice(c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(index)));
  })
}

// Whether cuBLAS may use TF32 for fp32 matrix products. Needs no GPU. The default of libtorch
// is false; TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1 in the environment changes it.
char* bpx_allows_tf32(int* allows) { BPX_GUARD(*allows = at::globalContext().allowTF32CuBLAS()) }

// The free and the total bytes of a GPU. Memory of other processes is not free.
char* bpx_gpu_memory(int64_t index, int64_t* free, int64_t* total) {
  BPX_GUARD({
    const auto info = at::getDeviceAllocator(c10::kCUDA)->getMemoryInfo(static_cast<c10::DeviceIndex>(index));
    *free = static_cast<int64_t>(info.first);
    *total = static_cast<int64_t>(info.second);
  })
}

// The peak number of bytes that tensors have used on a GPU since the start.
char* bpx_peak_gpu_memory(int64_t index, int64_t* bytes) {
  BPX_GUARD({
    const auto stats =
        at::getDeviceAllocator(c10::kCUDA)->getDeviceStats(static_cast<c10::DeviceIndex>(index));
    constexpr auto all = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    *bytes = stats.allocated_bytes[all].peak;
  })
}

// Returns the cached free blocks of all GPUs to the driver.
char* bpx_empty_gpu_cache() { BPX_GUARD(at::getDeviceAllocator(c10::kCUDA)->emptyCache()) }

// Copies a tensor. A copy from a GPU to page-locked memory is
// complete only after the GPU has been synchronized.
char* bpx_copy_without_waiting(TensorPtr target, TensorPtr source) {
  BPX_GUARD(target->copy_(*source, /*non_blocking=*/true))
}
}
