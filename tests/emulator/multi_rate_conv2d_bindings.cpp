// Host-executed passes of multi_rate_conv2d, in the order of branches.h.
#include "multi_rate_conv2d/plan.h"

#include <deque>

#include "arrays.h"
#include "atrous_conv2d/atrous_conv2d_direct_kernels.cuh"
#include "atrous_conv2d/atrous_conv2d_kernels.cuh"
#include "multi_rate_conv2d/multi_rate_conv2d_tensorcore_kernels.cuh"
#include "tensorcore_operands.h"

namespace {

namespace py = pybind11;
using atrousx::ConvGeometry;
using atrousx::Epilogue;
using atrousx::RatePass;
using emulator::Tensor4;

template <typename T>
void run(const RatePass& pass, Tensor4<T>& input, Tensor4<T>& weight, const Epilogue<T>& epilogue,
         Tensor4<T>& output, bool direct) {
  const T* from = weight.data() + weight.strides().offset(0, 0, pass.first_row, pass.first_column);
  if (direct)
    return emulator::launch(2, 64, 0, atrousx::atrous_conv2d_gather_direct_kernel<T>, input.data(),
                            from, epilogue, output.data(), pass.shape, input.strides(),
                            pass.weight_strides, output.strides());
  for (const auto& plan :
       atrousx::tap_plans(pass.shape.rows, pass.shape.columns, pass.shape.batch, atrousx::kTile))
    emulator::launch(2, atrousx::kProductThreads, 0, atrousx::atrous_conv2d_gather_kernel<T>,
                     input.data(), from, epilogue, output.data(), plan, pass.shape, input.strides(),
                     pass.weight_strides, output.strides());
}

// relu(residual + every tap of the weight but its centre): the residual is added by the first pass,
// the others add to the output itself.
py::array off_centre(const py::array& input, const py::array& weight, const py::array& residual,
                     int64_t dilation, bool relu, bool channels_last, bool direct) {
  return emulator::dispatch_floating(input, [&](auto zero) {
    using T = decltype(zero);
    // The residual comes in the other memory format.
    Tensor4<T> x(input, channels_last), w(weight, false), r(residual, !channels_last);
    Tensor4<T> y({x.size(0), w.size(0), x.size(2), x.size(3)}, channels_last);
    const int64_t rows = dilation * (w.size(2) / 2), columns = dilation * (w.size(3) / 2);
    const atrousx::ConvGeometry g{x.size(0), x.size(1), x.size(2), x.size(3), w.size(0), w.size(2),
                                  w.size(3), 1,         x.size(2), x.size(3), 1,         1,
                                  rows,      columns,   dilation,  dilation};
    const auto passes = atrousx::off_centre_passes(g, w.strides());
    for (size_t i = 0; i < passes.size(); ++i) {
      Epilogue<T> epilogue{nullptr, r.data(), r.strides(), relu && i + 1 == passes.size()};
      if (i > 0) epilogue = {nullptr, y.data(), y.strides(), epilogue.relu};
      run(passes[i], x, w, epilogue, y, direct);
    }
    return y.to_array(input.dtype());
  });
}

template <typename T>
ConvGeometry branch(Tensor4<T>& x, Tensor4<T>& w, int64_t dilation) {
  const int64_t rows = dilation * (w.size(2) / 2), columns = dilation * (w.size(3) / 2);
  return {x.size(0), x.size(1), x.size(2), x.size(3), w.size(0), w.size(2), w.size(3), 1,
          x.size(2), x.size(3), 1,         1,         rows,      columns,   dilation,  dilation};
}

// The sum of branches on tensor cores, as multi_rate_conv2d_cuda.cu launches it; `centre` is the
// sum of their centre taps, [K, C, 1, 1].
py::array sum(const py::array& input, const std::vector<py::array>& weights,
              const py::array& centre, const py::array& bias, const std::vector<int64_t>& dilations,
              bool relu, bool channels_last, unsigned int blocks) {
  return emulator::dispatch_tensorcore(input, [&](auto zero) {
    using T = decltype(zero);
    Tensor4<T> x(input, channels_last);
    emulator::Buffer<T> b(bias);
    std::deque<Tensor4<T>> filters;
    std::deque<emulator::Operand<T, atrousx::WeightStrides>> operands;
    std::vector<RatePass> passes;
    atrousx::UnionWeights<T> union_weights{};
    const auto add = [&](const py::array& weight, int64_t dilation, bool is_centre) {
      Tensor4<T>& w = filters.emplace_back(weight, false);
      const ConvGeometry g = branch(x, w, dilation);
      const auto& operand = operands.emplace_back(
          emulator::weight_operand(w, {1, g.outputs, g.channels, g.kernel_h, g.kernel_w},
                                   g.forward_weight(w.strides()), blocks));
      const atrousx::Strides4 s{operand.strides.outer, 1, operand.strides.h, operand.strides.w};
      const auto added = is_centre ? std::vector{atrousx::rate_pass(g, s, {0, 1, 1}, {0, 1, 1})}
                                   : atrousx::off_centre_passes(g, s);
      for (const RatePass& pass : added) {
        union_weights.passes[passes.size()] = {
            operand.data + s.offset(0, 0, pass.first_row, pass.first_column), s.n,
            pass.weight_strides.h, pass.weight_strides.w};
        passes.push_back(pass);
      }
    };
    add(centre, 1, true);
    for (size_t i = 0; i < weights.size(); ++i) add(weights[i], dilations[i], false);
    const auto plan = atrousx::union_plan(passes, x.size(0), atrousx::kTensorLanes);
    if (!plan) throw std::runtime_error("no plan for the union");
    const auto map = emulator::map_operand(
        x.data(), {x.size(0), 1, x.size(1), x.size(2), x.size(3)}, x.strides(), blocks);
    const int64_t outputs = filters[0].size(0);
    Tensor4<T> y({x.size(0), outputs, x.size(2), x.size(3)}, channels_last);
    Epilogue<T> epilogue{b.data()};
    epilogue.relu = relu;
    const auto kernel = outputs <= 32 ? atrousx::multi_rate_sum_tensorcore_kernel<T, 32>
                                      : atrousx::multi_rate_sum_tensorcore_kernel<T, 64>;
    const int bytes =
        outputs <= 32 ? atrousx::kTensorSharedBytes<32> : atrousx::kTensorSharedBytes<64>;
    emulator::launch(blocks, atrousx::kTensorThreads, bytes, kernel, map.data, union_weights,
                     epilogue, y.data(), *plan, x.size(0), outputs,
                     atrousx::whole_vectors(x.size(1), atrousx::kVector<T>), map.strides,
                     y.strides());
    return y.to_array(input.dtype());
  });
}

// Of every tile of a union: (row, column, rows, columns, first, pixels); of branches of `taps` rows
// and columns. Empty where there is no plan.
py::list union_tiles(const std::array<int64_t, 3>& size, const std::vector<int64_t>& taps,
                     const std::vector<int64_t>& dilations, int64_t tile_pixels) {
  std::vector<RatePass> passes;
  for (size_t i = 0; i < taps.size(); ++i) {
    const int64_t d = dilations[i], side = d * (taps[i] / 2);
    const ConvGeometry g{size[0], 1,       size[1], size[2], 1,    taps[i], taps[i], 1,
                         size[1], size[2], 1,       1,       side, side,    d,       d};
    for (const RatePass& pass : atrousx::off_centre_passes(g, {1, 1, 1, 1})) passes.push_back(pass);
  }
  const auto plan = atrousx::union_plan(passes, size[0], tile_pixels);
  py::list result;
  for (int t = 0; plan && t < plan->tiles(); ++t) {
    const atrousx::UnionTile tile = atrousx::union_tile(*plan, t, size[0]);
    result.append(
        py::make_tuple(tile.row, tile.column, tile.rows, tile.columns, tile.first, tile.pixels));
  }
  return result;
}

}  // namespace

void bind_multi_rate_conv2d(py::module_& m) {
  m.def("multi_rate_off_centre", &off_centre);
  m.def("multi_rate_sum", &sum);
  m.def("multi_rate_union_tiles", &union_tiles);
}
