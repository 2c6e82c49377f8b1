// The part of an operator that uses torch: dtype dispatch, memory format, allocation. It uses only
// the stable ABI, so one binary works with torch 2.11 and later and with every Python version.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include "checked.h"
#include "portable.h"

namespace atrousx {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Calls f with a value of the C++ type of a floating dtype:
//   dispatch_floating(t.scalar_type(), [&](auto zero) { using T = decltype(zero); ... });
template <typename F>
void dispatch_floating(ScalarType dtype, F&& f) {
  switch (dtype) {
    case ScalarType::Float:
      return f(float{});
    case ScalarType::Double:
      return f(double{});
    case ScalarType::Half:
      return f(Half{});
    case ScalarType::BFloat16:
      return f(BFloat16{});
    default:
      STD_TORCH_CHECK(false, "atrousx: dtype must be float32, float64, float16 or bfloat16");
  }
}

template <typename T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

// Returns null if there is no tensor.
template <typename T>
const T* data(const std::optional<Tensor>& t) {
  return t.has_value() ? data<T>(*t) : nullptr;
}

template <typename T>
T* mutable_data(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

inline Strides4 strides4(const Tensor& t) {
  return {t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

// Whether PyTorch takes a 4-D tensor for channels_last by its strides: C is fastest, then W, H, N.
// Ambiguous shapes count as contiguous. Source: c10::is_channels_last_strides_2d.
inline bool is_channels_last(const Tensor& t) {
  int64_t smallest = 0;  // the smallest stride that the next dimension may have
  if (t.dim() != 4 || t.stride(1) == 0) return false;
  for (int dim : {1, 3, 2, 0}) {
    const int64_t size = t.size(dim), stride = t.stride(dim);
    if (size == 0 || stride < smallest) return false;
    if (dim == 0 && smallest == t.stride(1)) return false;
    smallest = stride;
    if (size > 1) smallest *= size;
  }
  return true;
}

inline MemoryFormat memory_format(bool channels_last) {
  return channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

// Returns a new, uninitialised 4-D tensor with the dtype and device of `like`. It calls the C shim,
// because the dispatcher costs a microsecond. Resampling a small map takes no longer than that.
inline Tensor empty4(const Tensor& like, const std::array<int64_t, 4>& size, bool channels_last) {
  std::array<int64_t, 4> strides{};
  checked_numel(size);
  int64_t next = 1;
  for (const int dim : channels_last ? std::array{1, 3, 2, 0} : std::array{3, 2, 1, 0}) {
    strides[dim] = next;
    next *= channels_last ? size[dim] : std::max<int64_t>(1, size[dim]);  // as PyTorch does
  }
  int32_t dtype, device, index;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &index));
  AtenTensorHandle result;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(4, size.data(), strides.data(), dtype, device, index, &result));
  return Tensor(result);
}

// Returns the tensor with dense elements in NCHW or channels_last order. Copies only if needed.
inline Tensor dense4(const Tensor& t, bool channels_last) {
  int64_t expected = 1;
  bool dense = true;
  for (const int dim : channels_last ? std::array{1, 3, 2, 0} : std::array{3, 2, 1, 0}) {
    dense = dense && (t.size(dim) == 1 || t.stride(dim) == expected);
    expected *= t.size(dim);
  }
  return dense ? t : torch::stable::contiguous(t, memory_format(channels_last));
}

// The Python wrapper checks arguments first and has the helpful messages. The checks in C++ only
// keep a direct call of torch.ops.atrousx.* from reading out of bounds.
inline void check_rank4(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.dim() == 4, name, " must have 4 dimensions [N, C, H, W], got ", t.dim());
}

// Checks the arguments of a call one after the other, with optional tensors and lists of tensors.
// It throws at the first tensor that is on another device than the tensors before it. A kernel
// would otherwise use an address of another device.
class OneDevice {
 public:
  template <typename T>
  void see(const T&) {
    ++seen_;  // not a tensor
  }
  void see(const Tensor& t) {
    ++seen_;
    check(t);
  }
  void see(const std::optional<Tensor>& t) {
    ++seen_;
    if (t.has_value()) check(*t);
  }
  void see(const std::vector<Tensor>& tensors) {
    ++seen_;
    for (const Tensor& t : tensors) check(t);
  }

 private:
  void check(const Tensor& t) {
    std::pair<int32_t, int32_t> device;  // type, index
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t.get(), &device.first));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(t.get(), &device.second));
    if (!device_.has_value()) device_ = device;
    STD_TORCH_CHECK(device == *device_, "atrousx: all tensors must be on one device, argument ",
                    seen_, " is not on that of the tensors before it");
  }

  int seen_ = 0;
  std::optional<std::pair<int32_t, int32_t>> device_;
};

template <auto kKernel>
struct OnOneDevice;

template <typename Result, typename... Arguments, Result (*kKernel)(Arguments...)>
struct OnOneDevice<kKernel> {
  static Result call(Arguments... arguments) {
    OneDevice devices;
    (devices.see(arguments), ...);
    return kKernel(std::forward<Arguments>(arguments)...);
  }
};

}  // namespace atrousx

// TORCH_BOX for every kernel of an operator. It checks the devices of all tensors before the kernel
// runs. It finds the tensors by the types of the arguments, so no operator can forget one.
#define ATROUSX_BOX(kernel) TORCH_BOX((&atrousx::OnOneDevice<&kernel>::call))
