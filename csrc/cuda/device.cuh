// The header that every *_kernels.cuh file needs: CUDA under nvcc, the host executor of
// tests/emulator under any other compiler. Kernels take raw pointers and sizes, so the same file
// runs in both.
#pragma once

#include "portable.h"

#if defined(__CUDACC__)
// Shared memory is declared through these macros so that the host executor can allocate each array
// separately. It then detects out-of-bounds accesses, and poisons each array when a thread block
// starts.
#define ATROUSX_SHARED(type, name, count) __shared__ type name[count]
#define ATROUSX_DYNAMIC_SHARED(type, name)                                 \
  extern __shared__ __align__(128) unsigned char atrousx_dynamic_shared[]; \
  type* name = reinterpret_cast<type*>(atrousx_dynamic_shared)
// Before a loop whose counter indexes an array that must stay in registers.
#define ATROUSX_UNROLL _Pragma("unroll")
#define ATROUSX_TEXT(x) #x
#define ATROUSX_UNROLL_BY(count) _Pragma(ATROUSX_TEXT(unroll(count)))
#else
#include "emulator.h"
#define ATROUSX_UNROLL
#define ATROUSX_UNROLL_BY(count) static_assert((count) > 0);
#endif

namespace atrousx {

// The largest shared memory of a block, static plus dynamic, by compute capability. Source: the
// table of technical specifications in the CUDA programming guide. A capability that is not in the
// table gets the smallest limit.
struct SharedLimit {
  int capability, bytes;
};
constexpr int kLeastSharedLimit = 99 * 1024;
constexpr SharedLimit kSharedLimits[] = {
    {750, 64 * 1024},   {800, 163 * 1024},  {860, 99 * 1024},  {870, 163 * 1024},
    {880, 99 * 1024},   {890, 99 * 1024},   {900, 227 * 1024}, {1000, 227 * 1024},
    {1030, 227 * 1024}, {1100, 227 * 1024}, {1200, 99 * 1024}, {1210, 99 * 1024},
};
constexpr int shared_limit(int capability) {
  for (const SharedLimit& limit : kSharedLimits)
    if (limit.capability == capability) return limit.bytes;
  return kLeastSharedLimit;
}

// The limit of the GPU that this code is compiled for. It does not apply in nvcc's host pass, nor
// before 8.0: those GPUs never run the kernels that need much (ptx.cuh). The tests check against
// the smallest limit of all.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
constexpr int kSharedLimit = shared_limit(__CUDA_ARCH__);
#elif defined(__CUDACC__)
constexpr int kSharedLimit = INT32_MAX;
#else
constexpr int kSharedLimit = kLeastSharedLimit;
#endif

// Linear index of this thread in the grid, and the number of threads in the grid. The grid-stride
// loop
//   for (int64_t i = global_thread(); i < count; i += global_threads())
// covers any count with any grid.
__device__ __forceinline__ int64_t global_thread() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

__device__ __forceinline__ int64_t global_threads() {
  return static_cast<int64_t>(gridDim.x) * blockDim.x;
}

}  // namespace atrousx
