// All CPU code allocates here the memory that it needs during a call or a task. Large memory is
// kept for later calls. Otherwise glibc would map it again for each call. Clearing new pages can
// cost more time than the call's own writes. Memory that must begin as zeros, or that grows, is a
// std::vector.
#pragma once

#include <memory>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

#include <torch/csrc/stable/ops.h>

#include "cpu/huge_pages.h"
#include "tensor.h"

namespace atrousx {

// The memory that no call uses at the moment, the oldest first.
class WorkspacePool {
  static constexpr int64_t kMostKept = 64 << 20;  // bytes

 public:
  static constexpr int64_t kLeastKept = 1 << 20;

  // Returns memory of at least `bytes` bytes.
  Tensor take(int64_t bytes) {
    {
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
    if (memory.numel() > kMostKept) return;
    const std::lock_guard lock(mutex_);
    free_.push_back(memory);
    kept_ += memory.numel();
    while (kept_ > kMostKept) {
      kept_ -= free_.front().numel();
      free_.erase(free_.begin());
    }
  }

  static WorkspacePool& instance() {
    // Never destroyed, because threads may still compute while the process ends.
    static WorkspacePool* const pool = new WorkspacePool;
    return *pool;
  }

 private:
  std::mutex mutex_;
  std::vector<Tensor> free_;
  int64_t kept_ = 0;
};

// Memory that begins at a cache line. The constructor and destructor are not inlined, because each
// use would be hundreds of instructions long.
class WorkspaceMemory {
  static constexpr std::align_val_t kAlignment{64};

 protected:
  WorkspaceMemory() = default;
  [[gnu::noinline]] explicit WorkspaceMemory(int64_t bytes) {
    if (bytes >= WorkspacePool::kLeastKept) {
      kept_ = std::make_unique<Tensor>(WorkspacePool::instance().take(bytes));
      data_ = kept_->mutable_data_ptr();
    } else {  // for a small map PyTorch's allocator would take as long as the computation
      data_ = ::operator new(static_cast<size_t>(bytes), kAlignment);
    }
  }
  [[gnu::noinline]] ~WorkspaceMemory() {
    if (kept_ != nullptr)
      WorkspacePool::instance().give(*kept_);
    else
      ::operator delete(data_, kAlignment);
  }
  WorkspaceMemory(WorkspaceMemory&& other) noexcept { *this = std::move(other); }
  WorkspaceMemory& operator=(WorkspaceMemory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(kept_, other.kept_);
    return *this;
  }

  void* data_ = nullptr;

 private:
  std::unique_ptr<Tensor> kept_;  // owns the memory if it goes back to the pool, else null
};

// `count` uninitialised numbers.
template <typename A>
class Workspace : private WorkspaceMemory {
 public:
  Workspace() = default;
  explicit Workspace(int64_t count) : WorkspaceMemory(count * static_cast<int64_t>(sizeof(A))) {}

  A* data() const { return static_cast<A*>(data_); }
  A& operator[](int64_t i) const { return data()[i]; }
};

}  // namespace atrousx
