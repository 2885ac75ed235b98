// Vectors of 16 floats. GCC's vector types work on every machine: the compiler splits them if they
// are wider than a register. Each instruction set has its own copy of these functions, in the
// namespace BPX_ISA, so that the linker does not merge them.
#pragma once

#include <cstdint>
#include <cstring>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "table.h"

namespace BPX_ISA {

#define BPX_INLINE inline __attribute__((always_inline))

constexpr int64_t LANES = 16;
typedef float F __attribute__((vector_size(64)));
typedef int32_t I __attribute__((vector_size(64)));
typedef uint32_t U __attribute__((vector_size(64)));
typedef uint16_t H __attribute__((vector_size(32)));

// The active lanes of a vector: all 16, or the first n at the end of a row.
struct All {};
struct Some {
  int64_t n;
};

// Calls body(j, All) for each full vector of a row of n columns, and body(j, Some) for the rest.
template <class Body>
BPX_INLINE void columns(int64_t n, Body body) {
  int64_t j = 0;
  for (; j + LANES <= n; j += LANES) body(j, All{});
  if (j < n) body(j, Some{n - j});
}

BPX_INLINE F all(float x) { return F{} + x; }
BPX_INLINE U all(uint32_t x) { return U{} + x; }
BPX_INLINE U lane_numbers() { return U{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}; }

// Convert floats to their bits and back.
BPX_INLINE U bits(F x) {
  U u;
  memcpy(&u, &x, sizeof u);
  return u;
}
BPX_INLINE F floats(U u) {
  F x;
  memcpy(&x, &u, sizeof x);
  return x;
}

BPX_INLINE F load(const float* p, All) {
  F v;
  memcpy(&v, p, sizeof v);
  return v;
}
BPX_INLINE F widen(H h) {
#if defined(__AVX512F__)
  return (F)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)h), 16);
#else
  return floats(__builtin_convertvector(h, U) << 16);
#endif
}
// Rounds to nearest, ties to even; NaN stays NaN.
BPX_INLINE H narrow(F x) {
#if defined(__AVX512BF16__)
  return (H)_mm512_cvtneps_pbh((__m512)x);
#else
  const U u = bits(x);
  const U rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const U quiet = (u >> 16) | 0x40u;
  return __builtin_convertvector((U)(x == x ? (I)rounded : (I)quiet), H);
#endif
}
BPX_INLINE F load(const Bf16* p, All) {
  H h;
  memcpy(&h, p, sizeof h);
  return widen(h);
}
BPX_INLINE void store(float* p, F v, All) { memcpy(p, &v, sizeof v); }
BPX_INLINE void store(Bf16* p, F v, All) {
  const H h = narrow(v);
  memcpy(p, &h, sizeof h);
}
// Inactive lanes are read as 0 and not written.
template <class E>
BPX_INLINE F load(const E* p, Some some) {
  E whole[LANES] = {};
  memcpy(whole, p, some.n * sizeof(E));
  return load(whole, All{});
}
template <class E>
BPX_INLINE void store(E* p, F v, Some some) {
  E whole[LANES];
  store(whole, v, All{});
  memcpy(p, whole, some.n * sizeof(E));
}

// Returns v in the active lanes and `other` in the rest.
BPX_INLINE F keep(F v, F, All) { return v; }
BPX_INLINE F keep(F v, F other, Some some) {
  return lane_numbers() < all((uint32_t)some.n) ? v : other;
}

BPX_INLINE float one(float x) { return x; }
BPX_INLINE float one(Bf16 x) {
  const uint32_t u = (uint32_t)x.bits << 16;
  float f;
  memcpy(&f, &u, sizeof f);
  return f;
}
BPX_INLINE void put(float* p, float x) { *p = x; }
BPX_INLINE void put(Bf16* p, float x) { store(p, all(x), Some{1}); }

BPX_INLINE F larger(F a, F b) {
#if defined(__AVX512F__)
  return (F)_mm512_max_ps((__m512)a, (__m512)b);
#else
  return a > b ? a : b;
#endif
}
BPX_INLINE float sum(F v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#else
  float s[LANES];
  store(s, v, All{});
  for (int half = 8; half > 0; half /= 2)
    for (int i = 0; i < half; i++) s[i] += s[i + half];
  return s[0];
#endif
}
BPX_INLINE float largest(F v) {
  float s[LANES];
  store(s, v, All{});
  for (int half = 8; half > 0; half /= 2)
    for (int i = 0; i < half; i++) s[i] = s[i] > s[i + half] ? s[i] : s[i + half];
  return s[0];
}
BPX_INLINE F root(F v) {
#if defined(__AVX512F__)
  return (F)_mm512_sqrt_ps((__m512)v);
#else
  F r;
  for (int i = 0; i < LANES; i++) r[i] = __builtin_sqrtf(v[i]);
  return r;
#endif
}

constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LN_2 = 0.6931471805599453f;

// Returns 2^x with an error of 2e-7, from a Taylor series on [-1/2, 1/2] and the exponent. A result
// below 2^-126 is 0 or the smallest normal number. NaN stays NaN.
BPX_INLINE F exp2(F x) {
#if defined(__AVX512F__)
  const F n = (F)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  x = x < all(-126.f) ? all(-126.f) : x;
  const F magic = all(12582912.f);  // 1.5 * 2^23: adding it rounds to an integer
  const F n = (x + magic) - magic;
#endif
  const F r = x - n;
  F p = all(1.5403530e-4f);
  p = p * r + all(1.3333558e-3f);
  p = p * r + all(9.6181291e-3f);
  p = p * r + all(5.5504109e-2f);
  p = p * r + all(0.24022651f);
  p = p * r + all(0.69314718f);
  p = p * r + all(1.f);
#if defined(__AVX512F__)
  return (F)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  return p * floats((U)(__builtin_convertvector(n, I) + 127) << 23);
#endif
}

// Counter-based dropout: a hash of the element index and the seed decides whether an element is
// kept. The backward pass computes the same mask again, so that no mask is stored.
BPX_INLINE U hash(U x, uint64_t seed) {
  // Two rounds of the hash function `lowbias32` (Wellons), each keyed with half of the seed.
  x ^= (uint32_t)seed;
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  x ^= x >> 16;
  x += (uint32_t)(seed >> 32);
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  return x ^ (x >> 16);
}
// Returns v scaled in the lanes that are kept and 0 in the others. `first` is the index of lane 0.
BPX_INLINE F drop(F v, Dropout d, int64_t first) {
  const U h = hash(lane_numbers() + all((uint32_t)first), d.seed);
  return h >= all(d.threshold) ? v * d.scale : F{};
}

}  // namespace BPX_ISA
