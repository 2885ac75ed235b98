// Stand-ins for the headers of Gloo, which ProcessGroupGloo.hpp includes and which the wheel of
// torch does not contain. That class has only pointers to Gloo types, so declarations suffice; the
// functions are in libtorch_cpu.so. Do not construct objects of these types. process_group.cpp
// asserts the layout of the classes that it constructs.
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
