// A stand-in for libtorch_cuda.so on a machine without CUDA (tests/cuda_loading.rs). It registers its
// functions ("hooks") with libtorch when it is loaded, as the real library does, and has no GPU.
#include <ATen/detail/CUDAHooksInterface.h>

namespace stand_in {

// The registry finds the class by this name.
struct CUDAHooks : at::CUDAHooksInterface {
  explicit CUDAHooks(at::CUDAHooksArgs) {}
};

using at::CUDAHooksRegistry;
using at::RegistererCUDAHooksRegistry;
REGISTER_CUDA_HOOKS(CUDAHooks)

}  // namespace stand_in
