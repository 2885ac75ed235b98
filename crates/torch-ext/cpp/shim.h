// The C side of torch-ext. Tensors cross as borrowed `at::Tensor*` (what tch holds);
// a returned tensor is a new `at::Tensor*` that the caller owns. Every function returns
// null, or a message that the caller frees with `free`: no C++ exception crosses.
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
    return strdup("an exception that is no std::exception"); \
  }
