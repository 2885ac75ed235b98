// Stand-ins for Gloo's headers, which the wheel of torch does not ship and which
// ProcessGroupGloo.hpp includes. That class holds pointers to Gloo's types only, so that
// declarations are enough; what is called lies in libtorch_cpu.so. Not for making objects of
// these types: process_group.cpp asserts the layout of what it does make.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

namespace gloo {
class Context {
 public:
  void setTimeout(std::chrono::milliseconds timeout);
};
}  // namespace gloo
