// Softmax cross-entropy of rows of logits. The gradient overwrites the logits.
//
// Macros: VOCAB_SIZE (V, at least 1), THREADS (512).
#include "common.cuh"

// A block computes one row. Its threads hold the row in registers and shared memory, so that the
// row is read and written once. A row is divided into aligned vectors of 8 elements. If V is not a
// multiple of 8, rows start between two multiples of 16 bytes, and the first and the last vector
// are partial.
constexpr bool WHOLE_VECTORS = VOCAB_SIZE % 8 == 0;
constexpr int MAX_VECTORS = WHOLE_VECTORS ? VOCAB_SIZE / 8 : (VOCAB_SIZE + 14) / 8;
constexpr int VECTORS_PER_THREAD = (MAX_VECTORS + THREADS - 1) / THREADS;
// Two blocks of 512 threads fit into a multiprocessor if a thread needs at most 64 registers, that
// is, if it holds at most 10 vectors (4 registers each).
constexpr int BLOCKS = 2;
constexpr int MAX_IN_REGISTERS = 10;
constexpr int MAX_IN_SHARED = 47 * 1024 / (16 * THREADS);
__device__ constexpr int smaller_of(int a, int b) { return a < b ? a : b; }
constexpr int IN_REGISTERS = smaller_of(VECTORS_PER_THREAD, MAX_IN_REGISTERS);
constexpr int IN_SHARED = smaller_of(VECTORS_PER_THREAD - IN_REGISTERS, MAX_IN_SHARED);
constexpr int HELD = IN_REGISTERS + IN_SHARED;  // a thread reads its remaining vectors again
constexpr Uint32 NO_ELEMENTS = 0xff80ff80u;     // two times -infinity

// The vectors of one row.
struct LogitRow {
  Bf16* vectors;  // aligned to 16 bytes, at or up to 7 elements before the row
  int begin;      // of the row, in elements from `vectors`
  int end;
  int num_vectors;

  __device__ __forceinline__ explicit LogitRow(Bf16* row) {
    begin = WHOLE_VECTORS ? 0 : static_cast<int>(reinterpret_cast<Uint64>(row) / sizeof(Bf16) % 8);
    vectors = row - begin;
    end = begin + VOCAB_SIZE;
    num_vectors = WHOLE_VECTORS ? MAX_VECTORS : (end + 7) / 8;
  }
  __device__ __forceinline__ bool is_partial(int v) const {
    return !WHOLE_VECTORS && (8 * v < begin || 8 * v + 8 > end);
  }
  // Elements outside of the row are -infinity.
  __device__ __forceinline__ Bf16x8 load(int v) const {
    if (v >= num_vectors) return {{NO_ELEMENTS, NO_ELEMENTS, NO_ELEMENTS, NO_ELEMENTS}};
    if (!is_partial(v)) return *reinterpret_cast<const Bf16x8*>(vectors + 8 * v);
    Bf16x8 z;
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const int first = 8 * v + 2 * j;
      const Uint32 low = first >= begin && first < end ? vectors[first] : NO_ELEMENTS & 0xffffu;
      const Uint32 high = first + 1 >= begin && first + 1 < end ? vectors[first + 1] : NO_ELEMENTS & 0xffffu;
      z.pairs[j] = low | (high << 16);
    }
    return z;
  }
  __device__ __forceinline__ void store(int v, const Bf16x8& g) const {
    if (v >= num_vectors) return;
    if (!is_partial(v)) {
      *reinterpret_cast<Bf16x8*>(vectors + 8 * v) = g;
      return;
    }
#pragma unroll
    for (int j = 0; j < 8; j++) {
      const int element = 8 * v + j;
      if (element >= begin && element < end) vectors[element] = static_cast<Bf16>(g.pairs[j / 2] >> (j % 2 * 16));
    }
  }
};

__device__ __forceinline__ float largest_of(const Bf16x8& z, float largest) {
  const Uint32 pair = larger_of(larger_of(z.pairs[0], z.pairs[1]), larger_of(z.pairs[2], z.pairs[3]));
  return fmaxf(largest, fmaxf(first_of(pair), second_of(pair)));
}
// exp(z - largest). The difference is computed first, because it is exact for the largest logits.
__device__ __forceinline__ float exponential(float z, float largest) { return fast_exp2((z - largest) * LOG2_E); }
__device__ __forceinline__ float sum_of(const Bf16x8& z, float largest) {
  float sum = 0.f;
#pragma unroll
  for (int j = 0; j < 4; j++)
    sum += exponential(first_of(z.pairs[j]), largest) + exponential(second_of(z.pairs[j]), largest);
  return sum;
}
// The two elements of a pair, like first_of and second_of. Other instructions make the compiler
// compute them again: it would otherwise keep the floats of sum_of, in twice as many registers.
__device__ __forceinline__ void unpack_again(Uint32 pair, float& first, float& second) {
#ifdef __CUDA_ARCH__
  asm("prmt.b32 %0, %1, 0, 0x1044;" : "=f"(first) : "r"(pair));
  asm("prmt.b32 %0, %1, 0, 0x3244;" : "=f"(second) : "r"(pair));
#else
  first = first_of(pair);
  second = second_of(pair);
#endif
}
// scale * softmax(z), from `shift` = -log2(sum(exp(z))).
__device__ __forceinline__ Bf16x8 gradient_of(const Bf16x8& z, float shift, float scale) {
  Bf16x8 g;
#pragma unroll
  for (int j = 0; j < 4; j++) {
    float first, second;
    unpack_again(z.pairs[j], first, second);
    g.pairs[j] =
        to_bf16_pair(fast_exp2(fmaf(first, LOG2_E, shift)) * scale, fast_exp2(fmaf(second, LOG2_E, shift)) * scale);
  }
  return g;
}

// losses[row] = log(sum(exp(z))) - z[target]. With with_gradient, logits become scale * (softmax(z)
// - onehot(target)). A target outside of 0..V gives NaN: the loss and the row of the gradient.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    cross_entropy(Bf16* logits, const long long* targets, float* losses, float scale, int with_gradient) {
  __shared__ float shared_largest[WARP_SIZE];
  __shared__ float shared_sum[WARP_SIZE];
  // A thread accesses its own vectors only.
  __shared__ Bf16x8 in_shared[IN_SHARED > 0 ? IN_SHARED * THREADS : 1];
  Bf16* const elements = logits + static_cast<long long>(blockIdx.x) * VOCAB_SIZE;
  const LogitRow row(elements);
  const long long target = targets[blockIdx.x];
  const bool is_valid = target >= 0 && target < VOCAB_SIZE;
  const float target_logit = is_valid ? to_float(elements[target]) : not_a_number();
  const int thread = threadIdx.x;
  const int rest_end = VECTORS_PER_THREAD > HELD ? row.num_vectors : 0;

  Bf16x8 in_registers[IN_REGISTERS];
#pragma unroll
  for (int i = 0; i < HELD; i++) {
    const Bf16x8 z = row.load(i * THREADS + thread);
    if (i < IN_REGISTERS) {
      in_registers[i] = z;
    } else {
      in_shared[(i - IN_REGISTERS) * THREADS + thread] = z;
    }
  }
  float largest = -infinity();
  const auto held = [&](int i) {
    return i < IN_REGISTERS ? in_registers[i] : in_shared[(i - IN_REGISTERS) * THREADS + thread];
  };
#pragma unroll
  for (int i = 0; i < HELD; i++) largest = largest_of(held(i), largest);
  for (int v = HELD * THREADS + thread; v < rest_end; v += THREADS) largest = largest_of(row.load(v), largest);
  largest = reduce_block<Largest, THREADS / WARP_SIZE>(largest, shared_largest);

  float sum = 0.f;
#pragma unroll
  for (int i = 0; i < HELD; i++) sum += sum_of(held(i), largest);
  for (int v = HELD * THREADS + thread; v < rest_end; v += THREADS) sum += sum_of(row.load(v), largest);
  sum = reduce_block<Sum, THREADS / WARP_SIZE>(sum, shared_sum);

  const float log_sum = largest + logf(sum);
  if (thread == 0) losses[blockIdx.x] = log_sum - target_logit;
  if (!with_gradient) return;

  const float shift = is_valid ? -log_sum * LOG2_E : not_a_number();
#pragma unroll
  for (int i = 0; i < HELD; i++) row.store(i * THREADS + thread, gradient_of(held(i), shift, scale));
  for (int v = HELD * THREADS + thread; v < rest_end; v += THREADS)
    row.store(v, gradient_of(row.load(v), shift, scale));
  // The thread that wrote the target's vector corrects it. p - 1 is computed in fp32: bf16(p) - 1
  // would lose the gradient of a confident token.
  if (is_valid && (target + row.begin) / 8 % THREADS == thread)
    elements[target] = to_bf16(scale * expm1f(target_logit - log_sum));
}

KERNEL(cross_entropy)
