// The Reducer of PyTorch's DistributedDataParallel: it gathers gradients in buckets and averages
// them over all ranks during the backward pass.
#include "group.h"

#include <torch/csrc/distributed/c10d/debug.h>
#include <torch/csrc/distributed/c10d/logger.hpp>
#include <torch/csrc/distributed/c10d/reducer.hpp>

#include <algorithm>

struct BpxReducer {
  std::shared_ptr<c10d::Reducer> reducer;
  std::shared_ptr<c10d::Logger> logger;
};

struct BpxReducerStatistics {
  int64_t bucket_count;  // in: capacity of the array; out: number of buckets
  int64_t iterations;
  int64_t rebuilt;
  int64_t backward_ns;
  int64_t communication_ns;
  int64_t overlap_ns;
};

namespace {

// Sets the debug level at which the messages of the Reducer name parameters. The Reducer reads it
// when it is constructed.
struct NamesInMessages {
  c10d::DebugLevel before = c10d::debug_level();
  NamesInMessages() {
    if (before == c10d::DebugLevel::Off) c10d::setDebugLevel(c10d::DebugLevel::Info);
  }
  ~NamesInMessages() { c10d::setDebugLevel(before); }
};

}  // namespace

extern "C" {

// A value that is equal for all handles of a tensor.
const void* bpx_tensor_identity(TensorPtr tensor) { return tensor->unsafeGetTensorImpl(); }

// Does the same as the constructor of torch.nn.parallel.DistributedDataParallel with
// gradient_as_bucket_view=True and find_unused_parameters=False.
char* bpx_reducer_new(BpxGroup* group, TensorPtr const* parameters, const char* const* names, size_t n,
                      int64_t first_bucket_bytes, int64_t bucket_bytes, BpxReducer** out) {
  BPX_GUARD({
    std::vector<at::Tensor> list;
    std::unordered_map<size_t, std::string> by_index;
    for (size_t i = 0; i < n; i++) {
      list.push_back(*parameters[i]);
      by_index[i] = names[i];
    }
    const std::vector<bool> sparse(n, false);
    // Starts with one bucket. Before the second step, the buckets are rebuilt in the order in which
    // the gradients arrive.
    auto buckets = std::get<0>(c10d::compute_bucket_assignment_by_size(
        list, {static_cast<size_t>(std::numeric_limits<int64_t>::max())}, sparse));
    std::reverse(buckets.begin(), buckets.end());
    auto reducer = std::make_unique<BpxReducer>();
    {
      const NamesInMessages names_in_messages;
      reducer->reducer = std::make_shared<c10d::Reducer>(
          list, std::move(buckets), group->group, sparse, bucket_bytes, /*find_unused_parameters=*/false,
          /*gradient_as_bucket_view=*/true, std::move(by_index), first_bucket_bytes,
          /*skip_all_reduce_unused_params=*/false, /*use_python_reducer=*/false,
          /*bucket_bytes_cap_list=*/std::vector<int64_t>{});
    }
    reducer->logger = std::make_shared<c10d::Logger>(reducer->reducer);
    reducer->reducer->set_logger(reducer->logger);
    reducer->logger->set_construction_data_and_log("backpack", {}, -1, false, false, false);
    *out = reducer.release();
  })
}

char* bpx_reducer_free(BpxReducer* r) { BPX_GUARD(delete r) }

char* bpx_reducer_before_forward(BpxReducer* r, int reduces) {
  BPX_GUARD({
    if (reduces) {
      r->logger->set_runtime_stats_and_log();
      r->reducer->prepare_for_forward();
    }
    r->reducer->rebuild_buckets();
  })
}

char* bpx_reducer_before_backward(BpxReducer* r) { BPX_GUARD(r->reducer->prepare_for_backward({})) }

char* bpx_reducer_after_backward(BpxReducer* r) { BPX_GUARD(r->reducer->check_finalized()) }

char* bpx_reducer_statistics(BpxReducer* r, BpxReducerStatistics* out, int64_t* bucket_bytes) {
  BPX_GUARD({
    const auto sizes = r->logger->get_bucket_sizes();
    std::copy_n(sizes.begin(), std::min<size_t>(sizes.size(), out->bucket_count), bucket_bytes);
    out->bucket_count = static_cast<int64_t>(sizes.size());
    auto numbers = r->logger->get_ddp_logging_data().ints_map;
    out->iterations = numbers["iteration"];
    out->rebuilt = numbers["has_rebuilt_buckets"];
    out->backward_ns = numbers["avg_backward_compute_time"];
    out->communication_ns = numbers["avg_backward_comm_time"];
    out->overlap_ns = numbers["avg_backward_compute_comm_overlap_time"];
  })
}
}
