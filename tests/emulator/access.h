// Where a running kernel may load and store. The compiler calls access.cpp at every load and store
// of a file that is compiled with -fsanitize=thread (whose runtime is not linked).
#pragma once

#include <stdexcept>

#include "memory.h"

namespace emulator {

struct AccessFault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Ends the thread, and with it the launch, where the access is wrong.
void check_access(const void* address, size_t bytes, bool writes, bool aligned);

// Where most accesses go: the running thread's stack, and the block of device memory that was used
// last. Empty ranges where there is none.
struct Usual {
  Range stack, block;
};
extern Usual usual;

// Of the executor, in emulator.cpp: whether a thread of a kernel is running; whether it may use
// that address: its stack, its block's shared memory, the kernel's parameters, the executor's own;
// whether the address lies just outside an array in shared memory; and how a launch ends before its
// time, without going back into the thread.
bool is_running();
bool belongs_to_thread(const void* address, size_t bytes, bool writes);
bool is_beside_shared_memory(const void* address);
[[noreturn]] void abandon_launch(std::exception_ptr error);

}  // namespace emulator
