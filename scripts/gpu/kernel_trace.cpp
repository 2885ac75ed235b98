// Records every kernel, copy and wait of a program, on machines without Nsight Systems. The CUDA
// driver loads this library into a program that is started with:
//
//   CUDA_INJECTION64_PATH=$PWD/libkernel_trace.so KERNEL_TRACE=trace.txt PROGRAM...
//   python3 scripts/gpu/trace_report.py trace.txt
//
// The trace has one line per record: kind (k kernel, c copy, s set, w wait), begin and end in ns,
// number of the name, stream, registers per thread, bytes. At the end, one line "n NUMBER NAME"
// follows per name. To build it, with CUDA being nvidia/cu13 in the directory of libtorch:
//
//   c++ -O2 -shared -fPIC -I CUDA/include kernel_trace.cpp -o libkernel_trace.so \
//     -L CUDA/lib -l:libcupti.so.13 -Wl,--allow-shlib-undefined
#include <cupti.h>
#include <cxxabi.h>

#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <string>
#include <unordered_map>

namespace {

constexpr size_t BUFFER_BYTES = 4 << 20;

std::mutex mutex;
FILE* out = nullptr;
std::unordered_map<std::string, int> names;

int number_of(const char* name) {
  return names.try_emplace(name ? name : "unnamed", static_cast<int>(names.size())).first->second;
}

void write_line(char kind, uint64_t begin, uint64_t end, const char* name, uint32_t stream, unsigned registers,
                uint64_t bytes) {
  std::fprintf(out, "%c %llu %llu %d %u %u %llu\n", kind, static_cast<unsigned long long>(begin),
               static_cast<unsigned long long>(end), number_of(name), stream, registers,
               static_cast<unsigned long long>(bytes));
}

const char* wait_name(CUpti_ActivitySynchronizationType type) {
  switch (type) {
    case CUPTI_ACTIVITY_SYNCHRONIZATION_TYPE_EVENT_SYNCHRONIZE: return "host waits for an event";
    case CUPTI_ACTIVITY_SYNCHRONIZATION_TYPE_STREAM_WAIT_EVENT: return "stream waits for an event";
    case CUPTI_ACTIVITY_SYNCHRONIZATION_TYPE_STREAM_SYNCHRONIZE: return "host waits for a stream";
    case CUPTI_ACTIVITY_SYNCHRONIZATION_TYPE_CONTEXT_SYNCHRONIZE: return "host waits for the device";
    default: return "other wait";
  }
}

void write(const CUpti_Activity* record) {
  switch (record->kind) {
    case CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL:
    case CUPTI_ACTIVITY_KIND_KERNEL: {
      const auto* k = reinterpret_cast<const CUpti_ActivityKernel10*>(record);
      return write_line('k', k->start, k->end, k->name, k->streamId, k->registersPerThread, 0);
    }
    case CUPTI_ACTIVITY_KIND_MEMCPY: {
      const auto* c = reinterpret_cast<const CUpti_ActivityMemcpy6*>(record);
      const char* name = c->copyKind == CUPTI_ACTIVITY_MEMCPY_KIND_HTOD   ? "copy from the host"
                         : c->copyKind == CUPTI_ACTIVITY_MEMCPY_KIND_DTOH ? "copy to the host"
                                                                          : "copy on the device";
      return write_line('c', c->start, c->end, name, c->streamId, 0, c->bytes);
    }
    case CUPTI_ACTIVITY_KIND_MEMSET: {
      const auto* s = reinterpret_cast<const CUpti_ActivityMemset4*>(record);
      return write_line('s', s->start, s->end, "set", s->streamId, 0, s->bytes);
    }
    case CUPTI_ACTIVITY_KIND_SYNCHRONIZATION: {
      const auto* s = reinterpret_cast<const CUpti_ActivitySynchronization2*>(record);
      return write_line('w', s->start, s->end, wait_name(s->type), s->streamId, 0, 0);
    }
    default: return;
  }
}

void CUPTIAPI allocate_buffer(uint8_t** buffer, size_t* size, size_t* max_records) {
  *buffer = static_cast<uint8_t*>(std::aligned_alloc(ACTIVITY_RECORD_ALIGNMENT, BUFFER_BYTES));
  *size = *buffer ? BUFFER_BYTES : 0;
  *max_records = 0;  // as many as fit
}

void CUPTIAPI write_buffer(CUcontext, uint32_t, uint8_t* buffer, size_t, size_t valid) {
  {
    const std::lock_guard<std::mutex> lock(mutex);
    CUpti_Activity* record = nullptr;
    while (out && cuptiActivityGetNextRecord(buffer, valid, &record) == CUPTI_SUCCESS) write(record);
  }
  std::free(buffer);
}

void finish() {
  cuptiActivityFlushAll(CUPTI_ACTIVITY_FLAG_FLUSH_FORCED);
  const std::lock_guard<std::mutex> lock(mutex);
  if (!out) return;
  for (const auto& [name, number] : names) {
    char* demangled = abi::__cxa_demangle(name.c_str(), nullptr, nullptr, nullptr);
    std::fprintf(out, "n %d %s\n", number, demangled ? demangled : name.c_str());
    std::free(demangled);
  }
  std::fclose(out);
  out = nullptr;
}

}  // namespace

// The entry point that the driver calls. It returns 1 on success.
extern "C" __attribute__((visibility("default"))) int InitializeInjection(void) {
  static bool is_started = false;
  const char* path = std::getenv("KERNEL_TRACE");
  if (is_started || !path) return 1;
  is_started = true;
  out = std::fopen(path, "w");
  if (!out) {
    std::fprintf(stderr, "kernel_trace: cannot write %s\n", path);
    return 0;
  }
  const CUpti_ActivityKind kinds[] = {CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL, CUPTI_ACTIVITY_KIND_MEMCPY,
                                      CUPTI_ACTIVITY_KIND_MEMSET, CUPTI_ACTIVITY_KIND_SYNCHRONIZATION};
  CUptiResult result = cuptiActivityRegisterCallbacks(allocate_buffer, write_buffer);
  for (const auto kind : kinds)
    if (result == CUPTI_SUCCESS) result = cuptiActivityEnable(kind);
  if (result != CUPTI_SUCCESS) {
    const char* text = nullptr;
    cuptiGetResultString(result, &text);
    std::fprintf(stderr, "kernel_trace: CUPTI cannot record: %s\n", text ? text : "unknown error");
    return 0;
  }
  std::atexit(finish);
  return 1;
}
