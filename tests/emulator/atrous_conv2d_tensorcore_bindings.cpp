// Host-executed tensor-core kernels of atrous_conv2d, packing included, as the launchers run them.
#include <optional>

#include "atrous_conv2d/atrous_conv2d_tensorcore_grad_weight_kernels.cuh"
#include "atrous_conv2d/atrous_conv2d_tensorcore_kernels.cuh"
#include "convolutions.h"
#include "tensorcore_operands.h"

namespace {

namespace py = pybind11;
using atrousx::ConvGeometry;
using atrousx::GatherShape;
using atrousx::kVector;
using atrousx::Strides4;
using atrousx::WeightStrides;
using emulator::Buffer;
using emulator::dispatch_tensorcore;
using emulator::geometry;
using emulator::map_operand;
using emulator::Operand;
using emulator::Pair;
using emulator::sizes;
using emulator::Tensor4;
using emulator::weight_operand;

struct Options : emulator::ConvOptions {
  int columns;  // of a tile
};

template <typename T>
Operand<T, Strides4> map_operand(Tensor4<T>& t, const Options& o) {
  return map_operand(t.data(), {t.size(0), o.groups, t.size(1) / o.groups, t.size(2), t.size(3)},
                     t.strides(), o.blocks);
}

// A map of any strides in `values`, which start `offset` before it, as [N, H, W, groups, whole
// vectors]; empty where it is read where it lies.
py::array pack_map(const py::array& values, int64_t offset, const std::array<int64_t, 4>& size,
                   const std::array<int64_t, 4>& strides, int64_t groups) {
  return dispatch_tensorcore(values, [&](auto zero) {
    using T = decltype(zero);
    Buffer<T> buffer(values);
    const atrousx::MapSize map{size[0], groups, size[1] / groups, size[2], size[3]};
    const auto operand = map_operand(buffer.data() + offset, map,
                                     {strides[0], strides[1], strides[2], strides[3]}, 2);
    if (!operand.packed) return py::array(values.dtype(), std::vector<py::ssize_t>{0});
    return operand.packed->to_array(
        {size[0], size[2], size[3], groups, atrousx::whole_vectors(map.channels, kVector<T>)},
        values.dtype());
  });
}

template <typename T, int kColumns>
void launch_gather(const GatherShape& shape, const T* source, const T* weight,
                   const atrousx::Epilogue<T>& epilogue, Tensor4<T>& destination,
                   const atrousx::TensorGatherStrides& strides, unsigned int blocks) {
  for (const auto& plan :
       atrousx::tap_plans(shape.rows, shape.columns, shape.batch, atrousx::kTensorLanes))
    emulator::launch(blocks, atrousx::kTensorThreads, atrousx::kTensorSharedBytes<kColumns>,
                     atrousx::atrous_conv2d_gather_tensorcore_kernel<T, kColumns>, source, weight,
                     epilogue, destination.data(), plan, shape, strides);
}

template <typename T>
void gather(GatherShape shape, Tensor4<T>& source, Tensor4<T>& weight, const WeightStrides& from,
            const atrousx::Epilogue<T>& epilogue, Tensor4<T>& destination, const Options& o) {
  const auto map = map_operand(source, o);
  const auto by = weight_operand(
      weight, {shape.groups, shape.outer, shape.inner, shape.rows.taps, shape.columns.taps}, from,
      o.blocks);
  shape.inner = atrousx::whole_vectors(shape.inner, kVector<T>);
  const atrousx::TensorGatherStrides strides{map.strides, shape.inner, by.strides,
                                             destination.strides()};
  const auto launch = o.columns == 128  ? launch_gather<T, 128>
                      : o.columns == 64 ? launch_gather<T, 64>
                                        : launch_gather<T, 32>;
  launch(shape, map.data, by.data, epilogue, destination, strides, o.blocks);
}

py::array forward(const py::array& input, const py::array& weight,
                  const std::optional<py::array>& bias, const std::optional<py::array>& residual,
                  bool relu, const Pair& size, const Options& o) {
  return dispatch_tensorcore(input, [&](auto zero) {
    using T = decltype(zero);
    Tensor4<T> x(input, o.channels_last), w(weight, o.channels_last);
    Tensor4<T> y({x.size(0), w.size(0), size[0], size[1]}, o.channels_last);
    emulator::Bias<T> b(bias);
    const ConvGeometry g = geometry(sizes(x), sizes(w), size, o);
    atrousx::Epilogue<T> epilogue{b.data()};
    epilogue.relu = relu;
    // The residual lies in the other layout, so that its strides are its own.
    std::optional<Tensor4<T>> added;
    if (residual) {
      added.emplace(*residual, !o.channels_last);
      epilogue.residual = added->data();
      epilogue.residual_strides = added->strides();
    }
    gather<T>(g.forward(), x, w, g.forward_weight(w.strides()), epilogue, y, o);
    return y.to_array(input.dtype());
  });
}

py::array backward_input(const py::array& grad_output, const py::array& weight, const Pair& size,
                         const Options& o) {
  return dispatch_tensorcore(grad_output, [&](auto zero) {
    using T = decltype(zero);
    Tensor4<T> y(grad_output, o.channels_last), w(weight, o.channels_last);
    Tensor4<T> x({y.size(0), w.size(1) * o.groups, size[0], size[1]}, o.channels_last);
    const ConvGeometry g = geometry(sizes(x), sizes(w), {y.size(2), y.size(3)}, o);
    gather<T>(g.grad_input(), y, w, g.grad_input_weight(w.strides()), {}, x, o);
    return x.to_array(grad_output.dtype());
  });
}

py::array backward_weight(const py::array& grad_output, const py::array& input, const Pair& taps,
                          int64_t splits, const Options& o) {
  return dispatch_tensorcore(grad_output, [&](auto zero) {
    using T = decltype(zero);
    return emulator::sum_of_parts<T>(
        grad_output, input, taps, splits, o.channels_last, o,
        [&](const GatherShape& shape, Tensor4<T>& y, Tensor4<T>& x, float* parts) {
          const auto grad = map_operand(y, o), from = map_operand(x, o);
          const atrousx::TensorGradWeightStrides strides{
              grad.strides, from.strides, atrousx::whole_vectors(shape.outer, kVector<T>),
              atrousx::whole_vectors(shape.inner, kVector<T>)};
          emulator::launch(o.blocks, atrousx::kTensorThreads,
                           atrousx::kTensorSharedBytes<atrousx::kTensorLanes>,
                           atrousx::atrous_conv2d_grad_weight_tensorcore_kernel<T>, grad.data,
                           from.data, parts, splits, shape, strides);
        });
  });
}

}  // namespace

void bind_atrous_conv2d_tensorcore(py::module_& m) {
  py::class_<Options>(m, "TensorcoreOptions")
      .def(py::init([](const Pair& stride, const Pair& padding, const Pair& dilation,
                       int64_t groups, bool channels_last, int columns, unsigned int blocks) {
        return Options{{stride, padding, dilation, groups, channels_last, blocks}, columns};
      }));
  m.def("tensorcore_forward", &forward);
  m.def("tensorcore_backward_input", &backward_input);
  m.def("tensorcore_backward_weight", &backward_weight);
  m.def("tensorcore_pack_map", &pack_map);
}
