// Fibers: functions with their own stack that switch to each other. ucontext makes a system call
// per switch, so x86-64 and aarch64 have their own switch, which saves the registers that a called
// function must preserve.
#pragma once

#include <cstddef>
#include <cstdint>

#if !defined(__x86_64__) && !defined(__aarch64__)
#include <ucontext.h>
#endif

#include "emulate.h"

namespace emulated HIDDEN {

#if defined(__x86_64__) || defined(__aarch64__)

struct Context {
  void* stack_pointer = nullptr;
};

// Saves the registers and the stack pointer of the caller, and continues at `to`.
extern "C" void emulated_switch(void** from, void* to);

#if defined(__x86_64__)
asm(R"(
  .text
  .globl emulated_switch
  .hidden emulated_switch
  .type emulated_switch, @function
emulated_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size emulated_switch, . - emulated_switch
)");
// Words on the stack of a new fiber: 6 registers, the return address, and padding.
constexpr int FRAME_WORDS = 8, ENTRY_WORD = 6;
#else
asm(R"(
  .text
  .globl emulated_switch
  .hidden emulated_switch
  .type emulated_switch, %function
emulated_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
  .size emulated_switch, . - emulated_switch
)");
constexpr int FRAME_WORDS = 20, ENTRY_WORD = 11;
#endif

inline void switch_context(Context& from, Context& to) { emulated_switch(&from.stack_pointer, to.stack_pointer); }

// `entry` must not return.
inline void prepare_context(Context& context, char* stack, size_t size, void (*entry)()) {
  uintptr_t* const frame = reinterpret_cast<uintptr_t*>(stack + size) - FRAME_WORDS;
  for (int i = 0; i < FRAME_WORDS; i++) frame[i] = 0;
  frame[ENTRY_WORD] = reinterpret_cast<uintptr_t>(entry);
  context.stack_pointer = frame;
}

#else

struct Context {
  ucontext_t saved;
};
inline void switch_context(Context& from, Context& to) { swapcontext(&from.saved, &to.saved); }
inline void prepare_context(Context& context, char* stack, size_t size, void (*entry)()) {
  getcontext(&context.saved);
  context.saved.uc_stack.ss_sp = stack;
  context.saved.uc_stack.ss_size = size;
  context.saved.uc_link = nullptr;
  makecontext(&context.saved, entry, 0);
}

#endif

}  // namespace emulated HIDDEN
