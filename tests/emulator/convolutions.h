// What the bindings of atrous_conv2d's kernels share.
#pragma once

#include "arrays.h"
#include "atrous_conv2d/atrous_conv2d_kernels.cuh"

namespace emulator {

using Pair = std::array<int64_t, 2>;

// What every pass takes beside its arrays. blocks: size of the grid, less than there are jobs, so
// that blocks take several.
struct ConvOptions {
  Pair stride, padding, dilation;
  int64_t groups;
  bool channels_last;
  unsigned int blocks;
};

template <typename T>
std::array<int64_t, 4> sizes(const Tensor4<T>& t) {
  return {t.size(0), t.size(1), t.size(2), t.size(3)};
}

inline atrousx::ConvGeometry geometry(const std::array<int64_t, 4>& input,
                                      const std::array<int64_t, 4>& weight, const Pair& output,
                                      const ConvOptions& o) {
  return {input[0],     input[1],     input[2],      input[3],     weight[0],   weight[2],
          weight[3],    o.groups,     output[0],     output[1],    o.stride[0], o.stride[1],
          o.padding[0], o.padding[1], o.dilation[0], o.dilation[1]};
}

// A bias that may be missing, as an epilogue's.
template <typename T>
class Bias {
 public:
  explicit Bias(const std::optional<py::array>& bias)
      : given_(bias.has_value()), values_(bias ? Buffer<T>(*bias) : Buffer<T>(size_t{0})) {}
  const T* data() { return given_ ? values_.data() : nullptr; }

 private:
  bool given_;
  Buffer<T> values_;
};

// A grad-weight [K, C / groups, KH, KW] by a kernel that writes parts - multiply(shape, y, x,
// parts) launches it - and the one that sums them.
template <typename T, typename F>
py::array sum_of_parts(const py::array& grad_output, const py::array& input, const Pair& taps,
                       int64_t splits, bool weight_channels_last, const ConvOptions& o,
                       F&& multiply) {
  Tensor4<T> y(grad_output, o.channels_last), x(input, o.channels_last);
  Tensor4<T> w({y.size(1), x.size(1) / o.groups, taps[0], taps[1]}, weight_channels_last);
  const atrousx::GatherShape shape =
      geometry(sizes(x), sizes(w), {y.size(2), y.size(3)}, o).forward();
  Buffer<atrousx::Accumulate<T>> parts(splits * w.size(0) * w.size(1) * taps[0] * taps[1]);
  multiply(shape, y, x, parts.data());
  launch(o.blocks, 64, 0, atrousx::atrous_conv2d_sum_parts_kernel<T>, parts.data(), w.data(),
         splits, shape, w.strides());
  return w.to_array(grad_output.dtype());
}

}  // namespace emulator
