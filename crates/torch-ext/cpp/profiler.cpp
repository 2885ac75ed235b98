// Profiling of a step: marks in the graph that report the progress of the backward pass, and
// waiting for the device before a clock is read.
#include "shim.h"

#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {

using Reached = void (*)(int64_t section);

// The identity function. Its backward pass calls `reached`. At that time, the gradient has passed
// through all operations after the mark and through none before it.
struct Mark : torch::autograd::Function<Mark> {
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x, int64_t reached,
                            int64_t section) {
    ctx->saved_data["reached"] = reached;
    ctx->saved_data["section"] = section;
    return x;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    const auto reached = reinterpret_cast<Reached>(ctx->saved_data["reached"].toInt());
    reached(ctx->saved_data["section"].toInt());
    return {grads[0], at::Tensor(), at::Tensor()};
  }
};

}  // namespace

extern "C" {

// Returns `x` with a mark in the graph. `reached` receives `section` in the backward pass and must
// not throw.
char* bpx_mark(TensorPtr x, Reached reached, int64_t section, TensorPtr* out) {
  BPX_GUARD(*out = new at::Tensor(Mark::apply(*x, reinterpret_cast<int64_t>(reached), section)))
}

// Waits for all work queued on the current GPU; returns immediately if no GPU is in use.
char* bpx_synchronize() {
  BPX_GUARD({
    if (c10::impl::hasDeviceGuardImpl(c10::kCUDA)) {
      const auto* cuda = c10::impl::getDeviceGuardImpl(c10::kCUDA);
      if (cuda->deviceCount() > 0) cuda->synchronizeDevice(cuda->getDevice().index());
    }
  })
}
}
