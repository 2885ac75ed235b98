// What the checks of the kernels share: buffers with guards, random numbers, bf16, comparisons.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#include <string>
#include <type_traits>
#include <vector>

#include "emulated_library.h"

typedef unsigned short Bf16;

inline float to_float(Bf16 x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float y;
  memcpy(&y, &bits, sizeof y);
  return y;
}
inline float to_float(float x) { return x; }
inline Bf16 to_bf16(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return x != x ? 0x7fc0 : static_cast<Bf16>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
inline void assign(float& to, float x) { to = x; }
inline void assign(Bf16& to, float x) { to = to_bf16(x); }

// Memory for `count` elements that starts at a multiple of 16 bytes and is filled with NaN. It ends
// at most 15 bytes before a page that cannot be accessed. has_intact_guards detects writes into
// these bytes and before the start.
template <class T>
class Buffer {
 public:
  explicit Buffer(size_t count) : count(count) {
    const size_t page = 4096, bytes = (count * sizeof(T) + 15) / 16 * 16;
    mapped_bytes = (bytes + GUARD_BYTES + page - 1) / page * page + page;
    mapped =
        static_cast<char*>(mmap(nullptr, mapped_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (mapped == MAP_FAILED || mprotect(mapped + mapped_bytes - page, page, PROT_NONE)) {
      perror("mmap");
      exit(2);
    }
    memset(mapped, 0xff, mapped_bytes - page);
    elements = reinterpret_cast<T*>(mapped + mapped_bytes - page - bytes);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { munmap(mapped, mapped_bytes); }

  T* data() { return elements; }
  size_t size() const { return count; }
  T& operator[](size_t i) { return elements[i]; }
  const T& operator[](size_t i) const { return elements[i]; }
  float at(size_t i) const { return to_float(elements[i]); }

  bool has_intact_guards() const {
    const char *begin = reinterpret_cast<const char*>(elements), *end = reinterpret_cast<const char*>(elements + count);
    for (const char* p = mapped; p < begin; p++)
      if (*p != '\xff') return false;
    for (const char* p = end; reinterpret_cast<uintptr_t>(p) % 16; p++)
      if (*p != '\xff') return false;
    return true;
  }

 private:
  static constexpr size_t GUARD_BYTES = 64;
  size_t count, mapped_bytes;
  char* mapped;
  T* elements;
};

// A generator of reproducible numbers.
class Random {
 public:
  uint32_t bits() {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return static_cast<uint32_t>(state >> 33);
  }
  uint32_t below(uint32_t end) { return bits() % end; }
  // Approximately normal, with a standard deviation of `deviation`.
  float normal(float deviation) {
    float sum = 0.f;
    for (int i = 0; i < 4; i++) sum += static_cast<float>(bits()) / 2147483648.f - 0.5f;
    return sum * deviation * 1.7320508f;
  }
  template <class T>
  void fill(Buffer<T>& buffer, float deviation, float mean = 0.f) {
    for (size_t i = 0; i < buffer.size(); i++) assign(buffer[i], mean + normal(deviation));
  }

 private:
  uint64_t state = 1;
};

// Collects the failures of one case, and prints one line about it.
class Case {
 public:
  explicit Case(std::string name) : name(std::move(name)) {}
  ~Case() {
    printf("%s  %s%s\n", failure.empty() ? "ok    " : "FAILED", name.c_str(), failure.c_str());
    num_failures += !failure.empty();
  }
  void require(bool condition, const std::string& text) {
    if (!condition && failure.empty()) failure = ": " + text;
  }
  void require_success(const std::string& error) { require(error.empty(), error); }
  template <class... Buffers>
  void require_guards(const Buffers&... buffers) {
    require((buffers.has_intact_guards() && ...), "memory before or after a matrix was written");
  }
  // Requires |actual - expected| <= relative * |expected| + absolute. NaN equals NaN.
  void require_close(const char* what, size_t i, double actual, double expected, double relative, double absolute) {
    const bool is_close =
        isnan(expected) ? isnan(actual) : fabs(actual - expected) <= relative * fabs(expected) + absolute;
    if (is_close || !failure.empty()) return;
    char text[200];
    snprintf(text, sizeof text, ": %s, element %zu is %.9g, expected %.9g", what, i, actual, expected);
    failure = text;
  }

  static int num_failures;

 private:
  std::string name, failure;
};

constexpr double BF16_ROUNDING = 1. / 256, FLOAT_ROUNDING = 2e-6;
// Of a value that is stored as T.
template <class T>
constexpr double rounding_of() {
  return std::is_same<T, Bf16>::value ? BF16_ROUNDING : FLOAT_ROUNDING;
}

// The values that the library was compiled with.
typedef std::vector<int> Sizes;
void check_cross_entropy(const EmulatedLibrary& library, const Sizes& sizes);  // VOCAB_SIZE, THREADS
void check_layer_norm(const EmulatedLibrary& library, const Sizes& sizes);     // WIDTH, WARPS
void check_gelu(const EmulatedLibrary& library, const Sizes& sizes);           // THREADS
void check_sense_weights(const EmulatedLibrary& library, const Sizes& sizes);  // NUM_SENSES, MAX_LENGTH, WARPS, T...
