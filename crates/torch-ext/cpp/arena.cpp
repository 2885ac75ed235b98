// An allocator for large tensors on the CPU. It reserves one range of addresses, places each block
// in the first gap that fits (or the last one), merges adjacent gaps, and returns no memory to the
// kernel.
//
// A training step allocates and frees the same gigabytes in the same order. malloc either maps each
// block again, which causes a page fault per page, or keeps it in a heap that small long-lived
// blocks fragment; that costs a tenth of the resident memory. This range holds only large blocks,
// which are allocated and freed like a stack, so that gaps close.
#include "arena.h"

#include <c10/core/CPUAllocator.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <unordered_map>

namespace {

// Minimum size of a block in bytes; malloc serves smaller ones.
constexpr size_t MIN_BLOCK_BYTES = 1 << 20;
// Alignment of every block in bytes, as in libtorch. It is less than a page, because blocks that
// all start at multiples of a page would use the sets of the CPU caches unevenly.
constexpr size_t GRANULE = 64;
// The usable part of the range grows in steps of this many bytes.
constexpr size_t GROWTH = 64 << 20;

thread_local bool from_the_end = false;

size_t rounded(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

class Arena final : public c10::Allocator {
 public:
  Arena(char* begin, size_t size, c10::Allocator* small) : begin_(begin), size_(size), small_(small) {}

  c10::DataPtr allocate(size_t n) override {
    void* block = n < MIN_BLOCK_BYTES ? nullptr : take(rounded(n, GRANULE));
    // If the range has no space, malloc serves or refuses the request.
    if (!block) return small_->allocate(n);
    return {block, block, &Arena::release, c10::Device(c10::DeviceType::CPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &Arena::release; }

  void copy_data(void* to, const void* from, size_t n) const override { default_copy_data(to, from, n); }

  static Arena* instance;

 private:
  // All offsets are relative to begin_.
  void* take(size_t n) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto fits = [n](const auto& gap) { return gap.second >= n; };
    if (from_the_end) {
      const auto found = std::find_if(gaps_.rbegin(), gaps_.rend(), fits);
      if (found != gaps_.rend()) {
        const auto [offset, room] = *found;
        gaps_.erase(offset);
        if (room > n) gaps_.emplace(offset, room - n);
        return keep(offset + room - n, n);
      }
    } else {
      const auto found = std::find_if(gaps_.begin(), gaps_.end(), fits);
      if (found != gaps_.end()) {
        const auto [offset, room] = *found;
        gaps_.erase(found);
        if (room > n) gaps_.emplace(offset + n, room - n);
        return keep(offset, n);
      }
    }
    // Otherwise at the end; a gap that touches the end is extended.
    size_t offset = end_;
    const auto last = gaps_.empty() ? gaps_.end() : std::prev(gaps_.end());
    if (last != gaps_.end() && last->first + last->second == end_) offset = last->first;
    if (n > size_ || offset > size_ - n || !make_usable(offset + n)) return nullptr;
    if (offset < end_) gaps_.erase(last);
    end_ = offset + n;
    return keep(offset, n);
  }

  void* keep(size_t offset, size_t n) {
    sizes_.emplace(offset, n);
    return begin_ + offset;
  }

  bool make_usable(size_t end) {
    if (end <= usable_) return true;
    const size_t until = std::min(rounded(end, GROWTH), size_);
    if (mprotect(begin_ + usable_, until - usable_, PROT_READ | PROT_WRITE) != 0) return false;
    usable_ = until;
    return true;
  }

  static void release(void* block) {
    if (!block) return;
    const size_t offset = static_cast<size_t>(static_cast<char*>(block) - instance->begin_);
    if (static_cast<char*>(block) < instance->begin_ || offset >= instance->size_) {
      instance->small_->raw_deleter()(block);
    } else {
      instance->give_back(offset);
    }
  }

  void give_back(size_t offset) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto known = sizes_.find(offset);
    size_t room = known->second;
    sizes_.erase(known);
    const auto after = gaps_.lower_bound(offset);
    if (after != gaps_.begin()) {
      const auto before = std::prev(after);
      if (before->first + before->second == offset) {
        offset = before->first;
        room += before->second;
      }
    }
    if (after != gaps_.end() && offset + room == after->first) {
      room += after->second;
      gaps_.erase(after);
    }
    gaps_[offset] = room;
  }

  char* const begin_;
  const size_t size_;
  c10::Allocator* const small_;
  std::mutex mutex_;
  size_t end_ = 0;     // the highest end of all blocks so far
  size_t usable_ = 0;  // bytes that are accessible
  std::map<size_t, size_t> gaps_;               // offset -> bytes; no two gaps are adjacent
  std::unordered_map<size_t, size_t> sizes_;    // offset -> bytes of the blocks in use
};

Arena* Arena::instance = nullptr;

}  // namespace

FromTheEnd::FromTheEnd() { from_the_end = true; }
FromTheEnd::~FromTheEnd() { from_the_end = false; }

bool use_arena() {
  if (Arena::instance) return true;
  // The range is as large as the memory of the machine. Untouched addresses cost nothing.
  const size_t size = static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<size_t>(sysconf(_SC_PAGESIZE));
  void* begin = mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (begin == MAP_FAILED) return false;
  // Never freed: tensors may outlive every other object of the process.
  Arena::instance = new Arena(static_cast<char*>(begin), size, c10::GetCPUAllocator());
  c10::SetCPUAllocator(Arena::instance, 1);
  return true;
}
