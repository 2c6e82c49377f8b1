// Memory for the time of a call on the CPU. What is large is kept for later calls: glibc would map
// it anew, and clearing its pages can cost more than writing what is packed or summed there.
#pragma once

#include <mutex>
#include <optional>
#include <vector>

#include <torch/csrc/stable/ops.h>

#include "cpu/huge_pages.h"
#include "tensor.h"

namespace atrousx {

// What no call uses at the moment, the oldest first.
class WorkspacePool {
  static constexpr int64_t kMostKept = 64 << 20, kLeastKept = 1 << 20;  // bytes

 public:
  // Bytes: at least so many.
  Tensor take(int64_t bytes) {
    if (bytes >= kLeastKept) {
      const std::lock_guard lock(mutex_);
      auto best = free_.end();
      for (auto it = free_.begin(); it != free_.end(); ++it)
        if (it->numel() >= bytes && (best == free_.end() || it->numel() < best->numel())) best = it;
      if (best != free_.end()) {
        const Tensor memory = *best;
        free_.erase(best);
        kept_ -= memory.numel();
        return memory;
      }
    }
    const Tensor memory = torch::stable::empty({&bytes, 1}, ScalarType::Byte);
    prefer_huge_pages(memory.mutable_data_ptr(), bytes);
    return memory;
  }

  void give(const Tensor& memory) {
    if (memory.numel() < kLeastKept || memory.numel() > kMostKept) return;
    const std::lock_guard lock(mutex_);
    free_.push_back(memory);
    kept_ += memory.numel();
    while (kept_ > kMostKept) {
      kept_ -= free_.front().numel();
      free_.erase(free_.begin());
    }
  }

  static WorkspacePool& instance() {
    // Never destroyed: threads may still compute while the process ends.
    static WorkspacePool* const pool = new WorkspacePool;
    return *pool;
  }

 private:
  std::mutex mutex_;
  std::vector<Tensor> free_;
  int64_t kept_ = 0;
};

template <typename A>
class Workspace {
 public:
  explicit Workspace(int64_t count)
      : memory_(WorkspacePool::instance().take(count * static_cast<int64_t>(sizeof(A)))) {}
  ~Workspace() { WorkspacePool::instance().give(memory_); }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  A* data() const { return static_cast<A*>(memory_.mutable_data_ptr()); }

 private:
  const Tensor memory_;
};

}  // namespace atrousx
