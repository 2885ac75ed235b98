// The interface of the emulator, and what its race detector reads.
#pragma once

#include <cstddef>
#include <cstdint>

#include "emulate.h"

#define EMULATED_API __attribute__((visibility("default")))

extern "C" {
// Returns the kernel of this name, or null if there is none.
EMULATED_API void* emulated_function(const char* name);

// Runs a grid, with the arguments of cuLaunchKernel. Returns 0 on success. After an error,
// emulated_error returns a description. The launch stops if threads can no longer continue, and
// runs to its end after other errors.
EMULATED_API int emulated_launch(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                                 unsigned block_y, unsigned block_z, unsigned shared_bytes, void* stream,
                                 void** parameters, void** extra);

// Returns the first error of this thread's last launch, or null if there was none.
EMULATED_API const char* emulated_error();
}

namespace emulated HIDDEN {

// The fiber that is running. Its accesses before a barrier happen before those that another thread
// of the block (or warp) makes after the barrier.
struct Execution {
  bool is_in_kernel = false;
  uint32_t block = 0;        // linear index
  uint32_t thread = 0;       // linear index within the block
  uint32_t warp = 0;         // within the block
  uint32_t block_epoch = 0;  // number of barriers of the block so far
  uint32_t warp_epoch = 0;   // number of barriers of the warp so far
};
extern Execution execution;

// Memory whose accesses are not checked: the stacks of the fibers.
extern const char *stacks_begin, *stacks_end;
// The shared memory of all blocks.
const char* shared_begin();
const char* shared_end();

// Keeps the first error of a launch.
void report(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Implemented by race_detector.cpp.
void start_race_detection();

}  // namespace emulated HIDDEN
