// What a *_kernels.cuh file needs: CUDA itself under nvcc, the host executor of tests/emulator
// under any other compiler. Kernels take raw pointers and sizes, so the same file runs in both
// places.
#pragma once

#include "portable.h"

#if defined(__CUDACC__)
// Shared memory is declared through these macros because the host executor gives every array its
// own heap block: exact bounds under AddressSanitizer, and a poisoned start for every thread block.
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

// Linear index of this thread in the grid and the number of threads in it: the grid-stride loop
//   for (int64_t i = global_thread(); i < count; i += global_threads())
// covers any count with any grid.
__device__ __forceinline__ int64_t global_thread() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

__device__ __forceinline__ int64_t global_threads() {
  return static_cast<int64_t>(gridDim.x) * blockDim.x;
}

}  // namespace atrousx
