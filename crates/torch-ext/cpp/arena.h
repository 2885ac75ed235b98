// An allocator for large tensors on the CPU.
#pragma once

// Makes libtorch allocate its large CPU blocks from one range of addresses. Returns whether the
// range could be reserved. Call it before tensors exist; further calls have no effect.
bool use_arena();

// While an object of this class exists, large blocks of this thread come from the last gap that
// fits instead of the first. Used for the gradients of weights, which stay until the end of the
// step. The backward pass frees the activations of the last layer first, so the gradients gather at
// one end of the memory of the activations.
class FromTheEnd {
 public:
  FromTheEnd();
  ~FromTheEnd();
  FromTheEnd(const FromTheEnd&) = delete;
  FromTheEnd& operator=(const FromTheEnd&) = delete;
};
