// Counts the operations that libtorch dispatches, and the CUDA kernels of this crate.
#include "shim.h"

#include <ATen/record_function.h>

#include <map>
#include <mutex>
#include <string>

namespace {

struct Count {
  int64_t calls = 0;
  int64_t bytes = 0;
};
std::mutex mutex;
std::map<std::string, Count> counts;
at::CallbackHandle callback = at::INVALID_CALLBACK_HANDLE;

// The number of operations that each running operation of this thread has called.
thread_local std::vector<int64_t> children;

int64_t bytes_of(const c10::IValue& value) {
  int64_t bytes = 0;
  if (value.isTensor() && value.toTensor().defined()) bytes = static_cast<int64_t>(value.toTensor().nbytes());
  if (value.isTensorList())
    for (const at::Tensor& t : value.toTensorVector()) bytes += static_cast<int64_t>(t.nbytes());
  return bytes;
}

std::unique_ptr<at::ObserverContext> begin(const at::RecordFunction&) {
  if (!children.empty()) children.back()++;
  children.push_back(0);
  return nullptr;
}

// An operation that calls others does no work itself.
void end(const at::RecordFunction& function, at::ObserverContext*) {
  if (children.empty()) return;  // it began before the callback was added
  const bool is_leaf = children.back() == 0;
  children.pop_back();
  if (!is_leaf) return;
  int64_t bytes = 0;
  for (const c10::IValue& value : function.inputs()) bytes += bytes_of(value);
  for (const c10::IValue& value : function.outputs()) bytes += bytes_of(value);
  const std::lock_guard lock(mutex);
  Count& count = counts[function.name()];
  count.calls++;
  count.bytes += bytes;
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

// Stops counting. Stores one line per operation: name, number of calls, and bytes of the tensors that
// it receives and returns, separated by tabs.
char* bpx_stop_counting(char** text) {
  BPX_GUARD({
    at::removeCallback(callback);
    callback = at::INVALID_CALLBACK_HANDLE;
    const std::lock_guard lock(mutex);
    std::string lines;
    for (const auto& [name, count] : counts)
      lines += name + "\t" + std::to_string(count.calls) + "\t" + std::to_string(count.bytes) + "\n";
    *text = strdup(lines.c_str());
  })
}
}
