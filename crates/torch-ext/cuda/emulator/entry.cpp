// Builds a shared library that runs the kernels of one file for one shape on a CPU:
//
//   c++ -O1 -std=c++17 -shared -fPIC -DVOCAB_SIZE=... -DTHREADS=...
//       -DKERNEL_SOURCE='"../cross_entropy.cu"' entry.cpp -o cross_entropy.so
//
// With the race detector, the kernels are instrumented and the emulator is not:
//
//   c++ -O1 -std=c++17 -fPIC -DDETECT_RACES -fsanitize=thread -D... -c entry.cpp
//   c++ -O1 -std=c++17 -fPIC -DDETECT_RACES -c runtime.cpp
//   c++ -O1 -std=c++17 -fPIC -c race_detector.cpp
//   c++ -shared entry.o runtime.o race_detector.o -o cross_entropy.so
//
// The functions of the library are declared in runtime.h. With -O2 and above, add
// -fno-strict-aliasing: the kernels load vectors through pointers to other types.
#ifndef DETECT_RACES
#include "runtime.cpp"
#endif
#include "emulate.h"

#pragma GCC visibility push(hidden)
#include KERNEL_SOURCE
#pragma GCC visibility pop
