// Profiling of a step: marks in the graph that report the progress of the backward pass, waiting
// for the device before a clock is read, and the memory of the device.
#include "shim.h"

#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {

using Reached = void (*)(const char* part, size_t length);

// The identity function. Its backward pass calls `reached`. At that time, the gradient has passed
// through all operations after the mark and through none before it.
struct Mark : torch::autograd::Function<Mark> {
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x,
                            int64_t reached, int64_t part, int64_t length) {
    ctx->saved_data["reached"] = reached;
    ctx->saved_data["part"] = part;
    ctx->saved_data["length"] = length;
    return x;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    const auto reached = reinterpret_cast<Reached>(ctx->saved_data["reached"].toInt());
    const auto part = reinterpret_cast<const char*>(ctx->saved_data["part"].toInt());
    reached(part, static_cast<size_t>(ctx->saved_data["length"].toInt()));
    return {grads[0], at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

extern "C" {

// Returns `x` with a mark in the graph. `part` need not be null-terminated and must live as long as
// the process. `reached` must not throw.
char* bpx_mark(TensorPtr x, Reached reached, const char* part, size_t length, TensorPtr* out) {
  BPX_GUARD(*out = new at::Tensor(Mark::apply(*x, reinterpret_cast<int64_t>(reached),
                                              reinterpret_cast<int64_t>(part),
                                              static_cast<int64_t>(length))))
}

// Waits for all work queued on the current GPU; returns immediately if no GPU is in use.
char* bpx_synchronise() {
  BPX_GUARD({
    if (c10::impl::hasDeviceGuardImpl(c10::kCUDA)) {
      const auto* cuda = c10::impl::getDeviceGuardImpl(c10::kCUDA);
      if (cuda->deviceCount() > 0) cuda->synchronizeDevice(cuda->getDevice().index());
    }
  })
}

char* bpx_set_cuda_device(int64_t index) {
  BPX_GUARD({
    TORCH_CHECK(c10::impl::hasDeviceGuardImpl(c10::kCUDA), "CUDA is not loaded");
    const auto* cuda = c10::impl::getDeviceGuardImpl(c10::kCUDA);
    const int64_t count = cuda->deviceCount();
    TORCH_CHECK(index < count, "GPU ", index, " is asked for, but ", count, " can be used");
    cuda->setDevice(c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(index)));
  })
}

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
