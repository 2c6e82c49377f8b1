// Host-executed kernels and plan of upsample_bilinear2d.
#include "arrays.h"
#include "upsample_bilinear2d/upsample_bilinear2d_backward_kernels.cuh"

namespace {

namespace py = pybind11;
using Pair = std::array<int64_t, 2>;

template <typename T>
atrousx::BilinearPlan<atrousx::Accumulate<T>> make_plan(const Pair& in, const Pair& out,
                                                        bool align_corners,
                                                        std::optional<double> factor = {}) {
  using Axis = atrousx::BilinearAxis<atrousx::Accumulate<T>>;
  return {Axis::make(in[0], out[0], align_corners, factor),
          Axis::make(in[1], out[1], align_corners, factor)};
}

// Maps, and the numbers that lie side by side in each, as the launcher sees them.
template <typename T>
struct Layout {
  int64_t maps, pixel;
  Layout(const emulator::Tensor4<T>& t, bool channels_last)
      : maps(channels_last ? t.size(0) : t.size(0) * t.size(1)),
        pixel(channels_last ? t.size(1) : 1) {}
};

template <int kVector, typename T>
void run_forward(emulator::Tensor4<T>& in, emulator::Tensor4<T>& out, const Layout<T>& layout,
                 bool align_corners, unsigned int blocks) {
  const auto plan =
      make_plan<T>({in.size(2), in.size(3)}, {out.size(2), out.size(3)}, align_corners);
  const auto jobs =
      atrousx::ForwardJobs::make(layout.maps, out.size(2), out.size(3) * layout.pixel, kVector);
  emulator::launch(blocks, atrousx::kForwardThreads, 0,
                   atrousx::upsample_bilinear2d_forward_kernel<T, kVector>, in.data(), out.data(),
                   jobs, layout.pixel, plan);
}

// The dtypes that differ in their vectors and their rounding: others would only take time to
// compile.
template <typename F>
py::array dispatch(const py::array& array, F&& f) {
  const std::string name = py::str(array.dtype().attr("name"));
  return name == "float16" ? f(atrousx::Half{}) : f(float{});
}

py::array forward(const py::array& input, const Pair& size, bool align_corners, bool channels_last,
                  unsigned int blocks) {
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    constexpr int kFull = atrousx::kFullVector<T>;
    emulator::Tensor4<T> in(input, channels_last);
    emulator::Tensor4<T> out({in.size(0), in.size(1), size[0], size[1]}, channels_last);
    const Layout<T> layout(in, channels_last);
    if (size[1] * layout.pixel % kFull == 0)
      run_forward<kFull>(in, out, layout, align_corners, blocks);
    else
      run_forward<1>(in, out, layout, align_corners, blocks);
    return out.to_array(input.dtype());
  };
  // NumPy has no bfloat16: uint16 holds its bits.
  const bool bits = std::string(py::str(input.dtype().attr("name"))) == "uint16";
  return bits ? run(atrousx::BFloat16{}) : dispatch(input, run);
}

template <bool kShort, int kVector, typename T>
void run_backward(emulator::Tensor4<T>& out, emulator::Tensor4<T>& in, const Layout<T>& layout,
                  bool align_corners, unsigned int blocks, std::optional<double> factor) {
  constexpr int kNumbers = atrousx::kGatherNumbers<T, kShort, kVector>;
  const auto plan =
      make_plan<T>({in.size(2), in.size(3)}, {out.size(2), out.size(3)}, align_corners, factor);
  const auto jobs = atrousx::GatherJobs::make(layout.maps, layout.pixel, plan, kVector, kNumbers);
  if (jobs.columns == 0) throw py::value_error("too many gradients for a block");
  emulator::launch(blocks, atrousx::kGatherThreads, 0,
                   atrousx::upsample_bilinear2d_backward_kernel<T, kVector, kNumbers>, out.data(),
                   in.data(), jobs, layout.pixel, plan);
}

// `pixels`: "short", "long", or "far" for maps that grow beyond both.
py::array backward(const py::array& grad_output, const Pair& size, bool align_corners,
                   bool channels_last, const std::string& pixels, unsigned int blocks,
                   std::optional<double> factor) {
  return dispatch(grad_output, [&](auto zero) {
    using T = decltype(zero);
    constexpr int kFull = atrousx::kFullVector<T>;
    emulator::Tensor4<T> out(grad_output, channels_last);
    emulator::Tensor4<T> in({out.size(0), out.size(1), size[0], size[1]}, channels_last);
    const Layout<T> layout(out, channels_last);
    const bool vectors =
        (pixels == "long" ? layout.pixel : out.size(3) * layout.pixel) % kFull == 0;
    if (pixels == "far")
      emulator::launch(blocks, 64, 0, atrousx::upsample_bilinear2d_backward_far_kernel<T>,
                       out.data(), in.data(), layout.maps, layout.pixel,
                       make_plan<T>(size, {out.size(2), out.size(3)}, align_corners, factor));
    else if (pixels == "short" && vectors)
      run_backward<true, kFull>(out, in, layout, align_corners, blocks, factor);
    else if (pixels == "short")
      run_backward<true, 1>(out, in, layout, align_corners, blocks, factor);
    else if (vectors)
      run_backward<false, kFull>(out, in, layout, align_corners, blocks, factor);
    else
      run_backward<false, 1>(out, in, layout, align_corners, blocks, factor);
    return in.to_array(grad_output.dtype());
  });
}

}  // namespace

void bind_upsample_bilinear2d(py::module_& m) {
  m.def("upsample_bilinear2d_forward", &forward);
  m.def("upsample_bilinear2d_backward", &backward, py::arg("grad_output"), py::arg("size"),
        py::arg("align_corners"), py::arg("channels_last"), py::arg("pixels"), py::arg("blocks"),
        py::arg("factor") = std::nullopt);
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
}
