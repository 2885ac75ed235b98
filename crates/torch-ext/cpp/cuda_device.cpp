// Selection of the GPU that this process uses, and the memory of GPUs.
#include "shim.h"

#include <ATen/Context.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

extern "C" {

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
}
