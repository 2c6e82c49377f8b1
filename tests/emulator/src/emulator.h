// A host executor for CUDA kernels. It runs a *_kernels.cuh file, compiled by an ordinary C++
// compiler, with CUDA's semantics of blocks, barriers, warps and shared memory.
//
// Each CUDA thread is a fiber. The warps of a block run one after another, in forward or reverse
// order. Each runs until it reaches a barrier or ends. When all wait at the same barrier, they
// continue. Within a warp, threads run in the same way from exchange to exchange. So a warp is as
// far ahead of the others as barriers allow. A missing barrier then gives a wrong result in at
// least one of the two orders. The same holds for a missing wait for an asynchronous copy. The
// executor fails on divergent barriers, and on loads and stores outside the memory that a thread
// may use (access.h). All shared arrays are separated by gaps; the dynamic memory is one array. The
// executor cannot show speed, or races that come from a relaxed memory model.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>

#include "memory.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

struct dim3 {
  unsigned int x, y, z;
  constexpr dim3(unsigned int x = 1, unsigned int y = 1, unsigned int z = 1) : x(x), y(y), z(z) {}
  constexpr uint64_t count() const { return uint64_t{x} * y * z; }
};

namespace emulator {

// The coordinates that a kernel can read of its thread.
struct Coordinates {
  dim3 thread, block, block_size, grid_size;
};
extern Coordinates current;

// A block's shared memory: the bytes of dynamic memory, and the limit of static and dynamic memory
// together.
struct SharedMemory {
  size_t dynamic_bytes;
  int64_t limit;
};

// Runs `body` in every thread of the grid. The threads may read `parameters`. Throws
// std::runtime_error where CUDA would fail or hang.
void run(dim3 grid, dim3 block, const SharedMemory& shared, const std::function<void()>& body,
         const Range& parameters);

// If true, blocks run last to first, and so do the threads within a block.
void set_reverse(bool reverse);

// `site` names a place in the source. Threads can only meet at the same site.
void block_barrier(const char* site);

// The most that a lane contributes at once: six registers, as for a matrix product.
using Contribution = std::array<uint64_t, 3>;

// Every lane in `mask` contributes a value and receives what all lanes contributed.
const Contribution* warp_exchange(uint32_t mask, const Contribution& value, const char* site);
unsigned int lane();

// sums[16][8] += a[16][k] * b[k][8] by a warp, in the fragment layouts of the PTX manual. k is 16
// half values or 8 TF32 values.
enum class MatrixType { kHalf, kBFloat16, kTf32 };
void multiply_matrices(MatrixType type, float* sums, const uint32_t* a, const uint32_t* b,
                       const char* site);

// Asynchronous copies of the running thread: 16 bytes to shared memory, zeros unless `present`.
// CUDA completes a copy at any time before wait_async_copies(n) returns, which leaves the newest n
// committed groups pending. The executor normally copies in that call, as late as possible, so that
// a missing wait gives a wrong result. With eager copies it copies at once. Then it gives a wrong
// result if the old values were still needed.
void set_eager_copies(bool eager);
void async_copy(void* to, const void* from, bool present);
void commit_async_copies();
void wait_async_copies(size_t groups);

void* shared_memory(const char* site, size_t bytes);
void* dynamic_shared_memory();

template <typename T>
Contribution to_bits(const T& value) {
  static_assert(sizeof(T) <= sizeof(Contribution));
  Contribution bits{};
  std::memcpy(bits.data(), &value, sizeof(T));
  return bits;
}

template <typename T>
T from_bits(const Contribution& bits) {
  T value;
  std::memcpy(&value, bits.data(), sizeof(T));
  return value;
}

// Returns the value of lane `source`, or the lane's own value if the shuffle leaves its segment.
template <typename T>
T shuffle(uint32_t mask, T value, int source, bool inside, const char* site) {
  const Contribution* values = warp_exchange(mask, to_bits(value), site);
  return inside ? from_bits<T>(values[source]) : value;
}

inline int segment_start(int width) { return static_cast<int>(lane()) / width * width; }

// The site is the first argument. The others are as in CUDA, which has defaults for mask and width.
template <typename T>
T shfl(const char* site, uint32_t mask, T value, int source, int width = 32) {
  return shuffle(mask, value, segment_start(width) + (source & (width - 1)), true, site);
}

template <typename T>
T shfl_up(const char* site, uint32_t mask, T value, int delta, int width = 32) {
  const int source = static_cast<int>(lane()) - delta;
  return shuffle(mask, value, source, source >= segment_start(width), site);
}

template <typename T>
T shfl_down(const char* site, uint32_t mask, T value, int delta, int width = 32) {
  const int source = static_cast<int>(lane()) + delta;
  return shuffle(mask, value, source, source < segment_start(width) + width, site);
}

template <typename T>
T shfl_xor(const char* site, uint32_t mask, T value, int lane_mask, int width = 32) {
  const int source = static_cast<int>(lane()) ^ lane_mask;
  return shuffle(mask, value, source, source < segment_start(width) + width, site);
}

// A barrier that also tells all threads of the block whether `predicate` holds in any of them.
inline int block_any(bool predicate, const char* site) {
  static int any;  // one block runs at a time
  block_barrier(site);
  any = 0;
  block_barrier(site);
  any |= predicate ? 1 : 0;
  block_barrier(site);
  return any;
}

inline void sync_warp(const char* site, uint32_t mask = 0xffffffffu) {
  warp_exchange(mask, {}, site);
}

inline uint32_t ballot(uint32_t mask, bool predicate, const char* site) {
  const Contribution* values = warp_exchange(mask, to_bits(predicate), site);
  uint32_t result = 0;
  for (int i = 0; i < 32; ++i)
    if ((mask >> i & 1) != 0 && from_bits<bool>(values[i])) result |= uint32_t{1} << i;
  return result;
}

}  // namespace emulator

#define ATROUSX_TEXT_(x) #x
#define ATROUSX_TEXT(x) ATROUSX_TEXT_(x)
#define ATROUSX_SITE __FILE__ ":" ATROUSX_TEXT(__LINE__)

// These are variables, not macros, because CUDA's own structs have members with these names.
inline const dim3& threadIdx = emulator::current.thread;
inline const dim3& blockIdx = emulator::current.block;
inline const dim3& blockDim = emulator::current.block_size;
inline const dim3& gridDim = emulator::current.grid_size;

#define ATROUSX_SHARED(type, name, count) \
  type* const name = static_cast<type*>(  \
      emulator::shared_memory(ATROUSX_SITE " " #name, sizeof(type) * static_cast<size_t>(count)))
#define ATROUSX_DYNAMIC_SHARED(type, name) \
  type* const name = static_cast<type*>(emulator::dynamic_shared_memory())

#define __syncthreads() emulator::block_barrier(ATROUSX_SITE)
#define __syncthreads_or(predicate) emulator::block_any((predicate) != 0, ATROUSX_SITE)
#define __syncwarp(...) emulator::sync_warp(ATROUSX_SITE __VA_OPT__(, ) __VA_ARGS__)
#define __shfl_sync(...) emulator::shfl(ATROUSX_SITE, __VA_ARGS__)
#define __shfl_up_sync(...) emulator::shfl_up(ATROUSX_SITE, __VA_ARGS__)
#define __shfl_down_sync(...) emulator::shfl_down(ATROUSX_SITE, __VA_ARGS__)
#define __shfl_xor_sync(...) emulator::shfl_xor(ATROUSX_SITE, __VA_ARGS__)
#define __ballot_sync(mask, predicate) emulator::ballot(mask, predicate, ATROUSX_SITE)
#define __any_sync(mask, predicate) (emulator::ballot(mask, predicate, ATROUSX_SITE) != 0)
#define __all_sync(mask, predicate) (emulator::ballot(mask, predicate, ATROUSX_SITE) == (mask))

// Only one fiber runs at a time, so an atomic is an ordinary update that returns the old value.
template <typename T>
T atomicAdd(T* address, T value) {
  const T old = *address;
  *address = old + value;
  return old;
}
template <typename T>
T atomicMax(T* address, T value) {
  const T old = *address;
  if (old < value) *address = value;
  return old;
}
template <typename T>
T atomicMin(T* address, T value) {
  const T old = *address;
  if (value < old) *address = value;
  return old;
}
template <typename T>
T atomicExch(T* address, T value) {
  const T old = *address;
  *address = value;
  return old;
}
template <typename T>
T atomicCAS(T* address, T compare, T value) {
  const T old = *address;
  if (old == compare) *address = value;
  return old;
}
inline int __popc(uint32_t x) { return __builtin_popcount(x); }
inline int __ffs(uint32_t x) { return __builtin_ffs(static_cast<int>(x)); }
