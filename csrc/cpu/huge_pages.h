// Fresh memory in large pages. glibc maps anything from 32 MiB up anew for every tensor and gives
// it back when the tensor dies, so a large result costs a page fault, and its zeroing, every 4 KiB:
// more than writing it does. The kernel is asked for pages of 2 MiB instead, a hint that it may
// ignore, as PyTorch's allocator itself does where THP_MEM_ALLOC_ENABLE=1 is set.
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
  // Whole huge pages only: what shares a page with other memory keeps it.
  const auto begin = reinterpret_cast<uintptr_t>(memory);
  const uintptr_t first = (begin + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t last = (begin + static_cast<uintptr_t>(bytes)) / kHugePage * kHugePage;
  madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

}  // namespace atrousx
