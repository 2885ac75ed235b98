// Runs the threads of a grid as fibers. See emulate.h.
#include "runtime.h"

#include <sys/mman.h>

#include <cstdarg>
#include <cstdio>
#include <mutex>
#include <string>
#include <vector>

#include "fiber.h"

extern "C" {
// The linker defines these if a kernel has shared memory.
extern char __start_emulated_shared[] __attribute__((weak, visibility("hidden")));
extern char __stop_emulated_shared[] __attribute__((weak, visibility("hidden")));
}

namespace emulated HIDDEN {

Place place;
Execution execution;
const Function* functions = nullptr;
const char *stacks_begin = nullptr, *stacks_end = nullptr;
const char* shared_begin() { return __start_emulated_shared; }
const char* shared_end() { return __stop_emulated_shared; }

namespace {

constexpr unsigned WARP_LANES = 32, MAX_BLOCK_THREADS = 1024, MAX_GRID_Y = 65535;
constexpr size_t STACK_BYTES = 64 << 10;

enum class Wait { NONE, BLOCK, WARP, EXITED };

struct Fiber {
  Context context;
  Wait wait;
  Site site;
};

struct Warp {
  unsigned lanes;
  unsigned waiting;
  unsigned epoch;
  // A lane may be one shuffle ahead of the others: two sets of values, used in turn.
  uint32_t values[2][WARP_LANES];
  unsigned turn;
};

std::mutex launch_mutex;
Fiber fibers[MAX_BLOCK_THREADS];
Warp warps[MAX_BLOCK_THREADS / WARP_LANES];
Context scheduler;
Index block_size;
unsigned num_threads, num_waiting;
const Function* function;
void** arguments;
thread_local std::string error_text;

Index index_of(unsigned thread) {
  const Index& size = block_size;
  return {thread % size.x, thread / size.x % size.y, thread / size.x / size.y};
}

void start_fiber() {
  function->call(function->kernel, arguments);
  fibers[execution.thread].wait = Wait::EXITED;
  Context unused;
  switch_context(unused, scheduler);
}

void resume(unsigned thread) {
  execution.thread = thread;
  execution.warp = thread / WARP_LANES;
  execution.warp_epoch = warps[execution.warp].epoch;
  place.thread = index_of(thread);
  execution.is_in_kernel = true;
  switch_context(scheduler, fibers[thread].context);
  execution.is_in_kernel = false;
}

void suspend() { switch_context(fibers[execution.thread].context, scheduler); }

bool is_same(const Site& a, const Site& b) { return a.line == b.line && !strcmp(a.file, b.file); }

// Releases the threads first..end, which wait at a barrier or shuffle.
void release(const char* what, unsigned first, unsigned end) {
  for (unsigned t = first; t < end; t++) {
    if (!is_same(fibers[t].site, fibers[first].site))
      report("threads %u and %u of block %u wait at different %s: line %d and line %d", first, t, execution.block, what,
             fibers[first].site.line, fibers[t].site.line);
    fibers[t].wait = Wait::NONE;
  }
}

// Returns after all lanes of the warp have called it.
void wait_for_lanes(uint32_t mask, Site site) {
  Warp& warp = warps[execution.warp];
  Fiber& self = fibers[execution.thread];
  const uint32_t lanes = warp.lanes == WARP_LANES ? 0xffffffffu : (1u << warp.lanes) - 1;
  if ((mask & lanes) != lanes)
    report("line %d: the mask 0x%x omits lanes of the warp, which the emulator does not support", site.line, mask);
  self.wait = Wait::WARP;
  self.site = site;
  if (++warp.waiting < warp.lanes) {
    suspend();
    return;
  }
  warp.waiting = 0;
  warp.turn ^= 1;
  const unsigned first = execution.warp * WARP_LANES;
  release("shuffles or barriers of a warp", first, first + warp.lanes);
}

// Describes what a thread that cannot continue is doing.
std::string state_of(const Fiber& fiber) {
  if (fiber.wait == Wait::EXITED) return "has exited";
  char text[256];
  snprintf(text, sizeof text, "waits at %s in line %d of %s",
           fiber.wait == Wait::BLOCK ? "__syncthreads" : "a shuffle or __syncwarp", fiber.site.line, fiber.site.file);
  return text;
}

// Reports why no thread of a block can continue.
void report_deadlock() {
  for (const Wait kind : {Wait::WARP, Wait::BLOCK})
    for (unsigned t = 0; t < num_threads; t++) {
      if (fibers[t].wait != kind) continue;
      const unsigned first = kind == Wait::WARP ? t / WARP_LANES * WARP_LANES : 0;
      const unsigned end = kind == Wait::WARP ? first + warps[t / WARP_LANES].lanes : num_threads;
      for (unsigned other = first; other < end; other++)
        if (fibers[other].wait != kind) {
          report("not all threads reach a barrier or shuffle: in block %u, thread %u %s, but thread %u %s",
                 execution.block, t, state_of(fibers[t]).c_str(), other, state_of(fibers[other]).c_str());
          return;
        }
    }
}

// Returns whether all threads of the block have exited.
bool run_block() {
  // Shared memory starts with arbitrary contents on a GPU: here, with NaN.
  if (shared_begin()) memset(__start_emulated_shared, 0xff, shared_end() - shared_begin());
  char* const stacks = const_cast<char*>(stacks_begin);
  num_waiting = 0;
  execution.block_epoch = 0;
  for (unsigned t = 0; t < num_threads; t++) {
    fibers[t].wait = Wait::NONE;
    prepare_context(fibers[t].context, stacks + t * STACK_BYTES, STACK_BYTES, start_fiber);
  }
  for (unsigned w = 0; w * WARP_LANES < num_threads; w++) {
    const unsigned left = num_threads - w * WARP_LANES;
    warps[w] = {};
    warps[w].lanes = left < WARP_LANES ? left : WARP_LANES;
  }
  for (bool is_progressing = true; is_progressing;) {
    is_progressing = false;
    for (unsigned t = 0; t < num_threads; t++)
      if (fibers[t].wait == Wait::NONE) {
        resume(t);
        is_progressing = true;
      }
  }
  for (unsigned t = 0; t < num_threads; t++)
    if (fibers[t].wait != Wait::EXITED) {
      report_deadlock();
      return false;
    }
  return true;
}

}  // namespace

void report(const char* format, ...) {
  if (!error_text.empty()) return;
  char text[1024];
  va_list values;
  va_start(values, format);
  vsnprintf(text, sizeof text, format, values);
  va_end(values);
  error_text = std::string(function ? function->name : "launch") + ": " + text;
}

void wait_for_block(Site site) {
  Fiber& self = fibers[execution.thread];
  self.wait = Wait::BLOCK;
  self.site = site;
  if (++num_waiting < num_threads) {
    suspend();
    return;
  }
  num_waiting = 0;
  execution.block_epoch++;
  release("barriers", 0, num_threads);
}

void wait_for_warp(uint32_t mask, Site site) {
  Warp& warp = warps[execution.warp];
  const unsigned epoch = warp.epoch + 1;
  wait_for_lanes(mask, site);
  execution.warp_epoch = warp.epoch = epoch;
}

uint32_t exchange(uint32_t mask, uint32_t value, unsigned distance, Site site) {
  Warp& warp = warps[execution.warp];
  const unsigned lane = execution.thread % WARP_LANES, other = lane ^ distance;
  uint32_t* const values = warp.values[warp.turn];
  values[lane] = value;
  wait_for_lanes(mask, site);
  if (other >= warp.lanes) {
    report("line %d: lane %u of block %u reads from lane %u, which does not exist", site.line, lane, execution.block,
           other);
    return value;
  }
  return values[other];
}

}  // namespace emulated HIDDEN

using namespace emulated;

extern "C" {

void* emulated_function(const char* name) {
  for (const Function* f = functions; f; f = f->next)
    if (!strcmp(f->name, name)) return const_cast<Function*>(f);
  return nullptr;
}

int emulated_launch(void* kernel, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                    unsigned block_z, unsigned shared_bytes, void*, void** parameters, void** extra) {
  const std::lock_guard<std::mutex> lock(launch_mutex);
  error_text.clear();
  function = static_cast<const Function*>(kernel);
  arguments = parameters;
  const uint64_t threads = static_cast<uint64_t>(block_x) * block_y * block_z;
  if (!function) report("the function is null");
  if (threads == 0 || threads > MAX_BLOCK_THREADS) report("%llu threads per block", (unsigned long long)threads);
  if (!grid_x || !grid_y || !grid_z || grid_x > 0x7fffffffu || grid_y > MAX_GRID_Y || grid_z > MAX_GRID_Y)
    report("invalid grid: %u x %u x %u blocks", grid_x, grid_y, grid_z);
  if (shared_bytes) report("dynamic shared memory is not supported");
  if (!parameters || extra) report("parameters must be an array of pointers, and extra must be null");
  if (!error_text.empty()) return 1;

  if (!stacks_begin) {
    void* const stacks = mmap(nullptr, MAX_BLOCK_THREADS * STACK_BYTES, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stacks == MAP_FAILED) {
      report("cannot allocate the stacks of the threads");
      return 1;
    }
    stacks_begin = static_cast<char*>(stacks);
    stacks_end = stacks_begin + MAX_BLOCK_THREADS * STACK_BYTES;
  }
  num_threads = static_cast<unsigned>(threads);
  block_size = {block_x, block_y, block_z};
  place.grid_size = {grid_x, grid_y, grid_z};
#ifdef DETECT_RACES
  start_race_detection();
#endif
  execution.block = 0;
  for (unsigned z = 0; z < grid_z; z++)
    for (unsigned y = 0; y < grid_y; y++)
      for (unsigned x = 0; x < grid_x; x++, execution.block++) {
        place.block = {x, y, z};
        if (!run_block()) return 1;
      }
  return error_text.empty() ? 0 : 1;
}

const char* emulated_error() { return error_text.empty() ? nullptr : error_text.c_str(); }
}
