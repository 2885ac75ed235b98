// Selects the kernels for this machine, once per process. BACKPACK_CPU selects a smaller
// instruction set, as ATEN_CPU_CAPABILITY does for the kernels of libtorch.
#include <cstdlib>
#include <cstring>

#include "table.h"

namespace {
const Kernels& choose() {
#if defined(__x86_64__)
  const char* named = getenv("BACKPACK_CPU");
  const bool best = !named;
  if ((best || !strcmp(named, "avx512")) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bf16"))
    return bpx_kernels_avx512;
  if ((best || !strcmp(named, "avx512") || !strcmp(named, "avx2")) && __builtin_cpu_supports("avx2") &&
      __builtin_cpu_supports("fma"))
    return bpx_kernels_avx2;
#endif
  return bpx_kernels_baseline;
}
}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}
