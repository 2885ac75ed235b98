// Counts the operations that libtorch dispatches, and the CUDA kernels of this crate.
#include "shim.h"

#include <ATen/record_function.h>

#include <map>
#include <mutex>
#include <set>
#include <string>

namespace {

struct Count {
  int64_t calls = 0;
  int64_t bytes = 0;
  bool is_read_by_host = false;
};
std::mutex mutex;
std::map<std::string, Count> counts;
at::CallbackHandle callback = at::INVALID_CALLBACK_HANDLE;

const std::string OPERATION = "aten::";
const std::string AUTOGRAD = "autograd::engine::";

bool begins_with(const std::string& name, const std::string& prefix) {
  return name.compare(0, prefix.size(), prefix) == 0;
}

// Whether this is not a node of autograd, and not an operation that only creates a view, reserves
// memory or reads flags. Operations that may copy, such as reshape, call another one to copy.
bool has_kernel(const std::string& name) {
  static const std::set<std::string> without = {
      "_reshape_alias", "_unsafe_view", "alias",   "as_strided", "contiguous",  "detach",      "empty",
      "empty_like",     "empty_strided", "expand", "flatten",    "is_same_size", "lift_fresh", "narrow",
      "numpy_T",        "permute",      "reshape", "resize_",    "resolve_conj", "resolve_neg", "result_type",
      "select",         "set_",         "slice",   "split",      "squeeze",     "t",           "to",
      "transpose",      "unsqueeze",    "view"};
  if (begins_with(name, AUTOGRAD)) return false;
  return !begins_with(name, OPERATION) || !without.count(name.substr(OPERATION.size()));
}

// Whether the host reads a value or a size that this operation computes. It waits for a GPU then.
bool is_read_by_host(const std::string& name) {
  static const std::set<std::string> names = {"_local_scalar_dense", "_unique2",      "equal",
                                              "is_nonzero",          "masked_select", "nonzero"};
  return begins_with(name, OPERATION) && names.count(name.substr(OPERATION.size()));
}

// A running operation of this thread.
struct Running {
  bool calls_others = false;  // it has called an operation with a kernel
  int64_t bytes = 0;          // of the tensors that it received
};
thread_local std::vector<Running> running;

int64_t bytes_of(const c10::IValue& value) {
  int64_t bytes = 0;
  if (value.isTensor() && value.toTensor().defined()) bytes = static_cast<int64_t>(value.toTensor().nbytes());
  if (value.isTensorList())
    for (const at::Tensor& t : value.toTensorVector()) bytes += static_cast<int64_t>(t.nbytes());
  return bytes;
}

std::unique_ptr<at::ObserverContext> begin(const at::RecordFunction& function) {
  Running& own = running.emplace_back();
  // The inputs exist only until this callback returns.
  if (function.num_inputs() > 0)
    for (const c10::IValue& value : function.inputs()) own.bytes += bytes_of(value);
  return nullptr;
}

// An operation that calls others does no work itself, and neither does one without a kernel. One
// that the host waits for is counted in any case.
void end(const at::RecordFunction& function, at::ObserverContext*) {
  if (running.empty()) return;  // it began before the callback was added
  auto [calls_others, bytes] = running.back();
  running.pop_back();
  const bool is_counted = is_read_by_host(function.name()) || (!calls_others && has_kernel(function.name()));
  if (!running.empty()) running.back().calls_others |= is_counted || calls_others;
  if (!is_counted) return;
  for (const c10::IValue& value : function.outputs()) bytes += bytes_of(value);
  const std::lock_guard lock(mutex);
  Count& count = counts[function.name()];
  count.calls++;
  count.bytes += bytes;
  count.is_read_by_host = is_read_by_host(function.name());
}

}  // namespace

extern "C" {

// Starts counting on all threads.
char* bpx_start_counting() {
  BPX_GUARD({
    TORCH_CHECK(callback == at::INVALID_CALLBACK_HANDLE, "operations are already being counted");
    counts.clear();
    callback = at::addGlobalCallback(
        at::RecordFunctionCallback(begin, end).needsInputs(true).needsOutputs(true).scopes({at::RecordScope::FUNCTION}));
  })
}

// Stops counting. Stores one line per operation: name, number of calls, bytes of the tensors that it
// receives and returns, and 1 if the host reads its result. Tabs separate them.
char* bpx_stop_counting(char** text) {
  BPX_GUARD({
    at::removeCallback(callback);
    callback = at::INVALID_CALLBACK_HANDLE;
    const std::lock_guard lock(mutex);
    std::string lines;
    for (const auto& [name, count] : counts)
      lines += name + "\t" + std::to_string(count.calls) + "\t" + std::to_string(count.bytes) + "\t" +
               (count.is_read_by_host ? "1" : "0") + "\n";
    *text = strdup(lines.c_str());
  })
}
}
