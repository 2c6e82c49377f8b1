// Launching kernels from a library that also loads where PyTorch has no CUDA: the current stream is
// looked up in libtorch_cuda at run time, never linked.
#pragma once

#include <cuda_runtime.h>
#include <dlfcn.h>

#include <torch/csrc/stable/accelerator.h>
#include <torch/headeronly/util/Exception.h>

#include "portable.h"

namespace atrousx {

inline cudaStream_t current_stream(int32_t device) {
  using Getter = int32_t (*)(int32_t, void**);
  static const Getter get = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_NOW);
    return library == nullptr
               ? nullptr
               : reinterpret_cast<Getter>(dlsym(library, "aoti_torch_get_current_cuda_stream"));
  }();
  STD_TORCH_CHECK(get != nullptr, "atrousx: this PyTorch was built without CUDA");
  void* stream = nullptr;
  STD_TORCH_CHECK(get(device, &stream) == 0, "atrousx: no current CUDA stream");
  return static_cast<cudaStream_t>(stream);
}

inline void check_cuda(cudaError_t error, const char* what) {
  STD_TORCH_CHECK(error == cudaSuccess, "atrousx: ", what, ": ", cudaGetErrorString(error));
}

// Makes a tensor's device current for the life of the object and names its stream.
class LaunchContext {
 public:
  explicit LaunchContext(int32_t device) : guard_(device), stream_(current_stream(device)) {}
  cudaStream_t stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
};

constexpr int kThreads = 256;

// Blocks of kThreads for `count` items in a grid-stride loop; the loop takes what the grid leaves.
inline unsigned int grid_for(int64_t count) {
  constexpr int64_t kMaxBlocks = int64_t{1} << 20;
  return static_cast<unsigned int>(min_of(ceil_div<int64_t>(count, kThreads), kMaxBlocks));
}

// Blocks for `jobs`, whose kernel takes in turn what the grid leaves.
inline unsigned int job_grid(int64_t jobs) {
  return static_cast<unsigned int>(min_of(jobs, int64_t{1} << 20));
}

inline int device_attribute(cudaDeviceAttr attribute, int32_t device) {
  int value = 0;
  check_cuda(cudaDeviceGetAttribute(&value, attribute, device), "device attribute");
  return value;
}

// Lets a kernel ask for more dynamic shared memory than every kernel may.
template <typename Kernel>
void allow_shared_memory(Kernel* kernel, int64_t bytes) {
  constexpr int64_t kEveryKernelMay = 48 * 1024;
  if (bytes <= kEveryKernelMay) return;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(bytes)),
             "shared memory of a kernel");
}

}  // namespace atrousx
