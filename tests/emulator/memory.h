// The memory of the device that lives on the host: each tensor has a block of its own, which starts
// at the alignment that cudaMalloc guarantees and no better one, and no address is given out twice.
// Only a running kernel and the executor's own copies may touch it: elsewhere it is closed, so that
// host code which follows a device pointer ends in a segmentation fault. Every load and store of a
// kernel is checked, which keeps host memory and freed memory out (see access.cpp).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace emulator {

constexpr size_t kDeviceAlignment = 256;

struct Range {
  const void* start;
  size_t bytes;

  bool contains(const void* address, size_t count) const {
    const auto first = reinterpret_cast<uintptr_t>(start),
               at = reinterpret_cast<uintptr_t>(address);
    return at >= first && at - first + count <= bytes;
  }
};

// Both fill it with NaN; the address of what is freed stays unusable.
void* allocate_device_memory(size_t bytes);
void free_device_memory(void* block);

bool is_device_memory(const void* address);

// Device memory is open while an object lives.
class OpenDeviceMemory {
 public:
  OpenDeviceMemory();
  ~OpenDeviceMemory();
  OpenDeviceMemory(const OpenDeviceMemory&) = delete;
};

// What is wrong with a kernel's access to device memory, or nullptr where it lies in a block that
// is not freed: that block.
const char* fault_of_device_access(const void* address, size_t bytes, Range* block);

}  // namespace emulator
