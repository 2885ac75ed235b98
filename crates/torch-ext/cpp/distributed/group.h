// What crosses between the two halves of the distributed shim.
#pragma once

#include "../shim.h"

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

// A key-value store at rank 0 that processes meet at; keys are prefixed by the group's name.
struct BpxStore {
  c10::intrusive_ptr<c10d::Store> store;
};

// Gloo for CPU tensors, and NCCL for CUDA tensors where it was added.
struct BpxGroup {
  c10::intrusive_ptr<c10d::Store> store;
  c10::intrusive_ptr<c10d::ProcessGroup> group;
  c10::intrusive_ptr<c10d::Backend> gloo;
  c10::intrusive_ptr<c10d::Backend> nccl;
};
