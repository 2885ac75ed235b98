// Reports two threads that access the same word of shared or global memory without a barrier
// between them, if one of them writes. It replaces the runtime library of ThreadSanitizer: the
// compiler inserts a call before each access of the kernels (-fsanitize=thread), and this file
// defines the called functions.
//
// Accesses are ordered by barriers alone: those of a block by __syncthreads, those of a warp also
// by __syncwarp. A shuffle orders nothing. Blocks of one launch are never ordered. Launches are.
// Only whole warps can wait at __syncwarp, so that comparing the numbers of barriers is exact.
#include <dlfcn.h>

#include <cstdio>
#include <memory>
#include <unordered_map>

#include "runtime.h"

namespace emulated HIDDEN {
namespace {

constexpr uintptr_t WORD_BYTES = 2, PAGE_BYTES = 4096, PAGE_WORDS = PAGE_BYTES / WORD_BYTES;
constexpr uint32_t NONE = 0xffffffffu, SEVERAL = 0xfffffffeu;

// The position of an access, or of several at the same epochs.
struct Stamp {
  uint32_t block = NONE;
  uint32_t block_epoch = 0;
  uint32_t warp = 0;        // or SEVERAL
  uint32_t warp_epoch = 0;  // if it is one warp
  uint32_t thread = 0;      // or SEVERAL
};

struct Word {
  Stamp write;
  Stamp read;  // of the last block that read it, in its last epoch
  bool is_read_by_several_blocks = false;
};

struct Page {
  unsigned long launch = 0;
  Word words[PAGE_WORDS];
};

unsigned long launch = 0;
std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages;
uintptr_t last_number = 0;
Page* last_page = nullptr;

Page& page_of(uintptr_t address) {
  const uintptr_t number = address / PAGE_BYTES;
  if (number != last_number || !last_page) {
    std::unique_ptr<Page>& page = pages[number];
    if (!page) page = std::make_unique<Page>();
    last_number = number;
    last_page = page.get();
  }
  if (last_page->launch != launch) {
    *last_page = Page{};
    last_page->launch = launch;
  }
  return *last_page;
}

Stamp current_stamp() {
  return {execution.block, execution.block_epoch, execution.warp, execution.warp_epoch, execution.thread};
}

bool is_ordered_before(const Stamp& earlier, const Stamp& now) {
  if (earlier.block != now.block) return false;
  return earlier.block_epoch < now.block_epoch || earlier.thread == now.thread ||
         (earlier.warp == now.warp && earlier.warp_epoch < now.warp_epoch);
}

void add_reader(Word& word, const Stamp& now) {
  Stamp& read = word.read;
  if (read.block != now.block) {
    if (read.block != NONE) word.is_read_by_several_blocks = true;
    read = now;
  } else if (read.block_epoch < now.block_epoch) {
    read = now;
  } else if (read.warp != now.warp) {
    read.warp = read.thread = SEVERAL;
  } else if (read.warp_epoch < now.warp_epoch) {
    read = now;
  } else if (read.thread != now.thread) {
    read.thread = SEVERAL;
  }
}

void report_race(uintptr_t address, bool is_shared, const Stamp& earlier, bool was_write, const Stamp& now,
                 bool is_write, const void* caller) {
  char other[64];
  if (earlier.thread == SEVERAL) {
    snprintf(other, sizeof other, "several threads of block %u", earlier.block);
  } else {
    snprintf(other, sizeof other, "thread %u of block %u", earlier.thread, earlier.block);
  }
  char where[64];
  if (is_shared) {
    snprintf(where, sizeof where, "byte %zu of shared memory", address - reinterpret_cast<uintptr_t>(shared_begin()));
  } else {
    snprintf(where, sizeof where, "global memory at 0x%zx", address);
  }
  Dl_info library = {};
  dladdr(caller, &library);
  report("race: thread %u of block %u %s %s, which %s %s without a barrier in between (addr2line -i -e LIBRARY 0x%zx)",
         now.thread, now.block, is_write ? "writes" : "reads", where, other, was_write ? "wrote" : "read",
         static_cast<const char*>(caller) - static_cast<const char*>(library.dli_fbase) - 1);
}

bool is_within(const void* address, const void* begin, const void* end) { return begin <= address && address < end; }

void check_word(uintptr_t address, bool is_shared, bool is_write, const void* caller) {
  Word& word = page_of(address).words[address % PAGE_BYTES / WORD_BYTES];
  const Stamp now = current_stamp();
  if (is_shared && word.write.block != now.block) word.write = {};  // shared memory of another block
  if (is_shared && word.read.block != now.block) word.read = {};
  if (word.write.block != NONE && !is_ordered_before(word.write, now))
    report_race(address, is_shared, word.write, true, now, is_write, caller);
  if (!is_write) {
    add_reader(word, now);
    return;
  }
  if (word.read.block != NONE && (word.is_read_by_several_blocks || !is_ordered_before(word.read, now)))
    report_race(address, is_shared, word.read, false, now, true, caller);
  // A later access that is ordered after this write is also ordered after the earlier accesses.
  word = Word{};
  word.write = now;
}

void check_access(const void* memory, size_t size, bool is_write, const void* caller) {
  if (!execution.is_in_kernel || is_within(memory, stacks_begin, stacks_end) || is_within(memory, &place, &place + 1))
    return;
  const bool is_shared = is_within(memory, shared_begin(), shared_end());
  const uintptr_t begin = reinterpret_cast<uintptr_t>(memory) / WORD_BYTES * WORD_BYTES;
  for (uintptr_t address = begin; address < reinterpret_cast<uintptr_t>(memory) + size; address += WORD_BYTES)
    check_word(address, is_shared, is_write, caller);
}

}  // namespace

void start_race_detection() { launch++; }

}  // namespace emulated HIDDEN

// The functions that instrumented code calls.
#define CALLED_BY_KERNELS extern "C" __attribute__((visibility("hidden")))
#define CHECKED_ACCESS(size)                                                  \
  CALLED_BY_KERNELS void __tsan_read##size(void* memory) {                    \
    emulated::check_access(memory, size, false, __builtin_return_address(0)); \
  }                                                                           \
  CALLED_BY_KERNELS void __tsan_write##size(void* memory) {                   \
    emulated::check_access(memory, size, true, __builtin_return_address(0));  \
  }                                                                           \
  CALLED_BY_KERNELS void __tsan_unaligned_read##size(void* memory) {          \
    emulated::check_access(memory, size, false, __builtin_return_address(0)); \
  }                                                                           \
  CALLED_BY_KERNELS void __tsan_unaligned_write##size(void* memory) {         \
    emulated::check_access(memory, size, true, __builtin_return_address(0));  \
  }
CHECKED_ACCESS(1)
CHECKED_ACCESS(2)
CHECKED_ACCESS(4)
CHECKED_ACCESS(8)
CHECKED_ACCESS(16)

CALLED_BY_KERNELS void __tsan_read_range(void* memory, unsigned long size) {
  emulated::check_access(memory, size, false, __builtin_return_address(0));
}
CALLED_BY_KERNELS void __tsan_write_range(void* memory, unsigned long size) {
  emulated::check_access(memory, size, true, __builtin_return_address(0));
}
// Clang calls these for copies.
CALLED_BY_KERNELS void* __tsan_memcpy(void* to, const void* from, unsigned long size) {
  emulated::check_access(from, size, false, __builtin_return_address(0));
  emulated::check_access(to, size, true, __builtin_return_address(0));
  return memcpy(to, from, size);
}
CALLED_BY_KERNELS void* __tsan_memmove(void* to, const void* from, unsigned long size) {
  emulated::check_access(from, size, false, __builtin_return_address(0));
  emulated::check_access(to, size, true, __builtin_return_address(0));
  return memmove(to, from, size);
}
CALLED_BY_KERNELS void* __tsan_memset(void* to, int value, unsigned long size) {
  emulated::check_access(to, size, true, __builtin_return_address(0));
  return memset(to, value, size);
}
CALLED_BY_KERNELS void __tsan_init() {}
CALLED_BY_KERNELS void __tsan_func_entry(void*) {}
CALLED_BY_KERNELS void __tsan_func_exit() {}
// The tables of the emulator contain pointers to functions, but kernels have no virtual functions.
CALLED_BY_KERNELS void __tsan_vptr_update(void**, void*) {}
CALLED_BY_KERNELS void __tsan_vptr_read(void**) {}
