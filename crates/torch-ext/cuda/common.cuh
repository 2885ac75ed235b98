// What the kernels share: types, bf16, aligned vectors, dropout, and reductions in a fixed order.
//
// NVRTC compiles every kernel file when the sizes of a model are known and passes them as macros.
// The files include no CUDA headers, so that a C++ compiler can also compile them for the emulator.
// Activations are bf16. Parameters, sums and all arithmetic are fp32. Pointers to matrices and
// vectors are aligned to 16 bytes, as libtorch allocates them.
#pragma once

typedef unsigned short Bf16;
typedef unsigned int Uint32;
typedef unsigned long long Uint64;

// Registers the entry points of a kernel file with the emulator.
#ifndef KERNEL
#define KERNEL(name)
#endif

constexpr int WARP_SIZE = 32;
constexpr Uint32 ALL_LANES = 0xffffffffu;
constexpr float LOG2_E = 1.4426950408889634f;

// `count` elements that one instruction loads or stores.
template <class T, int count>
struct alignas(count * sizeof(T)) Vector {
  T at[count];
};
template <int count, class T>
__device__ __forceinline__ Vector<T, count> load_vector(const T* from) {
  return *reinterpret_cast<const Vector<T, count>*>(from);
}
template <class T, int count>
__device__ __forceinline__ void store_vector(T* to, const Vector<T, count>& v) {
  *reinterpret_cast<Vector<T, count>*>(to) = v;
}

// Eight bf16 elements in four registers. The lower half of a register is the first of two elements.
struct alignas(16) Bf16x8 {
  Uint32 pairs[4];
};

__device__ __forceinline__ float infinity() { return __uint_as_float(0x7f800000u); }
__device__ __forceinline__ float not_a_number() { return __uint_as_float(0x7fffffffu); }

__device__ __forceinline__ float first_of(Uint32 pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float second_of(Uint32 pair) { return __uint_as_float(pair & 0xffff0000u); }
__device__ __forceinline__ float to_float(Bf16 x) { return __uint_as_float(static_cast<Uint32>(x) << 16); }
__device__ __forceinline__ float to_float(float x) { return x; }

// The larger elements of two pairs. A NaN is the result only if both elements are NaN.
__device__ __forceinline__ Uint32 larger_of(Uint32 a, Uint32 b) {
#ifdef __CUDA_ARCH__
  Uint32 larger;
  asm("max.bf16x2 %0, %1, %2;" : "=r"(larger) : "r"(a), "r"(b));
  return larger;
#else
  const float first = fmaxf(first_of(a), first_of(b)), second = fmaxf(second_of(a), second_of(b));
  return (__float_as_uint(first) >> 16) | (__float_as_uint(second) & 0xffff0000u);
#endif
}

#ifndef __CUDA_ARCH__
inline Uint32 rounded_to_bf16(float x) {
  const Uint32 bits = __float_as_uint(x);
  return x != x ? 0x7fffu : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}
#endif

// Rounds to nearest, ties to even. NaN stays NaN.
__device__ __forceinline__ Uint32 to_bf16_pair(float first, float second) {
#ifdef __CUDA_ARCH__
  Uint32 pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
#else
  return rounded_to_bf16(first) | (rounded_to_bf16(second) << 16);
#endif
}
__device__ __forceinline__ Bf16 to_bf16(float x) { return static_cast<Bf16>(to_bf16_pair(x, 0.f)); }

// Returns 2^x with a relative error of 2^-22. Results below 2^-126 are 0.
__device__ __forceinline__ float fast_exp2(float x) {
#ifdef __CUDA_ARCH__
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  const float result = exp2f(x);
  return result < 1.17549435e-38f ? 0.f : result;
#endif
}
// Returns 1 / x with an error of one unit in the last place. Results below 2^-126 are 0.
__device__ __forceinline__ float fast_reciprocal(float x) {
#ifdef __CUDA_ARCH__
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  const float result = 1.f / x;
  return fabsf(result) < 1.17549435e-38f ? 0.f : result;
#endif
}

// The hash function of cpp/kernels/vec.h: the mask of an element depends on its index and the seed,
// so that CPU and GPU drop the same elements and the backward pass computes the mask again.
__device__ __forceinline__ Uint32 dropout_hash(Uint32 index, Uint64 seed) {
  Uint32 x = index ^ static_cast<Uint32>(seed);
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  x ^= x >> 16;
  x += static_cast<Uint32>(seed >> 32);
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  return x ^ (x >> 16);
}

// A threshold of 0 keeps every element and does not scale.
struct Dropout {
  Uint32 threshold;
  float scale;
  Uint64 seed;
};
__device__ __forceinline__ float apply_dropout(float x, const Dropout& dropout, Uint32 index) {
  if (dropout.threshold == 0) return x;
  return dropout_hash(index, dropout.seed) >= dropout.threshold ? x * dropout.scale : 0.f;
}

// Operations of reductions. The largest element ignores NaN: callers detect NaN by their sums.
struct Sum {
  static __device__ __forceinline__ float neutral() { return 0.f; }
  static __device__ __forceinline__ float combine(float a, float b) { return a + b; }
};
struct Largest {
  static __device__ __forceinline__ float neutral() { return -infinity(); }
  static __device__ __forceinline__ float combine(float a, float b) { return fmaxf(a, b); }
};

// Combines the values of the lanes of a warp. Every lane receives the result.
template <class Operation>
__device__ __forceinline__ float reduce_warp(float x) {
#pragma unroll
  for (int distance = WARP_SIZE / 2; distance > 0; distance /= 2)
    x = Operation::combine(x, __shfl_xor_sync(ALL_LANES, x, distance));
  return x;
}

// Combines the values of the threads of a block, which has `warps` whole warps. Every thread
// receives the result. `shared` holds `warps` floats that no other thread accesses before the next
// barrier.
template <class Operation, int warps>
__device__ __forceinline__ float reduce_block(float x, float* shared) {
  const int lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE;
  x = reduce_warp<Operation>(x);
  if (lane == 0) shared[warp] = x;
  __syncthreads();
  return reduce_warp<Operation>(lane < warps ? shared[lane] : Operation::neutral());
}
