// The one way to launch a kernel, from a library that also loads where PyTorch has no CUDA: the
// current stream is looked up in libtorch_cuda at run time, never linked.
#pragma once

#include <cuda_runtime.h>
#include <dlfcn.h>

#include <map>
#include <mutex>
#include <utility>

#include <torch/csrc/stable/accelerator.h>
#include <torch/headeronly/util/Exception.h>

#include "tensor.h"

// The dispatch key that the kernels are registered for. The tests build them for a device in host
// memory, which has another.
#if !defined(ATROUSX_CUDA_KEY)
#define ATROUSX_CUDA_KEY CUDA
#endif

namespace atrousx {

inline cudaStream_t current_stream(int32_t device) {
  using Getter = int32_t (*)(int32_t, void**);
  static const Getter get = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_NOW);
    return reinterpret_cast<Getter>(
        dlsym(library == nullptr ? RTLD_DEFAULT : library, "aoti_torch_get_current_cuda_stream"));
  }();
  STD_TORCH_CHECK(get != nullptr, "atrousx: this PyTorch was built without CUDA");
  void* stream = nullptr;
  STD_TORCH_CHECK(get(device, &stream) == 0, "atrousx: no current CUDA stream");
  return static_cast<cudaStream_t>(stream);
}

inline void check_cuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // or whoever asks next would take it for an error of their own
  STD_TORCH_CHECK(false, "atrousx: ", what, ": ", cudaGetErrorString(error));
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

// The largest grid. Kernels take in turn what a grid leaves, which the tests see by a small one.
#if !defined(ATROUSX_MOST_BLOCKS)
#define ATROUSX_MOST_BLOCKS (int64_t{1} << 20)
#endif
constexpr int64_t kMostBlocks = ATROUSX_MOST_BLOCKS;

constexpr int kThreads = 256;

// Blocks of kThreads for `count` items in a grid-stride loop; the loop takes what the grid leaves.
inline unsigned int grid_for(int64_t count) {
  return static_cast<unsigned int>(min_of(ceil_div<int64_t>(count, kThreads), kMostBlocks));
}

// Blocks for `jobs`, whose kernel takes in turn what the grid leaves.
inline unsigned int job_grid(int64_t jobs) {
  return static_cast<unsigned int>(min_of(jobs, kMostBlocks));
}

inline int device_attribute(cudaDeviceAttr attribute, int32_t device) {
  int value = 0;
  check_cuda(cudaDeviceGetAttribute(&value, attribute, device), "device attribute");
  return value;
}

// An address, or a struct of addresses, together with the tensors whose memory is meant. A launch
// takes addresses in this form alone: what it reads and writes is owned until it returns. After
// that PyTorch's allocator gives the memory to later work of the same stream only.
template <typename Value, typename Owners = std::optional<Tensor>>
struct Held {
  Value value;
  Owners owners;
};

template <typename T>
Held<const T*> reads(const std::optional<Tensor>& t) {
  return {t.has_value() ? data<T>(*t) : nullptr, t};
}

template <typename T>
Held<T*> writes(const std::optional<Tensor>& t) {
  return {t.has_value() ? static_cast<T*>(t->mutable_data_ptr()) : nullptr, t};
}

template <typename T>
Held<T*> operator+(const Held<T*>& memory, int64_t elements) {
  return {memory.value + elements, memory.owners};
}

// What a kernel may be given by value: numbers, and structs which say that they hold no address.
template <typename T>
concept PlainArgument =
    std::is_arithmetic_v<T> || std::is_enum_v<T> || requires { typename T::HoldsNoAddress; };

template <PlainArgument T>
const T& passed(const T& value) {
  return value;
}

template <typename Value, typename Owners>
const Value& passed(const Held<Value, Owners>& held) {
  return held.value;
}

// Where and how wide a kernel runs, and what an error calls it.
struct Launch {
  const char* name;
  unsigned int blocks;
  unsigned int threads;
  cudaStream_t stream;
  int64_t shared_bytes = 0;  // dynamic shared memory
};

// Loading code is one of the things that a thread must not do while a stream is captured, unless it
// says that the graph does not depend on it.
class CaptureAllowsLoading {
 public:
  CaptureAllowsLoading() { exchange(); }
  ~CaptureAllowsLoading() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  CaptureAllowsLoading(const CaptureAllowsLoading&) = delete;

 private:
  void exchange() {
    check_cuda(cudaThreadExchangeStreamCaptureMode(&mode_), "mode of a stream's capture");
  }
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

// Once for a kernel and device: loads the kernel's code, which CUDA would else do at the first
// launch, and lets it have its dynamic shared memory. Without being told, CUDA allows 48 KiB,
// static memory included.
template <typename... Parameters>
void prepare(void (*kernel)(Parameters...), int64_t shared_bytes, const char* name) {
  static std::mutex mutex;
  static std::map<std::pair<void (*)(Parameters...), int>, int64_t> allowed;
  int device = 0;
  check_cuda(cudaGetDevice(&device), "the current device");
  const std::lock_guard lock(mutex);
  const auto found = allowed.find({kernel, device});
  if (found != allowed.end() && shared_bytes <= found->second) return;
  const CaptureAllowsLoading guard;
  cudaFuncAttributes attributes{};
  check_cuda(cudaFuncGetAttributes(&attributes, kernel), name);
  if (shared_bytes > 0)
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(shared_bytes)),
               name);
  allowed[{kernel, device}] = shared_bytes;
}

template <typename... Parameters, typename... Arguments>
void launch(const Launch& at, void (*kernel)(Parameters...), const Arguments&... arguments) {
  prepare(kernel, at.shared_bytes, at.name);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(at.blocks);
  config.blockDim = dim3(at.threads);
  config.dynamicSmemBytes = static_cast<size_t>(at.shared_bytes);
  config.stream = at.stream;
  check_cuda(cudaLaunchKernelEx(&config, kernel, passed(arguments)...), at.name);
}

}  // namespace atrousx
