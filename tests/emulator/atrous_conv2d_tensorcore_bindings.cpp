// Host-executed tensor-core kernels of atrous_conv2d, packing included, as the launchers run them.
#include <optional>

#include "arrays.h"
#include "atrous_conv2d/atrous_conv2d_tensorcore_grad_weight_kernels.cuh"
#include "atrous_conv2d/atrous_conv2d_tensorcore_kernels.cuh"
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
using emulator::map_operand;
using emulator::Operand;
using emulator::Tensor4;
using emulator::weight_operand;
using Pair = std::array<int64_t, 2>;

// blocks: size of the grid, less than there are jobs, so that blocks take several.
struct Options {
  Pair stride, padding, dilation;
  int64_t groups;
  bool channels_last;
  int columns;  // of a tile
  unsigned int blocks;
};

ConvGeometry geometry(const std::array<int64_t, 4>& input, const std::array<int64_t, 4>& weight,
                      const Pair& output, const Options& o) {
  return {input[0],     input[1],     input[2],      input[3],     weight[0],   weight[2],
          weight[3],    o.groups,     output[0],     output[1],    o.stride[0], o.stride[1],
          o.padding[0], o.padding[1], o.dilation[0], o.dilation[1]};
}

template <typename T>
std::array<int64_t, 4> sizes(Tensor4<T>& t) {
  return {t.size(0), t.size(1), t.size(2), t.size(3)};
}

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
    Buffer<T> b = bias ? Buffer<T>(*bias) : Buffer<T>(size_t{0});
    const ConvGeometry g = geometry(sizes(x), sizes(w), size, o);
    atrousx::Epilogue<T> epilogue{bias ? b.data() : nullptr};
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
    Tensor4<T> y(grad_output, o.channels_last), x(input, o.channels_last);
    Tensor4<T> w({y.size(1), x.size(1) / o.groups, taps[0], taps[1]}, o.channels_last);
    const GatherShape shape = geometry(sizes(x), sizes(w), {y.size(2), y.size(3)}, o).forward();
    const auto grad = map_operand(y, o), from = map_operand(x, o);
    const atrousx::TensorGradWeightStrides strides{grad.strides, from.strides,
                                                   atrousx::whole_vectors(shape.outer, kVector<T>),
                                                   atrousx::whole_vectors(shape.inner, kVector<T>)};
    Buffer<float> parts(splits * w.size(0) * w.size(1) * taps[0] * taps[1]);
    emulator::launch(o.blocks, atrousx::kTensorThreads,
                     atrousx::kTensorSharedBytes<atrousx::kTensorLanes>,
                     atrousx::atrous_conv2d_grad_weight_tensorcore_kernel<T>, grad.data, from.data,
                     parts.data(), splits, shape, strides);
    emulator::launch(o.blocks, 64, 0, atrousx::atrous_conv2d_sum_parts_kernel<T>, parts.data(),
                     w.data(), splits, shape, w.strides());
    return w.to_array(grad_output.dtype());
  });
}

}  // namespace

void bind_atrous_conv2d_tensorcore(py::module_& m) {
  py::class_<Options>(m, "TensorcoreOptions")
      .def(py::init([](const Pair& stride, const Pair& padding, const Pair& dilation,
                       int64_t groups, bool channels_last, int columns, unsigned int blocks) {
        return Options{stride, padding, dilation, groups, channels_last, columns, blocks};
      }));
  m.def("tensorcore_forward", &forward);
  m.def("tensorcore_backward_input", &backward_input);
  m.def("tensorcore_backward_weight", &backward_weight);
  m.def("tensorcore_pack_map", &pack_map);
}
