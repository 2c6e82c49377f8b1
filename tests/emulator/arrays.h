// NumPy arrays for host-executed kernels. Inputs are copied into heap blocks of exactly their size
// and outputs start poisoned, so that AddressSanitizer sees every access out of bounds and a test
// sees every element that was not written.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <memory>
#include <string>

#include "portable.h"

namespace emulator {

namespace py = pybind11;

// Calls f with a value of the C++ type behind an array's dtype. NumPy has no bfloat16: uint16 holds
// its bits.
template <typename F>
auto dispatch_floating(const py::array& array, F&& f) {
  const std::string name = py::str(array.dtype().attr("name"));
  if (name == "float32") return f(float{});
  if (name == "float64") return f(double{});
  if (name == "float16") return f(atrousx::Half{});
  if (name == "uint16") return f(atrousx::BFloat16{});
  throw py::type_error("unexpected dtype " + name);
}

template <typename T>
class Buffer {
 public:
  explicit Buffer(size_t count) : count_(count), data_(new unsigned char[count * sizeof(T)]) {
    std::memset(data_.get(), 0xff, count * sizeof(T));
  }
  explicit Buffer(const py::array& array) : Buffer(static_cast<size_t>(array.size())) {
    if (static_cast<size_t>(array.itemsize()) != sizeof(T)) throw py::type_error("item size");
    const py::array dense = py::array::ensure(array, py::array::c_style);
    std::memcpy(data_.get(), dense.data(), count_ * sizeof(T));
  }

  T* data() { return reinterpret_cast<T*>(data_.get()); }
  size_t size() const { return count_; }

  py::array to_array(const std::vector<py::ssize_t>& shape, const py::dtype& dtype) const {
    py::array result(dtype, shape);
    std::memcpy(result.mutable_data(), data_.get(), count_ * sizeof(T));
    return result;
  }

 private:
  size_t count_;
  std::unique_ptr<unsigned char[]> data_;
};

// A 4-D array in either memory format, as a kernel sees a tensor.
template <typename T>
class Tensor4 {
 public:
  Tensor4(const std::array<int64_t, 4>& size, bool channels_last)
      : size_(size), buffer_(size[0] * size[1] * size[2] * size[3]) {
    const auto [n, c, h, w] = size;
    strides_ = channels_last ? atrousx::Strides4{h * w * c, 1, w * c, c}
                             : atrousx::Strides4{c * h * w, h * w, w, 1};
  }
  Tensor4(const py::array& array, bool channels_last)
      : Tensor4({array.shape(0), array.shape(1), array.shape(2), array.shape(3)}, channels_last) {
    copy(py::array::ensure(array, py::array::c_style), true);
  }

  T* data() { return buffer_.data(); }
  const atrousx::Strides4& strides() const { return strides_; }
  int64_t size(int dim) const { return size_[dim]; }

  py::array to_array(const py::dtype& dtype) {
    py::array result(dtype, std::vector<py::ssize_t>(size_.begin(), size_.end()));
    copy(result, false);
    return result;
  }

 private:
  void copy(const py::array& array, bool from_array) {
    const auto [n, c, h, w] = size_;
    auto* dense = static_cast<T*>(const_cast<void*>(array.data()));
    for (int64_t i = 0; i < n * c * h * w; ++i) {
      T& element = data()[strides_.offset(i / (c * h * w), i / (h * w) % c, i / w % h, i % w)];
      from_array ? element = dense[i] : dense[i] = element;
    }
  }

  std::array<int64_t, 4> size_;
  atrousx::Strides4 strides_;
  Buffer<T> buffer_;
};

}  // namespace emulator
