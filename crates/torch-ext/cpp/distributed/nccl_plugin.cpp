// The NCCL backend, a separate shared library (libbackpack_nccl.so). It links libtorch_cuda, which
// no binary does, and is loaded after it. See build.rs and src/nccl.rs.
#include "../shim.h"

#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

extern "C" {

// `store` and `backend` point to a c10::intrusive_ptr of c10d::Store and of c10d::Backend.
__attribute__((visibility("default"))) char* bpx_plugin_nccl_backend(const void* store, int rank, int size,
                                                                     int64_t timeout_ms, void* backend) {
  BPX_GUARD({
    auto options = c10d::ProcessGroupNCCL::Options::create();
    options->timeout = std::chrono::milliseconds(timeout_ms);
    options->group_name = "backpack";  // the name of the group in the dumps of the flight recorder
    *static_cast<c10::intrusive_ptr<c10d::Backend>*>(backend) = c10::make_intrusive<c10d::ProcessGroupNCCL>(
        *static_cast<const c10::intrusive_ptr<c10d::Store>*>(store), rank, size, std::move(options));
  })
}

__attribute__((visibility("default"))) char* bpx_plugin_nccl_version(char** out) {
  BPX_GUARD(*out = strdup(c10d::getNcclVersion().c_str()))
}
}
