// The contextualization weights from scores, and back: a causal softmax per sense. Scores are
// sense-major [B, L, T, T], as the matrix product writes them. Weights alpha are [B, T, T, L],
// senses innermost, as the weighted sum of senses reads them.
//
// Macros: NUM_SENSES (L, 1 to 64), MAX_LENGTH (largest T, up to 2,048), WARPS (per block).
// Grid: (T, B). A block computes one position of one sequence: a row of "words" up to the position.
#include "common.cuh"

constexpr int THREADS = WARP_SIZE * WARPS;
constexpr int SENSES_PER_WARP = (NUM_SENSES + WARPS - 1) / WARPS;
constexpr int LANE_WORDS = 4;                       // adjacent words of a sense that a lane loads at once
constexpr int STEP_WORDS = WARP_SIZE * LANE_WORDS;  // words of a step of a warp
constexpr int ROW_WORDS = (MAX_LENGTH + LANE_WORDS - 1) / LANE_WORDS * LANE_WORDS;

// Shared memory transposes a tile of words between the two layouts. A row of a tile holds the words
// of one sense.
constexpr int MAX_SHARED_ELEMENTS = 23 * 1024;  // of the 24 K bf16 elements in 48 KB
// Elements between two rows: 4 modulo 8, so that accesses have no bank conflicts.
__device__ constexpr int pitch_of(int words) { return (words + 7) / 8 * 8 + 4; }
// Words of a tile if there are `tiles` in shared memory: a whole row, or a multiple of a step.
__device__ constexpr int tile_words(int tiles) {
  return NUM_SENSES * pitch_of(ROW_WORDS) * tiles <= MAX_SHARED_ELEMENTS
             ? ROW_WORDS
             : (MAX_SHARED_ELEMENTS / tiles / NUM_SENSES - 12) / STEP_WORDS * STEP_WORDS;
}
constexpr int FORWARD_WORDS = tile_words(1), FORWARD_PITCH = pitch_of(FORWARD_WORDS);
constexpr int BACKWARD_WORDS = tile_words(2), BACKWARD_PITCH = pitch_of(BACKWARD_WORDS);

// The words of a row of one sense, as float. Rows are aligned to 8 bytes if T is a multiple of 4.
// Words after `last` are `absent`.
template <bool ALIGNED>
__device__ __forceinline__ Vector<float, LANE_WORDS> load_words(const Bf16* row, int word, int last, float absent) {
  Vector<Bf16, LANE_WORDS> narrow = {};
  if constexpr (ALIGNED) {
    if (word <= last) narrow = load_vector<LANE_WORDS>(row + word);
  } else {
#pragma unroll
    for (int j = 0; j < LANE_WORDS; j++)
      if (word + j <= last) narrow.at[j] = row[word + j];
  }
  Vector<float, LANE_WORDS> x;
#pragma unroll
  for (int j = 0; j < LANE_WORDS; j++) x.at[j] = word + j <= last ? to_float(narrow.at[j]) : absent;
  return x;
}
__device__ __forceinline__ Vector<Bf16, LANE_WORDS> to_bf16(const Vector<float, LANE_WORDS>& x) {
  Vector<Bf16, LANE_WORDS> narrow;
#pragma unroll
  for (int j = 0; j < LANE_WORDS; j++) narrow.at[j] = to_bf16(x.at[j]);
  return narrow;
}

// -- Transposition --------------------------------------------------------------------------------

// With a multiple of 8 senses, a thread moves 8 senses of two adjacent words: 32 bits per sense.
constexpr bool WHOLE_GROUPS = NUM_SENSES % 8 == 0;
constexpr int GROUPS = WHOLE_GROUPS ? NUM_SENSES / 8 : 1;

// With other numbers of senses, a thread moves 8 adjacent elements of a row of alpha, or one
// element if rows of alpha are not aligned to 16 bytes.
__device__ __forceinline__ int aligned_vectors(int elements, int length) {
  return length * NUM_SENSES % 8 == 0 ? elements / 8 : 0;
}
__device__ __forceinline__ int tile_index(int element, int pitch) {
  return element % NUM_SENSES * pitch + element / NUM_SENSES;
}

// Copies the first `words` words of a tile to a row of alpha.
template <int PITCH>
__device__ __forceinline__ void store_transposed(const Bf16* tile, Bf16* alpha, int words, int length) {
  if constexpr (WHOLE_GROUPS) {
    for (int unit = threadIdx.x; unit < (words + 1) / 2 * GROUPS; unit += THREADS) {
      const int word = unit / GROUPS * 2, sense = unit % GROUPS * 8;
      Bf16x8 first, second;
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const Uint32 even = *reinterpret_cast<const Uint32*>(tile + (sense + 2 * j) * PITCH + word);
        const Uint32 odd = *reinterpret_cast<const Uint32*>(tile + (sense + 2 * j + 1) * PITCH + word);
        first.pairs[j] = (even & 0xffffu) | (odd << 16);
        second.pairs[j] = (even >> 16) | (odd & 0xffff0000u);
      }
      Bf16* const to = alpha + word * NUM_SENSES + sense;
      *reinterpret_cast<Bf16x8*>(to) = first;
      if (word + 1 < words) *reinterpret_cast<Bf16x8*>(to + NUM_SENSES) = second;
    }
  } else {
    const int vectors = aligned_vectors(words * NUM_SENSES, length);
    for (int v = threadIdx.x; v < vectors; v += THREADS) {
      Bf16x8 x;
#pragma unroll
      for (int j = 0; j < 4; j++)
        x.pairs[j] = tile[tile_index(8 * v + 2 * j, PITCH)] |
                     (static_cast<Uint32>(tile[tile_index(8 * v + 2 * j + 1, PITCH)]) << 16);
      *reinterpret_cast<Bf16x8*>(alpha + 8 * v) = x;
    }
    for (int element = 8 * vectors + threadIdx.x; element < words * NUM_SENSES; element += THREADS)
      alpha[element] = tile[tile_index(element, PITCH)];
  }
}

// Copies the first `words` words of a row of alpha to a tile.
template <int PITCH>
__device__ __forceinline__ void load_transposed(const Bf16* alpha, Bf16* tile, int words, int length) {
  if constexpr (WHOLE_GROUPS) {
    for (int unit = threadIdx.x; unit < (words + 1) / 2 * GROUPS; unit += THREADS) {
      const int word = unit / GROUPS * 2, sense = unit % GROUPS * 8;
      const Bf16* const from = alpha + word * NUM_SENSES + sense;
      const Bf16x8 first = *reinterpret_cast<const Bf16x8*>(from);
      Bf16x8 second = {};
      if (word + 1 < words) second = *reinterpret_cast<const Bf16x8*>(from + NUM_SENSES);
#pragma unroll
      for (int j = 0; j < 4; j++) {
        *reinterpret_cast<Uint32*>(tile + (sense + 2 * j) * PITCH + word) =
            (first.pairs[j] & 0xffffu) | (second.pairs[j] << 16);
        *reinterpret_cast<Uint32*>(tile + (sense + 2 * j + 1) * PITCH + word) =
            (first.pairs[j] >> 16) | (second.pairs[j] & 0xffff0000u);
      }
    }
  } else {
    const int vectors = aligned_vectors(words * NUM_SENSES, length);
    for (int v = threadIdx.x; v < vectors; v += THREADS) {
      const Bf16x8 x = *reinterpret_cast<const Bf16x8*>(alpha + 8 * v);
#pragma unroll
      for (int j = 0; j < 8; j++)
        tile[tile_index(8 * v + j, PITCH)] = static_cast<Bf16>(x.pairs[j / 2] >> (j % 2 * 16));
    }
    for (int element = 8 * vectors + threadIdx.x; element < words * NUM_SENSES; element += THREADS)
      tile[tile_index(element, PITCH)] = alpha[element];
  }
}

// -- Forward --------------------------------------------------------------------------------------

// A whole row of every sense fits into the tile: each row is read once and stays in registers.
template <bool ALIGNED>
__device__ __forceinline__ void softmax_rows(const Bf16* scores, Bf16* tile, float factor, int length, int position,
                                             int limit) {
  const int lane = threadIdx.x % WARP_SIZE;
  constexpr int STEPS = (ROW_WORDS + STEP_WORDS - 1) / STEP_WORDS;
  for (int sense = threadIdx.x / WARP_SIZE; sense < NUM_SENSES; sense += WARPS) {
    const Bf16* const row = scores + static_cast<long long>(sense) * length * length;
    Vector<float, LANE_WORDS> x[STEPS];
    float largest = -infinity(), sum = 0.f;
#pragma unroll
    for (int step = 0; step < STEPS; step++)
      if (step * STEP_WORDS <= position)
        x[step] = load_words<ALIGNED>(row, step * STEP_WORDS + lane * LANE_WORDS, position, -infinity());
#pragma unroll
    for (int step = 0; step < STEPS; step++)
      if (step * STEP_WORDS <= position) {
#pragma unroll
        for (int j = 0; j < LANE_WORDS; j++) {
          x[step].at[j] *= factor;
          largest = fmaxf(largest, x[step].at[j]);
        }
      }
    largest = reduce_warp<Largest>(largest);
#pragma unroll
    for (int step = 0; step < STEPS; step++)
      if (step * STEP_WORDS <= position) {
        const int word = step * STEP_WORDS + lane * LANE_WORDS;
#pragma unroll
        for (int j = 0; j < LANE_WORDS; j++) {
          x[step].at[j] = word + j <= position ? fast_exp2(x[step].at[j] - largest) : 0.f;
          sum += x[step].at[j];
        }
      }
    const float inverse = 1.f / reduce_warp<Sum>(sum);
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
      const int word = step * STEP_WORDS + lane * LANE_WORDS;
      if (word >= limit) continue;
      Vector<float, LANE_WORDS> weights = {};
      if (step * STEP_WORDS <= position) {
#pragma unroll
        for (int j = 0; j < LANE_WORDS; j++) weights.at[j] = word + j <= position ? x[step].at[j] * inverse : 0.f;
      }
      store_vector(tile + sense * FORWARD_PITCH + word, to_bf16(weights));
    }
  }
}

// The largest score of a row, times `factor`, and 1 / the sum of exponentials relative to it.
template <bool ALIGNED>
__device__ __forceinline__ void softmax_statistics(const Bf16* row, float factor, int position, float& largest,
                                                   float& inverse) {
  const int lane = threadIdx.x % WARP_SIZE;
  largest = -infinity();
  for (int word = lane * LANE_WORDS; word <= position; word += STEP_WORDS) {
    const Vector<float, LANE_WORDS> x = load_words<ALIGNED>(row, word, position, -infinity());
#pragma unroll
    for (int j = 0; j < LANE_WORDS; j++)
      if (word + j <= position) largest = fmaxf(largest, x.at[j] * factor);
  }
  largest = reduce_warp<Largest>(largest);
  float sum = 0.f;
  for (int word = lane * LANE_WORDS; word <= position; word += STEP_WORDS) {
    const Vector<float, LANE_WORDS> x = load_words<ALIGNED>(row, word, position, -infinity());
#pragma unroll
    for (int j = 0; j < LANE_WORDS; j++)
      if (word + j <= position) sum += fast_exp2(x.at[j] * factor - largest);
  }
  inverse = 1.f / reduce_warp<Sum>(sum);
}

template <bool ALIGNED>
__device__ __forceinline__ void forward(const Bf16* scores, Bf16* alpha, Bf16* tile, float scale, int length,
                                        int block_rows) {
  const int position = blockIdx.x, lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE;
  const long long sequence = blockIdx.y;
  const int block_end = (position / block_rows + 1) * block_rows;
  const int limit = block_end < length ? block_end : length;
  const float factor = scale * LOG2_E;
  scores += (sequence * NUM_SENSES * length + position) * length;  // sense 0
  alpha += (sequence * length + position) * length * NUM_SENSES;
  if constexpr (FORWARD_WORDS == ROW_WORDS) {
    softmax_rows<ALIGNED>(scores, tile, factor, length, position, limit);
    __syncthreads();
    store_transposed<FORWARD_PITCH>(tile, alpha, limit, length);
  } else {
    // Several tiles: the scores are read three times, of which two are from the caches.
    float largest[SENSES_PER_WARP], inverse[SENSES_PER_WARP];
#pragma unroll
    for (int i = 0; i < SENSES_PER_WARP; i++) {
      const int sense = warp + i * WARPS;
      if (sense < NUM_SENSES)
        softmax_statistics<ALIGNED>(scores + static_cast<long long>(sense) * length * length, factor, position,
                                    largest[i], inverse[i]);
    }
    for (int start = 0; start < limit; start += FORWARD_WORDS) {
      const int end = start + FORWARD_WORDS < limit ? start + FORWARD_WORDS : limit;
      if (start > 0) __syncthreads();
#pragma unroll
      for (int i = 0; i < SENSES_PER_WARP; i++) {
        const int sense = warp + i * WARPS;
        if (sense >= NUM_SENSES) continue;
        const Bf16* const row = scores + static_cast<long long>(sense) * length * length;
        for (int word = start + lane * LANE_WORDS; word < end; word += STEP_WORDS) {
          Vector<float, LANE_WORDS> x = load_words<ALIGNED>(row, word, position, 0.f);
#pragma unroll
          for (int j = 0; j < LANE_WORDS; j++)
            x.at[j] = word + j <= position ? fast_exp2(x.at[j] * factor - largest[i]) * inverse[i] : 0.f;
          store_vector(tile + sense * FORWARD_PITCH + word - start, to_bf16(x));
        }
      }
      __syncthreads();
      store_transposed<FORWARD_PITCH>(tile, alpha + static_cast<long long>(start) * NUM_SENSES, end - start, length);
    }
  }
}

// alpha[b, t, s, l] = softmax over s <= t of scale * scores[b, l, t, s]. Rows of alpha are written
// for words before min(T, (t / block_rows + 1) * block_rows): 0 after the position t, and nothing
// from there on. Scores after the position have no effect.
extern "C" __global__ void __launch_bounds__(THREADS)
    sense_weights(const Bf16* scores, Bf16* alpha, float scale, int length, int block_rows) {
  alignas(16) __shared__ Bf16 tile[NUM_SENSES * FORWARD_PITCH];
  if (length % LANE_WORDS == 0) {
    forward<true>(scores, alpha, tile, scale, length, block_rows);
  } else {
    forward<false>(scores, alpha, tile, scale, length, block_rows);
  }
}

// -- Backward -------------------------------------------------------------------------------------

template <bool ALIGNED>
__device__ __forceinline__ void backward(const Bf16* alpha, const Bf16* d_alpha, Bf16* d_scores, Bf16* tile,
                                         Bf16* d_tile, float scale, int length) {
  const int position = blockIdx.x, lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE;
  const long long sequence = blockIdx.y, row = (sequence * length + position) * length * NUM_SENSES;
  const auto load_tiles = [&](int start) {
    const int left = position + 1 - start, words = left < BACKWARD_WORDS ? left : BACKWARD_WORDS;
    load_transposed<BACKWARD_PITCH>(alpha + row + static_cast<long long>(start) * NUM_SENSES, tile, words, length);
    load_transposed<BACKWARD_PITCH>(d_alpha + row + static_cast<long long>(start) * NUM_SENSES, d_tile, words, length);
    __syncthreads();
  };
  const bool has_one_tile = BACKWARD_WORDS == ROW_WORDS || position < BACKWARD_WORDS;

  // The sums over the words of alpha * d_alpha.
  float dots[SENSES_PER_WARP] = {};
  for (int start = 0; start <= position; start += BACKWARD_WORDS) {
    if (start > 0) __syncthreads();
    load_tiles(start);
#pragma unroll
    for (int i = 0; i < SENSES_PER_WARP; i++) {
      const int sense = warp + i * WARPS;
      if (sense >= NUM_SENSES) continue;
      const int last = position - start < BACKWARD_WORDS ? position - start : BACKWARD_WORDS - 1;
      for (int word = lane * LANE_WORDS; word <= last; word += STEP_WORDS) {
        const Vector<float, LANE_WORDS> a = load_words<true>(tile + sense * BACKWARD_PITCH, word, last, 0.f);
        const Vector<float, LANE_WORDS> d = load_words<true>(d_tile + sense * BACKWARD_PITCH, word, last, 0.f);
#pragma unroll
        for (int j = 0; j < LANE_WORDS; j++) dots[i] += a.at[j] * d.at[j];
      }
    }
  }
#pragma unroll
  for (int i = 0; i < SENSES_PER_WARP; i++) dots[i] = reduce_warp<Sum>(dots[i]);

  for (int start = 0; start < length; start += BACKWARD_WORDS) {
    if (!has_one_tile && start <= position) {
      __syncthreads();
      load_tiles(start);
    }
    const int end = start + BACKWARD_WORDS < length ? start + BACKWARD_WORDS : length;
#pragma unroll
    for (int i = 0; i < SENSES_PER_WARP; i++) {
      const int sense = warp + i * WARPS;
      if (sense >= NUM_SENSES) continue;
      Bf16* const to = d_scores + ((sequence * NUM_SENSES + sense) * length + position) * length;
      for (int word = start + lane * LANE_WORDS; word < end; word += STEP_WORDS) {
        Vector<float, LANE_WORDS> g = {};
        if (word <= position) {
          const int last = position - start;
          const Vector<float, LANE_WORDS> a = load_words<true>(tile + sense * BACKWARD_PITCH, word - start, last, 0.f);
          const Vector<float, LANE_WORDS> d =
              load_words<true>(d_tile + sense * BACKWARD_PITCH, word - start, last, 0.f);
#pragma unroll
          for (int j = 0; j < LANE_WORDS; j++)
            g.at[j] = word + j <= position ? a.at[j] * (d.at[j] - dots[i]) * scale : 0.f;
        }
        const Vector<Bf16, LANE_WORDS> narrow = to_bf16(g);
        if constexpr (ALIGNED) {
          store_vector(to + word, narrow);
        } else {
#pragma unroll
          for (int j = 0; j < LANE_WORDS; j++)
            if (word + j < end) to[word + j] = narrow.at[j];
        }
      }
    }
  }
}

// d_scores = scale * alpha * (d_alpha - sum over words of alpha * d_alpha). Writes whole rows of
// d_scores, 0 after the position. alpha and d_alpha are not read after the position.
extern "C" __global__ void __launch_bounds__(THREADS)
    sense_weights_backward(const Bf16* alpha, const Bf16* d_alpha, Bf16* d_scores, float scale, int length) {
  alignas(16) __shared__ Bf16 tile[NUM_SENSES * BACKWARD_PITCH];
  alignas(16) __shared__ Bf16 d_tile[NUM_SENSES * BACKWARD_PITCH];
  if (length % LANE_WORDS == 0) {
    backward<true>(alpha, d_alpha, d_scores, tile, d_tile, scale, length);
  } else {
    backward<false>(alpha, d_alpha, d_scores, tile, d_tile, scale, length);
  }
}

KERNEL(sense_weights)
KERNEL(sense_weights_backward)
