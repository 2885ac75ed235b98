// Softmax cross-entropy of rows of logits. The gradient overwrites the logits.
//
// Macros: VOCAB_SIZE (V, at least 1), THREADS (512 or 1024).
#include "common.cuh"

// A block computes one row. Its threads hold the row in registers, so that the row is read and
// written once. A row is divided into aligned vectors of 8 elements. If V is not a multiple of 8,
// rows start between two multiples of 16 bytes, and the first and the last vector are partial.
constexpr bool WHOLE_VECTORS = VOCAB_SIZE % 8 == 0;
constexpr int MAX_VECTORS = WHOLE_VECTORS ? VOCAB_SIZE / 8 : (VOCAB_SIZE + 14) / 8;
constexpr int VECTORS_PER_THREAD = (MAX_VECTORS + THREADS - 1) / THREADS;
// Vectors per thread in registers, 4 registers each. A thread reads the remaining ones again.
constexpr int MAX_KEPT = THREADS <= 512 ? 20 : 8;
constexpr int KEPT = VECTORS_PER_THREAD < MAX_KEPT ? VECTORS_PER_THREAD : MAX_KEPT;
constexpr Uint32 NO_ELEMENTS = 0xff80ff80u;  // two times -infinity

// The vectors of one row.
struct LogitRow {
  Bf16* vectors;     // aligned to 16 bytes, at or up to 7 elements before the row
  int begin;         // of the row, in elements from `vectors`
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
#pragma unroll
  for (int j = 0; j < 4; j++) largest = fmaxf(largest, fmaxf(first_of(z.pairs[j]), second_of(z.pairs[j])));
  return largest;
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
__device__ __forceinline__ Bf16x8 gradient_of(const Bf16x8& z, float largest, float factor) {
  Bf16x8 g;
#pragma unroll
  for (int j = 0; j < 4; j++)
    g.pairs[j] = to_bf16_pair(exponential(first_of(z.pairs[j]), largest) * factor,
                              exponential(second_of(z.pairs[j]), largest) * factor);
  return g;
}

// losses[row] = log(sum(exp(z))) - z[target]. With with_gradient, logits become scale * (softmax(z)
// - onehot(target)). A target outside of 0..V gives NaN: the loss and the row of the gradient.
extern "C" __global__ void __launch_bounds__(THREADS)
    cross_entropy(Bf16* logits, const long long* targets, float* losses, float scale, int with_gradient) {
  __shared__ float shared_largest[WARP_SIZE];
  __shared__ float shared_sum[WARP_SIZE];
  Bf16* const elements = logits + static_cast<long long>(blockIdx.x) * VOCAB_SIZE;
  const LogitRow row(elements);
  const long long target = targets[blockIdx.x];
  const bool is_valid = target >= 0 && target < VOCAB_SIZE;
  const float target_logit = is_valid ? to_float(elements[target]) : not_a_number();
  const int thread = threadIdx.x;
  const int rest_end = VECTORS_PER_THREAD > KEPT ? row.num_vectors : 0;

  Bf16x8 z[KEPT];
  float largest = -infinity();
#pragma unroll
  for (int i = 0; i < KEPT; i++) z[i] = row.load(i * THREADS + thread);
#pragma unroll
  for (int i = 0; i < KEPT; i++) largest = largest_of(z[i], largest);
  for (int v = KEPT * THREADS + thread; v < rest_end; v += THREADS) largest = largest_of(row.load(v), largest);
  largest = reduce_block<Largest, THREADS / WARP_SIZE>(largest, shared_largest);

  float sum = 0.f;
#pragma unroll
  for (int i = 0; i < KEPT; i++) sum += sum_of(z[i], largest);
  for (int v = KEPT * THREADS + thread; v < rest_end; v += THREADS) sum += sum_of(row.load(v), largest);
  sum = reduce_block<Sum, THREADS / WARP_SIZE>(sum, shared_sum);

  const float log_sum = largest + logf(sum);
  if (thread == 0) losses[blockIdx.x] = log_sum - target_logit;
  if (!with_gradient) return;

  const float factor = is_valid ? scale / sum : not_a_number();
#pragma unroll
  for (int i = 0; i < KEPT; i++) row.store(i * THREADS + thread, gradient_of(z[i], largest, factor));
  for (int v = KEPT * THREADS + thread; v < rest_end; v += THREADS)
    row.store(v, gradient_of(row.load(v), largest, factor));
  // The thread that wrote the target's vector corrects it. p - 1 is computed in fp32: bf16(p) - 1
  // would lose the gradient of a confident token.
  if (is_valid && (target + row.begin) / 8 % THREADS == thread)
    elements[target] = to_bf16(scale * expm1f(target_logit - log_sum));
}

KERNEL(cross_entropy)
