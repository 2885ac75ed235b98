// The C interface of torch-ext. Arguments are borrowed `at::Tensor*`, the pointers that tch holds.
// A returned tensor is a new `at::Tensor*` that the caller owns. A function returns null on
// success, or an error message that the caller frees with `free`. No C++ exception leaves a
// function.
#pragma once

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cstring>

using TensorPtr = at::Tensor*;

#define BPX_GUARD(...)                                   \
  try {                                                  \
    __VA_ARGS__;                                         \
    return nullptr;                                      \
  } catch (const c10::Error& e) {                        \
    return strdup(e.what_without_backtrace());           \
  } catch (const std::exception& e) {                    \
    return strdup(e.what());                             \
  } catch (...) {                                        \
    return strdup("an exception that is not a std::exception"); \
  }
