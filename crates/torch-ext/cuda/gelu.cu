// GELU of the output of a linear layer and its bias, with the tanh approximation. It is computed
// as x * sigmoid(2u) with u = sqrt(2 / pi) (x + 0.044715 x^3), as in cpp/kernels/gelu.h.
//
// Macros: THREADS.
#include "common.cuh"

constexpr int COLUMNS_PER_THREAD = 8;
constexpr float GELU_LINEAR = 2 * 0.7978845608028654f;
constexpr float GELU_CUBIC = GELU_LINEAR * 0.044715f;
// The sigmoid is 0 or 1 far below this square. The limit avoids 0 * infinity for large finite x.
constexpr float MAX_SQUARE = 1e4f;

struct Gelu {
  float x;
  float square;
  float sigmoid;

  __device__ __forceinline__ explicit Gelu(float input) : x(input) {
    square = fminf(x * x, MAX_SQUARE);
    const float exponent = x * (square * (-LOG2_E * GELU_CUBIC) - LOG2_E * GELU_LINEAR);
    sigmoid = fast_reciprocal(1.f + fast_exp2(exponent));
  }
  __device__ __forceinline__ float value() const { return x * sigmoid; }
  __device__ __forceinline__ float slope() const {
    return sigmoid + x * sigmoid * (1.f - sigmoid) * (square * (3 * GELU_CUBIC) + GELU_LINEAR);
  }
};

// The columns of one thread: 8, or fewer at the end of a row. With aligned rows, a thread loads and
// stores 16 bytes at once; otherwise, element by element.
template <bool ALIGNED>
struct Columns {
  int begin;
  int count;

  __device__ __forceinline__ explicit Columns(int width) {
    begin = (blockIdx.x * THREADS + threadIdx.x) * COLUMNS_PER_THREAD;
    count = width - begin < COLUMNS_PER_THREAD ? width - begin : COLUMNS_PER_THREAD;
  }
  __device__ __forceinline__ bool exists(int j) const { return j < count; }

  __device__ __forceinline__ Bf16x8 load(const Bf16* row) const {
    Bf16x8 x;
    if constexpr (ALIGNED) {
      x = *reinterpret_cast<const Bf16x8*>(row + begin);
    } else {
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const Uint32 first = exists(2 * j) ? row[begin + 2 * j] : 0u;
        const Uint32 second = exists(2 * j + 1) ? row[begin + 2 * j + 1] : 0u;
        x.pairs[j] = first | (second << 16);
      }
    }
    return x;
  }
  __device__ __forceinline__ void store(Bf16* row, const Bf16x8& x) const {
    if constexpr (ALIGNED) {
      *reinterpret_cast<Bf16x8*>(row + begin) = x;
    } else {
#pragma unroll
      for (int j = 0; j < 8; j++)
        if (exists(j)) row[begin + j] = static_cast<Bf16>(x.pairs[j / 2] >> (j % 2 * 16));
    }
  }
  __device__ __forceinline__ void load(const float* row, float (&x)[COLUMNS_PER_THREAD]) const {
    if constexpr (ALIGNED) {
      const Vector<float, 4> first = load_vector<4>(row + begin), second = load_vector<4>(row + begin + 4);
#pragma unroll
      for (int j = 0; j < 8; j++) x[j] = j < 4 ? first.at[j % 4] : second.at[j % 4];
    } else {
#pragma unroll
      for (int j = 0; j < 8; j++) x[j] = exists(j) ? row[begin + j] : 0.f;
    }
  }
  __device__ __forceinline__ void store(float* row, const float (&x)[COLUMNS_PER_THREAD]) const {
    if constexpr (ALIGNED) {
      store_vector(row + begin, Vector<float, 4>{{x[0], x[1], x[2], x[3]}});
      store_vector(row + begin + 4, Vector<float, 4>{{x[4], x[5], x[6], x[7]}});
    } else {
#pragma unroll
      for (int j = 0; j < 8; j++)
        if (exists(j)) row[begin + j] = x[j];
    }
  }
};

template <bool ALIGNED>
__device__ __forceinline__ void forward(const Bf16* __restrict__ x, const float* __restrict__ bias,
                                        Bf16* __restrict__ y, long long rows, int width) {
  const Columns<ALIGNED> columns(width);
  if (columns.count <= 0) return;
  float offset[COLUMNS_PER_THREAD];
  columns.load(bias, offset);
#pragma unroll 2
  for (long long row = blockIdx.y; row < rows; row += gridDim.y) {
    const Bf16x8 input = columns.load(x + row * width);
    Bf16x8 output;
#pragma unroll
    for (int j = 0; j < 4; j++)
      output.pairs[j] = to_bf16_pair(Gelu(first_of(input.pairs[j]) + offset[2 * j]).value(),
                                     Gelu(second_of(input.pairs[j]) + offset[2 * j + 1]).value());
    columns.store(y + row * width, output);
  }
}

template <bool ALIGNED>
__device__ __forceinline__ void backward(const Bf16* __restrict__ x, const float* __restrict__ bias,
                                         Bf16* __restrict__ d, Bf16* __restrict__ y, float* __restrict__ partials,
                                         long long rows, int width) {
  const Columns<ALIGNED> columns(width);
  if (columns.count <= 0) return;
  float offset[COLUMNS_PER_THREAD], sums[COLUMNS_PER_THREAD] = {};
  columns.load(bias, offset);
  for (long long row = blockIdx.y; row < rows; row += gridDim.y) {
    const Bf16x8 input = columns.load(x + row * width), d_output = columns.load(d + row * width);
    Bf16x8 output, d_input;
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const Gelu first(first_of(input.pairs[j]) + offset[2 * j]);
      const Gelu second(second_of(input.pairs[j]) + offset[2 * j + 1]);
      const float d_first = first_of(d_output.pairs[j]) * first.slope();
      const float d_second = second_of(d_output.pairs[j]) * second.slope();
      sums[2 * j] += d_first;
      sums[2 * j + 1] += d_second;
      output.pairs[j] = to_bf16_pair(first.value(), second.value());
      d_input.pairs[j] = to_bf16_pair(d_first, d_second);
    }
    columns.store(y + row * width, output);
    columns.store(d + row * width, d_input);
  }
  columns.store(partials + static_cast<long long>(blockIdx.y) * width, sums);
}

// y = gelu(x + bias) for x [rows, width]. Grid: (ceil(width / (8 THREADS)), any). The blocks with
// the same blockIdx.x share the rows.
extern "C" __global__ void __launch_bounds__(THREADS)
    bias_gelu(const Bf16* x, const float* bias, Bf16* y, long long rows, int width) {
  if (width % COLUMNS_PER_THREAD == 0) {
    forward<true>(x, bias, y, rows, width);
  } else {
    forward<false>(x, bias, y, rows, width);
  }
}

// On input, d is the gradient of y; on output, of x. Computes y again, and writes the sums of the
// gradient of x over the rows of a block to partials [gridDim.y, width]. Same grid as bias_gelu.
extern "C" __global__ void __launch_bounds__(THREADS)
    bias_gelu_backward(const Bf16* x, const float* bias, Bf16* d, Bf16* y, float* partials, long long rows, int width) {
  if (width % COLUMNS_PER_THREAD == 0) {
    backward<true>(x, bias, d, y, partials, rows, width);
  } else {
    backward<false>(x, bias, d, y, partials, rows, width);
  }
}

KERNEL(bias_gelu)
KERNEL(bias_gelu_backward)
