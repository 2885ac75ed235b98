// The kernels for one instruction set. Compiled once per instruction set, with its name in BPX_ISA.
#include "table.h"

#define BPX_JOIN2(a, b) a##b
#define BPX_JOIN(a, b) BPX_JOIN2(a, b)
#define BPX_TEXT2(a) #a
#define BPX_TEXT(a) BPX_TEXT2(a)

#include "adamw.h"
#include "attention.h"
#include "cross_entropy.h"
#include "gelu.h"
#include "layer_norm.h"
#include "row_product.h"
#include "rows.h"
#include "sense_weights.h"

namespace {
template <class E>
constexpr TypedKernels typed() {
  using namespace BPX_ISA;
  return {gelu<E>,
          gelu_backward<E>,
          split_heads<E>,
          merge_heads<E>,
          softmax<E>,
          softmax_backward<E>,
          drop_weights<E>,
          sense_queries<E>,
          sense_keys<E>,
          sense_weights<E>,
          sense_scores_backward<E>,
          sense_keys_backward<E>,
          sense_keys_store<E>,
          gather<E>,
          segment_sums<E>,
          column_sums<E>,
          row_times_matrix<E>,
          row_times_rows<E>,
          cross_entropy<E>};
}
}  // namespace

const Kernels BPX_JOIN(bpx_kernels_, BPX_ISA) = {
    BPX_TEXT(BPX_ISA),
    typed<float>(),
    typed<Bf16>(),
    {{BPX_ISA::add_norm<float, float>, BPX_ISA::add_norm<float, Bf16>},
     {BPX_ISA::add_norm<Bf16, float>, BPX_ISA::add_norm<Bf16, Bf16>}},
    {{BPX_ISA::add_norm_backward<float, float>, BPX_ISA::add_norm_backward<float, Bf16>},
     {BPX_ISA::add_norm_backward<Bf16, float>, BPX_ISA::add_norm_backward<Bf16, Bf16>}},
    BPX_ISA::add_widened,
    BPX_ISA::sum_of_squares,
    BPX_ISA::adamw,
};
