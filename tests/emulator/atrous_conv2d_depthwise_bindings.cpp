// Host-executed depthwise kernels of atrous_conv2d.
#include <optional>

#include "atrous_conv2d/atrous_conv2d_depthwise_grad_weight_kernels.cuh"
#include "atrous_conv2d/atrous_conv2d_depthwise_kernels.cuh"
#include "convolutions.h"

namespace {

namespace py = pybind11;
using atrousx::Accumulate;
using atrousx::ConvGeometry;
using atrousx::DepthwiseLayout;
using atrousx::GatherShape;
using emulator::Buffer;
using emulator::geometry;
using emulator::Pair;
using emulator::sizes;
using emulator::Tensor4;

// planes: of a block; parts: into how many a job's pixels, or a grad-weight, are split.
struct Options : emulator::ConvOptions {
  int64_t planes, parts;
};

emulator::ConvOptions grouped(emulator::ConvOptions o, int64_t groups) {
  o.groups = groups;
  return o;
}

// Of x, there being a group for each channel.
template <typename T>
ConvGeometry depthwise(const Tensor4<T>& x, const Tensor4<T>& w, const Tensor4<T>& y,
                       const Options& o) {
  return geometry(sizes(x), sizes(w), {y.size(2), y.size(3)}, grouped(o, x.size(1)));
}

template <typename T>
atrousx::DenseMap dense_map(Tensor4<T>& t) {
  return {t.size(0), t.size(1), t.size(2), t.size(3), t.strides(), t.data()};
}

// Fails where the launchers would not choose this kernel.
template <typename T>
void check_layout(Tensor4<T>& one, Tensor4<T>& other, const Options& o) {
  const auto expected = o.channels_last ? DepthwiseLayout::kChannelsLast : DepthwiseLayout::kPlanes;
  if (depthwise_layout(dense_map(one), dense_map(other), atrousx::kDepthwiseVector<T>) != expected)
    throw std::runtime_error("not the layout of a depthwise kernel");
}

template <typename T>
void gather(const GatherShape& shape, Tensor4<T>& source, Tensor4<T>& weight,
            const atrousx::WeightStrides& weight_strides, const atrousx::Epilogue<T>& epilogue,
            Tensor4<T>& destination, const Options& o) {
  check_layout(source, destination, o);
  if (o.channels_last)
    return emulator::launch(o.blocks, atrousx::kDepthwiseThreads,
                            atrousx::depthwise_shared_bytes<T>(shape),
                            atrousx::atrous_conv2d_depthwise_kernel<T>, source.data(),
                            weight.data(), epilogue, destination.data(), o.parts, shape,
                            source.strides(), weight_strides, destination.strides());
  const auto kernel =
      o.planes == 1 ? atrousx::atrous_conv2d_depthwise_planes_kernel<T, 1>
                    : atrousx::atrous_conv2d_depthwise_planes_kernel<T, atrousx::kMostPlanes<T>>;
  emulator::launch(
      o.blocks, atrousx::kPlaneThreads,
      atrousx::planes_shared_bytes<T>(shape, o.planes == 1 ? 1 : atrousx::kMostPlanes<T>), kernel,
      source.data(), weight.data(), epilogue, destination.data(), shape, weight_strides);
}

py::array forward(const py::array& input, const py::array& weight,
                  const std::optional<py::array>& bias, const std::optional<py::array>& residual,
                  bool relu, const Pair& size, const Options& o) {
  return emulator::dispatch_floating(input, [&](auto zero) {
    using T = decltype(zero);
    Tensor4<T> x(input, o.channels_last), w(weight, false);
    Tensor4<T> y({x.size(0), x.size(1), size[0], size[1]}, o.channels_last);
    emulator::Bias<T> b(bias);
    atrousx::Epilogue<T> epilogue{b.data()};
    epilogue.relu = relu;
    // The residual lies in the other layout, so that its strides are its own.
    std::optional<Tensor4<T>> added;
    if (residual) {
      added.emplace(*residual, !o.channels_last);
      epilogue.residual = added->data();
      epilogue.residual_strides = added->strides();
    }
    const ConvGeometry g = depthwise(x, w, y, o);
    gather(g.forward(), x, w, g.forward_weight(w.strides()), epilogue, y, o);
    return y.to_array(input.dtype());
  });
}

py::array backward_input(const py::array& grad_output, const py::array& weight, const Pair& size,
                         const Options& o) {
  return emulator::dispatch_floating(grad_output, [&](auto zero) {
    using T = decltype(zero);
    Tensor4<T> y(grad_output, o.channels_last), w(weight, true);
    Tensor4<T> x({y.size(0), y.size(1), size[0], size[1]}, o.channels_last);
    const ConvGeometry g = depthwise(x, w, y, o);
    gather(g.grad_input(), y, w, g.grad_input_weight(w.strides()), atrousx::Epilogue<T>{}, x, o);
    return x.to_array(grad_output.dtype());
  });
}

template <typename T, int kPlanes>
void grad_weight_planes(const GatherShape& shape, Tensor4<T>& y, Tensor4<T>& x,
                        Accumulate<T>* parts, const Options& o) {
  emulator::launch(o.blocks, atrousx::kPlaneThreads,
                   atrousx::planes_grad_weight_shared_bytes<T>(shape, kPlanes),
                   atrousx::atrous_conv2d_depthwise_planes_grad_weight_kernel<T, kPlanes>, y.data(),
                   x.data(), parts, o.parts, shape);
}

py::array backward_weight(const py::array& grad_output, const py::array& input, const Pair& taps,
                          const Options& o) {
  return emulator::dispatch_floating(grad_output, [&](auto zero) {
    using T = decltype(zero);
    return emulator::sum_of_parts<T>(
        grad_output, input, taps, o.parts, false, grouped(o, input.shape(1)),
        [&](const GatherShape& shape, Tensor4<T>& y, Tensor4<T>& x, Accumulate<T>* parts) {
          check_layout(y, x, o);
          if (o.channels_last)
            emulator::launch(o.blocks, atrousx::kPlaneThreads,
                             atrousx::depthwise_grad_weight_shared_bytes<T>(shape),
                             atrousx::atrous_conv2d_depthwise_grad_weight_kernel<T>, y.data(),
                             x.data(), parts, o.parts, shape, y.strides(), x.strides());
          else if (o.planes == 1)
            grad_weight_planes<T, 1>(shape, y, x, parts, o);
          else
            grad_weight_planes<T, atrousx::kMostPlanes<T>>(shape, y, x, parts, o);
        });
  });
}

}  // namespace

void bind_atrous_conv2d_depthwise(py::module_& m) {
  py::class_<Options>(m, "DepthwiseOptions")
      .def(py::init([](const Pair& stride, const Pair& padding, const Pair& dilation,
                       bool channels_last, int64_t planes, int64_t parts, unsigned int blocks) {
        return Options{{stride, padding, dilation, 0, channels_last, blocks}, planes, parts};
      }));
  // Whether the kernels can count the pixels of a batch of one-row maps and a filter of one tap.
  m.def("depthwise_is_countable", [](int64_t batch, int64_t width) {
    const auto rows = atrousx::TapAxis::forward(1, 1, 1, 1, 0, 1);
    const auto columns = atrousx::TapAxis::forward(width, width, 1, 1, 0, 1);
    return atrousx::is_countable({rows, columns, batch, 8, 1, 1});
  });
  m.def("depthwise_forward", &forward);
  m.def("depthwise_backward_input", &backward_input);
  m.def("depthwise_backward_weight", &backward_weight);
}
