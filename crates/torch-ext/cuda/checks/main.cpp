// Compares the kernels of a library with loops in double precision, and reports the errors that the
// emulator detects.
//
//   check_kernels FILE LIBRARY SIZE...
//
// FILE is the name of the kernel file without .cu. The sizes are those that the library was
// compiled with (check.h).
#include <signal.h>
#include <unistd.h>

#include "check.h"

int Case::num_failures = 0;

// The page after each matrix cannot be accessed.
static void report_bad_access(int) {
  const char text[] = "FAILED  a kernel accesses memory outside of its matrices\n";
  _exit(write(STDOUT_FILENO, text, sizeof text - 1) < 0 ? 2 : 1);
}

int main(int count, char** arguments) {
  setvbuf(stdout, nullptr, _IOLBF, 0);
  signal(SIGSEGV, report_bad_access);
  const struct {
    const char* file;
    void (*check)(const EmulatedLibrary&, const Sizes&);
    int min_sizes;
  } checks[] = {{"cross_entropy", check_cross_entropy, 2},
                {"layer_norm", check_layer_norm, 2},
                {"gelu", check_gelu, 1},
                {"sense_weights", check_sense_weights, 4}};
  for (const auto& c : checks) {
    if (count < 3 + c.min_sizes || strcmp(c.file, arguments[1])) continue;
    Sizes sizes;
    for (int i = 3; i < count; i++) sizes.push_back(atoi(arguments[i]));
    c.check(EmulatedLibrary(arguments[2]), sizes);
    return Case::num_failures ? 1 : 0;
  }
  fprintf(stderr, "usage: check_kernels FILE LIBRARY SIZE...\n");
  return 2;
}
