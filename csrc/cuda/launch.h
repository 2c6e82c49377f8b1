// The only way to launch a kernel. The library must also load where PyTorch has no CUDA, so it
// looks up the current stream in libtorch_cuda at run time and does not link libtorch_cuda.
#pragma once

#include <cuda_runtime.h>
#include <dlfcn.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <tuple>
#include <utility>
#include <vector>

#include <torch/csrc/stable/accelerator.h>
#include <torch/headeronly/util/Exception.h>

#include "tensor.h"

// The dispatch key that the kernels are registered for. The tests use another key: they build the
// kernels for a device in host memory.
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
  cudaGetLastError();  // otherwise the next caller would see this error
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

// The largest grid. Kernels loop over jobs beyond the grid; the tests use a small grid to run these
// loops.
#if !defined(ATROUSX_MOST_BLOCKS)
#define ATROUSX_MOST_BLOCKS (int64_t{1} << 20)
#endif
constexpr int64_t kMostBlocks = ATROUSX_MOST_BLOCKS;

constexpr int kThreads = 256;

// Number of blocks of kThreads threads for `count` items. A grid-stride loop takes any remaining
// items.
inline unsigned int grid_for(int64_t count) {
  return static_cast<unsigned int>(min_of(ceil_div<int64_t>(count, kThreads), kMostBlocks));
}

// Number of blocks for `jobs` jobs. The kernel loops over any remaining jobs.
inline unsigned int job_grid(int64_t jobs) {
  return static_cast<unsigned int>(min_of(jobs, kMostBlocks));
}

inline int device_attribute(cudaDeviceAttr attribute, int32_t device) {
  int value = 0;
  check_cuda(cudaDeviceGetAttribute(&value, attribute, device), "device attribute");
  return value;
}

// An address, or a struct of addresses, together with the tensors that own the memory. A launch
// accepts addresses only in this form, so the memory stays allocated until the launch returns.
// After that PyTorch's allocator reuses the memory only for later work on the same stream. Only the
// functions below can create a Held, always together with its owners.
template <typename Value, typename Owners = std::optional<Tensor>>
class Held {
 public:
  const Value& value() const { return value_; }

 private:
  Held(const Value& value, const Owners& owners) : value_(value), owners_(owners) {}

  Value value_;
  Owners owners_;

  template <typename T>
  friend Held<const T*> reads(const std::optional<Tensor>& t);
  template <typename T>
  friend Held<T*> writes(const std::optional<Tensor>& t);
  template <typename T>
  friend Held<T*> operator+(const Held<T*>& memory, int64_t elements);
  template <typename Make, typename... Values, typename... OtherOwners>
  friend auto combine(const Make& make, const Held<Values, OtherOwners>&... parts);
  template <typename Make, typename T>
  friend auto combine(const Make& make, const std::vector<Held<T*>>& parts);
  friend class Arena;
};

template <typename T>
Held<const T*> reads(const std::optional<Tensor>& t) {
  return {data<T>(t), t};
}

template <typename T>
Held<T*> writes(const std::optional<Tensor>& t) {
  return {t.has_value() ? static_cast<T*>(t->mutable_data_ptr()) : nullptr, t};
}

template <typename T>
Held<T*> operator+(const Held<T*>& memory, int64_t elements) {
  return {memory.value_ + elements, memory.owners_};
}

// Builds a struct of addresses with `make`, and keeps the owners of all of them.
template <typename Make, typename... Values, typename... OtherOwners>
auto combine(const Make& make, const Held<Values, OtherOwners>&... parts) {
  using Value = decltype(make(parts.value_...));
  return Held<Value, std::tuple<OtherOwners...>>(make(parts.value_...), {parts.owners_...});
}

template <typename Make, typename T>
auto combine(const Make& make, const std::vector<Held<T*>>& parts) {
  std::vector<T*> values;
  std::vector<std::optional<Tensor>> owners;
  for (const Held<T*>& part : parts) {
    values.push_back(part.value_);
    owners.push_back(part.owners_);
  }
  return Held<decltype(make(values)), std::vector<std::optional<Tensor>>>(make(values), owners);
}

// Owns memory for several launches whose kernels take structs of many addresses. It lends only
// addresses inside tensors that it owns.
class Arena {
 public:
  explicit Arena(const Tensor& like) : like_(like) {}
  Arena(const Arena&) = delete;

  // Returns null if there is no tensor.
  template <typename T>
  const T* reads(const std::optional<Tensor>& t) {
    return t.has_value() ? static_cast<const T*>(own(*t, atrousx::data<T>(*t))) : nullptr;
  }

  template <typename T>
  T* writes(const Tensor& t) {
    void* const start = t.mutable_data_ptr();
    own(t, start);
    return static_cast<T*>(start);
  }

  // Allocates new, uninitialised memory.
  template <typename T>
  T* take(int64_t count) {
    const int64_t bytes = max_of<int64_t>(1, count) * static_cast<int64_t>(sizeof(T));
    return writes<T>(
        torch::stable::empty({&bytes, 1}, ScalarType::Byte, std::nullopt, like_.device()));
  }

  template <typename T>
  Held<T*, const Arena&> lend(T* address) const {
    STD_TORCH_CHECK(address == nullptr || owns(address),
                    "atrousx: an address that the arena does not own");
    return {address, *this};
  }

  // For numbers, and for structs of the addresses above.
  template <typename T>
  Held<T, const Arena&> lend(const T& value) const {
    return {value, *this};
  }

 private:
  struct Owned {
    Tensor tensor;
    const char *begin, *end;
  };

  const void* own(const Tensor& t, const void* start) {
    const auto* const begin = static_cast<const char*>(start);
    owned_.push_back({t, begin, begin + t.numel() * static_cast<int64_t>(t.element_size())});
    return start;
  }

  bool owns(const void* address) const {
    const auto* const at = static_cast<const char*>(address);
    return std::any_of(owned_.begin(), owned_.end(),
                       [&](const Owned& o) { return at >= o.begin && at <= o.end; });
  }

  const Tensor like_;
  std::vector<Owned> owned_;
};

// Arguments that may be passed by value: numbers, enums, and structs that declare HoldsNoAddress.
template <typename T>
concept PlainArgument =
    std::is_arithmetic_v<T> || std::is_enum_v<T> || requires { typename T::HoldsNoAddress; };

template <PlainArgument T>
const T& passed(const T& value) {
  return value;
}

template <typename Value, typename Owners>
const Value& passed(const Held<Value, Owners>& held) {
  return held.value();
}

// The configuration of a launch. `name` appears in error messages.
struct Launch {
  const char* name;
  unsigned int blocks;
  unsigned int threads;
  cudaStream_t stream;
  int64_t shared_bytes = 0;  // dynamic shared memory
};

// CUDA forbids a thread to load code while a stream is captured. In relaxed mode the thread
// declares that the graph does not depend on it.
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

// Loads the kernel's code, which CUDA would otherwise do at the first launch, and raises its limit
// of dynamic shared memory. The default limit is 48 KiB, static memory included. Both are done once
// for a kernel and device. Returns the compute capability that the code was compiled for, times 10.
template <typename... Parameters>
int prepare(void (*kernel)(Parameters...), int64_t shared_bytes, const char* name) {
  struct Prepared {
    int64_t shared_bytes;
    int capability;
  };
  static std::mutex mutex;
  static std::map<std::pair<void (*)(Parameters...), int>, Prepared> prepared;
  int device = 0;
  check_cuda(cudaGetDevice(&device), "the current device");
  const std::lock_guard lock(mutex);
  const auto found = prepared.find({kernel, device});
  if (found != prepared.end() && shared_bytes <= found->second.shared_bytes)
    return found->second.capability;
  const CaptureAllowsLoading guard;
  cudaFuncAttributes attributes{};
  check_cuda(cudaFuncGetAttributes(&attributes, kernel), name);
  if (shared_bytes > 0)
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(shared_bytes)),
               name);
  prepared[{kernel, device}] = {shared_bytes, attributes.ptxVersion};
  return attributes.ptxVersion;
}

template <typename T>
concept LaunchArgument = requires(const T& argument) { passed(argument); };

template <typename... Parameters, LaunchArgument... Arguments>
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
