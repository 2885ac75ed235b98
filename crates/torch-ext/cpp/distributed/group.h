// Types that process_group.cpp and reducer.cpp share.
#pragma once

#include "../shim.h"

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

// A key-value store at rank 0 for the rendezvous. Keys have the name of the group as a prefix.
struct BpxStore {
  c10::intrusive_ptr<c10d::Store> store;
};

// A process group: Gloo for CPU tensors, and NCCL for CUDA tensors if it was added.
struct BpxGroup {
  c10::intrusive_ptr<c10d::Store> store;
  c10::intrusive_ptr<c10d::ProcessGroup> group;
  c10::intrusive_ptr<c10d::Backend> gloo;
  c10::intrusive_ptr<c10d::Backend> nccl;
};
