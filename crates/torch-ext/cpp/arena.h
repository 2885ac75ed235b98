// Memory for large tensors on the CPU.
#pragma once

// Makes libtorch take its large CPU blocks from one range of addresses of this process, and
// gives whether it could. Once is enough; call it before tensors exist.
bool use_arena();

// While one lives, this thread's large blocks come from the last gap that fits, not the first:
// for the weights' gradients, which stay until the step's end. Backward passes let go of the
// last layer first, so that they gather at one end of what the layers kept.
class FromTheEnd {
 public:
  FromTheEnd();
  ~FromTheEnd();
  FromTheEnd(const FromTheEnd&) = delete;
  FromTheEnd& operator=(const FromTheEnd&) = delete;
};
