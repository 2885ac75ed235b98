// Small kernels, most of them wrong, to check what the emulator reports. See emulator_errors.cpp.
//
// No macros. All kernels run in blocks of 64 threads, that is, two warps.
#include "../common.cuh"

constexpr int THREADS = 64;

// Correct: the other warp's value is read after a barrier.
extern "C" __global__ void barrier(float* out) {
  __shared__ float values[THREADS];
  values[threadIdx.x] = threadIdx.x;
  __syncthreads();
  out[blockIdx.x * THREADS + threadIdx.x] = values[threadIdx.x ^ 32];
}
extern "C" __global__ void missing_barrier(float* out) {
  __shared__ float values[THREADS];
  values[threadIdx.x] = threadIdx.x;
  out[blockIdx.x * THREADS + threadIdx.x] = values[threadIdx.x ^ 32];
}
// __syncwarp orders one warp only.
extern "C" __global__ void warp_barrier_between_warps(float* out) {
  __shared__ float values[THREADS];
  values[threadIdx.x] = threadIdx.x;
  __syncwarp();
  out[blockIdx.x * THREADS + threadIdx.x] = values[threadIdx.x ^ 32];
}
// Correct: the values are read once more before they are overwritten, with a barrier after it.
extern "C" __global__ void reuse(float* out) {
  __shared__ float values[THREADS];
  float sum = 0.f;
  for (int turn = 0; turn < 2; turn++) {
    values[threadIdx.x] = threadIdx.x + turn;
    __syncthreads();
    sum += values[threadIdx.x ^ 32];
    __syncthreads();
  }
  out[blockIdx.x * THREADS + threadIdx.x] = sum;
}
// A fast warp overwrites values that the other warp has not read.
extern "C" __global__ void reuse_without_barrier(float* out) {
  __shared__ float values[THREADS];
  float sum = 0.f;
  for (int turn = 0; turn < 2; turn++) {
    values[threadIdx.x] = threadIdx.x + turn;
    __syncthreads();
    sum += values[threadIdx.x ^ 32];
  }
  out[blockIdx.x * THREADS + threadIdx.x] = sum;
}
// Correct: lanes of one warp exchange values through shared memory.
extern "C" __global__ void warp_barrier(float* out) {
  __shared__ float values[THREADS];
  values[threadIdx.x] = threadIdx.x;
  __syncwarp();
  out[blockIdx.x * THREADS + threadIdx.x] = values[threadIdx.x ^ 1];
}
// A shuffle is not a barrier for memory.
extern "C" __global__ void shuffle_as_barrier(float* out) {
  __shared__ float values[THREADS];
  values[threadIdx.x] = threadIdx.x;
  const float other = __shfl_xor_sync(ALL_LANES, 1.f, 1);
  out[blockIdx.x * THREADS + threadIdx.x] = values[threadIdx.x ^ 1] + other;
}
// The halves of 32-bit words are written by different threads, which is correct for bf16.
extern "C" __global__ void adjacent_halves(Bf16* out) { out[blockIdx.x * THREADS + threadIdx.x] = threadIdx.x; }
// Two blocks write the same words.
extern "C" __global__ void blocks_write(float* out) { out[threadIdx.x] = 1.f; }
// A block reads what another one writes.
extern "C" __global__ void blocks_exchange(float* out) {
  const float other = out[(blockIdx.x ^ 1) * THREADS + threadIdx.x];
  __syncthreads();
  out[blockIdx.x * THREADS + threadIdx.x] = other;
}
// A vector of 16 bytes overlaps the word of another thread.
extern "C" __global__ void overlapping_vector(float* out) {
  if (threadIdx.x == 0) store_vector(out, Vector<float, 4>{{1.f, 1.f, 1.f, 1.f}});
  if (threadIdx.x == 3) out[3] = 2.f;
}
extern "C" __global__ void divergent_barrier(float* out) {
  if (threadIdx.x < 40) __syncthreads();
  out[blockIdx.x * THREADS + threadIdx.x] = 1.f;
}
extern "C" __global__ void different_barriers(float* out) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    out[blockIdx.x * THREADS + threadIdx.x] = 1.f;
    __syncthreads();
  }
}
extern "C" __global__ void exit_before_barrier(float* out) {
  if (threadIdx.x == 63) return;
  __syncthreads();
  out[blockIdx.x * THREADS + threadIdx.x] = 1.f;
}
extern "C" __global__ void missing_lane(float* out) {
  float x = threadIdx.x;
  if (threadIdx.x % 32 < 16) x = __shfl_xor_sync(ALL_LANES, x, 1);
  out[blockIdx.x * THREADS + threadIdx.x] = x;
}
extern "C" __global__ void partial_mask(float* out) {
  out[blockIdx.x * THREADS + threadIdx.x] = __shfl_xor_sync(0xffffu, 1.f, 1);
}
extern "C" __global__ void missing_source_lane(float* out) {
  out[blockIdx.x * THREADS + threadIdx.x] = __shfl_xor_sync(ALL_LANES, 1.f, 32);
}
// Shared memory is not initialized: the emulator fills it with NaN before each block.
extern "C" __global__ void uninitialized(float* out) {
  __shared__ float values[THREADS];
  out[blockIdx.x * THREADS + threadIdx.x] = values[threadIdx.x];
  values[threadIdx.x] = 0.f;
}

KERNEL(barrier)
KERNEL(missing_barrier)
KERNEL(warp_barrier_between_warps)
KERNEL(reuse)
KERNEL(reuse_without_barrier)
KERNEL(warp_barrier)
KERNEL(shuffle_as_barrier)
KERNEL(adjacent_halves)
KERNEL(blocks_write)
KERNEL(blocks_exchange)
KERNEL(overlapping_vector)
KERNEL(divergent_barrier)
KERNEL(different_barriers)
KERNEL(exit_before_barrier)
KERNEL(missing_lane)
KERNEL(partial_mask)
KERNEL(missing_source_lane)
KERNEL(uninitialized)
