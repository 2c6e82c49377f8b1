// Host-executed kernels and plan of atrous_conv2d.
#include "atrous_conv2d/atrous_conv2d_direct_kernels.cuh"
#include "atrous_conv2d/plan_cache.h"
#include "convolutions.h"

namespace {

namespace py = pybind11;
using atrousx::Accumulate;
using atrousx::ConvGeometry;
using atrousx::GatherShape;
using atrousx::TapAxis;
using emulator::geometry;
using emulator::Pair;
using emulator::sizes;
using emulator::Tensor4;

// direct: the kernel of narrow groups whatever the width.
struct Options : emulator::ConvOptions {
  bool direct;
};

template <typename T>
void gather(const GatherShape& shape, Tensor4<T>& source, T* weight,
            const atrousx::WeightStrides& weight_strides, const atrousx::Epilogue<T>& epilogue,
            Tensor4<T>& destination, const Options& o) {
  if (o.direct)
    return emulator::launch(o.blocks, 64, 0, atrousx::atrous_conv2d_gather_direct_kernel<T>,
                            source.data(), weight, epilogue, destination.data(), shape,
                            source.strides(), weight_strides, destination.strides());
  for (const auto& plan :
       atrousx::tap_plans(shape.rows, shape.columns, shape.batch, atrousx::kTile))
    emulator::launch(o.blocks, atrousx::kProductThreads, 0, atrousx::atrous_conv2d_gather_kernel<T>,
                     source.data(), weight, epilogue, destination.data(), plan, shape,
                     source.strides(), weight_strides, destination.strides());
}

py::array forward(const py::array& input, const py::array& weight,
                  const std::optional<py::array>& bias, const Pair& size, const Options& o) {
  return emulator::dispatch_floating(input, [&](auto zero) {
    using T = decltype(zero);
    Tensor4<T> x(input, o.channels_last), w(weight, o.channels_last);
    Tensor4<T> y({x.size(0), w.size(0), size[0], size[1]}, o.channels_last);
    emulator::Bias<T> b(bias);
    const ConvGeometry g = geometry(sizes(x), sizes(w), size, o);
    gather(g.forward(), x, w.data(), g.forward_weight(w.strides()), atrousx::Epilogue<T>{b.data()},
           y, o);
    return y.to_array(input.dtype());
  });
}

py::array backward_input(const py::array& grad_output, const py::array& weight, const Pair& size,
                         const Options& o) {
  return emulator::dispatch_floating(grad_output, [&](auto zero) {
    using T = decltype(zero);
    Tensor4<T> y(grad_output, o.channels_last), w(weight, o.channels_last);
    Tensor4<T> x({y.size(0), w.size(1) * o.groups, size[0], size[1]}, o.channels_last);
    const ConvGeometry g = geometry(sizes(x), sizes(w), {y.size(2), y.size(3)}, o);
    gather(g.grad_input(), y, w.data(), g.grad_input_weight(w.strides()), atrousx::Epilogue<T>{}, x,
           o);
    return x.to_array(grad_output.dtype());
  });
}

py::array backward_weight(const py::array& grad_output, const py::array& input, const Pair& taps,
                          int64_t splits, const Options& o) {
  return emulator::dispatch_floating(grad_output, [&](auto zero) {
    using T = decltype(zero);
    if (o.direct) {
      Tensor4<T> y(grad_output, o.channels_last), x(input, o.channels_last);
      Tensor4<T> w({y.size(1), x.size(1) / o.groups, taps[0], taps[1]}, o.channels_last);
      const GatherShape shape = geometry(sizes(x), sizes(w), {y.size(2), y.size(3)}, o).forward();
      emulator::launch(o.blocks, 32, 0, atrousx::atrous_conv2d_grad_weight_direct_kernel<T>,
                       y.data(), x.data(), w.data(), shape, y.strides(), x.strides(), w.strides());
      return w.to_array(grad_output.dtype());
    }
    return emulator::sum_of_parts<T>(
        grad_output, input, taps, splits, o.channels_last, o,
        [&](const GatherShape& shape, Tensor4<T>& y, Tensor4<T>& x, Accumulate<T>* parts) {
          emulator::launch(o.blocks, atrousx::kProductThreads, 0,
                           atrousx::atrous_conv2d_grad_weight_kernel<T>, y.data(), x.data(), parts,
                           splits, shape, y.strides(), x.strides());
        });
  });
}

py::tuple to_tuple(const atrousx::Progression& p) {
  return py::make_tuple(p.first, p.step, p.count);
}

// (destinations, taps, source_first, source_per_destination, source_per_tap) of every class.
py::list classes(const TapAxis& axis) {
  py::list result;
  for (const auto& c : atrousx::axis_classes(axis))
    result.append(py::make_tuple(to_tuple(c.destinations), to_tuple(c.taps), c.source_first,
                                 c.source_per_destination, c.source_per_tap));
  return result;
}

// Every tile of every plan: its live taps and, per pixel, (destination offset, source offsets) for
// the strides given.
py::list tiles(const TapAxis& rows, const TapAxis& columns, int64_t batch, int64_t tile_pixels,
               const std::array<int64_t, 4>& ds, const std::array<int64_t, 4>& ss) {
  const atrousx::Strides4 to{ds[0], ds[1], ds[2], ds[3]}, from{ss[0], ss[1], ss[2], ss[3]};
  py::list result;
  for (const auto& plan : atrousx::tap_plans(rows, columns, batch, tile_pixels))
    for (int64_t t = 0; t < plan.tiles(); ++t) {
      const atrousx::Tile tile = plan.tile(t, batch);
      py::list taps, pixels;
      for (int64_t i = 0; i < tile.rows.taps.count; ++i)
        for (int64_t j = 0; j < tile.columns.taps.count; ++j)
          taps.append(py::make_tuple(tile.rows.taps.at(i), tile.columns.taps.at(j)));
      for (int64_t p = 0; p < tile.pixels; ++p) {
        const auto pixel = tile.pixel(p);
        py::list sources;
        for (int64_t i = 0; i < tile.rows.taps.count; ++i)
          for (int64_t j = 0; j < tile.columns.taps.count; ++j)
            sources.append(tile.source_offset(pixel, from) + tile.tap_offset(i, j, from));
        pixels.append(py::make_tuple(tile.destination_offset(pixel, to), sources));
      }
      result.append(py::make_tuple(taps, pixels));
    }
  return result;
}

void bind_plan(py::module_& m) {
  py::class_<TapAxis>(m, "TapAxis")
      .def_static("forward", &TapAxis::forward)
      .def_static("grad_input", &TapAxis::grad_input)
      .def("source", &TapAxis::source)
      .def("span", [](const TapAxis& axis, int64_t tap) {
        const atrousx::TapSpan span = axis.span(tap);
        return py::make_tuple(to_tuple(span.destinations), span.source_first, span.source_step);
      });
  m.def("conv_axis_classes", &classes);
  m.def("conv_tiles", &tiles);
  const auto count = [](const atrousx::TapPlans& plans) {
    int64_t tiles = 0;
    for (const auto& plan : plans) tiles += plan.tiles();
    return tiles;
  };
  m.def("conv_tile_count",
        [=](const TapAxis& rows, const TapAxis& columns, int64_t batch, int64_t tile_pixels) {
          return count(atrousx::tap_plans(rows, columns, batch, tile_pixels));
        });
  m.def(
      "conv_cached_tile_count",
      [=](const TapAxis& rows, const TapAxis& columns, int64_t batch, int64_t tile_pixels) {
        return count(*atrousx::cached_tap_plans(rows, columns, batch, tile_pixels));
      },
      py::call_guard<py::gil_scoped_release>());
  m.def("conv_cached_plans", [] { return atrousx::tap_plan_cache().size(); });
  // (destination offset, offset of the first tap's source) of the last pixel of the last tile.
  m.def("conv_last_offsets", [](const TapAxis& rows, const TapAxis& columns, int64_t batch,
                                int64_t tile_pixels, const std::array<int64_t, 4>& ds,
                                const std::array<int64_t, 4>& ss) {
    const auto plan = atrousx::tap_plans(rows, columns, batch, tile_pixels).back();
    const atrousx::Tile tile = plan.tile(plan.tiles() - 1, batch);
    const auto pixel = tile.pixel(tile.pixels - 1);
    return std::array<int64_t, 2>{tile.destination_offset(pixel, {ds[0], ds[1], ds[2], ds[3]}),
                                  tile.source_offset(pixel, {ss[0], ss[1], ss[2], ss[3]})};
  });
  m.def("conv_grad_weight_splits", &atrousx::grad_weight_splits);
}

}  // namespace

void bind_atrous_conv2d(py::module_& m) {
  py::class_<Options>(m, "ConvOptions")
      .def(py::init([](const Pair& stride, const Pair& padding, const Pair& dilation,
                       int64_t groups, bool channels_last, bool direct, unsigned int blocks) {
        return Options{{stride, padding, dilation, groups, channels_last, blocks}, direct};
      }));
  m.def("atrous_conv2d_forward", &forward);
  m.def("atrous_conv2d_backward_input", &backward_input);
  m.def("atrous_conv2d_backward_weight", &backward_weight);
  bind_plan(m);
}
