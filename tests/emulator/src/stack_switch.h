// Switches from one stack to another in assembly. The C library's swapcontext makes two system
// calls, which take longer than most threads run between two barriers.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__x86_64__)

// Saves the callee-saved registers on the current stack and stores its pointer in *from. Then
// restores the registers that were saved on the stack `to`.
extern "C" void emulator_switch_stack(void** from, void* to);

namespace emulator {

inline void switch_stack(void** from, void* to) { emulator_switch_stack(from, to); }

// Prepares a stack. `function`, which must not return, starts when the stack is first switched to.
inline void* new_stack(char* memory, size_t bytes, void (*function)()) {
  const uintptr_t top = (reinterpret_cast<uintptr_t>(memory) + bytes) / 16 * 16;
  auto* at = reinterpret_cast<void**>(top);
  *--at = nullptr;  // where a return address would be
  *--at = reinterpret_cast<void*>(function);
  for (int i = 0; i < 6; ++i) *--at = nullptr;
  return at;
}

}  // namespace emulator

#else
#error "the host executor of CUDA kernels switches stacks on x86-64 only"
#endif
