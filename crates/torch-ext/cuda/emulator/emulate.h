// CUDA's keywords and functions for a C++ compiler: what the kernel files use, and no more.
//
// Every CUDA thread is a fiber, that is, a function with its own stack that runs until it waits at
// a barrier or a shuffle. runtime.cpp runs the fibers of a block in turn, and the blocks one by
// one.
#pragma once

#include <math.h>

#include <cstdint>
#include <cstring>
#include <utility>

// Several libraries with the same names are loaded into one process: names must be local.
#define HIDDEN __attribute__((visibility("hidden")))

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
// All shared memory is in one section, so that runtime.cpp can overwrite it before each block.
#define __shared__ static __attribute__((section("emulated_shared")))

namespace emulated HIDDEN {

struct Index {
  unsigned x, y, z;
};

// What a kernel reads about its place in the grid. runtime.cpp sets it before it resumes a fiber.
struct Place {
  Index thread, block, grid_size;
};
extern Place place;

// The source line of a barrier or shuffle.
struct Site {
  const char* file;
  int line;
};

void wait_for_block(Site site);
void wait_for_warp(uint32_t mask, Site site);
// Returns the value of the lane whose number differs from this lane's by `distance`, by bits.
uint32_t exchange(uint32_t mask, uint32_t value, unsigned distance, Site site);

// A kernel, with the function that passes it the parameters of a launch.
struct Function {
  typedef void (*Kernel)();
  const char* name;
  Kernel kernel;
  void (*call)(Kernel kernel, void** parameters);
  const Function* next;
};
extern const Function* functions;

template <class... Parameters, size_t... positions>
void call_kernel(void (*kernel)(Parameters...), void** parameters, std::index_sequence<positions...>) {
  kernel(*static_cast<Parameters*>(parameters[positions])...);
}

struct Registration : Function {
  template <class... Parameters>
  Registration(const char* name, void (*kernel)(Parameters...))
      : Function{name, reinterpret_cast<Kernel>(kernel),
                 [](Kernel kernel, void** parameters) {
                   call_kernel(reinterpret_cast<void (*)(Parameters...)>(kernel), parameters,
                               std::index_sequence_for<Parameters...>{});
                 },
                 functions} {
    functions = this;
  }
};

}  // namespace emulated HIDDEN

#define KERNEL(name) static const emulated::Registration registration_of_##name(#name, name);

#define threadIdx (emulated::place.thread)
#define blockIdx (emulated::place.block)
#define gridDim (emulated::place.grid_size)

#define EMULATED_SITE (emulated::Site{__FILE__, __LINE__})
#define __syncthreads() emulated::wait_for_block(EMULATED_SITE)
#define __syncwarp() emulated::wait_for_warp(0xffffffffu, EMULATED_SITE)
#define __shfl_xor_sync(mask, value, distance) \
  __uint_as_float(emulated::exchange(mask, __float_as_uint(value), distance, EMULATED_SITE))

inline float __uint_as_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}
inline uint32_t __float_as_uint(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
