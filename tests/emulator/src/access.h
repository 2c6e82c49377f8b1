// The memory that a running kernel may load from and store to. In a file that is compiled with
// -fsanitize=thread, the compiler calls access.cpp at every load and store. The flag's runtime is
// not linked.
#pragma once

#include <stdexcept>

#include "memory.h"

namespace emulator {

struct AccessFault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Ends the thread, and with it the launch, if the access is wrong.
void check_access(const void* address, size_t bytes, bool writes, bool aligned);

// The targets of most accesses: the stack of the running thread, and the block of device memory
// that was used last. A range is empty if there is none.
struct Usual {
  Range stack, block;
};
extern Usual usual;

// Functions of the executor, in emulator.cpp. is_running: whether a thread of a kernel is running.
// belongs_to_thread: whether the thread may use an address, which may be in its stack, its block's
// shared memory, the kernel's parameters or the executor's own memory. is_beside_shared_memory:
// whether an address lies just outside an array in shared memory. abandon_launch: ends a launch
// early, without returning to the thread.
bool is_running();
bool belongs_to_thread(const void* address, size_t bytes, bool writes);
bool is_beside_shared_memory(const void* address);
[[noreturn]] void abandon_launch(std::exception_ptr error);

}  // namespace emulator
