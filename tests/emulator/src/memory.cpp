// Device memory: an arena of addresses, each given out once, in ascending order.
#include "memory.h"

#include <sys/mman.h>

#include <cstring>
#include <map>
#include <mutex>
#include <new>

namespace emulator {

namespace {

constexpr size_t kArenaBytes = size_t{1} << 40;  // of addresses; only touched memory is used
// Memory is opened and released in chunks. There are few enough to open all of them at every
// launch.
constexpr size_t kChunkBytes = size_t{256} << 10;
constexpr int kPoison = 0xff;  // NaN in every floating type, -1 in integers

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
    hold(start_, start_);
  }

  void* allocate(size_t bytes) {
    const std::lock_guard lock(mutex_);
    // Addresses are 256 modulo 512, so that a kernel fails if it relies on more than cudaMalloc's
    // alignment. The gap before the next block separates neighbours.
    const size_t room =
        (bytes + 2 * kDeviceAlignment) / (2 * kDeviceAlignment) * 2 * kDeviceAlignment;
    char* const block = next_ + kDeviceAlignment;
    if (block + room > start_ + kArenaBytes) throw std::bad_alloc();
    char* const after = next_ + room + 2 * kDeviceAlignment;
    hold(block, block + bytes);
    hold(after, after);
    release(next_, next_);
    next_ = after;
    blocks_[block] = {bytes, false};
    poison(block, bytes);
    return block;
  }

  void free(void* memory) {
    const std::lock_guard lock(mutex_);
    auto* const block = static_cast<char*>(memory);
    Block& known = blocks_.at(block);
    known.freed = true;
    poison(block, known.bytes);
    release(block, block + known.bytes);
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
    if (open_++ == 0) protect(PROT_READ | PROT_WRITE);
  }
  void close() {
    if (--open_ == 0) protect(PROT_NONE);
  }

  // All chunks in use. Adjacent chunks need only one call.
  void protect(int mode) {
    for (auto chunk = uses_.begin(); chunk != uses_.end();) {
      const size_t first = chunk->first;
      size_t count = 0;
      for (; chunk != uses_.end() && chunk->first == first + count; ++chunk) ++count;
      protect(first, count, mode);
    }
  }
  void protect(size_t chunk, size_t count, int mode) {
    if (mprotect(start_ + chunk * kChunkBytes, count * kChunkBytes, mode) != 0)
      throw std::bad_alloc();
  }

  void poison(char* block, size_t bytes) {
    const size_t first = chunk_of(block), count = chunk_of(block + bytes) - first + 1;
    protect(first, count, PROT_READ | PROT_WRITE);
    std::memset(block, kPoison, bytes);
    if (open_ == 0) protect(first, count, PROT_NONE);
  }

  size_t chunk_of(const char* address) const { return (address - start_) / kChunkBytes; }

  void hold(const char* from, const char* to) {
    for (size_t chunk = chunk_of(from); chunk <= chunk_of(to); ++chunk)
      if (++uses_[chunk] == 1 && open_ > 0) protect(chunk, 1, PROT_READ | PROT_WRITE);
  }

  // Closes a chunk for good when it holds no more blocks, and releases its memory.
  void release(const char* from, const char* to) {
    for (size_t chunk = chunk_of(from); chunk <= chunk_of(to); ++chunk) {
      if (--uses_.at(chunk) > 0) continue;
      uses_.erase(chunk);
      protect(chunk, 1, PROT_NONE);
      madvise(start_ + chunk * kChunkBytes, kChunkBytes, MADV_DONTNEED);
    }
  }

  char* const start_;
  char* next_;
  std::map<char*, Block> blocks_;
  std::map<size_t, int64_t> uses_;  // of each chunk: the number of its blocks, and the next one
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
