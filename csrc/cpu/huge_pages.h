// Asks for new memory in large pages. For every tensor of 32 MiB or more glibc maps new memory, and
// unmaps it when the tensor is freed. The operating system then clears each page of 4 KiB at its
// first use. In a large result these page faults cost more time than writing the result. Pages of
// 2 MiB avoid most of them. The operating system may ignore this hint. PyTorch's allocator gives
// the same hint if THP_MEM_ALLOC_ENABLE=1 is set.
#pragma once

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace atrousx {

inline void prefer_huge_pages([[maybe_unused]] void* memory, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kLarge = 4u << 20, kHugePage = 2u << 20;
  if (bytes < static_cast<int64_t>(kLarge)) return;
  // Only whole huge pages: a page that also holds other memory stays small.
  const auto begin = reinterpret_cast<uintptr_t>(memory);
  const uintptr_t first = (begin + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t last = (begin + static_cast<uintptr_t>(bytes)) / kHugePage * kHugePage;
  madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

}  // namespace atrousx
