// The interface of the kernels: plain functions on raw memory, one set per instruction set,
// selected when the program starts. The kernels must not include headers of libtorch. Otherwise the
// linker could keep copies of inline functions that use instructions which an older machine lacks.
#pragma once

#include <cstdint>

// A bf16 number: the upper half of a float.
struct Bf16 {
  uint16_t bits;
};

// Drops elements whose hash is below `threshold` (p * 2^32) and scales the others by
// 1 / (1 - p). Threshold 0 disables dropout.
struct Dropout {
  uint32_t threshold;
  float scale;
  uint64_t seed;
};

// Residual sum and LayerNorm; see layer_norm.h.
struct AddNorm {
  int64_t columns;
  const float* stream;  // [rows, columns]
  const void* output;   // of a layer, [rows, columns], or null: only the stream is normalized
  const float* output_bias;  // [columns] or null
  float* sum;                // [rows, columns]; the stream itself if the output is null
  const float* weight;
  const float* bias;
  void* normed;  // [rows, columns]
  float* stats;  // [rows, 2]: mean and inverse standard deviation
  float eps;
  Dropout dropout;
};
struct AddNormBackward {
  int64_t columns;
  const float* sum;
  const float* stats;
  const float* weight;
  const void* grad_normed;
  const float* grad_sum;  // or null
  float* grad_stream;
  void* grad_output;  // or null
  Dropout dropout;
};

// Maximum number of senses per token in the sense weights.
constexpr int64_t MAX_SENSES = 256;

// Shapes of the sense weights; see sense_weights.h.
struct SenseShape {
  int64_t senses;
  int64_t channels;           // of the query and key of a sense
  int64_t positions;          // T
  int64_t per_vector;         // positions per vector, at least 1
  int64_t vectors;            // vectors per position, at least 1
  int64_t key_vectors;        // key vectors of all T positions
};

// Kernels on elements of one type: activations, their gradients, and copies of weights.
struct TypedKernels {
  void (*gelu)(const void* pre, const float* bias, void* act, int64_t columns, int64_t begin, int64_t end);
  void (*gelu_backward)(const void* pre, const float* bias, void* grad, void* act, float* bias_sums,
                        int64_t columns, int64_t begin, int64_t end);
  void (*split_heads)(const void* x, const float* bias, void* heads, int64_t groups, int64_t sequences,
                      int64_t n_head, int64_t length, int64_t size, int64_t begin, int64_t end);
  void (*merge_heads)(const void* heads, void* x, float* column_sums, int64_t groups, int64_t sequences,
                      int64_t n_head, int64_t length, int64_t size, int64_t begin, int64_t end);
  void (*softmax)(void* scores, float scale, int64_t rows, int64_t columns, int64_t first, int64_t begin,
                  int64_t end);
  void (*softmax_backward)(const void* weights, void* grad, float scale, Dropout dropout, int64_t index,
                           int64_t rows, int64_t columns, int64_t first, int64_t begin, int64_t end);
  void (*drop_weights)(const void* weights, void* dropped, Dropout dropout, int64_t index, int64_t columns,
                       int64_t begin, int64_t end);
  void (*sense_queries)(const void* qk, const float* bias, float* queries, SenseShape, int64_t begin, int64_t end);
  void (*sense_keys)(const void* qk, const float* bias, float* keys, SenseShape, int64_t begin, int64_t end);
  void (*sense_weights)(const float* queries, const float* keys, void* weights, int64_t row_size, int64_t first,
                        SenseShape, int64_t begin, int64_t end);
  void (*sense_scores_backward)(const void* weights, void* grad, const float* keys, void* grad_qk, int64_t row_size,
                                int64_t first, SenseShape, int64_t begin, int64_t end);
  void (*sense_keys_backward)(const void* grad_scores, const float* queries, float* grad_keys, int64_t row_size,
                              int64_t rows, SenseShape, int64_t begin, int64_t end);
  void (*sense_keys_store)(const float* grad_keys, void* grad_qk, SenseShape, int64_t begin, int64_t end);
  void (*gather)(const void* values, const float* bias, const int64_t* rows, void* out, int64_t columns,
                 int64_t begin, int64_t end);
  void (*segment_sums)(const void* values, const int64_t* starts, const int64_t* positions, void* out,
                       float* column_sums, int64_t rows, int64_t columns, int64_t begin, int64_t end);
  void (*column_sums)(const void* x, float* sums, int64_t columns, int64_t begin, int64_t end);
  void (*row_times_matrix)(const void* row, const void* matrix, void* out, int64_t inner, int64_t stride,
                           int64_t begin, int64_t end);
  void (*row_times_rows)(const void* row, const void* rows, void* out, int64_t inner, int64_t stride, int64_t begin,
                         int64_t end);
  void (*cross_entropy)(void* logits, const int64_t* targets, float* losses, float scale, int grad,
                        int64_t columns, int64_t begin, int64_t end);
};

struct AdamWStep {
  float grad_scale;      // from gradient clipping
  float decay;           // 1 - lr * weight_decay
  float step_size;       // lr / (1 - beta1^step)
  float root_scale;      // 1 / sqrt(1 - beta2^step)
  float eps, beta1, beta2;
  float rest1, rest2;    // 1 - beta, computed before rounding to fp32
};

struct Kernels {
  const char* name;
  TypedKernels f32, bf16;
  // Indices: type of the output of the layer, type of the result (0: float, 1: bf16).
  void (*add_norm[2][2])(const AddNorm&, int64_t begin, int64_t end);
  void (*add_norm_backward[2][2])(const AddNormBackward&, float* sums, int64_t begin, int64_t end);
  void (*add_widened)(const Bf16* x, float* total, int overwrite, int64_t begin, int64_t end);
  double (*sum_of_squares)(const float* x, int64_t begin, int64_t end);
  void (*adamw)(float* parameter, const float* grad, float* exp_avg, float* exp_avg_sq, Bf16* copy,
                const AdamWStep&, int64_t begin, int64_t end);
};

extern const Kernels bpx_kernels_baseline;
#if defined(__x86_64__)
extern const Kernels bpx_kernels_avx2;
extern const Kernels bpx_kernels_avx512;
#endif

// Returns the kernels for this machine.
const Kernels& kernels();
