// The memory of the device that lives on the host. Each tensor has its own block. A block has
// exactly the alignment that cudaMalloc guarantees, no better, and no address is given out twice.
// Only a running kernel and the executor's own copies may touch this memory. At other times it is
// closed, so host code that follows a device pointer ends in a segmentation fault. Every load and
// store of a kernel is checked, so a kernel cannot use host memory or freed memory either (see
// access.cpp).
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

// Both fill the block with NaN. The address of a freed block stays unusable.
void* allocate_device_memory(size_t bytes);
void free_device_memory(void* block);

bool is_device_memory(const void* address);

// Device memory is open during the life of such an object.
class OpenDeviceMemory {
 public:
  OpenDeviceMemory();
  ~OpenDeviceMemory();
  OpenDeviceMemory(const OpenDeviceMemory&) = delete;
};

// Returns the fault of a kernel's access to device memory, or nullptr if the address lies in a
// block that is not freed. Then `block` is set to that block.
const char* fault_of_device_access(const void* address, size_t bytes, Range* block);

}  // namespace emulator
