// The part of CUDA's runtime that the launchers use, on the host executor. With it an ordinary C++
// compiler compiles the `*.cu` files. Kernels run immediately, on the calling thread. There is only
// one stream. A call fails here if CUDA would refuse it for the chosen GPU (gpu.h).
#pragma once

#include <tuple>
#include <utility>

#include "emulator.h"

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorIllegalAddress = 700,
  cudaErrorLaunchFailure = 719,
  cudaErrorStreamCaptureUnsupported = 900,
};
using cudaStream_t = void*;

enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal, cudaStreamCaptureModeRelaxed = 2 };

struct cudaFuncAttributes {
  int ptxVersion;
};

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

namespace emulator {

// Implements cudaFuncSetAttribute: allows a kernel this much dynamic shared memory, in bytes.
cudaError_t allow_shared_memory(const void* kernel, int bytes);

// Loads a kernel's code. Fails while a stream is captured, unless the thread has allowed it.
cudaError_t load(const void* kernel);

// A kernel and its arguments. Both lie in `memory`, which a thread may read.
struct Call {
  const void* kernel;
  void (*run)(const void* memory);
  Range memory;
};

// Checks what CUDA checks before a launch, then runs the call in every thread.
cudaError_t launch_checked(const Call& call, const cudaLaunchConfig_t& config);

}  // namespace emulator

cudaError_t cudaGetLastError();  // also clears the error
const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode);

template <typename... Parameters>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, void (*kernel)(Parameters...)) {
  attributes->ptxVersion = 80;
  return emulator::load(reinterpret_cast<const void*>(kernel));
}

template <typename... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute, int value) {
  return emulator::allow_shared_memory(reinterpret_cast<const void*>(kernel), value);
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  using Bound = std::pair<void (*)(Parameters...), std::tuple<Parameters...>>;
  const Bound bound(kernel, {std::forward<Arguments>(arguments)...});
  const auto run = [](const void* memory) {
    const auto& [function, parameters] = *static_cast<const Bound*>(memory);
    std::apply(function, parameters);
  };
  return emulator::launch_checked(
      {reinterpret_cast<const void*>(kernel), run, {&bound, sizeof(bound)}}, *config);
}
