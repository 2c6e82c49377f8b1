// Device memory: an arena of addresses that are given out once, in ascending order.
#include "memory.h"

#include <sys/mman.h>

#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <new>
#include <set>

namespace emulator {

namespace {

constexpr size_t kArenaBytes = size_t{1} << 40;  // of addresses; memory is taken as it is touched
constexpr size_t kPage = 4096;
constexpr size_t kMostFreedBytes = size_t{4} << 20;  // that keep their NaN, newest first
constexpr int kPoison = 0xff;                        // NaN in every floating type, -1 in integers

struct Block {
  size_t bytes;
  bool freed;
};

class Arena {
 public:
  Arena()
      : start_(static_cast<char*>(mmap(nullptr, kArenaBytes, PROT_NONE,
                                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0))),
        next_(start_) {
    if (start_ == MAP_FAILED) throw std::bad_alloc();
  }

  void* allocate(size_t bytes) {
    const std::lock_guard lock(mutex_);
    // 256 modulo 512: a kernel that counts on more than cudaMalloc's alignment is found out. The
    // gap before the next block keeps neighbours apart.
    const size_t room =
        (bytes + 2 * kDeviceAlignment) / (2 * kDeviceAlignment) * 2 * kDeviceAlignment;
    char* const block = next_ + kDeviceAlignment;
    if (block + room > start_ + kArenaBytes) throw std::bad_alloc();
    next_ += room + 2 * kDeviceAlignment;
    blocks_[block] = {bytes, false};
    present_.insert(block);
    poison(block, bytes);
    return block;
  }

  void free(void* memory) {
    const std::lock_guard lock(mutex_);
    auto* const block = static_cast<char*>(memory);
    Block& known = blocks_.at(block);
    known.freed = true;
    poison(block, known.bytes);
    freed_.push_back(block);
    freed_bytes_ += known.bytes;
    while (freed_bytes_ > kMostFreedBytes && freed_.size() > 1) forget_oldest();
  }

  void open_for(bool use) {
    const std::lock_guard lock(mutex_);
    use ? open() : close();
  }

  bool contains(const void* address) const {
    const auto* at = static_cast<const char*>(address);
    return at >= start_ && at < start_ + kArenaBytes;
  }

  const char* fault(const void* address, size_t bytes, Range* of) const {
    const auto* at = static_cast<const char*>(address);
    auto found = blocks_.upper_bound(const_cast<char*>(at));
    if (found == blocks_.begin()) return "memory of no tensor";
    const auto& [block, known] = *--found;
    if (at + bytes > block + known.bytes) return "memory beyond the end of a tensor";
    if (known.freed) return "freed memory";
    *of = {block, known.bytes};
    return nullptr;
  }

 private:
  void open() {
    if (open_++ == 0) protect_all(PROT_READ | PROT_WRITE);
  }
  void close() {
    if (--open_ == 0) protect_all(PROT_NONE);
  }
  // From the first block whose memory is there: what lies before would take the system its time.
  void protect_all(int mode) {
    if (!present_.empty()) protect(*present_.begin(), next_, mode);
  }
  static void protect(const char* first, const char* last, int mode) {
    const auto from = reinterpret_cast<uintptr_t>(first) / kPage * kPage;
    const auto to = (reinterpret_cast<uintptr_t>(last) + kPage - 1) / kPage * kPage;
    if (mprotect(reinterpret_cast<void*>(from), to - from, mode) != 0) throw std::bad_alloc();
  }
  void poison(char* block, size_t bytes) {
    protect(block, block + bytes, PROT_READ | PROT_WRITE);
    std::memset(block, kPoison, bytes);
    if (open_ == 0) protect(block, block + bytes, PROT_NONE);
  }

  // Its whole pages go back to the system; the block stays known as freed.
  void forget_oldest() {
    char* const block = freed_.front();
    const size_t bytes = blocks_.at(block).bytes;
    freed_.pop_front();
    freed_bytes_ -= bytes;
    present_.erase(block);
    const auto first = (reinterpret_cast<uintptr_t>(block) + kPage - 1) / kPage * kPage;
    const auto last = (reinterpret_cast<uintptr_t>(block) + bytes) / kPage * kPage;
    if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
  }

  char* const start_;
  char* next_;
  std::map<char*, Block> blocks_;
  std::set<char*> present_;  // blocks that are not freed, or keep their NaN
  std::deque<char*> freed_;
  size_t freed_bytes_ = 0;
  int open_ = 0;
  std::mutex mutex_;
};

Arena& arena() {
  static Arena& only = *new Arena;  // tensors may outlive static objects
  return only;
}

}  // namespace

void* allocate_device_memory(size_t bytes) { return arena().allocate(bytes); }
void free_device_memory(void* block) { arena().free(block); }
bool is_device_memory(const void* address) { return arena().contains(address); }
OpenDeviceMemory::OpenDeviceMemory() { arena().open_for(true); }
OpenDeviceMemory::~OpenDeviceMemory() { arena().open_for(false); }
const char* fault_of_device_access(const void* address, size_t bytes, Range* block) {
  return arena().fault(address, bytes, block);
}

}  // namespace emulator
