// Checks that the emulator reports the errors of the kernels in emulator_errors.cu, and nothing
// about the correct ones.
//
//   emulator_errors LIBRARY     built from emulator_errors.cu with the race detector
#include <math.h>

#include <vector>

#include "emulated_library.h"

namespace {

struct Case {
  const char* kernel;
  const char* error;  // a part of the expected text, or null
};
const Case CASES[] = {
    {"barrier", nullptr},
    {"missing_barrier", "of shared memory"},
    {"warp_barrier_between_warps", "of shared memory"},
    {"reuse", nullptr},
    {"reuse_without_barrier", "of shared memory"},
    {"warp_barrier", nullptr},
    {"shuffle_as_barrier", "of shared memory"},
    {"adjacent_halves", nullptr},
    {"blocks_write", "race: thread 0 of block 1 writes global memory"},
    {"blocks_exchange", "race: thread 0 of block 1 reads global memory"},
    {"overlapping_vector", "race: thread 3 of block 0 writes global memory"},
    {"divergent_barrier", "in block 0, thread 0 waits at __syncthreads"},
    {"different_barriers", "wait at different barriers"},
    {"exit_before_barrier", "but thread 63 has exited"},
    {"missing_lane", "thread 0 waits at a shuffle"},
    {"partial_mask", "omits lanes"},
    {"missing_source_lane", "does not exist"},
    {"uninitialized", nullptr},
};
constexpr unsigned BLOCKS = 2, THREADS = 64;

}  // namespace

int main(int count, char** arguments) {
  if (count != 2) {
    fprintf(stderr, "usage: emulator_errors LIBRARY\n");
    return 2;
  }
  const EmulatedLibrary library(arguments[1]);
  int failures = 0;
  for (const Case& c : CASES) {
    std::vector<float> out(BLOCKS * THREADS, 5.f);
    const std::string error = library.launch(c.kernel, {BLOCKS}, {THREADS}, out.data());
    bool is_right = c.error ? error.find(c.error) != std::string::npos : error.empty();
    if (std::string(c.kernel) == "uninitialized")
      for (const float x : out) is_right &= isnan(x) != 0;
    failures += !is_right;
    printf("%s  %s: %s\n", is_right ? "ok    " : "FAILED", c.kernel, error.empty() ? "no error" : error.c_str());
  }
  // Errors of the launch itself.
  std::vector<float> out(THREADS);
  const bool is_refused = !library.launch("barrier", {1}, {2048}, out.data()).empty() &&
                          !library.launch("barrier", {1, 65536}, {THREADS}, out.data()).empty();
  printf("%s  invalid sizes of grids and blocks are errors\n", is_refused ? "ok    " : "FAILED");
  return failures || !is_refused;
}
