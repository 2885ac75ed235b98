// sum = stream + dropout(output + bias), normed = LayerNorm(sum), where `output` is that of a
// layer: the end of one block and the start of the next in one pass over memory.
//
// Macros: WIDTH (D, 1 to 3,072), WARPS (per block).
#include "common.cuh"

// Elements that one instruction loads or stores. Rows start at multiples of as many elements.
constexpr int VECTOR = WIDTH % 4 == 0 ? 4 : WIDTH % 2 == 0 ? 2 : 1;
constexpr int THREADS = WARP_SIZE * WARPS;
// A row is divided among the threads of a team, which hold it in registers. The backward pass holds
// five values per element: for wide rows, a whole block is one team.
constexpr int FORWARD_TEAM = WARP_SIZE;
constexpr int BACKWARD_TEAM = WIDTH <= 1024 ? WARP_SIZE : THREADS;

// The elements of a row that belong to one thread of a team of TEAM threads: VECTOR adjacent
// elements, then those TEAM * VECTOR columns later, and so on.
template <int TEAM>
struct Columns {
  static constexpr int VECTORS = (WIDTH + TEAM * VECTOR - 1) / (TEAM * VECTOR);
  int thread;  // within the team

  __device__ __forceinline__ int column(int i) const { return (i * TEAM + thread) * VECTOR; }
  __device__ __forceinline__ bool exists(int i) const {
    return WIDTH % (TEAM * VECTOR) == 0 || i < VECTORS - 1 || column(i) < WIDTH;
  }
};

// VECTOR elements at `offset` of a matrix of floats or bf16.
__device__ __forceinline__ Vector<float, VECTOR> load_elements(const void* from, int is_float, long long offset) {
  if (is_float) return load_vector<VECTOR>(static_cast<const float*>(from) + offset);
  const Vector<Bf16, VECTOR> narrow = load_vector<VECTOR>(static_cast<const Bf16*>(from) + offset);
  Vector<float, VECTOR> x;
#pragma unroll
  for (int j = 0; j < VECTOR; j++) x.at[j] = to_float(narrow.at[j]);
  return x;
}
__device__ __forceinline__ void store_elements(void* to, int is_float, long long offset,
                                               const Vector<float, VECTOR>& x) {
  if (is_float) {
    store_vector(static_cast<float*>(to) + offset, x);
    return;
  }
  Vector<Bf16, VECTOR> narrow;
#pragma unroll
  for (int j = 0; j < VECTOR; j++) narrow.at[j] = to_bf16(x.at[j]);
  store_vector(static_cast<Bf16*>(to) + offset, narrow);
}

// One warp per row; grid: ceil(rows / WARPS). stats [rows, 2]: the mean and 1 / sqrt(variance +
// epsilon) of the sum. Without an output, the stream is normalized and `sum` is not written. The
// dropout index of an element is row * WIDTH + column.
extern "C" __global__ void __launch_bounds__(THREADS)
    add_layer_norm(const float* stream, const void* output, int output_is_float, const float* output_bias, float* sum,
                   const float* weight, const float* bias, void* normed, int normed_is_float, float* stats, int rows,
                   float epsilon, unsigned threshold, float scale, unsigned long long seed) {
  const Columns<FORWARD_TEAM> columns{static_cast<int>(threadIdx.x) % WARP_SIZE};
  const int row = blockIdx.x * WARPS + threadIdx.x / WARP_SIZE;
  if (row >= rows) return;
  const Dropout dropout{threshold, scale, seed};
  const long long start = static_cast<long long>(row) * WIDTH;

  Vector<float, VECTOR> x[columns.VECTORS] = {};
  float total = 0.f;
#pragma unroll
  for (int i = 0; i < columns.VECTORS; i++)
    if (columns.exists(i)) x[i] = load_vector<VECTOR>(stream + start + columns.column(i));
  if (output) {
#pragma unroll
    for (int i = 0; i < columns.VECTORS; i++) {
      if (!columns.exists(i)) continue;
      const int column = columns.column(i);
      Vector<float, VECTOR> y = load_elements(output, output_is_float, start + column);
      if (output_bias) {
        const Vector<float, VECTOR> b = load_vector<VECTOR>(output_bias + column);
#pragma unroll
        for (int j = 0; j < VECTOR; j++) y.at[j] += b.at[j];
      }
#pragma unroll
      for (int j = 0; j < VECTOR; j++)
        x[i].at[j] += apply_dropout(y.at[j], dropout, static_cast<Uint32>(start + column + j));
      store_vector(sum + start + column, x[i]);
    }
  }
#pragma unroll
  for (int i = 0; i < columns.VECTORS; i++)
    if (columns.exists(i)) {
#pragma unroll
      for (int j = 0; j < VECTOR; j++) total += x[i].at[j];
    }
  const float mean = reduce_warp<Sum>(total) * (1.f / WIDTH);
  float squares = 0.f;
#pragma unroll
  for (int i = 0; i < columns.VECTORS; i++)
    if (columns.exists(i)) {
#pragma unroll
      for (int j = 0; j < VECTOR; j++) squares += (x[i].at[j] - mean) * (x[i].at[j] - mean);
    }
  const float inverse = 1.f / sqrtf(reduce_warp<Sum>(squares) * (1.f / WIDTH) + epsilon);
  if (columns.thread == 0) store_vector(stats + 2ll * row, Vector<float, 2>{{mean, inverse}});
#pragma unroll
  for (int i = 0; i < columns.VECTORS; i++) {
    if (!columns.exists(i)) continue;
    const int column = columns.column(i);
    const Vector<float, VECTOR> w = load_vector<VECTOR>(weight + column), b = load_vector<VECTOR>(bias + column);
#pragma unroll
    for (int j = 0; j < VECTOR; j++) x[i].at[j] = (x[i].at[j] - mean) * inverse * w.at[j] + b.at[j];
    store_elements(normed, normed_is_float, start + column, x[i]);
  }
}

template <int TEAM>
__device__ __forceinline__ float reduce_team(float x, float* shared) {
  return TEAM == WARP_SIZE ? reduce_warp<Sum>(x) : reduce_block<Sum, WARPS>(x, shared);
}

// Adds x to VECTOR elements of shared memory that only this thread accesses.
__device__ __forceinline__ void add_to_shared(float* to, const Vector<float, VECTOR>& x) {
  Vector<float, VECTOR> sum = load_vector<VECTOR>(to);
#pragma unroll
  for (int j = 0; j < VECTOR; j++) sum.at[j] += x.at[j];
  store_vector(to, sum);
}

// Writes the sums of `sums` [teams, WIDTH] over the teams of a block, in a fixed order.
template <int TEAMS>
__device__ __forceinline__ void write_partials(const float* sums, float* to) {
  for (int column = threadIdx.x; column < WIDTH; column += THREADS) {
    float total = 0.f;
#pragma unroll
    for (int team = 0; team < TEAMS; team++) total += sums[team * WIDTH + column];
    to[column] = total;
  }
}

// Grid: any; the teams of all blocks share the rows. `sum` is the input of the LayerNorm: the
// stream if there was no output. partials [gridDim.x, 3, WIDTH]: the sums over a block's rows of
// the gradients of weight, bias and output_bias. Without d_normed, the gradient of the norm is 0.
// Without d_output, the third row of partials is 0.
extern "C" __global__ void __launch_bounds__(THREADS)
    add_layer_norm_backward(const float* sum, const float* stats, const float* weight, const void* d_normed,
                            int normed_is_float, const float* d_sum, float* d_stream, void* d_output,
                            int output_is_float, float* partials, int rows, unsigned threshold, float scale,
                            unsigned long long seed) {
  constexpr int TEAM = BACKWARD_TEAM, TEAMS = THREADS / TEAM;
  // Sums of the gradients of weight and bias by team. In registers, they would halve the number of
  // blocks that run at the same time.
  alignas(16) __shared__ float to_weight[TEAMS * WIDTH];
  alignas(16) __shared__ float to_bias[TEAMS * WIDTH];
  __shared__ float first_scratch[WARPS], second_scratch[WARPS];
  const Columns<TEAM> columns{static_cast<int>(threadIdx.x) % TEAM};
  const Dropout dropout{threshold, scale, seed};
  const int team = threadIdx.x / TEAM;
  Vector<float, VECTOR> to_output_bias[columns.VECTORS] = {};
#pragma unroll
  for (int i = 0; i < columns.VECTORS; i++)
    if (columns.exists(i)) {
      store_vector(to_weight + team * WIDTH + columns.column(i), Vector<float, VECTOR>{});
      store_vector(to_bias + team * WIDTH + columns.column(i), Vector<float, VECTOR>{});
    }

  for (int row = blockIdx.x * TEAMS + team; row < rows; row += gridDim.x * TEAMS) {
    const long long start = static_cast<long long>(row) * WIDTH;
    Vector<float, VECTOR> normal[columns.VECTORS] = {}, g[columns.VECTORS] = {};
    float inverse = 0.f, mean_g = 0.f, mean_gn = 0.f;
    if (d_normed) {
      const Vector<float, 2> s = load_vector<2>(stats + 2ll * row);
      const float mean = s.at[0];
      inverse = s.at[1];
#pragma unroll
      for (int i = 0; i < columns.VECTORS; i++) {
        if (!columns.exists(i)) continue;
        const int column = columns.column(i);
        const Vector<float, VECTOR> x = load_vector<VECTOR>(sum + start + column);
        const Vector<float, VECTOR> d = load_elements(d_normed, normed_is_float, start + column);
        const Vector<float, VECTOR> w = load_vector<VECTOR>(weight + column);
        Vector<float, VECTOR> d_weight;
#pragma unroll
        for (int j = 0; j < VECTOR; j++) {
          normal[i].at[j] = (x.at[j] - mean) * inverse;
          g[i].at[j] = d.at[j] * w.at[j];
          d_weight.at[j] = d.at[j] * normal[i].at[j];
          mean_g += g[i].at[j];
          mean_gn += g[i].at[j] * normal[i].at[j];
        }
        add_to_shared(to_weight + team * WIDTH + column, d_weight);
        add_to_shared(to_bias + team * WIDTH + column, d);
      }
      // The barrier of one reduction separates two uses of the other's memory.
      mean_g = reduce_team<TEAM>(mean_g, first_scratch) * (1.f / WIDTH);
      mean_gn = reduce_team<TEAM>(mean_gn, second_scratch) * (1.f / WIDTH);
    }
#pragma unroll
    for (int i = 0; i < columns.VECTORS; i++) {
      if (!columns.exists(i)) continue;
      const int column = columns.column(i);
      Vector<float, VECTOR> d;
#pragma unroll
      for (int j = 0; j < VECTOR; j++) d.at[j] = (g[i].at[j] - mean_g - normal[i].at[j] * mean_gn) * inverse;
      if (d_sum) {
        const Vector<float, VECTOR> other = load_vector<VECTOR>(d_sum + start + column);
#pragma unroll
        for (int j = 0; j < VECTOR; j++) d.at[j] += other.at[j];
      }
      store_vector(d_stream + start + column, d);
      if (d_output) {
#pragma unroll
        for (int j = 0; j < VECTOR; j++) {
          d.at[j] = apply_dropout(d.at[j], dropout, static_cast<Uint32>(start + column + j));
          to_output_bias[i].at[j] += d.at[j];
        }
        store_elements(d_output, output_is_float, start + column, d);
      }
    }
  }

  float* const to = partials + static_cast<long long>(blockIdx.x) * 3 * WIDTH;
  __syncthreads();
  write_partials<TEAMS>(to_weight, to);
  write_partials<TEAMS>(to_bias, to + WIDTH);
  __syncthreads();
#pragma unroll
  for (int i = 0; i < columns.VECTORS; i++)
    if (columns.exists(i)) store_vector(to_bias + team * WIDTH + columns.column(i), to_output_bias[i]);
  __syncthreads();
  write_partials<TEAMS>(to_bias, to + 2 * WIDTH);
}

KERNEL(add_layer_norm)
KERNEL(add_layer_norm_backward)
