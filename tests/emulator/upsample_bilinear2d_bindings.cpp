// Host-executed kernels and plan of upsample_bilinear2d.
#include "arrays.h"
#include "upsample_bilinear2d/upsample_bilinear2d_kernels.cuh"

namespace {

namespace py = pybind11;
using Pair = std::array<int64_t, 2>;

template <typename T>
atrousx::BilinearPlan<atrousx::Accumulate<T>> make_plan(const Pair& in, const Pair& out,
                                                        bool align_corners) {
  using Axis = atrousx::BilinearAxis<atrousx::Accumulate<T>>;
  return {Axis::make(in[0], out[0], align_corners, std::nullopt),
          Axis::make(in[1], out[1], align_corners, std::nullopt)};
}

py::array forward(const py::array& input, const Pair& size, bool align_corners, bool channels_last,
                  unsigned int blocks) {
  return emulator::dispatch_floating(input, [&](auto zero) {
    using T = decltype(zero);
    emulator::Tensor4<T> in(input, channels_last);
    emulator::Tensor4<T> out({in.size(0), in.size(1), size[0], size[1]}, channels_last);
    emulator::launch(blocks, 64, 0,
                     channels_last ? atrousx::upsample_bilinear2d_forward_kernel<T, true>
                                   : atrousx::upsample_bilinear2d_forward_kernel<T, false>,
                     in.data(), out.data(), in.size(0), in.size(1),
                     make_plan<T>({in.size(2), in.size(3)}, size, align_corners), in.strides(),
                     out.strides());
    return out.to_array(input.dtype());
  });
}

py::array backward(const py::array& grad_output, const Pair& size, bool align_corners,
                   bool channels_last, unsigned int blocks) {
  return emulator::dispatch_floating(grad_output, [&](auto zero) {
    using T = decltype(zero);
    emulator::Tensor4<T> out(grad_output, channels_last);
    emulator::Tensor4<T> in({out.size(0), out.size(1), size[0], size[1]}, channels_last);
    emulator::launch(blocks, 64, 0,
                     channels_last ? atrousx::upsample_bilinear2d_backward_kernel<T, true>
                                   : atrousx::upsample_bilinear2d_backward_kernel<T, false>,
                     out.data(), in.data(), in.size(0), in.size(1),
                     make_plan<T>(size, {out.size(2), out.size(3)}, align_corners), out.strides(),
                     in.strides());
    return in.to_array(grad_output.dtype());
  });
}

}  // namespace

void bind_upsample_bilinear2d(py::module_& m) {
  m.def("upsample_bilinear2d_forward", &forward);
  m.def("upsample_bilinear2d_backward", &backward);
  // (lower, upper, weight) of every output, and the outputs with a weight at every input.
  m.def("bilinear_taps", [](int64_t in, int64_t out, bool align_corners,
                            std::optional<double> scale_factor) {
    const auto axis = atrousx::BilinearAxis<float>::make(in, out, align_corners, scale_factor);
    py::list taps;
    for (int64_t o = 0; o < out; ++o) {
      const auto tap = axis.tap(o);
      taps.append(py::make_tuple(tap.lower, tap.upper, tap.weight));
    }
    return taps;
  });
  m.def("bilinear_readers", [](int64_t in, int64_t out, bool align_corners,
                               std::optional<double> scale_factor) {
    const auto axis = atrousx::BilinearAxis<float>::make(in, out, align_corners, scale_factor);
    py::list readers;
    for (int64_t i = 0; i < in; ++i) {
      const auto range = axis.readers(i);
      readers.append(py::make_tuple(range.first, range.last));
    }
    return readers;
  });
  m.def("strides4_offset",
        [](const std::array<int64_t, 4>& strides, const std::array<int64_t, 4>& index) {
          return atrousx::Strides4{strides[0], strides[1], strides[2], strides[3]}.offset(
              index[0], index[1], index[2], index[3]);
        });
  m.def("position_of", [](int64_t index, int64_t channels, int64_t height, int64_t width,
                          bool channels_last) {
    const auto p = channels_last ? atrousx::position_of<true>(index, channels, height, width)
                                 : atrousx::position_of<false>(index, channels, height, width);
    return std::array<int64_t, 4>{p.n, p.c, p.h, p.w};
  });
}
